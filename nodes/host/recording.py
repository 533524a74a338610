"""Recording in ComfyUI: what a model's options say of it, what the model is called, and the file at the run's end."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...draftattn_core.phrase import said
from ...draftattn_core.run.calibration_file import add_to_calibration, calibration_path
from ...draftattn_core.run.fingerprint import ModelName, ProfileError, family_of, weights_identity
from ...draftattn_core.run.profile import MAIN, expert_of
from ...draftattn_core.run.profile_file import add_to_file
from ...draftattn_core.run.run import Run
from ...draftattn_core.run.settings import Settings
from ..words import Words
from .layouts import layer_count

log = logging.getLogger(__name__)

KEY = "draft_attention_recording"
FOLDER = "draft_attention"


@dataclass(frozen=True)
class Recording:
    """Where the runs of a model are kept.

    Attributes:
        path: of the profile's file.
        expert: see `ModelName`.
        prompt: text of the prompt, of which a key is kept; "" if unknown.
        mask_block: tokens per block of CalibAtt's masks, which dense runs vote for; 0 for none.
    """

    path: Path
    expert: str = MAIN
    prompt: str = ""
    mask_block: int = 0

    def settings(self, settings: Settings) -> Settings:
        """Those of a run that is recorded."""
        if not self.mask_block:
            return replace(settings, record=True)
        return replace(settings, record=True, record_masks=True, mask_block=self.mask_block)


def profiles_folder() -> Path:
    """The host's folder of profiles, which need not exist yet."""
    import folder_paths

    return Path(folder_paths.models_dir) / FOLDER


def with_recording(model: Any, recording: Recording) -> Any:
    """A clone of `model` (ComfyUI's ModelPatcher) whose runs are recorded, once draft attention is applied to it."""
    patched = model.clone()
    options = dict(patched.model_options.get("transformer_options", {}))
    patched.model_options["transformer_options"] = options | {KEY: recording}
    return patched


def recording_of(model_options: Mapping[str, Any]) -> Recording | None:
    """What `with_recording` left there."""
    found = model_options.get("transformer_options", {}).get(KEY)
    return found if isinstance(found, Recording) else None


def model_name(patcher: Any, settings: Settings, recording: Recording | None) -> ModelName:
    """What a profile needs to know of a model; its weights are read only where there is one. Never raises."""
    family, weights, layers, heads = "", "", 0, 0
    try:
        network = patcher.model.diffusion_model
        family = family_of(type(getattr(network, "_orig_mod", network)).__name__)
        if settings.profile is not None or recording is not None:
            weights = _weights(patcher, network)
        layers, heads = layer_count(network), int(getattr(network, "num_heads", 0) or 0)
    except Exception as error:
        log.debug("DraftAttention could not name the model: %s", error)
    expert = expert_of(settings.profile, weights) if recording is None else recording.expert
    return ModelName(family or "model", expert, weights, layers, heads)


def _weights(patcher: Any, network: Any) -> str:
    """Identity of the weights. The host merges a LoRA when it loads the model, before or after this: what it touches is
    left out, and its names and strengths count instead."""
    patches = {str(key): value for key, value in dict(patcher.patches).items()}
    own = {name: tensor for name, tensor in network.state_dict().items() if f"diffusion_model.{name}" not in patches}
    identity = weights_identity(own)
    if not patches:
        return identity
    words = [(key, [str(patch[0]) for patch in patches[key]]) for key in sorted(patches)]
    return f"{identity}-{hashlib.sha256(str(words).encode()).hexdigest()[:8]}"


def keep_recording(run: Run, recording: Recording | None) -> None:
    """Add what a run measured to its profile's file, and say so in the report. Never raises."""
    if recording is None:
        return
    try:
        profile = run.profile(recording.prompt or None)
        if profile is None:
            run.telling.note(Words("record_nothing"))
            return
        grown = add_to_file(profile, recording.path)
        run.telling.note(Words("record_grown", name=recording.path.stem, made_from=grown.made_from()))
        votes = run.calibration(recording.prompt or None)
        if votes is not None:
            all_votes = add_to_calibration(votes, calibration_path(recording.path))
            run.telling.note(Words("record_grown", name=recording.path.stem, made_from=all_votes.made_from()))
    except ProfileError as error:
        run.telling.note(Words("record_not_kept", why=said(error)))
    except Exception:
        log.exception("DraftAttention: the profile of this run could not be kept")
