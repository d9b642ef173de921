"""Predators and their prey, with growth that is random."""

from __future__ import annotations

from typing import Any

from bayesode.datasets.simulated import Simulated, System, simulate, uniform_initial


def _drift(
    prey: Any,
    predator: Any,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    delta: float,
    sigma: float,
) -> tuple[Any, Any]:
    return prey * (alpha - beta * predator), predator * (delta * prey - gamma)


def _diffusion(prey: Any, predator: Any, *, sigma: float, **others: float) -> tuple[Any, Any]:
    return sigma * prey, sigma * predator


SYSTEM = System(
    derivative=_drift,
    diffusion=_diffusion,
    names=("prey", "predator"),
    parameters={"alpha": 1.5, "beta": 1.0, "gamma": 3.0, "delta": 1.0, "sigma": 0.1},
    draw_initial=uniform_initial(1.0, 5.0, dim=2),
    horizon=6.0,
    noise_scale=0.1,
)


def stochastic_lotka_volterra(
    *,
    num_series: int = 10,
    num_times: int = 50,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of predators and their prey, both with random growth.

    dx = x (alpha - beta y) dt + sigma x dW1, dy = y (delta x - gamma) dt + sigma y dW2 (Ito), with
    alpha = 1.5, beta = delta = 1, gamma = 3, sigma = .1, (x, y)(0) ~ U(1, 5)^2.

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
        horizon: Last time, 6 by default. Not with times of one's own.

    Returns:
        Observations and the path as it was driven by its own noise, values (series, time, state),
        all dimensionless, as is time.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.

    Source: the equations of Lotka (1925), "Elements of Physical Biology", with the noise of
    Arnold, Horsthemke and Stucki (1979), Biometrical Journal 21, 451-471.

    Example:
        >>> data = stochastic_lotka_volterra(num_series=3, num_times=20, seed=1)
        >>> data.observed.names, data.truth.values.shape
        (('prey', 'predator'), torch.Size([3, 20, 2]))
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
