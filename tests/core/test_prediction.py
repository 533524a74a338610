"""Conversions between what models predict: held to a case in which every prediction is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from draftattention.draftattn_core.run.prediction import LATENTS, OUTPUTS, Prediction

KINDS = [Prediction(output, latent) for output in OUTPUTS for latent in LATENTS if (output, latent) != ("v", "flow")]
SIGMAS = (0.02, 0.3, 1.0, 4.0, 80.0)


def parts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, n = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    return x0, n


def mixed(latent: str, x0: Tensor, n: Tensor, sigma: float) -> Tensor:
    """The noisy latent, from its definition."""
    if latent == "flow":
        t = sigma / (1 + sigma)
        return (1 - t) * x0 + t * n
    return (x0 + sigma * n) / (math.sqrt(1 + sigma**2) if latent == "preserving" else 1.0)


def predicted(output: str, x0: Tensor, n: Tensor, sigma: float) -> Tensor:
    """What a model that knows x0 and n puts out, from the definitions."""
    alpha, beta = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
    return {"velocity": n - x0, "x0": x0, "eps": n, "v": alpha * n - beta * x0}[output]


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_prediction_gives_the_velocity_of_its_clean_part_and_noise(kind: Prediction, sigma: float) -> None:
    x0, n = parts()
    noise = sigma / (1 + sigma) if kind.latent == "flow" else sigma
    x, out = mixed(kind.latent, x0, n, sigma), predicted(kind.output, x0, n, sigma)
    assert kind.level(noise) == pytest.approx(sigma / (1 + sigma), rel=1e-15)
    torch.testing.assert_close(kind.flow_latent(x, noise), mixed("flow", x0, n, sigma), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kind.velocity(x, out, noise), n - x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kind.model_output(x, n - x0, noise), out, rtol=1e-10, atol=1e-10)


def test_the_velocity_is_the_slope_of_the_flow_latent_along_the_probability_flow() -> None:
    # Gaussian data of spread c: the flow's path and the best denoiser are known, x ~ sqrt(c^2 + sigma^2) and
    # x0 = x c^2 / (c^2 + sigma^2).
    c, kind = 0.7, Prediction("x0", "exploding")

    def x(sigma: float) -> Tensor:
        return torch.tensor(1.3 * math.sqrt(c**2 + sigma**2), dtype=torch.float64)

    for sigma in (0.1, 0.9, 5.0):
        denoised = x(sigma) * c**2 / (c**2 + sigma**2)
        u = kind.velocity(x(sigma), denoised, sigma)
        step = 1e-5 * sigma
        (t0, y0), (t1, y1) = [(kind.level(s), kind.flow_latent(x(s), s)) for s in (sigma - step, sigma + step)]
        assert u.item() == pytest.approx(((y1 - y0) / (t1 - t0)).item(), rel=1e-6)


def test_a_velocity_of_a_flow_is_handed_through_untouched() -> None:
    x, u = parts()
    kind = Prediction()
    assert kind.velocity(x, u, 0.4) is u
    assert kind.model_output(x, u, 0.4) is u
    assert kind.flow_latent(x, 0.4) is x


def test_names_and_noise_levels_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown prediction"):
        Prediction("x1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown noisy latent"):
        Prediction("x0", "plain")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="v-prediction"):
        Prediction("v", "flow")
    for latent, noise in (("flow", math.inf), ("flow", -0.1), ("exploding", math.inf), ("preserving", math.nan)):
        with pytest.raises(ValueError, match="no noise level"):
            Prediction("x0", latent).level(noise)  # type: ignore[arg-type]


@pytest.mark.parametrize("t", [1.0 + 2.0**-23, 1.05])
def test_a_level_above_pure_noise_is_one_of_a_flow_too(t: float) -> None:
    # Float32 schedules begin a rounding above 1 at some shifts; users multiply them.
    x0, n = parts()
    y = (1 - t) * x0 + t * n
    for output in ("velocity", "x0", "eps"):
        kind = Prediction(output)  # type: ignore[arg-type]
        assert kind.level(t) == t
        torch.testing.assert_close(kind.flow_latent(y, t), y, rtol=0, atol=0)
        tolerance = 1e-8 if output == "eps" else 1e-12
        out = predicted(output, x0, n, math.nan)
        torch.testing.assert_close(kind.velocity(y, out, t), n - x0, rtol=tolerance, atol=tolerance)
