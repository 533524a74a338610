"""Which runs are measured, and which of them are already in the profile."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from draftattention.draftattn_core.run.calibration import Calibration
from draftattention.draftattn_core.run.calibration_file import add_to_calibration, calibration_path, load_calibration
from draftattention.draftattn_core.run.fingerprint import ProfileError
from draftattention.draftattn_core.run.profile import Profile
from draftattention.draftattn_core.run.profile_file import add_to_file, load_profile

MAX_PROMPT_FILE_BYTES = 4 << 20


@dataclass(frozen=True)
class Job:
    """One sampling run to measure."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Recorded:
    """What one run left.

    Attributes:
        profile: its figures, None if nothing was measured.
        masks: its votes for CalibAtt's masks, None where none were asked for.
    """

    profile: Profile | None
    masks: Calibration | None = None


def jobs(prompts: Sequence[str], first_seed: int, seeds: int) -> list[Job]:
    """Every prompt once before any prompt a second time: a calibration that is cut short has seen most prompts."""
    return [Job(prompt, first_seed + index) for index in range(seeds) for prompt in prompts]


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; empty lines and lines that begin with # are left out.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it holds no prompt, is no text or is too large for a list of prompts.
    """
    if path.stat().st_size > MAX_PROMPT_FILE_BYTES:
        raise ValueError(f"{path} is too large for a list of prompts: give one prompt a line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: give one prompt a line") from error
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise ValueError(f"{path} holds no prompt: give one a line")
    return prompts


class Progress:
    """A profile that grows run by run, and the journal beside it that says which runs are in it.

    A line of the journal is written before its run is added and says how many runs the profile, and the masks, have
    then; so a run whose adding was interrupted is measured again, and none counts twice.

    Args:
        path: of the profile; it may exist, runs are added to it then.
        conditions: what a run depends on beside its prompt and seed.

    Raises:
        ProfileError: if there is a file that is no profile, or masks that are none.
    """

    def __init__(self, path: Path, conditions: dict[str, object]) -> None:
        self.path, self.conditions = path, conditions
        self.journal = path.with_name(f"{path.name.removesuffix('.safetensors')}.runs.jsonl")
        self.profile: Profile | None = load_profile(path) if path.exists() else None
        self.masks_path = calibration_path(path)
        self.masks: Calibration | None = load_calibration(self.masks_path) if self.masks_path.exists() else None

    def done(self, job: Job) -> bool:
        """Whether the run is in the profile."""
        line = self._lines().get(self._key(job))
        return line is not None and line[0] <= _runs(self.profile)

    def add(self, job: Job, found: Recorded) -> None:
        """Merge a run into the files.

        Raises:
            ProfileError: if it is about another model or other settings, or cannot be written.
        """
        if found.profile is None:
            raise ProfileError("nothing was measured: the model's attention is not served here")
        before = self._lines().get(self._key(job))
        # Votes are added first, so an interruption between the two leaves a line whose masks are in and profile is not.
        voted = found.masks is None or (before is not None and before[1] <= _runs(self.masks))
        self._write(self._key(job), _runs(self.profile) + 1, _runs(self.masks) + (0 if voted else 1))
        if found.masks is not None and not voted:
            self.masks = add_to_calibration(found.masks, self.masks_path)
        self.profile = add_to_file(found.profile, self.path)

    def _write(self, key: str, makes: int, masks: int) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.journal.open("a", encoding="utf-8") as file:
                # After a kill the last line may lack its end.
                file.write("\n" + json.dumps({"run": key, "makes": makes, "masks": masks}))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ProfileError(f"{self.journal.name} cannot be written ({error.strerror}): check the folder") from error

    def _lines(self) -> dict[str, tuple[int, int]]:
        """By run, how many runs the profile and the masks had once it was in. A line cut short is left out."""
        found: dict[str, tuple[int, int]] = {}
        if not self.journal.is_file():
            return found
        for line in self.journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                found[str(entry["run"])] = int(entry["makes"]), int(entry["masks"])
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def _key(self, job: Job) -> str:
        # A hash: prompts stay out of files that are shared.
        words = json.dumps([self.conditions, job.prompt, job.seed], sort_keys=True, default=str)
        return hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:16]


def _runs(of: Profile | Calibration | None) -> int:
    return 0 if of is None else of.runs
