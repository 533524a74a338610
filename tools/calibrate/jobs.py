"""Which runs are measured, and which of them are already in the profile."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from draftattention.draftattn_core.run.fingerprint import ProfileError
from draftattention.draftattn_core.run.profile import Profile
from draftattention.draftattn_core.run.profile_file import add_to_file, load_profile

MAX_PROMPT_FILE_BYTES = 4 << 20


@dataclass(frozen=True)
class Job:
    """One sampling run to measure."""

    prompt: str
    seed: int


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

    A line of the journal is written before its run is added and says how many runs the profile has then; so a run whose
    adding was interrupted is measured again, and none counts twice.

    Args:
        path: of the profile; it may exist, runs are added to it then.
        conditions: what a run depends on beside its prompt and seed.

    Raises:
        ProfileError: if there is a file that is no profile.
    """

    def __init__(self, path: Path, conditions: dict[str, object]) -> None:
        self.path, self.conditions = path, conditions
        self.journal = path.with_name(f"{path.name.removesuffix('.safetensors')}.runs.jsonl")
        self.profile: Profile | None = load_profile(path) if path.exists() else None

    def done(self, job: Job) -> bool:
        """Whether the run is in the profile."""
        runs = 0 if self.profile is None else self.profile.runs
        return self._lines().get(self._key(job), runs + 1) <= runs

    def add(self, job: Job, profile: Profile) -> Profile:
        """Merge a run into the file.

        Raises:
            ProfileError: if it is about another model or other settings, or cannot be written.
        """
        runs = 0 if self.profile is None else self.profile.runs
        line = json.dumps({"run": self._key(job), "makes": runs + 1}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ProfileError(f"{self.journal.name} cannot be written ({error.strerror}): check the folder") from error
        self.profile = add_to_file(profile, self.path)
        return self.profile

    def _lines(self) -> dict[str, int]:
        """By run, how many runs the profile had once it was in. A line cut short is left out."""
        found: dict[str, int] = {}
        if not self.journal.is_file():
            return found
        for line in self.journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                found[str(entry["run"])] = int(entry["makes"])
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def _key(self, job: Job) -> str:
        # A hash: prompts stay out of files that are shared.
        words = json.dumps([self.conditions, job.prompt, job.seed], sort_keys=True, default=str)
        return hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:16]
