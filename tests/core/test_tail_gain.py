"""The tail gain: what pooled keys miss of their blocks' mass, and the factor the probe fits for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from draftattention.draftattn_core import Policy, draft_attention
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.geometry.layout import build_tables
from draftattention.draftattn_core.method.policy import head_gains
from draftattention.draftattn_core.method.tail.expand import make_tail
from draftattention.draftattn_core.method.tail.gain import LOG_GAINS, SplitRows, fit_gain, relative_error
from draftattention.draftattn_core.run.probe import gains_of, probe_errors
from tests.core.cases import make_request, relative, small_layout, smooth_qkv

LAYOUT = small_layout((4, 7, 9), 3, 4)


def test_normal_keys_outweigh_their_mean_key_by_half_the_variance_of_their_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(200_000, 16, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 0.6, 16)
    query = torch.randn(16, generator=generator, dtype=torch.float64)
    logits = keys @ query
    missed = torch.logsumexp(logits, 0) - torch.tensor(len(keys)).log() - logits.mean()
    assert 0.5 < missed < 3 and float(missed) == pytest.approx(float(logits.var() / 2), rel=0.03)


def test_a_gain_weighs_every_skipped_block_by_its_factor() -> None:
    q, k, v = smooth_qkv(LAYOUT, heads=3)
    plain = make_request(q, k, v, LAYOUT, Policy(density=0.2, tail="linear0"))
    gains = (0.0, 0.7, -0.4)
    tail = make_tail(k, v, plain.tables, "linear0", gain=gains)
    assert tail is not None and plain.tail is not None
    offset = tail.log_weight - plain.tail.log_weight
    torch.testing.assert_close(offset, torch.tensor(gains).double()[:, None].expand_as(offset), rtol=0, atol=1e-7)
    # A gain of log 2 is every pooled key twice.
    twice = replace(
        plain.tail,
        **{
            name: torch.cat([getattr(plain.tail, name)] * 2, dim=axis)
            for name, axis in (("log_weight", 1), ("k_mean", 2), ("v_mean", 2))
        },
    )
    video = plain.tables.k.video
    scores = plain.scale * q @ twice.k_mean.transpose(-1, -2) + twice.log_weight[None, :, None]
    single = plain.scale * q @ plain.tail.k_mean.transpose(-1, -2) + plain.tail.log_weight[None, :, None]
    gained = make_tail(k, v, plain.tables, "mean", gain=float(torch.tensor(2.0).log()))
    assert gained is not None and scores.shape[-1] == 2 * video
    shifted = single - plain.tail.log_weight[None, :, None] + gained.log_weight[None, :, None].double()
    torch.testing.assert_close(scores.logsumexp(-1), shifted.logsumexp(-1), rtol=0, atol=1e-6)


def test_the_probe_s_rows_with_a_gain_are_the_call_s_rows_with_it() -> None:
    q, k, v = smooth_qkv(LAYOUT, batch=2, heads=3)
    q = 3 * q
    request = make_request(q, k, v, LAYOUT, Policy(density=0.15, tail="linear1"))
    probe = probe_errors(request, tails=("none", "linear1"), rows=10**6, gains=True)
    assert set(probe.gains) == {"linear1"} and set(probe.fitted) == {"none", "linear1"}
    gains = gains_of(probe, ("linear1",) * 3)
    assert all(gain > 0 for gain in gains)
    policy = Policy(density=0.15, tail="linear1", tail_gain=gains)
    out = attend_reference(make_request(q, k, v, LAYOUT, policy))[:, :, probe.rows]
    torch.testing.assert_close(relative_error(out, probe.exact), probe.fitted["linear1"], rtol=1e-4, atol=0)
    assert (probe.fitted["linear1"].mean(0) < 0.97 * probe.errors["linear1"].mean(0)).all()
    assert torch.equal(probe.fitted["none"], probe.errors["none"])
    assert gains_of(probe, ("none", "linear1", "none"))[::2] == (0.0, 0.0)


def test_the_fit_finds_the_gain_that_was_taken_away_and_leaves_alone_what_it_cannot_mend() -> None:
    generator = torch.Generator().manual_seed(1)
    kept, skipped = (torch.randn(2, 4, 64, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    mass = 0.2 + 0.3 * torch.rand(2, 4, 64, 1, generator=generator, dtype=torch.float64)
    true = torch.tensor([0.0, 0.5, -0.75, 2.0]).double()
    rows = SplitRows(kept, skipped, mass)
    gains, errors = fit_gain(rows, rows.output(true))
    torch.testing.assert_close(gains, true)
    assert errors.max() < 1e-12
    noise = torch.randn(2, 4, 64, 8, generator=generator, dtype=torch.float64)
    nothing_skipped = SplitRows(kept, torch.zeros_like(skipped), torch.zeros_like(mass))
    assert fit_gain(nothing_skipped, kept + noise)[0].tolist() == [0.0] * 4
    assert fit_gain(SplitRows(kept, skipped, torch.full_like(mass, float("nan"))), kept)[0].tolist() == [0.0] * 4
    assert LOG_GAINS[0] == 0.0


def test_other_rows_agree_with_the_rows_that_chose() -> None:
    q, k, v = smooth_qkv(LAYOUT, heads=4)
    q = 3 * q
    request = make_request(q, k, v, LAYOUT, Policy(density=0.1, tail="linear1"))
    probe = probe_errors(request, tails=("linear1",), rows=64, seed=0, gains=True)
    policy = Policy(density=0.1, tail="linear1", tail_gain=gains_of(probe, ("linear1",) * 4))
    out = attend_reference(make_request(q, k, v, LAYOUT, policy))
    others = probe_errors(request, out, tails=("linear1",), rows=10**6)
    assert (others.errors["output"] < 0.97 * others.errors["linear1"]).all()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_backends_apply_the_gain(backend: str) -> None:
    q, k, v = smooth_qkv(LAYOUT, heads=3)
    policy = Policy(density=0.2, tail=("linear1", "none", "mean"), tail_gain=(0.9, 0.0, -0.5))
    expected = attend_reference(make_request(q, k, v, LAYOUT, policy))
    assert relative(draft_attention(q, k, v, LAYOUT, policy, backend=backend), expected) < 1e-12
    without = draft_attention(q, k, v, LAYOUT, replace(policy, tail_gain=0.0), backend=backend)
    assert relative(without, expected) > 1e-3


def test_bad_gains_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Policy(tail_gain=float("inf"))
    with pytest.raises(ValueError, match="2 tail gains for 3 heads"):
        head_gains((0.0, 1.0), 3)
    q, k, v = smooth_qkv(LAYOUT, heads=3)
    with pytest.raises(ValueError, match="2 tail gains for 3 heads"):
        make_tail(k, v, build_tables(LAYOUT), "mean", gain=(0.0, 1.0))
