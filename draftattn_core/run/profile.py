"""A profile: what was measured about one model, in a form that can be kept, added to and shared.

Figures are kept by expert (Wan 2.2's two models differ), bucket of progress, layer and global head. They are running
means over the calls that were measured, with the worst call beside them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..phrase import LIST, Joined, Phrase, Text
from .calibration import Calibration
from .figures import CompleteFigures, Figures, figure_forms
from .fingerprint import (
    Conditions,
    Fingerprint,
    ProfileError,
    check_name,
    names_or_none,
    prompts_in_words,
    runs_in_words,
)

# Below this many prompts a profile says how many it was made from: published calibrations found one prompt unreliable
# and ask for 10 to 20.
FEW_PROMPTS = 10
# Keys of prompts that are remembered, so that a prompt seen twice counts once.
MAX_PROMPTS = 2048
MAX_POINTS = 32
# Of experts, of grids, and of step counts.
MAX_NAMES = 512
_PROMPT = re.compile(r"[0-9a-f]{16}")


def prompt_key(text: str) -> str:
    """What is remembered of a prompt: 16 hex digits, not its words."""
    return hashlib.sha256(text.strip().encode("utf-8", "replace")).hexdigest()[:16]


MAIN = "main"


@dataclass(frozen=True, eq=False)
class Profile:
    """Figures of one model and what they were made from. Immutable: `merged` makes a new one.

    Attributes:
        fingerprint: which model.
        conditions: under which settings.
        densities: (points,) densities of all curves.
        experts: figures by expert, "main" for models with one.
        runs: how many sampling runs were measured.
        prompts: keys of their prompts (`prompt_key`), sorted; at most `MAX_PROMPTS`.
        grids: runs by token grid, such as "9x24x40".
        steps: runs by number of steps, as text.
        masks: room for what rules keep beside the figures, by name; nothing here looks into it.
        calibration: CalibAtt's masks, which have a file of their own (`calibration_file`); None for none.

    Raises:
        ProfileError: if the parts do not belong together or a figure is impossible.
    """

    fingerprint: Fingerprint
    conditions: Conditions
    densities: tuple[float, ...]
    experts: Mapping[str, Figures]
    runs: int = 0
    prompts: tuple[str, ...] = ()
    grids: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.densities[:-1], self.densities[1:], strict=True))
        inside = all(isinstance(density, float) and 0.0 < density < 1.0 for density in self.densities)
        if not 2 <= len(self.densities) <= MAX_POINTS or not ascending or not inside:
            raise ProfileError("the densities of a profile must ascend between 0 and 1: calibrate again")
        counts = (self.runs, *self.grids.values(), *self.steps.values())
        if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
            raise ProfileError("a profile counts its runs in whole numbers: calibrate again")
        if len(self.prompts) > MAX_PROMPTS or not all(_PROMPT.fullmatch(key) for key in self.prompts):
            raise ProfileError("the prompts of a profile are not kept as this version keeps them: calibrate again")
        if max(len(self.experts), len(self.grids), len(self.steps)) > MAX_NAMES:
            raise ProfileError(f"a profile names at most {MAX_NAMES} experts, grids or step counts: start a new one")
        for name in (*self.grids, *self.steps):
            check_name("the grid or step count", name)
        forms = figure_forms(self.fingerprint.layers, self.fingerprint.heads, len(self.densities))
        for expert, figures in self.experts.items():
            check_name("the expert", expert)
            for name, table in figures.tensors().items():
                if (tuple(table.shape), table.dtype) != forms[name]:
                    raise ProfileError(f"the figures {name!r} of expert {expert} have a wrong form: calibrate again")
            if not _possible(figures, len(self.conditions.tails)):
                raise ProfileError(f"the figures of expert {expert} are not all possible numbers: calibrate again")

    def check(self, fingerprint: Fingerprint, conditions: Conditions) -> tuple[Text, ...]:
        """What to tell the user before these figures are used for a model under other conditions.

        Raises:
            ProfileError: if they cannot be used there.
        """
        if fingerprint != self.fingerprint:
            raise ProfileError(
                Phrase(
                    "profile_other_model",
                    "this profile was made on {profile} and the model is {model}: "
                    "choose a profile of this model, or calibrate one",
                    profile=self.fingerprint.text(),
                    model=fingerprint.text(),
                )
            )
        differences = self.conditions.differences(conditions)
        if differences:
            raise ProfileError(
                Phrase(
                    "profile_other_settings",
                    "this profile was measured with {differences}: choose those settings, or calibrate again",
                    differences=Joined(differences, LIST),
                )
            )
        notes = [self.caveat] if self.caveat else []
        if conditions.number_format != self.conditions.number_format:
            notes.append(
                Phrase(
                    "profile_other_format",
                    "the profile was measured in {profile}, not {run}",
                    profile=self.conditions.number_format,
                    run=conditions.number_format,
                )
            )
        return tuple(notes)

    def figures(self, expert: str) -> Figures:
        """Raises ProfileError if nothing was measured of that expert."""
        found = self.experts.get(expert)
        if found is None or not bool(found.measured.any()):
            raise ProfileError(
                Phrase(
                    "profile_no_expert",
                    "this profile holds nothing about the expert '{expert}' (it has {known}): "
                    "calibrate a run that uses it",
                    expert=expert,
                    known=names_or_none(self.experts),
                )
            )
        return found

    def check_weights(self, expert: str, weights: str) -> tuple[Text, ...]:
        """A note if the expert's weights are other ones than those measured; see `figures` for what it raises."""
        if self.figures(expert).weights == weights:
            return ()
        return (
            Phrase(
                "profile_other_weights",
                "the profile was made on other weights of this model (a LoRA, a quantised copy or a fine-tune?): "
                "its figures are close at best",
            ),
        )

    @property
    def caveat(self) -> Text:
        """What to say wherever a profile of few prompts is used; "" for one of `FEW_PROMPTS` or more."""
        count = len(self.prompts)
        if count >= FEW_PROMPTS:
            return Text()
        return Phrase("profile_few_prompts", "made from {prompts}", prompts=prompts_in_words(count))

    def made_from(self) -> Text:
        """One line: prompts, runs, grids."""
        prompts, runs = prompts_in_words(len(self.prompts)), runs_in_words(self.runs)
        if not self.grids:
            return Phrase("profile_made_from", "made from {prompts}, {runs}", prompts=prompts, runs=runs)
        grids = Joined((f"{grid} ({count})" for grid, count in sorted(self.grids.items())), LIST)
        return Phrase(
            "profile_made_from_grids",
            "made from {prompts}, {runs}: {grids}",
            prompts=prompts,
            runs=runs,
            grids=grids,
        )

    def complete(self, expert: str) -> CompleteFigures:
        """See `figures` for what it raises."""
        return CompleteFigures(self.figures(expert).filled(), self.densities, self.conditions.tails)

    def merged(self, other: Profile, *, same_run: bool = False) -> Profile:
        """Both together: running means, the worse of the worst, all that they were made from.

        Args:
            same_run: both saw the same run, each with some of the heads (on two devices): it counts once.

        Raises:
            ProfileError: if they are about different models, conditions or weights.
        """
        self.check(other.fingerprint, other.conditions)
        if (other.densities, other.conditions) != (self.densities, self.conditions):
            raise ProfileError(
                Phrase(
                    "profile_other_densities",
                    "these figures were measured at other densities or in another number format: keep two profiles",
                )
            )
        experts = dict(self.experts)
        for expert, figures in other.experts.items():
            ours = experts.get(expert)
            if ours is not None and ours.weights != figures.weights:
                raise ProfileError(
                    Phrase(
                        "profile_figures_weights",
                        "these figures of expert {expert} are of other weights (a LoRA, a quantised copy or a "
                        "fine-tune?): save them as a profile of their own",
                        expert=expert,
                    )
                )
            experts[expert] = figures if ours is None else ours.merged(figures)
        seen = (self, other)
        if same_run:
            return replace(self, experts=experts, masks={**self.masks, **other.masks})
        return replace(
            self,
            experts=dict(sorted(experts.items())),
            runs=self.runs + other.runs,
            prompts=tuple(sorted({key for profile in seen for key in profile.prompts})[:MAX_PROMPTS]),
            grids=_added(self.grids, other.grids),
            steps=_added(self.steps, other.steps),
            masks={**self.masks, **other.masks},
        )


def expert_of(profile: Profile | None, weights: str) -> str:
    """The expert of `profile` that has these weights; the only one it has, where none does; else "main"."""
    if profile is None:
        return MAIN
    same = [name for name, figures in profile.experts.items() if weights and figures.weights == weights]
    if same or len(profile.experts) == 1:
        return (same or list(profile.experts))[0]
    return MAIN


def _added(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return {key: a.get(key, 0) + b.get(key, 0) for key in sorted({*a, *b})}


def _possible(figures: Figures, tails: int) -> bool:
    """Whether every figure is a finite number of its range."""
    floats = (figures.squared, figures.norms, figures.worst)
    return (
        all(bool(torch.isfinite(table).all() and (table >= 0).all()) for table in floats)
        and bool(torch.isfinite(figures.gains).all() and (figures.gains.abs() <= 16).all())
        and bool((figures.counts >= 0).all() and (figures.tails < tails).all())
    )
