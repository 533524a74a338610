"""What the checks of behaviour share: a tiny Wan model and its runs, another node's attention, a core that fails."""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import host
import torch
from model_cases import CASES, WAN

OVERRIDE = "optimized_attention_override"
LATENT = torch.zeros(1, 16, 3, 6, 10)
TEXT = CASES[0].conditioning()
LAYERS = 2


def wan() -> Any:
    return host.build("WAN21_T2V", {**WAN, "model_type": "t2v"})


def calm(model: Any, words: tuple[str, ...] = ("time_",)) -> Any:
    """The model with a tenth of its weights for the noise level (parameters named by these words): as of a trained
    model, what it predicts changes slowly along a run, so that skipped evaluations can be foretold."""
    with torch.no_grad():
        for name, value in model.model.diffusion_model.named_parameters():
            if any(word in name for word in words):
                value.mul_(0.1)
    return model


def node(module: str, name: str) -> Any:
    """A node class of the host's own extras."""
    try:
        return getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    except (ImportError, AttributeError):
        raise host.Absent(f"this ComfyUI has no {name}") from None


def run(model: Any, latent: torch.Tensor = LATENT, positive: Any = TEXT, **more: Any) -> torch.Tensor:
    return host.sample(model, latent, positive, **more)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def half_dense() -> Any:
    return host.pack("draftattn_core.run.schedule").constant(0.25, warmup=0.49)


class Foreign:
    """Another node's attention: exact, and counted by whether queries and keys are of one length."""

    def __init__(self) -> None:
        self.calls: Counter[bool] = Counter()

    def overwrite(self, model: Any) -> Any:
        """As Sage patches do: whatever was there is gone."""

        def override(func: Any, q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.calls[q.shape == k.shape] += 1
            return func(q, k, *args, **kwargs)

        return self.put(model, override)

    def chain(self, model: Any) -> Any:
        """As a well-behaved node does: what was there stays in the chain."""
        previous = model.model_options["transformer_options"].get(OVERRIDE)

        def override(func: Any, q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.calls[q.shape == k.shape] += 1
            if previous is not None:
                return previous(func, q, k, *args, **kwargs)
            return func(q, k, *args, **kwargs)

        return self.put(model, override)

    @staticmethod
    def put(model: Any, override: Any) -> Any:
        """A clone with this override."""
        patched = model.clone()
        options = dict(patched.model_options.get("transformer_options", {}))
        patched.model_options["transformer_options"] = options
        options[OVERRIDE] = override
        return patched


def failing(error: BaseException) -> Any:
    """A function that raises, whatever it is called with."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


class Logged:
    """Lines the pack logs within a `with` block, from INFO on."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.logger = logging.getLogger(host.PACK)

    def __enter__(self) -> Logged:
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        self.level = self.logger.level
        self.logger.setLevel(logging.INFO)
        self.logger.addHandler(self.handler)
        return self

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self.handler)
        self.logger.setLevel(self.level)

    def said(self, words: str) -> bool:
        """Whether a line holds these words."""
        return any(words in line for line in self.lines)


class BrokenCore:
    """The core's sparse call replaced by a function, for the time of a `with` block."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.module, self.function = host.pack("draftattn_core.run.sparse_calls"), function
        self.original = self.module.attend

    def __enter__(self) -> None:
        self.module.attend = self.function

    def __exit__(self, *_: object) -> None:
        self.module.attend = self.original
