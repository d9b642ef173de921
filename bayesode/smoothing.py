"""A Gaussian-process smoother: path, derivative and noise estimate, on plain tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_LENGTHSCALES, NUM_NOISE_RATIOS = 10, 9  # the grid of RECIPE section 1: finer gained nothing
MAX_SERIES, MAX_TIMES = 8, 200  # hyper-parameters need no more; eigenvalues cost time cubed
JITTER = 1e-8


@dataclass(frozen=True)
class Smoothed:
    """A smoothed path on a grid, in the units that came in.

    Args:
        path: Posterior mean, shape (series, grid, component).
        derivative: Its time derivative, shape (series, grid, component).
        derivative_scale: Posterior sd of the derivative, shape (series, grid, component).
        noise_scale: Estimated sd of the measurement noise, shape (component,).
        lengthscale: Of the Matern 5/2 kernel, shape (component,).
    """

    path: Tensor
    derivative: Tensor
    derivative_scale: Tensor
    noise_scale: Tensor
    lengthscale: Tensor


def smooth(times: Tensor, values: Tensor, mask: Tensor, at: Tensor) -> Smoothed:
    """Matern 5/2 smoother per component, hyper-parameters shared by the series.

    Lengthscale and noise ratio come from a grid by marginal likelihood, with the amplitude
    profiled out. Every series keeps its own times and its own missing entries: a masked entry has
    a zero row in the kernel and a zero value, so one batched decomposition serves all series.

    Args:
        times: Shape (series, time), float64.
        values: Shape (series, time, component); masked entries may hold anything.
        mask: True where observed, shaped like values.
        at: Grid on which to report, shape (series, grid).

    Returns:
        The smoothed path of every series; a series without data gets the component's mean.

    Source: Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, chapters 2, 5.
    """
    values = torch.where(mask, values, 0.0).to(torch.float64)
    count = mask.sum((0, 1)).clamp_min(1)
    mean = values.sum((0, 1)) / count
    centred = torch.where(mask, values - mean, 0.0)
    parts = [
        _smooth_component(times, centred[..., j], mask[..., j], at) for j in range(values.shape[-1])
    ]
    path, derivative, scale, noise, lengthscale = (
        torch.stack(column, -1) for column in zip(*parts, strict=True)
    )
    return Smoothed(path + mean, derivative, scale, noise, lengthscale)


def _smooth_component(
    times: Tensor, values: Tensor, mask: Tensor, at: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    amplitude, lengthscale, ratio = _hyperparameters(times, values, mask)
    weight = mask.to(times.dtype)
    difference = times.unsqueeze(-1) - times.unsqueeze(-2)
    kernel = _kernel(difference, lengthscale) * weight.unsqueeze(-1) * weight.unsqueeze(-2)
    eye = torch.eye(times.shape[-1], dtype=times.dtype, device=times.device)
    factor = torch.linalg.cholesky(kernel + (ratio**2 + JITTER) * eye)
    coefficients = torch.cholesky_solve(values.unsqueeze(-1), factor)
    lag = at.unsqueeze(-1) - times.unsqueeze(-2)
    cross = _kernel(lag, lengthscale) * weight.unsqueeze(-2)
    slope = _kernel_slope(lag, lengthscale) * weight.unsqueeze(-2)
    explained = torch.linalg.solve_triangular(factor, slope.mT, upper=False).square().sum(-2)
    variance = (5 / (3 * lengthscale**2) - explained).clamp_min(1e-10)
    return (
        (cross @ coefficients).squeeze(-1),
        (slope @ coefficients).squeeze(-1),
        amplitude * variance.sqrt(),
        amplitude * ratio,
        lengthscale,
    )


def _hyperparameters(times: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Amplitude, lengthscale and noise / amplitude of the largest marginal likelihood."""
    times, values, mask = _thin(times, values, mask)
    weight = mask.to(times.dtype)
    num_times = mask.sum(-1).clamp_min(1)
    span = (times.amax(-1) - times.amin(-1)).max()
    shortest = torch.maximum(1.5 * span / num_times.max(), span / 200)
    lengthscales = torch.logspace(0, 1, NUM_LENGTHSCALES, 10.0, dtype=times.dtype).to(times.device)
    lengthscales = shortest * (span / shortest) ** torch.log10(lengthscales)
    ratios = torch.logspace(math.log10(3e-3), 0, NUM_NOISE_RATIOS, dtype=times.dtype)
    noise = ratios.to(times.device).square()
    difference = (times.unsqueeze(-1) - times.unsqueeze(-2)).unsqueeze(1)
    kernel = _kernel(difference, lengthscales.view(-1, 1, 1))
    kernel = kernel * (weight.unsqueeze(-1) * weight.unsqueeze(-2)).unsqueeze(1)
    eigenvalues, vectors = torch.linalg.eigh(kernel)  # (series, lengthscale, time)
    energy = (vectors.mT @ values[:, None, :, None]).squeeze(-1).square()
    spectrum = eigenvalues.clamp_min(0).unsqueeze(-1) + noise  # (series, scale, time, ratio)
    quadratic = (energy.unsqueeze(-1) / spectrum).sum((0, 2))
    # a masked entry adds one eigenvalue 0, so log(noise) too much
    num_masked = (~mask).sum()
    log_determinant = spectrum.log().sum((0, 2)) - num_masked * noise.log()
    total = mask.sum()
    cost = total * (quadratic / total).clamp_min(1e-300).log() + log_determinant
    best = int(cost.argmin())
    row, column = divmod(best, NUM_NOISE_RATIOS)
    amplitude = (quadratic[row, column] / total).clamp_min(1e-300).sqrt()
    return amplitude, lengthscales[row], noise[column].sqrt()


def _thin(times: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At most MAX_SERIES series (those with most data) and MAX_TIMES leading times."""
    order = mask.sum(-1).argsort(descending=True, stable=True)[:MAX_SERIES]
    return times[order, :MAX_TIMES], values[order, :MAX_TIMES], mask[order, :MAX_TIMES]


def _kernel(lag: Tensor, lengthscale: Tensor) -> Tensor:
    x = math.sqrt(5) / lengthscale * lag.abs()
    return (1 + x + x * x / 3) * torch.exp(-x)


def _kernel_slope(lag: Tensor, lengthscale: Tensor) -> Tensor:
    rate = math.sqrt(5) / lengthscale
    x = rate * lag.abs()
    return -(rate * rate / 3) * lag * (1 + x) * torch.exp(-x)
