"""Posterior scales before any stochastic optimisation: the diagonal of the Gauss-Newton matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def weight_scales(
    variance: Tensor, elapsed: Tensor, mask: Tensor, *, noise_scale: float, prior_scale: float
) -> Tensor:
    """Posterior sds of the entries A[i, j] of a linear field dz_i/dt = Σ_j A[i, j] z_j.

    1 / sqrt(H_ij + 1 / p²) with H_ij = variance_j · Σ t² / σ², the sum over all visible frames.
    A small A[i, j] moves z_i(t) by A[i, j] ∫ z_j. Taking z_j constant makes this t z_j and its mean
    square t² variance_j: exact at A = 0, where nothing moves, if `variance` is the mean square of
    z. Along a moving path the push is carried on by the field and turns against later ones; under
    a rotation, which keeps lengths and these mean squares, H_ij is then an upper bound
    (Cauchy-Schwarz), so the scales are too small rather than too large. Correlations of entries are
    left out, and what they share widens nothing. A start for an optimiser, not a posterior.

    Args:
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
        >>> weight_scales(torch.ones(1), elapsed, frames, noise_scale=0.1, prior_scale=1.0)
        tensor([[0.0995]])
    """
    lever = torch.where(mask, elapsed, 0.0).square().sum().to(variance)
    information = variance * lever / noise_scale**2 + prior_scale**-2
    return information.rsqrt().expand(len(variance), -1)


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
