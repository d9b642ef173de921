"""The Ornstein-Uhlenbeck process: noise that a linear force calls back."""

from __future__ import annotations

from typing import Any

from bayesode.datasets.simulated import Simulated, System, simulate, uniform_initial


def _drift(x: Any, *, rate: float, mean: float, sigma: float) -> tuple[Any]:
    return (rate * (mean - x),)


def _diffusion(x: Any, *, rate: float, mean: float, sigma: float) -> tuple[Any]:
    return (sigma + 0 * x,)


SYSTEM = System(
    derivative=_drift,
    diffusion=_diffusion,
    names=("x",),
    parameters={"rate": 1.0, "mean": 0.5, "sigma": 0.5},
    draw_initial=uniform_initial(-2.0, 3.0, dim=1),
    horizon=5.0,
    noise_scale=0.1,
)


def ornstein_uhlenbeck(
    *,
    num_series: int = 10,
    num_times: int = 50,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of an Ornstein-Uhlenbeck process.

    dx = rate (mean - x) dt + sigma dW with rate = 1, mean = .5, sigma = .5, x(0) ~ U(-2, 3). All
    its moments are known: the sd tends to sigma / sqrt(2 rate) = .354.


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
        horizon: Last time, 5 by default. Not with times of one's own.

    Returns:
        Observations and the path as it was driven by its own noise, values (series, time, state),
        all dimensionless, as is time.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.

    Source: Uhlenbeck and Ornstein (1930), Physical Review 36, 823-841.

    Example:
        >>> data = ornstein_uhlenbeck(num_series=3, num_times=20, seed=1)
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
