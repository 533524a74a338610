"""Calibration: votes for CalibAtt's masks, and what else its runs left, in a form that can be kept and added to.

Kept are votes, not masks: more prompts may join later, and the share of them that a block needs is chosen at use.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..geometry.layout import Layout, LayoutTables, build_tables
from ..method.calibatt.intervals import MOST_RUNS, Intervals, close_gaps, group_steps, intervals_of, share_masks
from ..method.calibatt.masks import RHO, EnergyTarget, MaskVotes
from ..method.calibatt.portable import PortableScores, PortableVolume
from ..method.calibatt.repetition import GAMMA, repetition_heads
from ..method.rules.calibatt import At, Calibrated, CalibratedMasks, Portable
from ..phrase import Phrase, Text
from .figures import BUCKETS, bucket_of
from .fingerprint import (
    Fingerprint,
    ModelName,
    ProfileError,
    check_name,
    names_or_none,
    prompts_in_words,
    runs_in_words,
)

# Counts are kept in a byte each.
MOST_VOTES = 255
MAX_STEPS = 1024
_SAME_PROGRESS = 1e-3


@dataclass(frozen=True, eq=False)
class ExpertVotes:
    """Votes of one of the model's experts; tensors on the CPU.

    Attributes:
        weights: identity of its weights, "" if unknown.
        progress: of every noise level, in the order of the run.
        masks: (steps, layers) int32, how many masks were counted.
        votes: by layer (steps, H, R, C) uint8, how many of them kept a block; R and C are video blocks.
        similarity: (steps, layers, H) float32, sum over those masks' calls of the likeness of spatial rows.
        energy: by layer (buckets, H, cells) float32, sums of energy by displacement (`PortableScores.sums`); their
            numbers of pairs are those of the layout times `counted`.
        counted: (buckets, layers) int32, how many energies were summed.
    """

    weights: str
    progress: tuple[float, ...]
    masks: Tensor
    votes: Mapping[int, Tensor]
    similarity: Tensor
    energy: Mapping[int, Tensor]
    counted: Tensor

    def merged(self, other: ExpertVotes) -> ExpertVotes:
        """Both together; raises ProfileError if they are of other weights or other noise levels."""
        if self.weights != other.weights:
            raise ProfileError(
                Phrase(
                    "masks_weights",
                    "these masks are of other weights of the model: save them under a name of their own",
                )
            )
        apart = [abs(a - b) for a, b in zip(self.progress, other.progress)]
        if len(self.progress) != len(other.progress) or max(apart, default=0.0) > _SAME_PROGRESS:
            raise ProfileError(
                Phrase(
                    "masks_levels",
                    "these masks are for {masks} other noise levels than the run's {run}: "
                    "calibrate with the same steps and scheduler, or save them under a name of their own",
                    masks=len(self.progress),
                    run=len(other.progress),
                )
            )
        masks = self.masks + other.masks
        if int(masks.max()) > MOST_VOTES:
            raise ProfileError(
                Phrase(
                    "masks_full",
                    "{count} prompts have voted, more cannot be counted: start a new calibration",
                    count=MOST_VOTES,
                )
            )
        return replace(
            self,
            masks=masks,
            votes=_added(self.votes, other.votes),
            similarity=self.similarity + other.similarity,
            energy=_added(self.energy, other.energy),
            counted=self.counted + other.counted,
        )


@dataclass(frozen=True, eq=False)
class Calibration:
    """What calibrated runs of one model on one grid left. Immutable: `merged` makes a new one.

    Attributes:
        fingerprint: which model.
        layout: geometry the masks are for, without extra tokens.
        target: mass that each step keeps.
        experts: votes by expert, "main" for models with one.
        prompts: keys of the prompts (`prompt_key`), sorted.
        runs: how many runs voted.

    Raises:
        ProfileError: if the parts do not belong together.
    """

    fingerprint: Fingerprint
    layout: Layout
    target: EnergyTarget
    experts: Mapping[str, ExpertVotes]
    prompts: tuple[str, ...] = ()
    runs: int = 0
    _compiled: dict[tuple[str, float], CalibratedMasks] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        forms = calibration_forms(self.fingerprint, self.layout)
        for name, votes in self.experts.items():
            check_name("the expert", name)
            steps = len(votes.progress)
            ascending = all(0.0 <= a <= b <= 1.0 for a, b in zip(votes.progress, (*votes.progress[1:], 1.0)))
            if not 1 <= steps <= MAX_STEPS or not ascending:
                raise ProfileError(f"the noise levels of expert {name} are not those of a run: calibrate again")
            for what, tensor in named_tensors(votes).items():
                shape, dtype = forms[what.partition("/")[0]]
                wanted = tuple(steps if size < 0 else size for size in shape)
                if (tuple(tensor.shape), tensor.dtype) != (wanted, dtype):
                    raise ProfileError(f"the masks of expert {name} have a wrong form: calibrate again")
            if not _possible(votes):
                raise ProfileError(f"the masks of expert {name} are not all possible numbers: calibrate again")

    def check(self, model: ModelName) -> tuple[Text, ...]:
        """What to tell the user before these masks are used for a model, as far as the host knows it.

        Raises:
            ProfileError: if they cannot be used there.
        """
        mine = self.fingerprint
        known = (("family", model.family), ("layers", model.layers), ("heads", model.heads))
        if any(value and value != "model" and value != getattr(mine, name) for name, value in known):
            raise ProfileError(
                Phrase(
                    "masks_other_model",
                    "these masks were calibrated on {masks}, which the model is not: choose a profile of this model, "
                    "or calibrate one with masks",
                    masks=mine.text(),
                )
            )
        votes = self.experts.get(model.expert)
        if votes is None or not votes.votes:
            raise ProfileError(
                Phrase(
                    "masks_no_expert",
                    "this profile has no masks for the expert '{expert}' (it has {known}): "
                    "calibrate a run that uses it",
                    expert=model.expert,
                    known=names_or_none(self.experts),
                )
            )
        if model.weights and votes.weights and model.weights != votes.weights:
            return (
                Phrase(
                    "masks_other_weights",
                    "the masks were calibrated on other weights of this model: they fit at best nearly",
                ),
            )
        return ()

    def made_from(self) -> Text:
        """One line: prompts, runs, grid, steps, mass."""
        steps = sorted({len(votes.progress) for votes in self.experts.values()})
        target, layout = self.target, self.layout
        return Phrase(
            "masks_made_from",
            "masks from {prompts}, {runs}: grid {grid}, blocks {blocks}, {levels} noise levels, "
            "mass {start} to {floor} ({source})",
            prompts=prompts_in_words(len(self.prompts)),
            runs=runs_in_words(self.runs),
            grid=str(layout.grid),
            blocks=f"{layout.q_block}/{layout.k_block}",
            levels="/".join(map(str, steps)),
            start=f"{target.start:g}",
            floor=f"{target.floor:g}",
            source=target.source,
        )

    def merged(self, other: Calibration) -> Calibration:
        """Both together.

        Raises:
            ProfileError: if they are about different models, grids, blocks, masses, weights or noise levels.
        """
        if self.fingerprint != other.fingerprint:
            raise ProfileError(
                Phrase(
                    "masks_run_of",
                    "these masks are for {masks}, the run was of {run}",
                    masks=self.fingerprint.text(),
                    run=other.fingerprint.text(),
                )
            )
        if self.layout != other.layout:
            raise ProfileError(
                Phrase(
                    "masks_run_layout",
                    "these masks are for the layout {masks}, the run had {run}: calibrate on one grid with "
                    "one size of blocks, or save under a name of its own",
                    masks=str(self.layout),
                    run=str(other.layout),
                )
            )
        ours, theirs = ((x.target.floor, x.target.start, x.target.rate) for x in (self, other))
        if ours != theirs:
            raise ProfileError(
                Phrase(
                    "masks_masses",
                    "these masks keep the masses {ours}, the run {theirs}: use the same ones",
                    ours=str(ours),
                    theirs=str(theirs),
                )
            )
        experts = dict(self.experts)
        for name, votes in other.experts.items():
            experts[name] = experts[name].merged(votes) if name in experts else votes
        return Calibration(
            self.fingerprint,
            self.layout,
            self.target,
            dict(sorted(experts.items())),
            tuple(sorted({*self.prompts, *other.prompts})),
            self.runs + other.runs,
        )

    def compiled(self, expert: str, rho: float = RHO) -> CalibratedMasks:
        """Masks for use, made once per expert and share of prompts.

        Args:
            expert: a key of `experts`.
            rho: share of the prompts that must have kept a block, 0..1.
        """
        key = (expert, rho)
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = _compile(self.experts[expert], self.layout, rho)
            return self._compiled[key]


def calibration_forms(model: Fingerprint, layout: Layout) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor of an expert by name, -1 for the number of steps."""
    tables = build_tables(layout)
    cells = PortableScores.for_layout(1, tables).pairs.numel()
    blocks = (tables.q.video, tables.k.video)
    return {
        "masks": ((-1, model.layers), torch.int32),
        "similarity": ((-1, model.layers, model.heads), torch.float32),
        "counted": ((BUCKETS, model.layers), torch.int32),
        "votes": ((-1, model.heads, *blocks), torch.uint8),
        "energy": ((BUCKETS, model.heads, cells), torch.float32),
    }


