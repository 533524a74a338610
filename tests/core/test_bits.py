"""Bits: codes leave the softmax what it is, their error is measured head by head, and a run follows what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftattention.draftattn_core.attention import attend
from draftattention.draftattn_core.backends.reference import attend_reference
from draftattention.draftattn_core.backends.request import AttendRequest
from draftattention.draftattn_core.geometry.grid import TokenGrid
from draftattention.draftattn_core.geometry.layout import DEFAULT_TILES, build_tables
from draftattention.draftattn_core.method.codes import (
    SAMPLED_KEYS,
    fp8_values,
    fp8_weights,
    key_codes,
    key_shift,
    query_codes,
)
from draftattention.draftattn_core.method.policy import Policy, WrongHeadsError
from draftattention.draftattn_core.run import sparse_calls
from draftattention.draftattn_core.run.bits import BitsErrors, bits_errors
from draftattention.draftattn_core.run.report import Position
from draftattention.draftattn_core.run.run import Run
from draftattention.draftattn_core.run.schedule import constant
from draftattention.draftattn_core.run.settings import Settings
from tests.core.cases import relative, smooth_qkv

SETTINGS = Settings(
    schedule=constant(0.3), auto_gain=False, q_block=16, k_block=8, tile=DEFAULT_TILES[16], backend="reference"
)
GRID = TokenGrid(3, 5, 7)
LAYOUT = SETTINGS.layout(GRID, 2, 3)


def inputs(outliers: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth q, k, v of two heads; in the second, one key of each block is `outliers` times as large in one channel."""
    q, k, v = smooth_qkv(LAYOUT, dtype=torch.float32)
    k = k.clone()
    k[:, 1, ::3, 5] *= outliers
    return q, k, v


def request_of(outliers: float = 1.0, **policy: Any) -> AttendRequest:
    return attend(*inputs(outliers), LAYOUT, Policy(density=0.3, **policy), backend="reference").request


class TestCodes:
    def test_are_whole_numbers_times_a_scale_within_half_a_step_of_the_keys(self) -> None:
        _, k, _ = inputs(30.0)
        tables, shift = build_tables(LAYOUT), key_shift(k)
        codes, scale = key_codes(k, shift, tables)
        assert torch.equal(codes, codes.round()) and codes.abs().max() == 127.0
        assert ((codes * scale - (k - shift.unsqueeze(2))).abs() <= 0.501 * scale).all()

    def test_of_keys_share_the_scale_of_their_block(self) -> None:
        _, k, _ = inputs()
        tables, shift = build_tables(LAYOUT), key_shift(k)
        scale = key_codes(k, shift, tables)[1][..., 0]
        for block in range(tables.k.total):
            tokens = tables.perm[tables.k.bounds[block] : tables.k.bounds[block + 1]]
            largest = (k - shift.unsqueeze(2))[:, :, tokens].abs().amax((-1, -2))
            assert torch.allclose(scale[:, :, tokens], largest.unsqueeze(-1) / 127.0)

    def test_of_queries_have_a_scale_for_each_row(self) -> None:
        q = inputs()[0]
        codes, scale = query_codes(q)
        assert (codes.abs().amax(-1) == 127.0).all() and ((codes * scale - q).abs() <= 0.501 * scale).all()

    def test_what_is_not_finite_spoils_the_scale_of_its_block_alone(self) -> None:
        _, k, _ = inputs()
        k[0, 0, 40, 3] = torch.inf
        tables = build_tables(LAYOUT)
        codes, scale = key_codes(k, key_shift(k), tables)
        block = tables.k.of_token[tables.inverse]
        assert torch.equal(scale[0, 0, :, 0].isnan(), block == block[40]) and codes.isfinite().all()
        assert scale[0, 1].isfinite().all()

    def test_the_common_vector_is_the_mean_of_keys_spread_over_the_video(self) -> None:
        k = torch.randn(1, 2, 3 * SAMPLED_KEYS, 8)
        assert torch.allclose(key_shift(k), k[:, :, ::3].mean(2), atol=1e-6)
        k[0, 0, 0] = torch.nan
        assert (key_shift(k)[0, 0] == 0).all() and key_shift(k)[0, 1].any()


