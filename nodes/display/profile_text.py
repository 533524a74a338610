"""A profile in words, and the budgets it makes of one density."""

from __future__ import annotations

from collections.abc import Mapping

from ...draftattn_core.method.policy import TAILS
from ...draftattn_core.run.budgets import Budgets, least_error
from ...draftattn_core.run.profile import Profile

BUCKETS = ("early", "middle", "late")


def budgets_of(profile: Profile, density: float) -> dict[str, Budgets]:
    """By expert, what a mean density of `density` becomes; the tails' work, which depends on the video, left out."""
    works = dict.fromkeys(TAILS, 0.0)
    return {expert: least_error(profile.complete(expert).table(works), density) for expert in profile.experts}


def profile_text(profile: Profile, budgets: Mapping[str, Budgets]) -> str:
    """Several lines: which model, what it was made from, under which settings, and how far heads differ."""
    asked = profile.conditions
    lines = [
        f"Profile of {profile.fingerprint}, {profile.made_from()}.",
        f"Measured with blocks {asked.q_block}/{asked.k_block}, order {asked.order}, rule {asked.rule}, "
        f"tails {', '.join(asked.tails)}{' with fitted weight' if asked.gains else ''}.",
    ]
    if profile.caveat:
        lines.append(f"Careful: {profile.caveat}; below 10 prompts figures depend on the prompt.")
    for expert, found in budgets.items():
        measured = profile.experts[expert].measured
        lines.append(f"Expert {expert}: {float(measured.float().mean()):.0%} of its heads measured.")
        for bucket, name in enumerate(BUCKETS):
            density, errors = found.density[bucket], found.layer_errors()[bucket]
            lines.append(
                f"  {name}: densities {density.min():.2f} to {density.max():.2f}, {int(found.dense[bucket].sum())} "
                f"layers dense; promised error of a layer {errors.min():.3f} to {errors.max():.3f}."
            )
    return "\n".join(lines)
