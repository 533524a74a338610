"""Whose figures a profile holds, and under which settings they were measured."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..geometry.order import ORDERS, Tile
from ..method.policy import METHODS, TAILS, Policy, TailName
from ..phrase import LIST, Joined, Phrase, Text

# Far beyond any model; a profile that says more is not one.
MAX_LAYERS = 1024
MAX_HEADS = 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")
_TENSORS_READ = 16
_VALUES_READ = 32


class ProfileError(ValueError):
    """A profile cannot be used, read or written. The message is one sentence that says what to do."""


def prompts_in_words(count: int) -> Text:
    """So many prompts."""
    return Phrase("one_prompt", "1 prompt") if count == 1 else Phrase("many_prompts", "{count} prompts", count=count)


def runs_in_words(count: int) -> Text:
    """So many runs."""
    return Phrase("one_run", "1 run") if count == 1 else Phrase("many_runs", "{count} runs", count=count)


def names_or_none(names: Collection[str]) -> Text:
    """What there is, or that there is nothing."""
    return Joined(names, LIST) if names else Phrase("names_none", "none")


def check_name(what: str, name: str) -> str:
    """`name` if it is short and harmless: letters, digits, space and . _ + -; raises ProfileError otherwise."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ProfileError(f"{what} {str(name)[:80]!r} is not a plain name of up to 64 characters: choose another one")
    return name


@dataclass(frozen=True)
class Fingerprint:
    """Which model a profile is about. The identity of its weights is kept by expert.

    Attributes:
        family: the host's name for the architecture, such as `wan`.
        layers: video self-attention layers.
        heads: of each layer, over all devices.
        head_size: channels per head.

    Raises:
        ProfileError: if a value is out of range.
    """

    family: str
    layers: int
    heads: int
    head_size: int

    def __post_init__(self) -> None:
        check_name("the model family", self.family)
        for what, value, most in (
            ("layers", self.layers, MAX_LAYERS),
            ("heads", self.heads, MAX_HEADS),
            ("channels per head", self.head_size, 4096),
        ):
            if not _is_whole(value) or not 1 <= value <= most:
                raise ProfileError(f"a model has between 1 and {most} {what}, got {value}: make the profile anew")

    def text(self) -> Text:
        """The model in words."""
        return Phrase(
            "model_of",
            "{family} ({layers} layers, {heads} heads of {size})",
            family=self.family,
            layers=self.layers,
            heads=self.heads,
            size=self.head_size,
        )

    def __str__(self) -> str:
        return str(self.text())


@dataclass(frozen=True)
class ModelName:
    """What a host knows of the model that runs, beside its shape.

    Attributes:
        family: see `Fingerprint` and `family_of`.
        expert: which of the family's models; "main" where there is one.
        weights: identity of its weights (`weights_identity`), "" if unknown.
        layers: video self-attention layers; heads: of each layer, over all devices; 0 if unknown.
    """

    family: str = "model"
    expert: str = "main"
    weights: str = ""
    layers: int = 0
    heads: int = 0


def family_of(class_name: str) -> str:
    """Name of an architecture by the name of its class, the same in every host."""
    for start, family in (("Wan", "wan"), ("Hunyuan", "hunyuan")):
        if class_name.startswith(start):
            return family
    return re.sub(r"[^A-Za-z0-9 ._+-]", "", class_name)[:64] or "model"


@dataclass(frozen=True)
class Conditions:
    """What the figures of a profile depend on beside the model.

    Attributes:
        q_block, k_block, tile, order: see `Layout`; tile None is the default of the blocks.
        rule: selection rule; floor, spread, keep_own, keep_first_frame, keep_last_frame: see `Policy`.
        tails: what a head could choose from, in the order of `TAILS`.
        gains: whether tail gains were fitted.
        number_format: of the products, such as `float` or `int8`. Another one is noted, not refused.

    Raises:
        ProfileError: if a value is out of range or a name unknown.
    """

    q_block: int
    k_block: int
    tile: Tile | None
    order: str
    rule: str
    floor: float
    spread: bool
    keep_own: bool
    keep_first_frame: bool
    keep_last_frame: bool
    tails: tuple[TailName, ...]
    gains: bool
    number_format: str = "float"

    def __post_init__(self) -> None:
        tile = self.tile if self.tile is None else tuple(self.tile)
        known = {
            "q_block": _is_size(self.q_block),
            "k_block": _is_size(self.k_block),
            "tile": tile is None or (len(tile) == 3 and all(map(_is_size, tile))),
            "order": self.order in ORDERS,
            "rule": self.rule in METHODS,
            "floor": isinstance(self.floor, float) and 0.0 <= self.floor <= 1.0,
            "tails": len(self.tails) > 0 and self.tails == tuple(name for name in TAILS if name in self.tails),
            **{
                flag: isinstance(getattr(self, flag), bool)
                for flag in ("spread", "keep_own", "keep_first_frame", "keep_last_frame", "gains")
            },
        }
        for name, is_known in known.items():
            if not is_known:
                value = _said(getattr(self, name))[:40]
                raise ProfileError(
                    Phrase(
                        "profile_unknown",
                        "{name} '{value}' is unknown to this version: calibrate with it again",
                        name=name,
                        value=value,
                    )
                )
        check_name("the number format", self.number_format)

    @classmethod
    def of(
        cls,
        policy: Policy,
        *,
        q_block: int,
        k_block: int,
        tile: Tile | None,
        order: str,
        tails: tuple[TailName, ...],
        gains: bool,
        number_format: str = "float",
    ) -> Conditions:
        """Those of a session's settings: `policy` without its densities, tails and gains."""
        chosen = tuple(name for name in TAILS if name in tails)
        forced = (policy.keep_own, policy.keep_first_frame, policy.keep_last_frame)
        return cls(
            q_block, k_block, tile, order, policy.method, float(policy.floor), policy.spread, *forced,
            chosen, gains, number_format,
        )  # fmt: skip

    def differences(self, other: Conditions) -> list[Text]:
        """What makes figures of one worthless under the other, in words: "k_block 64, not 128"."""
        ours, theirs = asdict(self), asdict(other)
        return [
            Phrase(
                "profile_difference",
                "{name} {ours}, not {theirs}",
                name=name,
                ours=_said(ours[name]),
                theirs=_said(theirs[name]),
            )
            for name in ours
            if name != "number_format" and ours[name] != theirs[name]
        ]


def _said(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _is_size(value: object) -> bool:
    return _is_whole(value) and isinstance(value, int) and 1 <= value <= 1 << 16


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def weights_identity(weights: Mapping[str, Tensor]) -> str:
    """A short name for a set of weights: 16 hex digits from names, shapes and a few hundred of their values.

    Values are compared as bfloat16, so that a checkpoint in float32, float16 or bfloat16 may keep its name; one in fp8
    or GGUF, with a LoRA merged, or fine-tuned has another. Reads the values back from the device: do it once per model.
    """
    tensors = sorted((name, tensor) for name, tensor in weights.items() if tensor.dim() >= 2)
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}{tuple(tensor.shape)};".encode())
    for _, tensor in tensors[:: max(1, len(tensors) // _TENSORS_READ)]:
        count = tensor.numel()
        places = torch.arange(min(_VALUES_READ, count)) * max(1, count // _VALUES_READ)
        values = tensor.detach().reshape(-1)[places.to(tensor.device)]
        digest.update(str(values.to("cpu", torch.float32).to(torch.bfloat16).tolist()).encode())
    return digest.hexdigest()[:16]