class TestValuesInFP8:
    def test_keep_four_bits_of_what_is_not_far_below_the_largest_of_the_block(self) -> None:
        _, _, v = inputs()
        v = v * torch.logspace(-3, 5, LAYOUT.tokens)[:, None]
        tables = build_tables(LAYOUT)
        found = fp8_values(v, tables)
        for block in range(tables.k.total):
            tokens = tables.perm[tables.k.bounds[block] : tables.k.bounds[block + 1]]
            for head in range(2):
                was, now = v[0, head, tokens], found[0, head, tokens]
                large = was.abs() > was.abs().max() * 2.0**-8
                assert ((now - was).abs()[large] <= was.abs()[large] * 2.0**-4).all()
                assert ((now - was).abs() <= was.abs().max() * 2.0**-12).logical_or(large).all()
        assert not torch.equal(found, v)

    def test_that_are_not_finite_stay_so_and_change_no_other(self) -> None:
        _, _, v = inputs()
        tables = build_tables(LAYOUT)
        plain = fp8_values(v, tables)
        v[0, 0, 40, 3], v[0, 1, 50, 4] = torch.inf, torch.nan
        found = fp8_values(v, tables)
        spoilt = ~found.isfinite()
        assert spoilt.sum() == 2 and spoilt[0, 0, 40, 3] and spoilt[0, 1, 50, 4]
        assert relative(found.nan_to_num(), plain.where(~spoilt, torch.tensor(0.0))) < 0.02

    def test_have_weights_of_four_bits_down_to_two_to_the_minus_twelve(self) -> None:
        weights = torch.logspace(-12, 0, 1001, base=2.0)
        assert ((fp8_weights(weights) - weights).abs() <= weights * 2.0**-4).all()
        assert fp8_weights(torch.tensor(2.0**-17)) == 0.0

    def test_are_the_references_for_heads_with_8_bits_alone(self) -> None:
        request = request_of(3.0, bits=(8, 16), tail="linear1", fp8_values=True)
        assert request.fp8_values
        values = fp8_values(request.v, request.tables)
        plain = replace(request, fp8_values=False)
        expected = torch.stack([attend_reference(replace(plain, v=values))[:, 0], attend_reference(plain)[:, 1]], dim=1)
        assert torch.equal(attend_reference(request), expected)

    def test_are_measured_with_a_tail_behind_them_too(self) -> None:
        tailed, dropped = (request_of(3.0, tail=tail) for tail in ("linear1", "none"))
        assert tailed.tail is not None
        added = bits_errors(tailed, fp8_values=True).eight - bits_errors(tailed).eight
        assert (added.abs() > 1e-5).all()
        # Where every block is kept the tail has no weight, and both must say the same.
        whole = [replace(one, keep=torch.ones_like(one.keep)) for one in (tailed, dropped)]
        with_tail, without = (bits_errors(one, fp8_values=True).eight for one in whole)
        torch.testing.assert_close(with_tail, without, rtol=1e-4, atol=1e-6)
        assert (with_tail > bits_errors(whole[0]).eight).all()

    def test_are_measured_with_weights_beside_the_rows_largest(self) -> None:
        request = request_of(3.0, tail="none")
        found = bits_errors(request, rows=10**6, fp8_values=True)
        eight, dim = replace(request, bits=(8, 8)), request.q.shape[3]
        # What the reference makes of one-hot values are its weights, a head size of tokens at a time.
        one_hot = torch.eye(LAYOUT.tokens + -LAYOUT.tokens % dim)[: LAYOUT.tokens].expand(1, 2, -1, -1)
        weights = torch.cat([attend_reference(replace(eight, v=part)) for part in one_hot.split(dim, dim=-1)], dim=-1)
        weights, top = weights[..., : LAYOUT.tokens], weights.amax(-1, keepdim=True)
        out = (fp8_weights(weights / top) * top) @ fp8_values(request.v, request.tables)
        exact = F.scaled_dot_product_attention(request.q, request.k, request.v, scale=request.scale)
        video = request.tables.perm[: GRID.tokens]
        for head in range(2):
            error = relative(out[:, head, video], exact[:, head, video])
            assert float(found.eight[0, head]) == pytest.approx(error, rel=1e-3)
        assert (found.eight != bits_errors(request, rows=10**6).eight).all()

    def test_are_left_out_by_backends_without_codes(self) -> None:
        asked = attend(*inputs(), LAYOUT, Policy(density=0.3, bits=8, fp8_values=True), backend="torch")
        plain = attend(*inputs(), LAYOUT, Policy(density=0.3), backend="torch")
        assert torch.equal(asked.out, plain.out) and not asked.request.fp8_values


