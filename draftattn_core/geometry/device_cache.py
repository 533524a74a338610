"""Tensors that stay on their device from call to call: what calls derive from layout and policy alone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# What the allocator of a GPU gives at least.
_LEAST_BYTES = 512


@dataclass
class _Entry:
    """A tensor, and the stream and moment it was made at (CUDA and ROCm; None elsewhere)."""

    tensor: Tensor
    stream: torch.cuda.Stream | None = None
    made: torch.cuda.Event | None = None


@dataclass
class DeviceCache:
    """A bounded cache of tensors that are read only; safe to share between threads and between streams.

    In a CUDA graph: an entry that a capture reads is kept as long as this cache, so that a replay finds it. It must
    have been made before the capture began, with that work done, as `torch.cuda.graph` sees to. What is missing during
    a capture is made by the graph itself, on each replay, and not kept. So `make` must launch nothing that a capture
    forbids, and a graph needs the cache's owner alive.

    Attributes:
        limit_bytes: how much is kept; the least recently used goes first. What captures read comes on top.
    """

    limit_bytes: int
    _entries: OrderedDict[Hashable, _Entry] = field(default_factory=OrderedDict)
    _captured: dict[Hashable, _Entry] = field(default_factory=dict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Hashable, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of `key` on `device`, from `make` where it is not at hand. Threads may make one twice."""
        capturing = is_capturing(device)
        with self._lock:
            entry = self._captured.get(key) or self._entries.get(key)
            if entry is not None and capturing and key in self._entries:
                self._captured[key] = self._entries.pop(key)
                self._bytes -= _size(entry.tensor)
            elif key in self._entries:
                self._entries.move_to_end(key)
        if entry is None:
            # Tensors made in inference mode could not serve a later call that records gradients.
            with torch.inference_mode(False):
                tensor = make()
            # One of a tracer (a fake tensor) means nothing to a later call.
            if capturing or type(tensor) is not Tensor:
                return tensor
            return self._add(key, _entry(tensor)).tensor
        if entry.stream is not None and entry.made is not None and not capturing:
            stream = torch.cuda.current_stream(device)
            if stream != entry.stream:
                stream.wait_event(entry.made)
                # Dropped from the cache, its memory waits for this stream too before it is given to others.
                entry.tensor.record_stream(stream)
        return entry.tensor

    def _add(self, key: Hashable, entry: _Entry) -> _Entry:
        """Keep an entry, unless another thread was first: a graph may read that one already."""
        if _size(entry.tensor) > self.limit_bytes:
            return entry
        with self._lock:
            first = self._captured.get(key) or self._entries.get(key)
            if first is not None:
                return first
            self._bytes += _size(entry.tensor)
            self._entries[key] = entry
            while self._bytes > self.limit_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= _size(oldest.tensor)
        return entry

    def __len__(self) -> int:
        return len(self._entries) + len(self._captured)


def is_capturing(device: torch.device) -> bool:
    """Whether launches on the current stream go into a CUDA graph instead of running."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _entry(tensor: Tensor) -> _Entry:
    if tensor.device.type != "cuda":
        return _Entry(tensor)
    stream = torch.cuda.current_stream(tensor.device)
    return _Entry(tensor, stream, stream.record_event())


def _size(tensor: Tensor) -> int:
    return max(_LEAST_BYTES, tensor.untyped_storage().nbytes())
