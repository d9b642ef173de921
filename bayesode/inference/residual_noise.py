"""Noise whose scale depends on the entry and on the predicted intensity, from residuals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ResidualNoise(NamedTuple):
    """Log sd of residuals: log_scale[entry] + coefficients · (share, share²).

    Args:
        log_scale: Shape (entries,).
        coefficients: Shape (2,).
    """

    log_scale: Tensor
    coefficients: Tensor


def fit_residual_noise(residual: Tensor, shares: Tensor, mask: Tensor) -> ResidualNoise:
    """The normal law of residuals of largest likelihood: a scale per entry, a bend by intensity.

    Convex in all parameters; the scales of the entries are eliminated in closed form, and the two
    coefficients found by L-BFGS. Every entry has one more residual, of the size of all, at its mean
    bend, so that entries that never err get a small scale in place of none.

    Args:
        residual: Shape (frames, entries).
        shares: Predicted intensities from 0 to 1, shape (frames, entries).
        mask: Which residuals count, shape (frames, entries).

    Source: Harvey (1976), "Estimating regression models with multiplicative heteroscedasticity".
        doi:10.2307/1913974
    """
    square = torch.where(mask, residual, 0.0).square()
    usual = (square.sum() / mask.sum()).clamp_min(torch.finfo(square.dtype).tiny)
    count, weight = mask.sum(0) + 1, mask.to(square.dtype)
    coefficients = torch.zeros(2, dtype=square.dtype, device=square.device, requires_grad=True)

    def scales() -> tuple[Tensor, Tensor]:
        bend = (coefficients[0] + coefficients[1] * shares) * shares * weight
        mean = bend.sum(0) / weight.sum(0).clamp_min(1)
        # at share 0 in place of the mean, quiet entries would bend the noise of all others
        total = (square * (-2 * bend).exp()).sum(0) + usual * (-2 * mean).exp()
        return (total / count).log() / 2, bend.sum() + mean.sum()

    def cost() -> Tensor:
        optimiser.zero_grad()
        log_scale, bend = scales()
        total = ((count * log_scale).sum() + bend) / count.sum()
        total.backward()
        return total

    optimiser = torch.optim.LBFGS(
        [coefficients], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )
    with torch.enable_grad():
        optimiser.step(cost)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        return ResidualNoise(scales()[0], coefficients.detach())
