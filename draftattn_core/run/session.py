"""A session: everything a host needs to serve the attention calls of one model, run after run.

A host adapter only translates: which call is the video self-attention, its layout, its position in the run, and what
dense means there. Deciding, choosing tails, counting, and standing aside when something fails happens here, so every
host behaves alike. Nothing raised in the sparse path leaves it: the call goes dense and is counted.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attention import Attention, attend
from ..backends.call_kind import CallKind
from ..backends.registry import (
    NoBackendError,
    backend_names,
    choose_backend,
    passed_over,
    prepare_backend,
    tails_served,
)
from ..backends.request import OUT_OF_MEMORY
from ..geometry.grid import TokenGrid
from ..geometry.layout import Layout, TableCache
from ..geometry.order import Tile
from ..method.policy import TAILS, Density, Policy, WrongHeadsError
from .probe import HeadTails, probe_tails
from .report import Call, DenseReason, Position, RunReport, stopwatch, times_launches_only
from .schedule import Schedule

log = logging.getLogger(__name__)

MAX_ERRORS = 3


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
        policy: selection and tail; its density is replaced by the schedule's, call by call.
        schedule: density by noise level, layer and head.
        auto_tail: let the error probe choose each head's tail at the first sparse call of every layer.
        auto_gain: let it fit each head's tail gain there (see `tail_gain`).
        q_block, k_block, tile, order: see `Layout`.
        backend: registry name or "auto".
        min_tokens: calls with fewer video tokens run dense.

    Raises:
        ValueError: if blocks, tile or order do not fit together, or no backend has that name.
    """

    policy: Policy = field(default_factory=Policy)
    schedule: Schedule = field(default_factory=Schedule)
    auto_tail: bool = False
    auto_gain: bool = True
    q_block: int = 128
    k_block: int = 64
    tile: Tile | None = None
    order: str = "tile"
    backend: str = "auto"
    min_tokens: int = 0

    def __post_init__(self) -> None:
        self.layout(TokenGrid(1, 1, 1))
        if self.backend not in backend_names():
            raise ValueError(f"unknown backend {self.backend!r}: choose one of {', '.join(backend_names())}")

    @property
    def probes(self) -> bool:
        """Whether the error probe runs at the first sparse call of every layer."""
        return self.auto_tail or (self.auto_gain and self.policy.has_tail)

    def layout(self, grid: TokenGrid, extra_before: int = 0, extra_after: int = 0) -> Layout:
        return Layout(grid, extra_before, extra_after, self.q_block, self.k_block, self.tile, self.order)