def named_tensors(votes: ExpertVotes) -> dict[str, Tensor]:
    """Every tensor by name; those of a layer as "votes/3"."""
    named = {"masks": votes.masks, "similarity": votes.similarity, "counted": votes.counted}
    for what in ("votes", "energy"):
        named |= {f"{what}/{layer}": tensor for layer, tensor in getattr(votes, what).items()}
    return named


def _added(a: Mapping[int, Tensor], b: Mapping[int, Tensor]) -> dict[int, Tensor]:
    both = {key: a[key] + b[key] for key in a if key in b}
    return dict(sorted({**a, **b, **both}.items()))


def _possible(votes: ExpertVotes) -> bool:
    """Whether every number is one that votes can be."""
    layers = votes.masks.shape[1]
    sums = (votes.similarity, *votes.energy.values())
    return (
        set(votes.votes) == set(votes.energy)
        and all(0 <= layer < layers for layer in votes.votes)
        and bool((votes.masks >= 0).all() and (votes.masks <= MOST_VOTES).all() and (votes.counted >= 0).all())
        and all(bool(torch.isfinite(table).all()) for table in sums)
        and all(
            bool((table.amax((1, 2, 3)).int() <= votes.masks[:, layer]).all()) for layer, table in votes.votes.items()
        )
    )


