"""A transformer's `forward` in diffusers' form: its latent and its output, and how both are put back together."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...run.report import RunReport
from ...run.run import Run

log = logging.getLogger(__name__)
_F = TypeVar("_F", bound=Callable[..., Any])


def uncompiled(function: _F) -> _F:
    """`function`, which torch.compile runs as it is, with all it calls."""
    plain: _F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return plain


def itself_uncompiled(function: _F) -> _F:
    """`function`, which torch.compile runs as it is; what it calls is compiled."""
    plain: _F = torch.compiler.disable(function, recursive=False)  # type: ignore[no-untyped-call]
    return plain


def logged(report: RunReport) -> str:
    """The run in one line, which is logged."""
    line = report.summary()
    log.info(line)
    return line


class ForwardRun(Run):
    """A run that torch.compile leaves alone where it compiles the model that the run evaluates."""

    _ask = uncompiled(Run._ask)
    _answered = uncompiled(Run._answered)
    evaluate = itself_uncompiled(Run.evaluate)

    def finish(self, cancelled: bool = False, tell: Callable[[RunReport], str] = logged) -> RunReport:
        """See `Run.finish`; how the run went is logged, once."""
        return super().finish(cancelled, tell)


def wrap_forward(
    transformer: nn.Module, answer: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
) -> Callable[[], None]:
    """Have `answer(forward, args, kwargs)` called in place of the transformer's `forward`.

    Returns:
        A function that puts its own `forward` back. Where someone has wrapped ours it stays, so `answer` must then
        call `forward` itself.
    """
    inner = transformer.forward
    before = transformer.__dict__.get("forward")

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return answer(inner, args, kwargs)

    ours = itself_uncompiled(forward)
    transformer.forward = ours

    def restore() -> None:
        if transformer.__dict__.get("forward") is not ours:
            return
        if before is None:
            del transformer.__dict__["forward"]
        else:
            transformer.forward = before

    return restore


@dataclass(eq=False)
class ForwardCall:
    """One call of a transformer.

    Attributes:
        forward: the transformer's own.
        args, kwargs: what it was called with.
        channels: channels of the latent; those after them in `hidden_states` are conditions (image to video).
        returned: what `forward` returned, None before it was called.
    """

    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    channels: int
    returned: Any = None

    @functools.cached_property
    def hidden_states(self) -> Tensor:
        """(B, C, T, H, W): the latent, and conditions in further channels."""
        given: Tensor = self.argument("hidden_states", 0)
        return given

    @functools.cached_property
    def latent(self) -> Tensor:
        """(B, channels, T, H, W), a view."""
        states = self.hidden_states
        return states if self.channels >= states.shape[1] else states[:, : self.channels]

    def argument(self, name: str, index: int) -> Any:
        """An argument of `forward` that must be there."""
        return self.kwargs[name] if name in self.kwargs else self.args[index]

    @itself_uncompiled
    def compute(self, latent: Tensor) -> Tensor:
        """The model's output for a latent, (B, channels, T, H, W)."""
        args, kwargs = self._with(latent)
        self.returned = self.forward(*args, **kwargs)
        return _sample(self.returned)

    @uncompiled
    def _with(self, latent: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if latent is self.latent:
            return self.args, self.kwargs
        states = torch.cat([latent, self.hidden_states[:, latent.shape[1] :]], 1)
        if "hidden_states" in self.kwargs:
            return self.args, {**self.kwargs, "hidden_states": states}
        return (states, *self.args[1:]), self.kwargs

    @uncompiled
    def in_hosts_form(self, out: Tensor) -> Any:
        """An output as `forward` returns it: the very object if the model made it, else a tuple or diffusers' class."""
        if self.returned is not None and _sample(self.returned) is out:
            return self.returned
        named = inspect.signature(self.forward).bind(*self.args, **self.kwargs).arguments
        if not named.get("return_dict", True):
            return (out,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=out)


@uncompiled
def _sample(returned: Any) -> Tensor:
    sample: Tensor = returned[0]
    return sample
