"""Devices in name: tensors on the CPU that say they lie elsewhere, and meet only those that say the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Placed(Tensor):
    """A tensor on a device in name. An operation on two of them raises RuntimeError unless both lie on one, as CUDA's
    do; `to` and `cpu` move it. Tensors that name no device may meet all of them."""

    place: torch.device

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return getattr(self, "place", torch.device("cpu"))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        places = {tensor.place for tensor in _placed((args, kwargs)) if hasattr(tensor, "place")}
        if func in (Tensor.to, Tensor.cpu):
            wanted = torch.device("cpu") if func is Tensor.cpu else next(filter(_is_device, args[1:]), None)
            rest = [value for value in args[1:] if not _is_device(value)]
            same = super().__torch_function__(Tensor.to, types, (args[0], *rest), kwargs) if rest or kwargs else args[0]
            return same if wanted is None else on(wanted, same)
        if len(places) > 1:
            raise RuntimeError(f"{func.__name__} was given tensors on {' and '.join(sorted(map(str, places)))}")
        out = super().__torch_function__(func, types, args, kwargs)
        for tensor in _placed(out):
            tensor.place = next(iter(places), torch.device("cpu"))
        return out


def on(device: torch.device | str, tensor: Tensor) -> Tensor:
    """A copy of a tensor on a device in name."""
    moved = tensor.detach().as_subclass(Tensor).clone().as_subclass(Placed)
    moved.place = torch.device(device)
    return moved


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or value == "cpu"


def _placed(value: Any) -> Iterator[Placed]:
    if isinstance(value, Placed):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _placed(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _placed(each)
