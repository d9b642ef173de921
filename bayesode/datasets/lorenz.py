"""The Lorenz system of 1963: chaos on a strange attractor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from bayesode.datasets.simulated import Simulated, System, simulate


def _derivative(
    x: Any, y: Any, z: Any, *, sigma: float, rho: float, beta: float
) -> tuple[Any, Any, Any]:
    return sigma * (y - x), x * (rho - z) - y, x * y - beta * z


def _draw_initial(num_series: int, generator: Generator) -> Tensor:
    center = torch.tensor([0.0, 0.0, 25.0], dtype=torch.float32)
    return center + 8 * torch.randn(num_series, 3, generator=generator, dtype=torch.float32)


SYSTEM = System(
    derivative=_derivative,
    names=("x", "y", "z"),
    parameters={"sigma": 10.0, "rho": 28.0, "beta": 8 / 3},
    draw_initial=_draw_initial,
    horizon=2.0,
    noise_scale=0.5,
)


def lorenz(
    *,
    num_series: int = 10,
    num_times: int = 80,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of the Lorenz system.

    x' = sigma (y - x), y' = x (rho - z) - y, z' = x y - beta z with sigma = 10, rho = 28,
    beta = 8/3, x(0) ~ (0, 0, 25) + 8 N(0, I). Neighbouring paths part by a factor e in about 1.1
    units of time: no forecast reaches far beyond the data.

    Args:
        num_series: Number of series, each with its own initial state.
        num_times: Number of times of each series; without effect for times of one's own.
        seed: Decides everything random. Neither times nor noise nor missing entries change the
            initial states of a seed.
        noise_scale: Standard deviation of the Gaussian noise, one number or one per component;
            0.5 by default.
        times: None or "regular" (equally spaced over [0, horizon], shared), "irregular" (each
            series its own: 0, sorted uniform times, horizon), or times >= 0, shape (time,) or
            (series, time). The initial state holds at 0 always.
        missing: Fraction in [0, 1) of the single numbers that are missing completely at random;
            every series keeps at least one.
        horizon: Last time, 2 by default. Not with times of one's own.

    Returns:
        Observations and truth, values (series, time, state) with the components x, y and z,
        all dimensionless, as is time.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.

    Source: Lorenz (1963), "Deterministic nonperiodic flow", J. Atmos. Sci. 20(2), 130-141,
    equations (25) to (27).

    Example:
        >>> data = lorenz(num_series=3, num_times=20, seed=1, missing=0.25)
        >>> data.observed.values.shape, data.observed.num_observed, data.truth.num_observed
        (torch.Size([3, 20, 3]), 135, 180)
    """
    return simulate(
        SYSTEM,
        num_series=num_series,
        num_times=num_times,
        seed=seed,
        noise_scale=noise_scale,
        times=times,
        missing=missing,
        horizon=horizon,
    )
