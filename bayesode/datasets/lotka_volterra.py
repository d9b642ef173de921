"""The Lotka-Volterra predator-prey system: closed orbits around one equilibrium."""

from __future__ import annotations

from typing import Any

from bayesode.datasets.simulated import Simulated, System, simulate, uniform_initial


def _derivative(
    prey: Any, predator: Any, *, alpha: float, beta: float, gamma: float, delta: float
) -> tuple[Any, Any]:
    return prey * (alpha - beta * predator), predator * (delta * prey - gamma)


SYSTEM = System(
    derivative=_derivative,
    names=("prey", "predator"),
    parameters={"alpha": 1.5, "beta": 1.0, "gamma": 3.0, "delta": 1.0},
    draw_initial=uniform_initial(1.0, 5.0, dim=2),
    horizon=6.0,
    noise_scale=0.1,
)


def lotka_volterra(
    *,
    num_series: int = 10,
    num_times: int = 50,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of predators and their prey.

    x' = x (alpha - beta y), y' = y (delta x - gamma) with alpha = 1.5, beta = delta = 1, gamma = 3,
    x(0) ~ U(1, 5)^2. Along a path delta x - gamma log x + beta y - alpha log y is constant. The
    noise is additive: small populations may be observed below 0.

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
        horizon: Last time, 6 by default. Not with times of one's own.

    Returns:
        Observations and truth, values (series, time, state) with the components prey and predator,
        all dimensionless, as is time.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.

    Source: Lotka (1925), "Elements of Physical Biology"; Volterra (1926), Nature 118, 558-560.

    Example:
        >>> data = lotka_volterra(num_series=3, num_times=20, seed=1, missing=0.25)
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
