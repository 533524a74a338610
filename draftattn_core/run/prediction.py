"""Prediction: what a model predicts of which noisy latent, and its exact conversion to a flow's velocity.

Every noisy latent holds a clean part x0 and a noise n. With sigma = noise over signal and t = sigma / (1 + sigma), all
kinds of noisy latent are one flow latent times a number:

    flow        y = (1 - t) x0 + t n
    exploding   x = x0 + sigma n                        = y (1 + sigma)
    preserving  x = (x0 + sigma n) / sqrt(1 + sigma^2)  = y (1 + sigma) / sqrt(1 + sigma^2)

and every prediction is a linear function of that latent and the velocity u = n - x0 (of an exploding latent, for one,
u = (x - (1 + sigma) x0) / sigma). Along the probability flow u is dy/dt: what can be forecast of a flow can be forecast
of any model. "v" is v-prediction (T. Salimans and J. Ho, arXiv 2202.00512, appendix D); sigma and x0 are those of
T. Karras et al. (arXiv 2206.00364).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Output = Literal["velocity", "x0", "eps", "v"]
NoisyLatent = Literal["flow", "exploding", "preserving"]

OUTPUTS: tuple[Output, ...] = ("velocity", "x0", "eps", "v")
LATENTS: tuple[NoisyLatent, ...] = ("flow", "exploding", "preserving")


@dataclass(frozen=True)
class Prediction:
    """What a host hands over: the model's output and the latent it was given.

    Attributes:
        output: `velocity` is n - x0, `x0` the denoised latent, `eps` the noise, `v` the v-prediction.
        latent: how noise and signal are mixed in the latent. Its noise level is given as t, 1 for pure noise, for
            `flow` and as sigma, above 0, for the others.

    Raises:
        ValueError: if a name is unknown, or for "v" of a flow latent, which nobody has defined.
    """

    output: Output = "velocity"
    latent: NoisyLatent = "flow"

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"unknown prediction {self.output!r}: choose one of {', '.join(OUTPUTS)}")
        if self.latent not in LATENTS:
            raise ValueError(f"unknown noisy latent {self.latent!r}: choose one of {', '.join(LATENTS)}")
        if self.output == "v" and self.latent == "flow":
            raise ValueError("v-prediction is defined for exploding and preserving latents: a flow predicts a velocity")

    def level(self, noise: float) -> float:
        """The flow's noise level t of the host's noise level.

        Raises:
            ValueError: if it is no noise level: not finite, or negative.
        """
        # A flow may begin above 1: some float32 schedules do by rounding, and all that is said here holds there too.
        if not (math.isfinite(noise) and noise >= 0.0):
            raise ValueError(f"{noise} is no noise level of a {self.latent} latent")
        return noise if self.latent == "flow" else noise / (1.0 + noise)

    def flow_latent(self, x: Tensor, noise: float) -> Tensor:
        """y of the same clean part and noise as x, in x's shape and dtype; x itself if it is a flow latent."""
        if self.latent == "flow":
            return x
        return x * (self._root(noise) / (1.0 + noise))

    def velocity(self, x: Tensor, output: Tensor, noise: float) -> Tensor:
        """u of a model's output; the output itself where that is the velocity.

        Raises:
            ZeroDivisionError: where the velocity is not in the output (x0 at no noise, eps of a flow at pure noise).
        """
        if self.output == "velocity":
            return output
        of_latent, of_output = self._coefficients(noise)
        return of_latent * x + of_output * output

    def model_output(self, x: Tensor, velocity: Tensor, noise: float) -> Tensor:
        """What a model that predicts this velocity puts out: the inverse of `velocity`."""
        if self.output == "velocity":
            return velocity
        of_latent, of_output = self._coefficients(noise)
        return (velocity - of_latent * x) / of_output

    def _root(self, noise: float) -> float:
        """What the latent must be multiplied by to become an exploding one."""
        return math.sqrt(1.0 + noise * noise) if self.latent == "preserving" else 1.0

    def _coefficients(self, noise: float) -> tuple[float, float]:
        """(a, b) of u = a x + b output."""
        if self.latent == "flow":
            t = noise
            return (1.0 / t, -1.0 / t) if self.output == "x0" else (-1.0 / (1.0 - t), 1.0 / (1.0 - t))
        sigma, root = noise, self._root(noise)
        if self.output == "x0":
            return root / sigma, -(1.0 + sigma) / sigma
        if self.output == "eps":
            return -root, 1.0 + sigma
        norm = 1.0 + sigma * sigma
        return root * (sigma - 1.0) / norm, (1.0 + sigma) / math.sqrt(norm)
