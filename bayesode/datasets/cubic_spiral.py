"""The cubic spiral: a nonlinear rotation that slowly loses its amplitude."""

from __future__ import annotations

from typing import Any

from bayesode.datasets.simulated import Simulated, System, simulate, uniform_initial


def _derivative(x1: Any, x2: Any, *, decay: float, rotation: float) -> tuple[Any, Any]:
    return -decay * x1**3 - rotation * x2**3, rotation * x1**3 - decay * x2**3


SYSTEM = System(
    derivative=_derivative,
    names=("x1", "x2"),
    parameters={"decay": 0.1, "rotation": 2.0},
    draw_initial=uniform_initial(-2.0, 2.0, dim=2),
    horizon=10.0,
    noise_scale=0.1,
)


def cubic_spiral(
    *,
    num_series: int = 10,
    num_times: int = 100,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of the cubic spiral.

    x1' = -decay x1^3 - rotation x2^3, x2' = rotation x1^3 - decay x2^3 with decay = 0.1,
    rotation = 2, x(0) ~ U(-2, 2)^2. x1^4 + x2^4 falls at the rate 4 decay (x1^6 + x2^6): the path
    turns the slower the smaller it has become.

    Args:
        num_series: Number of series, each with its own initial state.
        num_times: Number of times of each series; without effect for times of one's own.
        seed: Decides everything random. Neither times nor noise nor missing entries change the
            initial states of a seed.
        noise_scale: Standard deviation of the Gaussian noise, one number or one per component;
            0.1 by default.
        times: None or "regular" (equally spaced over [0, horizon], shared), "irregular" (each
            series its own: 0, sorted uniform times, horizon), or times >= 0, shape (time,) or
            (series, time). The initial state holds at 0 always.
        missing: Fraction in [0, 1) of the single numbers that are missing completely at random;
            every series keeps at least one.
        horizon: Last time, 10 by default. Not with times of one's own.

    Returns:
        Observations and truth, values (series, time, state) with the components x1 and x2,
        all dimensionless, as is time.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.

    Source: The demonstration of torchdiffeq, x' = x^3 A with A = [[-0.1, 2], [-2, -0.1]], of Chen
    et al. (2018), "Neural ordinary differential equations". arXiv:1806.07366

    Example:
        >>> data = cubic_spiral(num_series=3, num_times=20, seed=1, missing=0.25)
        >>> data.observed.values.shape, data.observed.num_observed, data.truth.num_observed
        (torch.Size([3, 20, 2]), 90, 120)
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
