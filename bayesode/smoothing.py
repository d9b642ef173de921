"""A Gaussian-process smoother: path, derivative and noise estimate, on plain tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesode.threads import threads_for

NUM_LENGTHSCALES = 10  # one decomposition each; twice as many gained nothing
NUM_NOISE_RATIOS = 33  # these share it: the noise estimate spreads by 6 % in place of 8 with 9
MAX_SERIES, MAX_TIMES = 8, 200  # hyper-parameters need no more; eigenvalues cost time cubed
BLOCK, MARGIN = 400, 200  # points: a longer series is smoothed in blocks that see a margin
MAX_NUMBERS = 4_000_000  # of one kernel matrix, 32 MB; about eight are alive at a time
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
    a zero row in the kernel and a zero value, so one batched decomposition serves many series.
    Series longer than BLOCK + 2 MARGIN points are smoothed block by block, each from its own
    points and a margin on both sides: time grows with the length, and memory does not.

    Args:
        times: Shape (series, time), float64, not decreasing.
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
    with threads_for(times.numel()):
        parts = [
            _smooth_component(times, centred[..., j], mask[..., j], at)
            for j in range(values.shape[-1])
        ]
    path, derivative, scale, noise, lengthscale = (
        torch.stack(column, -1) for column in zip(*parts, strict=True)
    )
    return Smoothed(path + mean, derivative, scale, noise, lengthscale)


def with_rates(
    smoothed: Smoothed, rates: Tensor, times: Tensor, mask: Tensor, at: Tensor
) -> Smoothed:
    """Further components whose path is known from rates of the others, behind these.

    Their own rates come from a second smoother, which sees them at the times of the data.

    Args:
        smoothed: Of the observed components; its noise scales stay those of these.
        rates: The path of the further ones, shape (series, grid, component).
        times: As in `smooth`, each of them on the grid.
        mask: As in `smooth`, for the further components.
        at: The grid, shape (series, grid).
    """
    index = torch.searchsorted(at.contiguous(), times.contiguous())
    index = index.clamp_max(at.shape[-1] - 1).unsqueeze(-1)
    again = smooth(times, rates.gather(1, index.expand(-1, -1, rates.shape[-1])), mask, at)
    joined = {
        name: torch.cat([getattr(smoothed, name), getattr(again, name)], -1)
        for name in ("derivative", "derivative_scale")
    }
    return replace(smoothed, path=torch.cat([smoothed.path, rates], -1), **joined)


def _smooth_component(
    times: Tensor, values: Tensor, mask: Tensor, at: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    amplitude, lengthscale, ratio = _hyperparameters(times, values, mask)
    path, derivative, scale = torch.empty(3, *at.shape, dtype=times.dtype, device=times.device)
    for rows, seen, asked in _portions(times, mask, at):
        part = (times[rows, seen], values[rows, seen], mask[rows, seen], at[rows, asked])
        found = _posterior(*part, lengthscale, ratio)
        path[rows, asked], derivative[rows, asked], scale[rows, asked] = found
    return path, derivative, amplitude * scale, amplitude * ratio, lengthscale


def _portions(
    times: Tensor, mask: Tensor, at: Tensor
) -> Iterator[tuple[slice, slice | Tensor, slice | Tensor]]:
    """Series, their entries, and the grid points that are smoothed from these in one go."""
    num_series, length = times.shape
    if length <= BLOCK + 2 * MARGIN:
        size = max(1, MAX_NUMBERS // (length * max(length, at.shape[-1])))
        for first in range(0, num_series, size):
            yield slice(first, first + size), slice(None), slice(None)
        return
    for row in range(num_series):
        seen = mask[row].nonzero().flatten()
        num_blocks = max(1, math.ceil(len(seen) / BLOCK))
        block = torch.searchsorted(times[row, seen], at[row].contiguous()) // BLOCK
        block = block.clamp_max(num_blocks - 1)
        for k in range(num_blocks):
            near = seen[max(0, k * BLOCK - MARGIN) : (k + 1) * BLOCK + MARGIN]
            for asked in (block == k).nonzero().flatten().split(2 * BLOCK):
                yield slice(row, row + 1), near, asked


def _posterior(
    times: Tensor, values: Tensor, mask: Tensor, at: Tensor, lengthscale: Tensor, ratio: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Path, derivative, and sd of the derivative at amplitude 1, each shaped like `at`."""
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
    prior = 5 / (3 * lengthscale**2)
    variance = prior * (1 - explained / prior).clamp_min(1e-10)
    path, derivative = ((k @ coefficients).squeeze(-1) for k in (cross, slope))
    return path, derivative, variance.sqrt()


def _hyperparameters(times: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Amplitude, lengthscale and noise / amplitude of the largest marginal likelihood."""
    span = _span(times, mask).max()
    times, values, mask = _sample(times, values, mask)
    weight, total = mask.to(times.dtype), mask.sum().clamp_min(1)
    # One observed time has no span; any positive number serves.
    span = torch.where(span > 0, span, 1.0)
    own = _span(times, mask).max()
    shortest = 1.5 * torch.where(own > 0, own, span) / mask.sum(-1).max().clamp_min(1)
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
    log_determinant = spectrum.log().sum((0, 2)) - (~mask).sum() * noise.log()
    cost = total * (quadratic / total).clamp_min(1e-300).log() + log_determinant
    best = int(cost.argmin())
    row, column = divmod(best, NUM_NOISE_RATIOS)
    amplitude = (quadratic[row, column] / total).clamp_min(1e-300).sqrt()
    return amplitude, lengthscales[row], noise[column].sqrt()


def _sample(times: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The data in blocks of at most MAX_TIMES neighbouring points, at most MAX_SERIES of them.

    Every k-th point would lose what is fast, and the leading points what comes later: so whole
    blocks, spread evenly over those that have most data.
    """
    longest = max(1, int(mask.sum(-1).max()))
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, :longest]
    data = [torch.gather(x, 1, order) for x in (times, values, mask)]
    rest = -longest % MAX_TIMES if longest > MAX_TIMES else 0
    size = min(longest, MAX_TIMES)
    times, values, mask = (F.pad(x, (0, rest)).reshape(-1, size) for x in data)
    count = mask.sum(-1)
    num_good = max(MAX_SERIES, int((count >= count.max() / 2).sum()))
    good = count.argsort(descending=True, stable=True)[:num_good].sort().values
    chosen = torch.linspace(0, len(good) - 1, min(MAX_SERIES, len(good))).round().long()
    rows = good[chosen.to(good.device)]
    return times[rows], values[rows], mask[rows]


def _span(times: Tensor, mask: Tensor) -> Tensor:
    """Time between the first and the last observation, shape (series,); 0 without any."""
    last = torch.where(mask, times, -torch.inf).amax(-1)
    return (last - torch.where(mask, times, torch.inf).amin(-1)).clamp_min(0)


def _kernel(lag: Tensor, lengthscale: Tensor) -> Tensor:
    x = math.sqrt(5) / lengthscale * lag.abs()
    return (1 + x + x * x / 3) * torch.exp(-x)


def _kernel_slope(lag: Tensor, lengthscale: Tensor) -> Tensor:
    rate = math.sqrt(5) / lengthscale
    x = rate * lag.abs()
    return -(rate * rate / 3) * lag * (1 + x) * torch.exp(-x)
