"""The host's latent and the model's prediction, as those of a flow, branch by branch and part by part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..evaluation import Evaluation
from ..prediction import Prediction
from .latents import Parts

_DENOISED = Prediction("x0", "exploding")
# Where the host does not say how the denoised latent is made.
_BY_NAME = {
    "flow": Prediction(),
    "eps": Prediction("eps", "exploding"),
    "v": Prediction("v", "exploding"),
    "x0": _DENOISED,
}


def kind_of(evaluation: Evaluation) -> Prediction | None:
    """How the prediction (or the denoised latent, where the host says how it is made) becomes a velocity.

    None if nobody can say: such an evaluation cannot be skipped.
    """
    if evaluation.latent == "flow" or evaluation.denoised is None:
        return _BY_NAME.get(evaluation.prediction)
    return _DENOISED


def flow_latent(x: Tensor, evaluation: Evaluation, kind: Prediction) -> Tensor:
    return kind.flow_latent(x, evaluation.level)


def flow_velocity(x: Tensor, prediction: Tensor, evaluation: Evaluation, kind: Prediction) -> Tensor:
    """The velocity of a prediction; the prediction itself if that is one."""
    if evaluation.latent != "flow" and evaluation.denoised is not None:
        prediction = evaluation.denoised.denoised(x, prediction)
    return kind.velocity(x, prediction, evaluation.level)


def prediction_of(x: Tensor, velocity: Tensor, evaluation: Evaluation, kind: Prediction) -> Tensor:
    """The inverse of `flow_velocity`."""
    output = kind.model_output(x, velocity, evaluation.level)
    if evaluation.latent != "flow" and evaluation.denoised is not None:
        return evaluation.denoised.prediction(x, output)
    return output


def split(latent: Tensor, evaluation: Evaluation) -> list[Parts]:
    """The latents (B, C, ...) of every branch of an evaluation; several in each if the host has packed them.

    Raises:
        ValueError: if branches or packed latents do not cover it.
    """
    if sum(len(range(*branch.batch.indices(latent.shape[0]))) for branch in evaluation.branches) != latent.shape[0]:
        raise ValueError(f"the branches of an evaluation do not make up its batch of {latent.shape[0]}")
    parts = latent.split_with_sizes(evaluation.streams, dim=-1) if evaluation.streams else (latent,)
    return [tuple(part[branch.batch] for part in parts) for branch in evaluation.branches]


def joined(latents: Sequence[Parts], evaluation: Evaluation) -> Tensor:
    """The inverse of `split`."""
    whole = [parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1) for parts in latents]
    if len(whole) == 1:
        return whole[0]
    order = sorted(range(len(whole)), key=lambda index: evaluation.branches[index].batch.start or 0)
    return torch.cat([whole[index] for index in order])
