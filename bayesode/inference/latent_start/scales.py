"""Posterior scales before any stochastic optimisation: the diagonal of the Gauss-Newton matrix."""

from __future__ import annotations

import torch
from torch import Tensor

POINTS_PER_TIME = 16  # of the quadrature over lags: enough for half a turn per frame
MAX_POINTS = 4096


def weight_scales(
    matrix: Tensor,
    variance: Tensor,
    elapsed: Tensor,
    mask: Tensor,
    *,
    noise_scale: float,
    prior_scale: float,
) -> Tensor:
    """Posterior sds of the entries A[i, j] of a linear field dz_i/dt = Σ_j A[i, j] z_j.

    1 / sqrt(H_ij + 1 / p²) with the Gauss-Newton diagonal H_ij = variance_j Σ L_ij(t) / σ², the sum
    over all visible frames. A small change of A[i, j] pushes component i by z_j at all times s < t,
    and the field carries each push on. For a rotation, whose ρ_i(τ) = exp(τ matrix)_ii is the
    correlation of component i over a lag τ, and states whose law it keeps,

        L_ij(t) = ∫∫ ρ_i(s − s') ρ_j(s − s') ds ds' = 2 ∫ (t − τ) ρ_i(τ) ρ_j(τ) dτ,

    which is t² where nothing moves, and less where pushes turn against each other. Of a matrix that
    is not skew-symmetric its skew part is taken: growth and decay of pushes are left out, and so
    are the correlations of entries. A start for an optimiser, not a posterior.

    Args:
        matrix: Of the field, as rows, dz/dt = z @ matrix, shape (dim, dim).
        variance: Mean square of each component of z along the paths, shape (dim,).
        elapsed: Time since each series' start, dimensionless, shape (series, time).
        mask: True where the frame is visible, shape (series, time).
        noise_scale: Sd of the noise in units of z: that of the frames over the components' scale.
        prior_scale: Prior sd p of an entry.

    Returns:
        Shape (dim, dim), as A[i, j].

    Example:
        >>> frames = torch.ones(1, 2, dtype=torch.bool)
        >>> elapsed = torch.tensor([[0.0, 1.0]])
        >>> still, one = torch.zeros(1, 1), torch.ones(1)
        >>> weight_scales(still, one, elapsed, frames, noise_scale=0.1, prior_scale=1.0)
        tensor([[0.0995]])
    """
    times = elapsed[mask].to(variance)
    num_points = min(MAX_POINTS, POINTS_PER_TIME * elapsed.shape[-1])
    lags = torch.linspace(0, times.max().item(), num_points + 1, dtype=variance.dtype).to(times)
    weight = 2 * _levers(times, lags) * (lags[1] - lags[0])
    weight[0] /= 2  # the trapezoidal rule; the last weight is 0
    correlation = _correlations(matrix.to(variance), lags)
    information = (correlation * weight) @ correlation.mT * variance / noise_scale**2
    return (information.clamp_min(0) + prior_scale**-2).rsqrt()


def _correlations(matrix: Tensor, lags: Tensor) -> Tensor:
    """Diagonal of exp(lag matrix) of the skew part of a matrix, (dim, lag)."""
    skew = (matrix - matrix.mT) / 2
    frequencies, vectors = torch.linalg.eigh(1j * skew)
    return vectors.abs().square() @ torch.cos(frequencies.unsqueeze(-1) * lags)


def _levers(times: Tensor, lags: Tensor) -> Tensor:
    """The sum of time − lag over all times after each lag, (lag,)."""
    ordered = times.sort().values
    later = len(times) - torch.searchsorted(ordered, lags, right=True)
    total = torch.cat([ordered.new_zeros(1), ordered.flip(0).cumsum(0)])
    return total[later] - later * lags


def initial_scales(variance: Tensor, num_visible: float, *, noise_scale: float) -> Tensor:
    """Posterior sds of the components of z(t0), which every visible frame of a series sees.

    1 / sqrt(n / σ² + 1 / variance): exact for a rotation, which carries all that is known of a
    frame back to the start undiminished.

    Args:
        variance: Prior variance of each component, shape (dim,).
        num_visible: Visible frames n of a series, on average.
        noise_scale: As in `weight_scales`.

    Returns:
        Shape (dim,).

    Example:
        >>> initial_scales(torch.tensor([1.0]), 12, noise_scale=0.1)
        tensor([0.0289])
    """
    return (num_visible / noise_scale**2 + variance.reciprocal()).rsqrt()
