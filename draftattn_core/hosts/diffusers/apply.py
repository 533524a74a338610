"""The diffusers host: sparse self-attention in Wan, HunyuanVideo and HunyuanVideo 1.5 transformers.

    with apply_draft_attention(pipe.transformer, settings, scheduler=pipe.scheduler) as handle:
        pipe(prompt)
    print(handle.report.summary())

Only the video self-attention is served: Wan's `attn1`, the joint video-text attention of HunyuanVideo. Cross-attention
and the text refiners are left alone and do not appear in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ...geometry.grid import TokenGrid
from ...run.report import RunReport
from ...run.session import Session, Settings
from .clock import RunClock
from .processor import DraftAttentionProcessor, Evaluation, ServedModel


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


class DraftAttentionHandle:
    """Draft attention on one transformer, from `apply_draft_attention` until `remove` or the end of a `with` block.

    Attributes:
        session: the core's state; `session.on_call` sees every sparse call.
    """

    def __init__(self, transformer: Any, settings: Settings, clock: RunClock) -> None:
        family = _family(transformer)
        modules = family.attention(transformer)
        for module in modules:
            if isinstance(module.processor, DraftAttentionProcessor) and module.processor.model.active:
                raise ValueError("this transformer has draft attention already: call remove() on its handle first")
        self.session = Session(settings)
        self._clock = clock
        self._patch = family.patch(transformer.config)
        self._model = ServedModel(self.session, len(modules), family.text)
        self._served = [
            (module, DraftAttentionProcessor(module.processor, layer, self._model))
            for layer, module in enumerate(modules)
        ]
        for module, processor in self._served:
            module.set_processor(processor)
        self._hooks = [
            transformer.register_forward_pre_hook(self._before, with_kwargs=True),
            transformer.register_forward_hook(self._after, always_call=True),
        ]

    @property
    def active(self) -> bool:
        """False once removed."""
        return self._model.active

    @property
    def report(self) -> RunReport:
        """The report of the current run, or of the last one if none is under way."""
        return self.session.report

    def finish_run(self) -> RunReport:
        """End the run: free its index tables and return its report. The next transformer call begins a new one.

        Needed only where two runs look like one: without a scheduler, when a run starts at a timestep no higher than
        where the last one ended.
        """
        self._clock.restart()
        return self.session.finish_run()

    def remove(self) -> None:
        """Give every module its own processor back: the model is then as it was, bit for bit. Safe to call twice."""
        if not self.active:
            return
        self._model.active = False
        for module, processor in self._served:
            # Where someone put another processor around ours it stays, and ours stands aside.
            if module.processor is processor:
                module.set_processor(processor.inner)
        for hook in self._hooks:
            hook.remove()
        self._served.clear()
        self.session.finish_run()

    def __enter__(self) -> DraftAttentionHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    # Where the whole model is compiled, its hooks would be traced with it.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, _model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._model.evaluation = self._read(args, kwargs)
        except Exception as error:
            self._model.evaluation = None
            self.session.failed(error)

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Evaluation:
        hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        t, h, w = (size // patch for size, patch in zip(hidden_states.shape[-3:], self._patch))
        tick = self._clock.tick(kwargs["timestep"] if "timestep" in kwargs else args[1])
        if tick.new_run:
            self.session.start_run()
        if not self._clock.knows_length:
            self.report.note("progress was read from the noise level alone: pass scheduler, timesteps or steps")
        elif not tick.listed:
            self.report.note("a timestep is not among the given ones: its progress was read from the noise level alone")
        return Evaluation(TokenGrid(t, h, w), tick)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after(self, _model: Any, _args: tuple[Any, ...], _output: Any) -> None:
        self._model.evaluation = None
        self.report.finish()


def apply_draft_attention(
    transformer: nn.Module,
    settings: Settings | None = None,
    *,
    scheduler: Any = None,
    timesteps: Sequence[float] | Tensor | None = None,
    steps: int | None = None,
) -> DraftAttentionHandle:
    """Serve a transformer's video self-attention with draft attention until the handle is removed.

    Pass the pipeline's scheduler (or the timesteps, or the number of steps), so that the schedule follows the steps of
    a run; `RunClock` says how progress is found. Runs are told apart on their own: `handle.report` is that of the
    current or last one. With two experts (Wan 2.2) apply it to each transformer, both with the pipeline's scheduler.

    Args:
        transformer: a WanTransformer3DModel, WanVACETransformer3DModel (its VACE layers count after the others),
            WanAnimateTransformer3DModel, HunyuanVideoTransformer3DModel or HunyuanVideo15Transformer3DModel; wrapped by
            `torch.compile` too.
        settings: None takes `Settings()`.
        scheduler: the pipeline's scheduler.
        timesteps: the timesteps of a run, noisiest first.
        steps: the number of steps of a run.

    Raises:
        TypeError: if the class is not known, or a processor computes attention in a way that cannot be served.
        ValueError: if draft attention is applied already, or more than one of scheduler, timesteps, steps is given.
    """
    clock = RunClock(scheduler, timesteps, steps)
    return DraftAttentionHandle(getattr(transformer, "_orig_mod", transformer), settings or Settings(), clock)