class TestTheReference:
    @pytest.mark.parametrize("tail", ["none", "mean", "linear1"])
    def test_is_near_what_it_is_in_16_bits(self, tail: str) -> None:
        q, k, v = inputs()
        sixteen = attend(q, k, v, LAYOUT, Policy(density=0.3, tail=tail), backend="reference").out
        eight = attend(q, k, v, LAYOUT, Policy(density=0.3, tail=tail, bits=8), backend="reference").out
        assert 0.0 < relative(eight, sixteen) < 0.01

    def test_does_not_care_what_is_subtracted_but_for_rounding(self) -> None:
        """A vector common to all keys, pooled and extra ones included, changes no softmax."""
        request = request_of(tail="linear1", bits=8)
        tail = request.tail
        assert tail is not None
        far = key_shift(request.k) + 0.5
        moved = replace(request, shift=far, tail=replace(tail, k_mean=tail.k_mean - far.unsqueeze(2)))
        assert relative(attend_reference(moved), attend_reference(replace(request, bits=()))) < 0.02

    def test_leaves_heads_with_16_bits_as_they_are(self) -> None:
        q, k, v = inputs()
        plain = attend(q, k, v, LAYOUT, Policy(density=0.3), backend="reference").out
        mixed = attend(q, k, v, LAYOUT, Policy(density=0.3, bits=(16, 8)), backend="reference").out
        assert torch.equal(mixed[:, 0], plain[:, 0]) and not torch.equal(mixed[:, 1], plain[:, 1])

    def test_does_what_the_definition_says_one_query_at_a_time(self) -> None:
        request = request_of(tail="none", bits=8)
        q, k, v, tables = request.q, request.k.double(), request.v.double(), request.tables
        shift = key_shift(request.k)
        out = attend_reference(request, torch.float64)
        for row in (0, 7, 60):
            kept = request.keep[0, 1, tables.q.of_token[tables.inverse[row]]][tables.k.of_token[tables.inverse]]
            unit = q[0, 1, row].abs().max() / 127
            rounded = (q[0, 1, row] / unit + 0.5).floor().double() * unit
            logits = []
            for token in kept.nonzero()[:, 0].tolist():
                block = tables.k.of_token[tables.inverse] == tables.k.of_token[tables.inverse[token]]
                step = (request.k[0, 1, block] - shift[0, 1]).abs().max() / 127
                key = ((request.k[0, 1, token] - shift[0, 1]) / step + 0.5).floor().double() * step
                logits.append(request.scale * rounded @ key)
            expected = torch.stack(logits).softmax(0) @ v[0, 1, kept]
            assert relative(out[0, 1, row], expected) < 1e-5
        assert k.shape == v.shape


def test_a_backend_without_codes_computes_in_16_bits() -> None:
    q, k, v = inputs()
    plain = attend(q, k, v, LAYOUT, Policy(density=0.3), backend="torch")
    asked = attend(q, k, v, LAYOUT, Policy(density=0.3, bits=8), backend="torch")
    assert torch.equal(asked.out, plain.out) and asked.codes() == 0.0 and asked.request.bits == ()


@pytest.mark.parametrize("tail", ["none", "linear1"])
def test_errors_are_those_of_the_calls_own_output(tail: str) -> None:
    """With every row sampled: what the reference makes of the call, beside exact attention."""
    request = request_of(3.0, tail=tail)
    found = bits_errors(request, rows=10**6)
    exact = F.scaled_dot_product_attention(
        *(x.double() for x in (request.q, request.k, request.v)), scale=request.scale
    )
    video = request.tables.perm[: GRID.tokens]
    for errors, bits in ((found.sixteen, ()), (found.eight, (8, 8))):
        out = attend_reference(replace(request, bits=bits))
        for head in range(2):
            error = relative(out[:, head, video], exact[:, head, video])
            assert float(errors[0, head]) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(
    ("sixteen", "eight", "bits"),
    [
        (0.1, 0.1029, 8),
        (0.1, 0.1031, 16),
        (0.01, 0.0119, 8),
        (0.01, 0.0121, 16),
        (0.1, 0.05, 8),
        (0.1, float("nan"), 16),
        (float("nan"), 0.1, 16),
    ],
)
def test_a_head_may_lose_three_percent_of_its_error_or_two_thousandths(sixteen: float, eight: float, bits: int) -> None:
    assert BitsErrors(torch.tensor([[sixteen]]), torch.tensor([[eight]])).bits() == (bits,)


