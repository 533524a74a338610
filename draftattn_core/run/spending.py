"""Spending: a run's density goes to the layers and heads whose measured error it lowers most.

At the first sparse call of every layer, and once more in each later bucket of progress, a few exact rows give the error
curves of its heads (`error_curves`). From the next evaluation on every head has the density that the solver gives it:
at the work that the schedule's density would have cost everywhere, tails included, or, with `max_error`, at the least
work that keeps each layer within it (with a `margin`), from that very call on. A profile gives the curves before the
first sparse call; what is measured there says whether it holds.

Whatever does not fit ends the spending with a note, and the run goes on at the schedule's densities.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from ..backends.request import AttendRequest
from ..geometry.grid import TokenGrid
from ..method.policy import TAILS, TailName, head_gains
from ..method.tail.formula import tail_key_equivalents
from ..phrase import Phrase, Text, in_words, said
from .budgets import Budgets, CurveTable, least_error, within_error
from .error_curve import ErrorCurves, error_curves
from .figures import CompleteFigures, bucket_of, layers_of
from .fingerprint import Fingerprint, ModelName, ProfileError
from .margin import margin
from .probe import HeadTails
from .profile import Profile
from .profile_recorder import ProfileRecorder
from .ranks.deal import deal
from .ranks.ranks import Ranks
from .ranks.together import of_all_heads
from .report import Position
from .settings import Settings
from .share import Promise, Share, error_at, relative, squared_at
from .spent_budgets import SpentBudgets

# A profile whose promise is off by more than this, either way, is about something else.
MOST_OFF = 2.0


@dataclass(frozen=True)
class CallShape:
    """What all video self-attention calls of a run have in common.

    Attributes:
        layers: of the model; heads: of each layer, over all devices; head_size: channels per head.
        grid: of the video's tokens; extra: number of the others.
    """

    layers: int
    heads: int
    head_size: int
    grid: TokenGrid
    extra: int


@dataclass(eq=False)
class Spending:
    """The budgets of one run, and what it measures for a profile. Thread-safe.

    Attributes:
        settings: of the run.
        model: what the host knows of the model.
        note: keeps a message for the user.
        told: where `SpentBudgets` go.
        ranks: the other processes that hold heads of the run; None if there are none.
    """

    settings: Settings
    model: ModelName
    note: Callable[[Text], object]
    told: list[SpentBudgets]
    ranks: Ranks | None = None
    ended: bool = False
    recorder: ProfileRecorder | None = None
    _shape: CallShape | None = None
    _progress: float = -1.0
    _profile: Profile | None = None
    _checked: bool = False
    _fell_back: bool = False
    _figures: CompleteFigures | None = None
    _layers: tuple[int, ...] = ()
    _fresh: bool = False
    _solved: dict[tuple[int, float, int], tuple[Budgets, tuple[int, ...]]] = field(default_factory=dict)
    _shares: dict[tuple[float, int, tuple[int, ...]], Share | None] = field(default_factory=dict)
    _promise: Promise = field(default_factory=lambda: Promise({}, {}))
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def meet(self, position: Position, shape: CallShape) -> None:
        """Told every call before anything is asked of it."""
        with self._lock:
            if self.ended:
                return
            if self._shape is None:
                self._begin(shape)
            elif (shape.layers, shape.heads, shape.head_size) != self._model_shape(self._shape):
                self._end(Phrase("budgets_unequal_heads", "the layers of this model have unequal heads"))
            if position.progress != self._progress:
                self._advance()
                self._progress = position.progress

    @staticmethod
    def _model_shape(shape: CallShape) -> tuple[int, int, int]:
        return shape.layers, shape.heads, shape.head_size

    def _end(self, why: Text) -> None:
        self.ended = True
        if self.settings.spends:
            self.note(Phrase("note_no_budgets", "every head has the schedule's density: {why}", why=why))
        if self.settings.record:
            self.note(Phrase("note_no_record", "nothing more is recorded for a profile: {why}", why=why))

    def _begin(self, shape: CallShape) -> None:
        self._shape, settings = shape, self.settings
        try:
            fingerprint = Fingerprint(self.model.family, shape.layers, shape.heads, shape.head_size)
            self.recorder = ProfileRecorder.of_run(settings, fingerprint)
        except ProfileError as error:
            self._end(in_words(error))
            return
        if settings.profile is None:
            return
        try:
            notes = settings.profile.check(fingerprint, self.recorder.conditions)
            figures = settings.profile.complete(self.model.expert)
            if self.model.weights:
                notes += settings.profile.check_weights(self.model.expert, self.model.weights)
        except ProfileError as error:
            self.note(Phrase("note_profile_unused", "the profile was not used: {why}", why=said(error)))
            if settings.budgets == "off" and not settings.max_error and not settings.record:
                self.ended = True
            return
        for text in notes:
            self.note(Phrase("note_of_profile", "profile: {text}", text=text))
        self._profile, self._figures = settings.profile, figures
        self._layers, self._fresh = layers_of(settings.profile.figures(self.model.expert)), True

    @property
    def _online(self) -> bool:
        """Whether densities come from this run's own measurements."""
        asked = self.settings.budgets != "off" or self.settings.max_error > 0.0 or self._fell_back
        return asked and self._profile is None

    def wants(self, position: Position, *, dense: bool = False) -> bool:
        """Whether this call is to be measured; dense ones only for a profile."""
        with self._lock:
            if self.ended or self.recorder is None or (dense and not self.settings.record):
                return False
            checks = self._profile is not None and not self._checked
            if not (self.settings.record or self._online or checks):
                return False
            # Ranks ask for the same head, so that they measure together.
            first = 0 if self.ranks is not None else position.first_head
            return self.recorder.wants(self.model.expert, position.progress, position.layer, first)

    def profile(self, prompt: str | None, steps: int) -> Profile | None:
        """What this run measured, for a file (`add_to_file`); None if that is nothing.

        Args:
            prompt: its text, of which a key is kept; None if unknown, which counts as no prompt.
            steps: of the run.
        """
        with self._lock:
            if self.recorder is None or self._shape is None:
                return None
            return self.recorder.profile(prompt=prompt, grid=str(self._shape.grid), steps=steps)

    def measure(self, request: AttendRequest, position: Position, tails: tuple[TailName, ...]) -> ErrorCurves | None:
        """Take the error curves of a call; None if that failed, which ends the spending. Waits for the device.

        Over ranks, every rank takes those of all heads, so that all of them solve the same budgets.

        Args:
            tails: what each head may choose from.
        """
        settings = self.settings
        why: Text = Phrase("budgets_other_rank", "another rank could not measure its heads")
        curves: ErrorCurves | None = None
        try:
            found = error_curves(request, settings.policy, tails, seed=position.layer, gains=settings.auto_gain)
            curves = found.cpu()
        except (ProfileError, ValueError) as error:
            why = in_words(error)
        taken = curves
        if self.ranks is not None:
            taken = of_all_heads(self.ranks, curves, position)
            position = replace(position, first_head=0, all_heads=0, heads=())
        try:
            if taken is None:
                raise ValueError(why)
            with self._lock:
                self._take(taken, position)
            return curves
        except (ProfileError, ValueError) as error:
            with self._lock:
                self._end(in_words(error))
            return None

    def _take(self, curves: ErrorCurves, position: Position) -> None:
        assert self.recorder is not None
        layer, first = position.layer, position.first_head
        used = self.share(position, curves.heads)
        if used is not None and used.densities is not None:
            promised, measured = self._promise.promised, self._promise.measured
            now = error_at(curves, used.densities), float(curves.norms.sum())
            before, ours = measured.get(layer, (0.0, 0.0)), promised.get(layer, (0.0, 0.0))
            measured[layer] = before[0] + now[0], before[1] + now[1]
            promised[layer] = ours[0] + used.squared, ours[1] + used.norms
        model = self.model
        self.recorder.add(
            curves, expert=model.expert, weights=model.weights, progress=position.progress, layer=layer,
            first_head=first,
        )  # fmt: skip
        if self._online and self.settings.max_error:
            # Every layer keeps the promise by itself, so nothing has to wait for the others.
            self._renew()
        else:
            self._fresh = True

    def _renew(self) -> None:
        """Use what was measured up to now."""
        assert self.recorder is not None
        self._figures = self.recorder.complete(self.model.expert)
        self._layers = self.recorder.measured_layers(self.model.expert)
        self._solved.clear()
        self._shares.clear()

    def _advance(self) -> None:
        """A new noise level: judge what was promised, and use what was measured."""
        if self._promise.measured:
            promise, self._promise = self._promise, Promise({}, {})
            (promised, _), (measured, worst) = (promise.errors(x) for x in (promise.promised, promise.measured))
            if self.told:
                self.told[-1].measured, self.told[-1].measured_worst = measured, worst
            if self._profile is not None and not self._checked:
                self._checked = True
                off = max(promised, measured) / max(min(promised, measured), 1e-12)
                if not off <= MOST_OFF:
                    self._profile, self._figures, self._fresh, self._fell_back = None, None, True, True
                    self._solved.clear()
                    self._shares.clear()
                    self.note(
                        Phrase(
                            "note_profile_off",
                            "the profile promised an error of {promised} and {measured} was measured: densities "
                            "follow this run's own measurements instead; calibrate again for this kind of run",
                            promised=f"{promised:.3f}",
                            measured=f"{measured:.3f}",
                        )
                    )
        if self._fresh and self._online and self.recorder is not None:
            self._renew()
            self._fresh = self._figures is not None

    def share(self, position: Position, heads: int) -> Share | None:
        """What `heads` heads of a layer are given; None where the schedule's own density holds."""
        with self._lock:
            figures, shape = self._figures, self._shape
            if self.ended or not self.settings.spends or figures is None or shape is None:
                return None
            if position.layer not in self._layers:
                return None
            density = self._mean(position.progress, position.layer)
            if density is None:
                return None
            key = (position.progress, position.layer, position.numbers(heads))
            if key not in self._shares:
                self._shares[key] = self._new_share(figures, shape, position, heads)
            return self._shares[key]

    def dealt(self, position: Position, heads: int, ranks: int) -> tuple[int, ...] | None:
        """How the heads of a layer are dealt to the ranks by their budgets; None before there are any."""
        with self._lock:
            if self.ended or self._shape is None:
                return None
            self.meet(position, self._shape)
            share = self.share(position, heads)
            return None if share is None or share.densities is None else deal(share.densities, ranks)

    def _new_share(self, figures: CompleteFigures, shape: CallShape, position: Position, heads: int) -> Share | None:
        """`share` of a call that budgets hold for; None if the layer has no such heads."""
        bucket = bucket_of(position.progress)
        budgets, layers = self._solve(figures, shape, bucket, position)
        row, some = layers.index(position.layer), list(position.numbers(heads))
        every = tuple(float(x) for x in budgets.density[0, row])
        if max(some) >= len(every):
            return None
        given = tuple(every[head] for head in some)
        tails, fitted = figures.heads(bucket, position.layer, every)
        if not self.settings.auto_gain:
            fitted = head_gains(self.settings.policy.tail_gain, shape.heads)
        names, gains = tuple(tails[head] for head in some), tuple(fitted[head] for head in some)
        squared, norms = (float(x[0, row, some].sum()) for x in (budgets.squared, budgets.norms))
        dense = bool(budgets.dense[0, row])
        return Share(None if dense else given, HeadTails(names, gains), squared, norms)

    def _mean(self, progress: float, layer: int) -> float | None:
        """Mean density of a layer by the schedule; None for dense."""
        assert self._shape is not None
        density = self.settings.schedule.density(progress, layer, self._shape.layers)
        return sum(density) / len(density) if isinstance(density, tuple) else density

    def _solve(
        self, figures: CompleteFigures, shape: CallShape, bucket: int, position: Position
    ) -> tuple[Budgets, tuple[int, ...]]:
        """Budgets of the layers that share one mean, and which layers those are; solved once per mean and bucket."""
        alone = self.settings.max_error > 0.0
        means = {layer: self._mean(position.progress, layer) for layer in ([position.layer] if alone else self._layers)}
        sparse = {layer: mean for layer, mean in means.items() if mean is not None}
        layers, mean = tuple(sparse), sum(sparse.values()) / len(sparse)
        key = (bucket, 0.0 if alone else round(mean, 9), position.layer if alone else -1)
        if key not in self._solved:
            self._solved[key] = self._fresh_budgets(figures, shape, bucket, layers, mean), layers
            if not alone:
                self._tell(self._solved[key][0], figures, bucket, layers, mean, position.progress)
        if alone:
            self._tell_layer(self._solved[key][0], bucket, position, mean, _margin(figures, bucket, layers))
        return self._solved[key]

    def _fresh_budgets(
        self, figures: CompleteFigures, shape: CallShape, bucket: int, layers: tuple[int, ...], mean: float
    ) -> Budgets:
        works = {name: _tail_work(name, shape, self.settings.k_block) for name in TAILS}
        promise = self.settings.max_error
        whole = figures.table(works, worst=promise > 0.0)
        place = np.ix_([bucket], list(layers))
        table = CurveTable(whole.densities, whole.squared[place], whole.norms[place], whole.tail_work[place])
        if promise:
            return within_error(table, promise / _margin(figures, bucket, layers))
        return least_error(table, mean + float(table.tail_work.mean()))

    def _tell(
        self,
        budgets: Budgets,
        figures: CompleteFigures,
        bucket: int,
        layers: tuple[int, ...],
        mean: float,
        progress: float,
    ) -> None:
        """Keep budgets for the report, the first that rest on new figures only."""
        if not self._fresh:
            return
        self._fresh = False
        squared = figures.figures.squared[bucket, list(layers)].double().numpy()
        even = sum(squared_at(figures.densities, row, mean) for row in squared.reshape(-1, squared.shape[-1]))
        self.told.append(
            SpentBudgets(
                progress,
                self._source,
                mean,
                {layer: tuple(budgets.density[0, row].tolist()) for row, layer in enumerate(layers)},
                budgets.error(),
                float(budgets.layer_errors().max()),
                relative(even, float(budgets.norms.sum())),
            )
        )

    def _tell_layer(self, budgets: Budgets, bucket: int, position: Position, mean: float, margin: float) -> None:
        """Keep the budget of one layer under `max_error`, in one entry per bucket. What is told is the promise: the
        prediction times the margin."""
        heads, error = tuple(budgets.density[0, 0].tolist()), budgets.error() * margin
        if not self.told or bucket_of(self.told[-1].progress) != bucket:
            self.told.append(SpentBudgets(position.progress, self._source, mean, {}, error, error, None))
        entry = self.told[-1]
        entry.after[position.layer] = heads
        entry.worst_layer = max(entry.worst_layer, error)
        entry.promised = entry.worst_layer

    @property
    def _source(self) -> str:
        return "profile" if self._profile is not None else "this run"


def _margin(figures: CompleteFigures, bucket: int, layers: tuple[int, ...]) -> float:
    """Of the promise for some layers, by how often the least measured of their heads was."""
    return margin(int(figures.figures.counts[bucket, list(layers)].min()))


def _tail_work(name: TailName, shape: CallShape, k_block: int) -> float:
    """Work of a tail as a share of the dense call's, as `Attention.tail_work` has it."""
    keys = tail_key_equivalents(name, math.ceil(shape.grid.tokens / k_block), shape.head_size)
    return keys * shape.grid.tokens / float(shape.grid.tokens + shape.extra) ** 2
