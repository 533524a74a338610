"""The diffusers host: sparse self-attention in Wan, HunyuanVideo and HunyuanVideo 1.5 transformers.

    with apply_draft_attention(pipe.transformer, settings, scheduler=pipe.scheduler) as handle:
        pipe(prompt)
    print(handle.report.summary())

Only the video self-attention is served: Wan's `attn1`, the joint video-text attention of HunyuanVideo. Cross-attention
and the text refiners are left alone and do not appear in the report.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ...geometry.grid import TokenGrid
from ...phrase import Phrase
from ...run.evaluation import Branch, Evaluation, StepCache
from ...run.events import Events
from ...run.fingerprint import ModelName, check_name, family_of, weights_identity
from ...run.profile import expert_of
from ...run.ranks.lost import RankLostError
from ...run.ranks.process_group import DEFAULT_TIMEOUT_S, ProcessRanks, is_lost
from ...run.report import RunReport
from ...run.run import Run
from ...run.settings import Settings
from ...run.step_cache import StepCacheSettings
from .branches import Branches
from .clock import RunClock, Tick
from .forward import ForwardCall, ForwardRun, itself_uncompiled, uncompiled, wrap_forward
from .parallel import HeadExchange, ParallelismError
from .processor import DraftAttentionProcessor, ModelCall, ServedModel
from .skipping import why_skip_nothing


@dataclass(frozen=True)
class _Family:
    """How one kind of transformer is read.

    Attributes:
        attention: its video self-attention modules, in layer order.
        patch: (t, h, w) patch size from the config.
        text: whether text tokens follow the video in those modules.
    """

    attention: Callable[[Any], list[Any]]
    patch: Callable[[Any], tuple[int, int, int]]
    text: bool


def _wan_attention(model: Any) -> list[Any]:
    return [block.attn1 for block in (*model.blocks, *getattr(model, "vace_blocks", ()))]


def _hunyuan_attention(model: Any) -> list[Any]:
    return [block.attn for block in (*model.transformer_blocks, *getattr(model, "single_transformer_blocks", ()))]


_WAN = _Family(_wan_attention, lambda config: tuple(config.patch_size), text=False)
_HUNYUAN = _Family(
    _hunyuan_attention, lambda config: (config.patch_size_t, config.patch_size, config.patch_size), text=True
)
# By name, so that this module loads with any release of diffusers, or none.
_FAMILIES: Mapping[str, _Family] = {
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN,
    "WanAnimateTransformer3DModel": _WAN,
    "SkyReelsV2Transformer3DModel": _WAN,
    "HunyuanVideoTransformer3DModel": _HUNYUAN,
    "HunyuanVideo15Transformer3DModel": _HUNYUAN,
}


def supported_classes() -> tuple[str, ...]:
    """Names of the transformer classes `apply_draft_attention` takes (and their subclasses)."""
    return tuple(_FAMILIES)


def _family(transformer: object) -> _Family:
    for cls in type(transformer).__mro__:
        if cls.__name__ in _FAMILIES:
            return _FAMILIES[cls.__name__]
    advice = ": pass its transformer (pipe.transformer)" if hasattr(transformer, "transformer") else ""
    raise TypeError(
        f"draft attention cannot be applied to {type(transformer).__name__}{advice}; "
        f"it knows {', '.join(supported_classes())}"
    )


def _model_name(transformer: Any, settings: Settings, layers: int, expert: str | None) -> ModelName:
    """What a profile needs to know of the model; its weights are read only where there is one."""
    family = family_of(type(transformer).__name__)
    heads = int(getattr(transformer.config, "num_attention_heads", 0) or 0)
    if settings.profile is None and not (settings.record or settings.record_masks):
        return ModelName(family, layers=layers, heads=heads)
    weights = weights_identity(transformer.state_dict())
    found = expert_of(settings.profile, weights) if expert is None else expert
    return ModelName(family, found, weights, layers, heads)


class DraftAttentionHandle:
    """Draft attention on one transformer, from `apply_draft_attention` until `remove` or the end of a `with` block.

    Every sampling run has a `Run` of its own, made when its first evaluation is asked for.

    Attributes:
        run: the run under way, or the last one.
        events: what its runs say; subscribe here, once for all runs.
        new_step_cache: makes the step cache of each run; None to compute every evaluation.
    """

    def __init__(
        self, transformer: Any, settings: Settings, clock: RunClock, rank_timeout: float, expert: str | None = None
    ) -> None:
        family = _family(transformer)
        modules = family.attention(transformer)
        for module in modules:
            if isinstance(module.processor, DraftAttentionProcessor) and module.processor.model.active:
                raise ValueError("this transformer has draft attention already: call remove() on its handle first")
        exchange = HeadExchange.of(getattr(transformer, "_parallel_config", None))
        if exchange is not None:
            exchange.check_heads(transformer.config.num_attention_heads)
        self._outermost = exchange is not None
        self.settings = settings
        self.events = Events()
        self.new_step_cache: Callable[[], StepCache] | None = None
        self._name = _model_name(transformer, settings, len(modules), expert)
        self.run: Run = ForwardRun(settings, self.events, model=self._name)
        self._clock = clock
        self._patch = family.patch(transformer.config)
        self._rank_timeout = rank_timeout
        self._ranks: ProcessRanks | None = None
        self._transformer = transformer
        self._channels = getattr(transformer.config, "out_channels", None) or sys.maxsize
        self._expert = id(transformer)
        self._branches = Branches()
        self._model = ServedModel(self.run, len(modules), family.text)
        self._served = [
            (module, DraftAttentionProcessor(module.processor, layer, self._model))
            for layer, module in enumerate(modules)
        ]
        for module, processor in self._served:
            module.set_processor(processor)
        self._restore = wrap_forward(transformer, self._forward)

    @property
    def active(self) -> bool:
        """False once removed."""
        return self._model.active

    @property
    def report(self) -> RunReport:
        """The report of the current run, or of the last one if none is under way."""
        return self.run.report

    def finish_run(self) -> RunReport:
        """End the run: free what it holds and return its report. The next transformer call begins a new one.

        Needed only where two runs look like one: without a scheduler, when a run starts at a timestep no higher than
        where the last one ended.
        """
        return self._finish(cancelled=self._clock.steps_ahead)

    def _finish(self, cancelled: bool) -> RunReport:
        self._clock.restart()
        return self.run.finish(cancelled)

    def remove(self) -> None:
        """Give every module its own processor back: the model is then as it was, bit for bit. Safe to call twice."""
        if not self.active:
            return
        self._model.active = False
        for module, processor in self._served:
            # Where someone put another processor around ours it stays, and ours stands aside.
            if module.processor is processor:
                module.set_processor(processor.inner)
        self._restore()
        self._served.clear()
        self.finish_run()

    def __enter__(self) -> DraftAttentionHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.active:
            self.run.leave()
            if not self.run.steps.complete:
                self._finish(cancelled=True)
        self.remove()

    # Where the whole model is compiled, so is what `compute` calls, and nothing else of this.
    @itself_uncompiled
    def _forward(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._model.active:
            return forward(*args, **kwargs)
        try:
            call, evaluation = self._begin(forward, args, kwargs)
            if evaluation is None:
                return forward(*args, **kwargs)
            return call.in_hosts_form(self.run.evaluate(call.compute, call.latent, evaluation))
        except BaseException as error:
            self._broke()
            if self._ranks is not None and not isinstance(error, RankLostError) and is_lost(error):
                raise RankLostError(self._ranks.lost) from error
            raise
        finally:
            self._end()

    @uncompiled
    def _begin(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[ForwardCall, Evaluation | None]:
        call, evaluation = ForwardCall(forward, args, kwargs, self._channels), None
        self._meet_ranks(call)
        try:
            tick = self._tick(call)
            self._model.call = self._read(call, tick)
            evaluation = self._evaluation(call, tick)
            self._model.call.conditional = evaluation.conditional is not None
        except RankLostError:
            raise
        except Exception as error:
            self.run.failures.raised(error)
        if self.run.begin_evaluation(failed=evaluation is None):
            self._model.call = evaluation = None
        return call, evaluation

    def _meet_ranks(self, call: ForwardCall) -> None:
        """Have the run joined with those of the other ranks, once the transformer is parallel over tokens.

        Raises:
            ParallelismError: if this rank is given only a part of what says where in the run the call stands.
        """
        if self._ranks is not None:
            return
        exchange = HeadExchange.of(getattr(self._transformer, "_parallel_config", None))
        if exchange is not None:
            if not self._outermost and torch.as_tensor(call.argument("timestep", 1)).dim() > 1:
                raise ParallelismError(
                    "this model has a timestep per token, and a rank that had draft attention first is given only some "
                    "of them: call enable_parallelism first, then apply_draft_attention"
                )
            self._ranks = ProcessRanks(exchange.group, self._rank_timeout)
            self.run.join(self._ranks)

    def _tick(self, call: ForwardCall) -> Tick:
        """Where the call stands, in a run that has begun."""
        tick = self._clock.tick(call.argument("timestep", 1))
        if tick.new_run:
            if self.run.started:
                self.run.finish()
                self.run = self._model.run = ForwardRun(self.settings, self.events, model=self._name)
            if self.new_step_cache is not None:
                self.run.step_cache = self.new_step_cache()
            self._give_way(tick)
            if self._ranks is not None:
                self.run.join(self._ranks)
            self._branches = Branches()
            self.run.start(tick.steps, tick.progress)
        if not self._clock.knows_length:
            self.run.telling.note(
                Phrase(
                    "note_noise_alone",
                    "progress was read from the noise level alone: pass scheduler, timesteps or steps",
                )
            )
        elif not tick.listed:
            self.run.telling.note(
                Phrase(
                    "note_unknown_timestep",
                    "a timestep is not among the given ones: its progress was read from the noise level alone",
                )
            )
        return tick

    def _give_way(self, tick: Tick) -> None:
        """Skip nothing in a run of too few steps, or beside another cache: both would answer one evaluation."""
        if self.run.step_cache is None:
            return
        own = self.settings.skip if self.new_step_cache is None else StepCacheSettings()
        why = why_skip_nothing(own, tick, self._transformer)
        if why is not None:
            self.run.skip_nothing(why)

    def _read(self, call: ForwardCall, tick: Tick) -> ModelCall:
        t, h, w = (size // patch for size, patch in zip(call.hidden_states.shape[-3:], self._patch))
        return ModelCall(self.run, TokenGrid(t, h, w), tick)

    def _evaluation(self, call: ForwardCall, tick: Tick) -> Evaluation:
        branch, conditional = self._branches.of(call.argument("encoder_hidden_states", 2), tick)
        return Evaluation(
            step=tick.step,
            sampler_step=tick.sampler_step,
            steps=tick.steps,
            progress=tick.progress,
            level=tick.level,
            # Of tokens at several noise levels no history at one level says anything.
            prediction="" if tick.uneven else "flow",
            denoised=None,
            branches=(Branch(branch, slice(0, call.latent.shape[0])),),
            conditional=0 if conditional else None,
            window=None,
            expert=self._expert,
            device=call.latent.device,
            is_last=tick.steps is not None and tick.sampler_step >= tick.steps - 1,
            next_level=tick.next_level,
            uncorrected=tick.uncorrected,
        )

    @uncompiled
    def _broke(self) -> None:
        """The model raised: this run is over, however the next one may look."""
        self.run.leave()
        self._finish(cancelled=True)

    @uncompiled
    def _end(self) -> None:
        self._model.call = None
        self.report.finish()


def apply_draft_attention(
    transformer: nn.Module,
    settings: Settings | None = None,
    *,
    scheduler: Any = None,
    timesteps: Sequence[float] | Tensor | None = None,
    steps: int | None = None,
    expert: str | None = None,
    rank_timeout: float = DEFAULT_TIMEOUT_S,
) -> DraftAttentionHandle:
    """Serve a transformer's video self-attention with draft attention until the handle is removed.

    Pass the pipeline's scheduler (or the timesteps, or the number of steps), so that the schedule follows the steps of
    a run; `RunClock` says how progress is found. Runs are told apart on their own: `handle.report` is that of the
    current or last one. With two experts (Wan 2.2) apply it to each transformer, both with the pipeline's scheduler.

    Under `enable_parallelism(ContextParallelConfig(ulysses_degree=N))` the ranks are one run: apply it on each of them,
    with the same settings, before or after. A finished run's report counts for all ranks.

    A run of too few steps to gain anything skips none, nor does one that begins while the transformer has another cache
    (one of diffusers' own, or a `forward` whose name says so); the report's notes say so. A finished run is logged in
    one line.

    Args:
        transformer: a WanTransformer3DModel, WanVACETransformer3DModel (its VACE layers count after the others),
            WanAnimateTransformer3DModel, SkyReelsV2Transformer3DModel, HunyuanVideoTransformer3DModel or
            HunyuanVideo15Transformer3DModel; wrapped by
            `torch.compile` too.
        settings: None takes `Settings()`.
        scheduler: the pipeline's scheduler.
        timesteps: the timesteps of a run, noisiest first.
        steps: the number of steps of a run.
        expert: which of a family's models this is, for a profile ("high" and "low" for Wan 2.2); None finds it in the
            settings' profile by its weights.
        rank_timeout: under context parallelism, how long one rank may keep the others waiting, in seconds.

    Raises:
        ProfileError: if `expert` is no plain name.
        TypeError: if the class is not known, or a processor computes attention in a way that cannot be served.
        ValueError: if draft attention is applied already, more than one of scheduler, timesteps, steps is given, or
            the profile's masks, where the method is calibatt, are of another model.
        ParallelismError: under ring attention, or with heads that cannot be dealt to the ranks.
    """
    clock = RunClock(scheduler, timesteps, steps)
    if expert is not None:
        check_name("the expert", expert)
    transformer = getattr(transformer, "_orig_mod", transformer)
    return DraftAttentionHandle(transformer, settings or Settings(), clock, rank_timeout, expert)
