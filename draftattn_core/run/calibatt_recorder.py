"""CalibAtt's calibration pass (arXiv 2603.05503, section 4): a run's dense calls vote for masks.

Of every noise level and layer the first call of the conditional branch is measured, once: block energies, the fewest
blocks that hold the mass eps(t), the likeness of spatial rows. Nothing of the run is changed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..attention import check_inputs
from ..backends.energy import surveyed
from ..geometry.layout import Layout, TableCache
from ..method.calibatt.masks import EnergyTarget, fewest_blocks
from ..method.calibatt.portable import PortableScores
from ..phrase import Phrase
from .calibration import Calibration, ExpertVotes
from .figures import BUCKETS, bucket_of
from .fingerprint import Fingerprint, ModelName, ProfileError
from .profile import prompt_key
from .report import Position


@dataclass(eq=False)
class CalibAttRecorder:
    """Takes the calls of one run as they come, from any thread. Make one per run.

    Attributes:
        model: what the host knows of the model.
        block: tokens per query and key block; the order is raster, as published.
        target: mass that a step keeps; None for the constants of the run's number of steps.
    """

    model: ModelName
    block: int = 128
    target: EnergyTarget | None = None
    _fingerprint: Fingerprint | None = None
    _layout: Layout | None = None
    _progress: dict[int, float] = field(default_factory=dict)
    _votes: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    _similarity: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _energy: dict[tuple[int, int], PortableScores] = field(default_factory=dict)
    _heads_seen: dict[tuple[int, int], int] = field(default_factory=dict)
    _masks: dict[tuple[int, int], int] = field(default_factory=dict)
    _cache: TableCache = field(default_factory=TableCache, repr=False)
    _seen: set[tuple[int, int, int]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def observe(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        position: Position,
        steps: int | None,
        key_bias: Tensor | None = None,
    ) -> None:
        """Measure a video self-attention call, if it is the first of its step and layer. Waits for the device.

        Costs about as much as computing the call densely.

        Args:
            q, k, v: (B, H, L, D), as the run got them; each sample of the batch votes by itself.
            layout: of the call; only its grid and extra tokens count.
            position: where it stands; `conditional` says which samples are of the conditional branch.
            steps: of the run, None if unknown.
            key_bias: see `draft_attention`.

        Raises:
            ProfileError: if calls are not of one model on one grid.
            ValueError: if the tensors do not fit the layout.
        """
        key = (position.step, position.layer, position.first_head)
        rows = conditional_rows(position, q.shape[0])
        with self._lock:
            if key in self._seen or not rows:
                return
            self._seen.add(key)
        layout = Layout(layout.grid, layout.extra_before, layout.extra_after, self.block, self.block, order="raster")
        check_inputs(q, k, v, layout, key_bias)
        self._meet(layout, position, q, steps)
        assert self.target is not None
        if len(rows) < q.shape[0]:
            at = torch.tensor(rows, device=q.device)
            q, k = q.index_select(0, at), k.index_select(0, at)
            key_bias = key_bias.index_select(0, at) if key_bias is not None and key_bias.shape[0] > 1 else key_bias
        tables, scale = self._cache.get(layout, q.device), q.shape[-1] ** -0.5
        found = surveyed(q, k, tables, scale, key_bias=key_bias)
        keep = self._fewest(found.energy, tables.k.video, position.progress)
        self._take(position, keep, found.similarity.sum(0).cpu(), found.energy, layout, q.shape[1])

    def _fewest(self, energy: Tensor, video: int, progress: float) -> Tensor:
        """One prompt's masks: the mass of extra blocks, which are always kept, counts towards eps."""
        assert self.target is not None
        forced = torch.zeros(energy.shape[-2:], dtype=torch.bool, device=energy.device)
        forced[:, video:] = True
        keep = fewest_blocks(energy, self.target.at_share(progress), forced if video < energy.shape[-1] else None)
        return keep[..., :video].cpu()

    def _meet(self, layout: Layout, position: Position, q: Tensor, steps: int | None) -> None:
        heads = position.all_heads or q.shape[1]
        fingerprint = Fingerprint(self.model.family, position.layers, heads, q.shape[3])
        bare = replace(layout, extra_before=0, extra_after=0)
        with self._lock:
            if self._fingerprint is None:
                self._fingerprint, self._layout = fingerprint, bare
                if self.target is None:
                    self.target = EnergyTarget.for_steps(steps or 50)
            if (self._fingerprint, self._layout) != (fingerprint, bare):
                raise ProfileError(
                    Phrase("masks_shape", "masks are for layers of one shape on one grid, and this run has others")
                )
            self._progress.setdefault(position.step, position.progress)

    def _take(
        self, position: Position, keep: Tensor, likeness: Tensor, energy: Tensor, layout: Layout, held: int
    ) -> None:
        step, layer, first = position.step, position.layer, position.first_head
        heads = position.all_heads or held
        part, bucket = slice(first, first + held), bucket_of(position.progress)
        with self._lock:
            votes = self._votes.setdefault(layer, {})
            if step not in votes:
                votes[step] = torch.zeros(heads, *keep.shape[2:], dtype=torch.uint8)
                self._similarity[step, layer] = torch.zeros(heads)
            votes[step][part] += keep.sum(0, dtype=torch.uint8)
            self._similarity[step, layer][part] = likeness.float()
            self._masks[step, layer] = keep.shape[0]
            self._heads_seen[step, layer] = self._heads_seen.get((step, layer), 0) + held
            # One energy per bucket and layer is enough for displacements.
            wanted = (bucket, layer) not in self._energy and held == heads
            if wanted:
                tables = self._cache.get(replace(layout, extra_before=0, extra_after=0), torch.device("cpu"))
                scores = PortableScores.for_layout(heads, tables)
                scores.add(energy.cpu(), tables)
                self._energy[bucket, layer] = scores

    def calibration(self, prompt: str | None = None) -> Calibration | None:
        """What this run voted, to be used or merged into a kept one; None if that is nothing.

        Steps of which not all heads of a layer were seen do not vote.

        Args:
            prompt: its text, of which a key is kept; None if unknown, which counts as no prompt.
        """
        with self._lock:
            model, layout, target = self._fingerprint, self._layout, self.target
            if model is None or layout is None or target is None:
                return None
            steps = {step: row for row, step in enumerate(sorted(self._progress, key=lambda s: self._progress[s]))}
            masks = torch.zeros(len(steps), model.layers, dtype=torch.int32)
            similarity = torch.zeros(len(steps), model.layers, model.heads)
            counted = torch.zeros(BUCKETS, model.layers, dtype=torch.int32)
            votes: dict[int, Tensor] = {}
            energy: dict[int, Tensor] = {}
            for layer, found in sorted(self._votes.items()):
                votes[layer] = torch.zeros(len(steps), *next(iter(found.values())).shape, dtype=torch.uint8)
                for step, counts in found.items():
                    if self._heads_seen[step, layer] != model.heads:
                        continue
                    votes[layer][steps[step]] = counts
                    masks[steps[step], layer] = self._masks[step, layer]
                    similarity[steps[step], layer] = self._similarity[step, layer]
                energy[layer] = self._energies(layer, counted)
            expert = ExpertVotes(
                self.model.weights,
                tuple(self._progress[step] for step in steps),
                masks, votes, similarity, energy, counted,
            )  # fmt: skip
        keys = () if prompt is None else (prompt_key(prompt),)
        return Calibration(model, layout, target, {self.model.expert: expert}, keys, 1)

    def _energies(self, layer: int, counted: Tensor) -> Tensor:
        """`ExpertVotes.energy` of a layer; counts are written into `counted`."""
        assert self._fingerprint is not None and self._layout is not None
        tables = self._cache.get(self._layout, torch.device("cpu"))
        cells = PortableScores.for_layout(1, tables).pairs.numel()
        sums = torch.zeros(BUCKETS, self._fingerprint.heads, cells)
        for bucket in range(BUCKETS):
            scores = self._energy.get((bucket, layer))
            if scores is not None:
                sums[bucket] = scores.sums.flatten(1).float()
                counted[bucket, layer] = self._masks_of_bucket(bucket, layer)
        return sums

    def _masks_of_bucket(self, bucket: int, layer: int) -> int:
        """How many samples the energies of a bucket are of."""
        return next(
            count
            for (step, other), count in self._masks.items()
            if other == layer and bucket_of(self._progress[step]) == bucket
        )


def conditional_rows(position: Position, batch: int) -> tuple[int, ...]:
    """Samples of a batch that are of the conditional branch: all where the host does not tell.

    A host that asks for several conditions in one batch puts them one after the other, each of as many samples.
    """
    kinds = position.conditional
    if not kinds or batch % len(kinds):
        return tuple(range(batch)) if not kinds or any(kinds) else ()
    each = batch // len(kinds)
    return tuple(row for row in range(batch) if kinds[row // each])
