"""The sparse calls of a run: the core call, the probe at the first one of a layer, and what their rule remembers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attention import Attention, attend
from ..backends.call_kind import CallKind
from ..backends.registry import codes_unwanted, fp8_unwanted, tails_served
from ..geometry.grid import TokenGrid
from ..geometry.layout import Layout, TableCache
from ..method.policy import TAILS, Bits, Policy, head_bits
from ..method.rules import rule_of
from ..method.rules.calibatt import MASKS, CalibratedMasks
from ..phrase import Phrase, Text
from .bits import bits_errors
from .fingerprint import ModelName
from .measured_calls import MeasuredCalls
from .plan import Plan
from .probe import HeadTails, probe_tails
from .report import Position, RunReport
from .settings import Settings


def calibrated_masks(settings: Settings, model: ModelName, note: Callable[[Text], object]) -> CalibratedMasks | None:
    """Those of the settings' profile, where the rule follows them; None where it does not.

    Raises:
        ProfileError: if they do not fit the model.
    """
    profile = settings.profile
    if settings.policy.method != "calibatt" or profile is None or profile.calibration is None:
        return None
    for text in profile.calibration.check(model):
        note(text)
    if settings.budgets != "off" or settings.max_error:
        note(
            Phrase(
                "note_masks_densities",
                "calibrated masks bring their densities: budgets and max_error have no say",
            )
        )
    return profile.calibration.compiled(model.expert)


@dataclass(eq=False)
class SparseCalls:
    """Makes the sparse calls of one run. Thread-safe.

    Attributes:
        settings, plan, report, cache: those of the run.
        measured: its calls' errors, where budgets or a profile ask for them.
        masks: calibrated ones that the rule follows; None for none.
        tell: puts a message into the report and the log.
    """

    settings: Settings
    plan: Plan
    report: RunReport
    cache: TableCache
    measured: MeasuredCalls
    masks: CalibratedMasks | None
    tell: Callable[[Text], None]
    _checked: set[int] = field(default_factory=set)
    _states: dict[tuple[int, str, tuple[int, ...]], dict[str, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def clear(self) -> None:
        """Free what the rule remembers."""
        self._states.clear()

    def remark(self, grid: TokenGrid) -> Text | None:
        """What is to be said of calibrated masks on this grid; None for nothing."""
        return None if self.masks is None else self.masks.remark(self.settings.layout(grid))

    def serve(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        policy: Policy,
        position: Position,
        key_bias: Tensor | None,
    ) -> Attention | None:
        """The sparse call; None if it is not finite, asked in every layer until one output was.

        Args:
            q, k, v: (B, H, L, D).
            key_bias: see `draft_attention`.
        """
        result = attend(
            q,
            k,
            v,
            layout,
            policy,
            backend=self.settings.backend,
            key_bias=key_bias,
            cache=self.cache,
            position=position,
            state=self._state_of(position),
        )
        measured = self.measured.served(result, policy, position, partial(self._again, position))
        if measured is not None:
            result = measured
        elif self.settings.probes and self.plan.found(position, q.shape[1]) is None:
            result = self._with_best_tails(result, policy, position)
        with self._lock:
            first = position.layer not in self._checked
        if first and not bool(torch.isfinite(result.out).all()):
            self.tell(
                Phrase(
                    "note_not_finite",
                    "DraftAttention: the first sparse output of layer {layer} is not finite, so it ran dense; "
                    "float16 overflow is the usual cause: load the model in bfloat16",
                    layer=position.layer,
                )
            )
            return None
        with self._lock:
            self._checked.add(position.layer)
        if self.settings.bits != "16" and self.plan.bits(position, q.shape[1]) is None:
            self._measure_bits(result, policy, position)
        return result

    def _measure_bits(self, result: Attention, policy: Policy, position: Position) -> None:
        """Say of the heads of a call in how many bits their scores are computed from the next call on."""
        request, rule = result.request, rule_of(policy.method)
        heads = request.q.shape[1]
        biased = request.key_bias is not None
        kind = CallKind.of(request.q, self.settings.q_block, self.settings.k_block, policy, biased=biased)
        bits: tuple[Bits, ...] = head_bits(16, heads)
        why = codes_unwanted(result.backend, kind, everywhere=self.settings.bits in ("8", "fp8"))
        if rule.order is not None or rule.attend is not None:
            why = Phrase("codes_method", "the method {method} has no measure of what they cost", method=policy.method)
        if why is None:
            try:
                no_fp8 = fp8_unwanted(result.backend, kind) if policy.fp8_values else None
                if no_fp8 is not None:
                    self.report.note(Phrase("fp8_stayed", "values stayed in 16 bits: {reason}", reason=no_fp8))
                fp8 = policy.fp8_values and no_fp8 is None
                errors = bits_errors(request, seed=position.layer, fp8_values=fp8)
                bits = errors.bits()
                self.report.keep_bits(position, bits, (float(errors.sixteen.mean()), float(errors.eight.mean())))
            except Exception as error:
                # The call itself is done, whatever this is.
                why = Phrase(
                    "codes_not_measured",
                    "what codes cost could not be measured ({error})",
                    error=type(error).__name__,
                )
        if why is not None:
            self.report.note(Phrase("note_codes", "scores stayed in 16 bits: {why}", why=why))
        self.plan.keep_bits(position, bits)

    def _with_best_tails(self, result: Attention, policy: Policy, position: Position) -> Attention:
        """Let the probe choose tails and gains of this layer, and redo the call if they differ from what ran."""
        settings, request = self.settings, result.request
        heads, layer = request.q.shape[1], position.layer
        asked = HeadTails.of(policy, heads)
        biased = request.key_bias is not None
        kind = CallKind.of(request.q, settings.q_block, settings.k_block, policy, biased=biased)
        choices = tails_served(result.backend, kind, TAILS) if settings.auto_tail else ()
        found, probe = probe_tails(
            request, asked, tail=settings.auto_tail, gain=settings.auto_gain, seed=layer, choices=choices
        )
        self.plan.keep(position, heads, found)
        self.report.keep_tails(position, found.names, found.gains)
        with self._lock:
            self.report.tail_errors[layer] = {
                name: float(errors.mean()) for name, errors in (probe.fitted or probe.errors).items()
            }
        if found == asked:
            return result
        return self._again(position, result, found.put_into(policy))

    def _again(self, position: Position, result: Attention, policy: Policy) -> Attention:
        """The same call under another policy."""
        request = result.request
        return attend(
            request.q,
            request.k,
            request.v,
            request.tables.layout,
            policy,
            backend=result.backend,
            key_bias=request.key_bias,
            scale=request.scale,
            cache=self.cache,
            position=position,
            state=self._state_of(position),
        )

    def _state_of(self, position: Position) -> dict[str, Any]:
        """What the selection rule keeps of these heads of a layer from call to call, for each condition by itself."""
        given = {} if self.masks is None else {MASKS: self.masks}
        heads = position.heads or (position.first_head,)
        with self._lock:
            return self._states.setdefault((position.layer, position.branch, heads), given)
