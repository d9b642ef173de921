"""Geometric Brownian motion: growth with a random rate."""

from __future__ import annotations

from typing import Any

from bayesode.datasets.simulated import Simulated, System, simulate, uniform_initial


def _drift(x: Any, *, growth: float, sigma: float) -> tuple[Any]:
    return (growth * x,)


def _diffusion(x: Any, *, growth: float, sigma: float) -> tuple[Any]:
    return (sigma * x,)


SYSTEM = System(
    derivative=_drift,
    diffusion=_diffusion,
    names=("x",),
    parameters={"growth": 0.3, "sigma": 0.2},
    draw_initial=uniform_initial(0.5, 2.0, dim=1),
    horizon=5.0,
    noise_scale=0.05,
)


def geometric_brownian_motion(
    *,
    num_series: int = 10,
    num_times: int = 50,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series that grow at a random rate.

    dx = growth x dt + sigma x dW (Ito) with growth = .3, sigma = .2, x(0) ~ U(.5, 2): log x(t) is
    normal with mean log x(0) + (growth - sigma^2 / 2) t and variance sigma^2 t.


    Args:
        num_series: Number of series, each with its own initial state.
        num_times: Number of times of each series; without effect for times of one's own.
        seed: Decides everything random.
        noise_scale: Standard deviation of the Gaussian measurement noise, one number or one per
            component; 0.05 by default.
        times: None or "regular" (equally spaced over [0, horizon], shared), "irregular" (each
            series its own: 0, sorted uniform times, horizon), or times >= 0, shape (time,) or
            (series, time). The initial state holds at 0 always.
        missing: Fraction in [0, 1) of the single numbers that are missing completely at random;
            every series keeps at least one.
        horizon: Last time, 5 by default. Not with times of one's own.

    Returns:
        Observations and the path as it was driven by its own noise, values (series, time, state),
        all dimensionless, as is time.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.

    Source: Samuelson (1965), Industrial Management Review 6(2), 13-39.

    Example:
        >>> data = geometric_brownian_motion(num_series=3, num_times=20, seed=1)
        >>> bool((data.truth.values > 0).all())
        True
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
