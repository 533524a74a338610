"""Profiles made of made-up figures, for tests."""

from __future__ import annotations

from typing import Any

import torch

from draftattention.draftattn_core.method.policy import Policy
from draftattention.draftattn_core.run.error_curve import CURVE_DENSITIES, ErrorCurves
from draftattention.draftattn_core.run.fingerprint import Conditions, Fingerprint
from draftattention.draftattn_core.run.profile import Profile
from draftattention.draftattn_core.run.profile_recorder import ProfileRecorder

MODEL = Fingerprint("wan", layers=3, heads=4, head_size=16)
CONDITIONS = Conditions.of(
    Policy(), q_block=128, k_block=64, tile=None, order="tile", tails=("none", "linear1"), gains=True
)
MEASURED = "0123456789abcdef"


def curves(heads: int = 4, seed: int = 0, tail: int = 3) -> ErrorCurves:
    """Curves of one call with made-up figures; `tail` indexes `TAILS`."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.tensor(CURVE_DENSITIES).double().expand(heads, -1)
    squared = torch.rand(heads, len(CURVE_DENSITIES), generator=generator, dtype=torch.float64) + 0.01
    norms = torch.rand(heads, generator=generator, dtype=torch.float64) + 1
    gains = torch.randint(-8, 33, squared.shape, generator=generator) / 8
    return ErrorCurves(CURVE_DENSITIES, kept, squared, norms, torch.full((heads,), tail), gains.double())


def recorder(model: Fingerprint = MODEL) -> ProfileRecorder:
    return ProfileRecorder(model, CONDITIONS, CURVE_DENSITIES)


def a_profile(
    seed: int = 0,
    prompt: str | None = "a fox",
    expert: str = "main",
    layers: tuple[int, ...] = (0, 1, 2),
    tail: int = 3,
) -> Profile:
    """Of one run that was measured once in every bucket of some layers."""
    taking = recorder()
    for bucket, progress in enumerate((0.0, 0.3, 0.9)):
        for layer in layers:
            found = curves(seed=100 * seed + 10 * bucket + layer, tail=tail)
            taking.add(found, expert=expert, weights=MEASURED, progress=progress, layer=layer)
    made = taking.profile(prompt=prompt, grid="9x24x40", steps=20)
    assert made is not None
    return made


def same(a: Profile, b: Profile, exact: bool = True) -> bool:
    facts = ("fingerprint", "conditions", "densities", "runs", "prompts", "grids", "steps")
    limits: dict[str, Any] = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-3, "atol": 2e-3}
    if any(getattr(a, name) != getattr(b, name) for name in facts) or list(a.experts) != list(b.experts):
        return False
    for expert, figures in a.experts.items():
        if figures.weights != b.experts[expert].weights:
            return False
        for name, table in figures.tensors().items():
            torch.testing.assert_close(getattr(b.experts[expert], name), table, **limits)
    torch.testing.assert_close(dict(b.masks), dict(a.masks), rtol=0, atol=0)
    return True