def test_bits_are_16_or_8_for_all_heads_or_one_by_one() -> None:
    with pytest.raises(ValueError, match="16 or 8 bits, got 4"):
        Policy(bits=4)  # type: ignore[arg-type]
    with pytest.raises(WrongHeadsError, match="3 numbers of bits for 2 heads"):
        Policy(bits=(8, 8, 16)).of(2)
    with pytest.raises(ValueError, match="unknown bits 'some'"):
        Settings(bits="some")


def serve(run: Run, qkv: tuple[Tensor, Tensor, Tensor], layer: int = 1, step: int = 0) -> Tensor:
    q, k, v = qkv
    return run.calls.attention(
        q,
        k,
        v,
        grid=GRID,
        position=Position(step, 0.5, layer, 4),
        dense=lambda: F.scaled_dot_product_attention(q, k, v),
        extra_before=2,
        extra_after=3,
        from_core=lambda out: out,
    )


class TestARun:
    def test_measures_at_a_layers_first_call_and_follows_from_the_second_on(self) -> None:
        run, qkv = Run(replace(SETTINGS, bits="8")), inputs(2000.0)
        first, second = serve(run, qkv), serve(run, qkv, step=1)
        policy = Policy(density=0.3)
        assert torch.equal(first, attend(*qkv, LAYOUT, policy, backend="reference").out)
        assert run.report.bits == {1: (8, 16)}
        expected = attend(*qkv, LAYOUT, replace(policy, bits=(8, 16)), backend="reference").out
        assert torch.equal(second, expected) and not torch.equal(second, first)
        assert [call.codes for call in run.report.calls] == [0.0, 0.5]
        assert run.report.codes_share() == 0.25 and run.report.to_dict()["bits"] == {"1": [8, 16]}
        assert "25% of their heads with INT8 scores" in run.report.summary()

    def test_has_values_in_fp8_where_it_is_asked_for(self) -> None:
        run, qkv = Run(replace(SETTINGS, bits="fp8")), inputs(2000.0)
        serve(run, qkv)
        policy = Policy(density=0.3, bits=(8, 16), fp8_values=True)
        expected = attend(*qkv, LAYOUT, policy, backend="reference")
        assert run.report.bits == {1: (8, 16)} and expected.request.fp8_values
        assert torch.equal(serve(run, qkv, step=1), expected.out)

    def test_counts_nothing_where_nobody_asks(self) -> None:
        run = Run(SETTINGS)
        serve(run, inputs())
        assert not run.report.bits and run.report.codes_share() == 0.0 and "INT8" not in run.report.summary()

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"bits": "auto"}, "by published rates INT8 is not faster on this cpu device"),
            ({"bits": "8", "backend": "torch"}, "backend torch has no INT8 scores"),
            (
                {"bits": "8", "policy": Policy(method="svg"), "order": "raster", "tile": None},
                "the method svg has no measure of what they cost",
            ),
        ],
    )
    def test_says_why_all_scores_stay_in_16_bits(self, changes: dict[str, Any], reason: str) -> None:
        run = Run(replace(SETTINGS, **changes))
        for step in range(2):
            serve(run, inputs(), step=step)
        assert [note for note in run.report.notes if "16 bits" in note] == [
            note for note in run.report.notes if reason in note
        ]
        assert any(reason in note for note in run.report.notes)
        assert not run.report.bits and run.report.codes_share() == 0.0

    def test_keeps_its_output_where_measuring_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> BitsErrors:
            raise torch.OutOfMemoryError("short")

        monkeypatch.setattr(sparse_calls, "bits_errors", fail)
        run = Run(replace(SETTINGS, bits="8"))
        for step in range(2):
            serve(run, inputs(), step=step)
        assert run.report.calls_sparse == 2 and run.report.codes_share() == 0.0
        assert "could not be measured (OutOfMemoryError)" in run.report.notes[0]

    def test_keeps_bits_with_the_tails_that_the_probe_finds(self) -> None:
        run = Run(replace(SETTINGS, bits="8", auto_tail=True, auto_gain=True))
        qkv = inputs()
        serve(run, qkv)
        serve(run, qkv, step=1)
        assert run.report.bits == {1: (8, 8)} and len(run.report.tails[1]) == 2
        assert run.report.calls[1].codes == 1.0