@dataclass
class Session:
    """State of one patched model. Thread-safe; call `start_run` before and `finish_run` after each sampling run.

    Attributes:
        on_call: told every sparse call with its internals.
        on_wait: told in words what keeps the run waiting before its first block: kernels that are being compiled.
    """

    settings: Settings
    report: RunReport = field(default_factory=RunReport)
    cache: TableCache = field(default_factory=TableCache)
    on_call: Callable[[Attention, Position], None] | None = None
    on_wait: Callable[[str], None] | None = None
    _levels: dict[float, int] = field(default_factory=dict)
    _tails: dict[tuple[int, int], HeadTails] = field(default_factory=dict)
    _checked: set[int] = field(default_factory=set)
    _prepared: set[CallKind] = field(default_factory=set)
    _errors: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def start_run(self) -> None:
        """Forget the previous run's counts, choices and failures."""
        with self._lock:
            self.report = RunReport()
            self._levels.clear()
            self._tails.clear()
            self._checked.clear()
            self._prepared.clear()
            self._errors = 0

    def finish_run(self) -> RunReport:
        """Close the run: free the index tables, return the report."""
        self.cache.clear()
        self.report.finish()
        return self.report

    @property
    def stood_aside(self) -> bool:
        """Whether the session gave up on this run after `MAX_ERRORS` errors."""
        return self._errors >= MAX_ERRORS

    def step_of(self, level: float) -> int:
        """Index of a noise level in this run, in order of first appearance."""
        with self._lock:
            return self._levels.setdefault(level, len(self._levels))

    def dense(
        self,
        run: Callable[[], Tensor],
        reason: DenseReason,
        position: Position | None = None,
        q: Tensor | None = None,
        keys: int | None = None,
    ) -> Tensor:
        """Run the host's own attention and count it under `reason`.

        Args:
            run: computes the call the way the host would without us.
            reason: why.
            position: where in the run; None for calls that are not video self-attention.
            q: (B, H, L, D) of a video self-attention call, for the executed density.
            keys: how many keys the queries meet, None for as many as queries.
        """
        pairs = 0.0
        if q is not None and position is not None:
            pairs = float(q.shape[0] * q.shape[1]) * float(q.shape[2]) * float(q.shape[2] if keys is None else keys)
        if q is None:
            out = run()
            self.report.add(Call(position, None, reason, pairs, lambda: 0.0))
            return out
        stop = self._stopwatch(q.device)
        out = run()
        self.report.add(Call(position, None, reason, pairs, stop()))
        return out

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        grid: TokenGrid,
        position: Position,
        dense: Callable[[], Tensor],
        extra_before: int = 0,
        extra_after: int = 0,
        key_bias: Tensor | None = None,
        from_core: Callable[[Tensor], Tensor] = lambda out: out,
    ) -> Tensor:
        """Serve one video self-attention call, sparse where the schedule allows it.

        Args:
            q, k, v: (B, H, L, D) as `draft_attention` takes them.
            grid, extra_before, extra_after: what the L tokens are.
            position: where in the run.
            dense: the host's own attention for this call, in the host's output form.
            key_bias: see `draft_attention`.
            from_core: turns (B, H, L, D) into the host's output form.

        Returns:
            The output in the host's form. Never raises on account of the sparse path.
        """
        settings = self.settings
        if grid.tokens >= settings.min_tokens and not self.stood_aside:
            self._prepare_backend(q, key_bias is not None)
        density = settings.schedule.density(position.progress, position.layer, position.layers)
        if density is None:
            dense_layer = settings.schedule.is_dense_layer(position.layer, position.layers)
            reason = DenseReason.DENSE_LAYER if dense_layer else DenseReason.SCHEDULE
            return self.dense(dense, reason, position, q)
        if grid.tokens < settings.min_tokens:
            return self.dense(dense, DenseReason.FEW_TOKENS, position, q)
        if q.shape[2] != grid.tokens + extra_before + extra_after:
            return self.dense(dense, DenseReason.TOKENS, position, q)
        if self.stood_aside:
            return self.dense(dense, DenseReason.STOOD_ASIDE, position, q)

        stop = self._stopwatch(q.device)
        result, failure = None, DenseReason.NON_FINITE
        try:
            result = self._sparse(
                q, k, v, settings.layout(grid, extra_before, extra_after), density, position, key_bias
            )
            if result is not None:
                out, shares = from_core(result.out), (result.density(), result.tail_work())
        except OUT_OF_MEMORY:
            result, failure = None, DenseReason.OUT_OF_MEMORY
            self._tell("DraftAttention ran out of memory in a sparse call and ran it dense: lower the resolution")
        except (NoBackendError, WrongHeadsError) as error:
            failure = DenseReason.BACKEND if isinstance(error, NoBackendError) else DenseReason.HEADS
            self._tell(f"DraftAttention runs dense: {error}")
        except Exception as error:
            result, failure = None, DenseReason.ERROR
            self.failed(error)
        if result is None:
            # Out here the exception is gone, and with it every tensor of the frames it came through.
            if failure is DenseReason.OUT_OF_MEMORY:
                _free(q.device)
            return self.dense(dense, failure, position, q)
        pairs = float(q.shape[0] * q.shape[1]) * float(q.shape[2]) ** 2
        self.report.add(Call(position, shares[0], None, pairs, stop(), shares[1]))
        if self.on_call is not None:
            try:
                self.on_call(result, position)
            except Exception as error:
                self.failed(error)
        return out

    def _prepare_backend(self, q: Tensor, biased: bool) -> None:
        """Before the first block of a run: have its kernels compiled, and say which backend is going without."""
        settings = self.settings
        problem = CallKind.of(q, settings.q_block, settings.k_block, settings.policy, biased=biased)
        with self._lock:
            if problem in self._prepared:
                return
            self._prepared.add(problem)
        try:
            tails = TAILS if settings.auto_tail else ()
            prepare_backend(settings.backend, problem, tails, report=self._wait)
            if settings.backend == "auto":
                reason = passed_over(choose_backend("auto", problem).name, problem)
                if reason is not None and self.report.note(reason):
                    log.info("DraftAttention: %s", reason)
        except OUT_OF_MEMORY:
            # Says nothing of the kernels: the next call tries again.
            with self._lock:
                self._prepared.discard(problem)
        except Exception as error:
            # The calls that need it will meet the same and be counted for it.
            log.debug("DraftAttention could not prepare its backend: %s", error)

    def _wait(self, message: str) -> None:
        log.info(message)
        if self.on_wait is not None:
            self.on_wait(message)

    def _sparse(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        density: Density,
        position: Position,
        key_bias: Tensor | None,
    ) -> Attention | None:
        """The sparse call; None if it is not finite, asked in every layer until one output was."""
        policy = self.settings.policy.with_density(density)
        heads = q.shape[1]
        found = self._tails.get((position.layer, heads))
        if found is not None:
            policy = found.put_into(policy)

        result = attend(q, k, v, layout, policy, backend=self.settings.backend, key_bias=key_bias, cache=self.cache)
        if found is None and self.settings.probes:
            result = self._with_best_tails(result, policy, position)
        with self._lock:
            first = position.layer not in self._checked
        finite = not first or bool(torch.isfinite(result.out).all())
        if finite:
            with self._lock:
                self._checked.add(position.layer)
        else:
            self._tell(
                f"DraftAttention: the first sparse output of layer {position.layer} is not finite, so it ran dense; "
                "float16 overflow is the usual cause: load the model in bfloat16"
            )
            return None
        return result

    def _with_best_tails(self, result: Attention, policy: Policy, position: Position) -> Attention:
        """Let the probe choose tails and gains of this layer, and redo the call if they differ from what ran."""
        settings, request = self.settings, result.request
        heads, layer = request.q.shape[1], position.layer
        asked = HeadTails.of(policy, heads)
        biased = request.key_bias is not None
        problem = CallKind.of(request.q, settings.q_block, settings.k_block, policy, biased=biased)
        choices = tails_served(result.backend, problem, TAILS) if settings.auto_tail else ()
        found, probe = probe_tails(
            request, asked, tail=settings.auto_tail, gain=settings.auto_gain, seed=layer, choices=choices
        )
        with self._lock:
            self._tails[(layer, heads)] = found
            self.report.tails[layer], self.report.tail_gains[layer] = found.names, found.gains
            self.report.tail_errors[layer] = {
                name: float(errors.mean()) for name, errors in (probe.fitted or probe.errors).items()
            }
        if found == asked:
            return result
        return attend(
            request.q,
            request.k,
            request.v,
            request.tables.layout,
            found.put_into(policy),
            backend=result.backend,
            key_bias=request.key_bias,
            scale=request.scale,
            cache=self.cache,
        )

    def _stopwatch(self, device: torch.device) -> Callable[[], Callable[[], float]]:
        if times_launches_only(device):
            self.report.note(f"times are those of launching work: torch has no timer events on {device.type}")
        return stopwatch(device)

    def _tell(self, message: str) -> None:
        if self.report.note(message):
            log.warning(message)

    def failed(self, error: Exception) -> None:
        """Count an error of ours, from an except block: the first is logged with its traceback, after `MAX_ERRORS` the
        session stands aside. Hosts call it for errors of their own translation."""
        with self._lock:
            self._errors += 1
            first, last = self._errors == 1, self._errors == MAX_ERRORS
        if first:
            log.error("DraftAttention: a sparse call failed and ran dense\n%s", traceback.format_exc())
        self._tell(f"error: {type(error).__name__}: {error}")
        if last:
            self._tell(f"DraftAttention stands aside for the rest of this run after {MAX_ERRORS} errors")


def _free(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the device, where it has such a store."""
    empty_cache: Callable[[], None] | None = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if empty_cache is not None:
        empty_cache()
