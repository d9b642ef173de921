"""A particle in a double well that noise kicks across the barrier."""

from __future__ import annotations

from typing import Any

from bayesode.datasets.simulated import Simulated, System, simulate, uniform_initial


def _drift(x: Any, *, force: float, sigma: float) -> tuple[Any]:
    return (force * x * (1 - x * x),)


def _diffusion(x: Any, *, force: float, sigma: float) -> tuple[Any]:
    return (sigma + 0 * x,)


SYSTEM = System(
    derivative=_drift,
    diffusion=_diffusion,
    names=("x",),
    parameters={"force": 4.0, "sigma": 1.0},
    draw_initial=uniform_initial(-1.5, 1.5, dim=1),
    horizon=10.0,
    noise_scale=0.1,
)


def double_well(
    *,
    num_series: int = 20,
    num_times: int = 100,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of a particle in two wells at -1 and 1.

    dx = force x (1 - x^2) dt + sigma dW with force = 4, sigma = 1, x(0) ~ U(-1.5, 1.5). The
    stationary density is proportional to exp(2 force (x^2 / 2 - x^4 / 4) / sigma^2); a series
    changes its well about once in ten units of time.


    Args:
        num_series: Number of series, each with its own initial state.
        num_times: Number of times of each series; without effect for times of one's own.
        seed: Decides everything random.
        noise_scale: Standard deviation of the Gaussian measurement noise, one number or one per
            component; 0.1 by default.
        times: None or "regular" (equally spaced over [0, horizon], shared), "irregular" (each
            series its own: 0, sorted uniform times, horizon), or times >= 0, shape (time,) or
            (series, time). The initial state holds at 0 always.
        missing: Fraction in [0, 1) of the single numbers that are missing completely at random;
            every series keeps at least one.
        horizon: Last time, 10 by default. Not with times of one's own.

    Returns:
        Observations and the path as it was driven by its own noise, values (series, time, state),
        all dimensionless, as is time.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.

    Source: Kramers (1940), Physica 7, 284-304.

    Example:
        >>> data = double_well(num_series=3, num_times=20, seed=1)
        >>> data.truth.values.shape
        torch.Size([3, 20, 1])
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