def _compile(votes: ExpertVotes, layout: Layout, rho: float) -> CalibratedMasks:
    steps = len(votes.progress)
    lists: dict[At, Intervals] = {}
    repetition: dict[At, tuple[bool, ...]] = {}
    densities: dict[tuple[int, int], Tensor] = {}
    volumes: dict[tuple[int, int], PortableVolume] = {}
    tables = build_tables(layout)
    for layer, table in votes.votes.items():
        counted = [step for step in range(steps) if int(votes.masks[step, layer])]
        masks = [MaskVotes(table[step], int(votes.masks[step, layer])).decide(rho) for step in counted]
        merged = [close_gaps(mask, MOST_RUNS) for mask in masks]
        shared = share_masks(merged, group_steps(merged))
        # What steps have in common may be in more pieces than that of each.
        made = {id(mask): intervals_of(close_gaps(mask, MOST_RUNS)) for mask in shared}
        for step, mask in zip(counted, shared, strict=True):
            lists[step, layer] = made[id(mask)]
            likeness = votes.similarity[step, layer] / votes.masks[step, layer]
            repetition[step, layer] = repetition_heads(likeness.unsqueeze(0), GAMMA)
        for bucket in range(BUCKETS):
            inside = [m for step, m in zip(counted, masks) if bucket_of(votes.progress[step]) == bucket] or masks
            if inside:
                densities[bucket, layer] = torch.stack(inside).float().mean((0, 2, 3))
                volumes[bucket, layer] = _volume(votes, layer, bucket, tables)
    edges = tuple((i / BUCKETS) ** 1.5 for i in range(1, BUCKETS))
    exact = Calibrated(layout, steps, lists, repetition)
    as_numbers = {at: tuple(found.tolist()) for at, found in densities.items()}
    return CalibratedMasks(exact, votes.progress, Portable(volumes, edges), as_numbers)


def _volume(votes: ExpertVotes, layer: int, bucket: int, tables: LayoutTables) -> PortableVolume:
    """Portable scores of a layer in a bucket, or in the nearest one with any."""
    nearest = sorted(range(BUCKETS), key=lambda other: (abs(other - bucket), other))
    found = next((other for other in nearest if int(votes.counted[other, layer])), bucket)
    counts = PortableScores.for_layout(1, tables)
    counts.add(torch.ones(1, 1, tables.q.video, tables.k.video), tables)
    pairs = counts.pairs * int(votes.counted[found, layer])
    sums = votes.energy[layer][found].double().view(-1, *pairs.shape)
    return replace(counts, sums=sums, pairs=pairs).volume()
