"""Node: DraftAttention Profile."""

from __future__ import annotations

from comfy_api.latest import io

from ..draftattn_core.run.calibration_file import calibration_path, load_profile_with_masks
from ..draftattn_core.run.profile_file import profile_names, profile_path
from ..draftattn_core.views.charts.budgets import budget_map
from .apply import CATEGORY, ProfileSocket
from .display.pictures import to_image
from .display.profile_text import budgets_of, profile_text
from .display.themed_picture import themed_picture
from .host.recording import profiles_folder
from .words import told

NONE_YET = "no profile yet: run DraftAttention Calibrate"


class DraftAttentionProfile(io.ComfyNode):
    """Loads a profile and shows what it says."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DraftAttentionProfile",
            display_name="DraftAttention Profile",
            category=CATEGORY,
            description=(
                "What was measured about one model, from models/draft_attention, for the profile input of "
                "DraftAttention Sparse. Shows what it was made from and how it spreads a density over layers and heads."
            ),
            search_aliases=["load draft attention profile", "sparse attention profile", "sparsity budgets"],
            inputs=[
                io.Combo.Input(
                    "profile",
                    options=profile_names(profiles_folder()) or [NONE_YET],
                    tooltip="A file in models/draft_attention.",
                ),
                io.Float.Input(
                    "density",
                    default=0.25,
                    min=0.02,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Mean density that the picture spreads. Runs have that of their schedule.",
                ),
            ],
            outputs=[
                ProfileSocket.Output(display_name="profile", tooltip="For DraftAttention Sparse."),
                io.String.Output(display_name="text", tooltip="What the profile was made from and what it holds."),
                io.Image.Output(display_name="picture", tooltip="Densities of all layers and heads, early to late."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str, density: float = 0.25) -> str:
        """Changes with the file."""
        if profile == NONE_YET:
            return profile
        path = profile_path(profiles_folder(), profile)
        changed = [file.stat().st_mtime_ns for file in (path, calibration_path(path)) if file.is_file()]
        return f"{profile} {density} {changed}"

    @classmethod
    def execute(cls, profile: str, density: float = 0.25) -> io.NodeOutput:
        if profile == NONE_YET:
            raise ValueError("there is no profile yet: run a sampler behind a DraftAttention Calibrate node first")
        loaded = load_profile_with_masks(profile_path(profiles_folder(), profile))
        budgets = budgets_of(loaded, density)
        text = profile_text(loaded, budgets)
        densities = {name: each.density for name, each in budgets.items()}
        whole = budget_map(densities)
        shown = themed_picture(lambda look: budget_map(densities, look), whole)
        return io.NodeOutput(loaded, str(text), to_image(whole), ui={**shown, **told(text)})
