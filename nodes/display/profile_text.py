"""A profile in words, and the budgets it makes of one density."""

from __future__ import annotations

from collections.abc import Mapping

from ...draftattn_core.method.policy import TAILS
from ...draftattn_core.run.budgets import Budgets, least_error
from ...draftattn_core.run.fingerprint import prompts_in_words
from ...draftattn_core.run.profile import Profile
from ..words import LINES, LIST, Joined, Words

BUCKETS = ("early", "middle", "late")


def budgets_of(profile: Profile, density: float) -> dict[str, Budgets]:
    """By expert, what a mean density of `density` becomes; the tails' work, which depends on the video, left out."""
    works = dict.fromkeys(TAILS, 0.0)
    return {expert: least_error(profile.complete(expert).table(works), density) for expert in profile.experts}


def profile_text(profile: Profile, budgets: Mapping[str, Budgets]) -> str:
    """Several lines: which model, what it was made from, under which settings, and how far heads differ."""
    asked = profile.conditions
    conditions = {
        "blocks": f"{asked.q_block}/{asked.k_block}",
        "order": asked.order,
        "rule": asked.rule,
        "tails": Joined(asked.tails, LIST),
    }
    lines: list[str] = [
        Words("profile_of", model=str(profile.fingerprint), made_from=profile.made_from()),
        Words("profile_measured_gains" if asked.gains else "profile_measured", **conditions),
    ]
    if profile.caveat:
        lines.append(Words("profile_careful", prompts=prompts_in_words(len(profile.prompts))))
    for expert, found in budgets.items():
        measured = profile.experts[expert].measured
        lines.append(Words("profile_expert", expert=expert, share=f"{float(measured.float().mean()):.0%}"))
        for bucket, name in enumerate(BUCKETS):
            density, errors = found.density[bucket], found.layer_errors()[bucket]
            lines.append(
                Words(
                    "profile_bucket",
                    bucket=Words(f"bucket_{name}"),
                    least=f"{density.min():.2f}",
                    most=f"{density.max():.2f}",
                    dense=int(found.dense[bucket].sum()),
                    least_error=f"{errors.min():.3f}",
                    most_error=f"{errors.max():.3f}",
                )
            )
    if profile.calibration is not None:
        lines.append(profile.calibration.made_from())
    return Joined(lines, LINES)
