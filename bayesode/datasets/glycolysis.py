"""Sel'kov's model of glycolysis: a chemical oscillation."""

from __future__ import annotations

from typing import Any

from bayesode.datasets.simulated import Simulated, System, simulate, uniform_initial


def _derivative(x: Any, y: Any, *, a: float, b: float) -> tuple[Any, Any]:
    return -x + a * y + x**2 * y, b - a * y - x**2 * y


SYSTEM = System(
    derivative=_derivative,
    names=("adp", "f6p"),
    parameters={"a": 0.08, "b": 0.6},
    draw_initial=uniform_initial(0.3, 2.3, dim=2),
    horizon=20.0,
    noise_scale=0.05,
)


def glycolysis(
    *,
    num_series: int = 10,
    num_times: int = 60,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of Sel'kov's model of glycolysis.

    x' = -x + a y + x^2 y, y' = b - a y - x^2 y with a = 0.08, b = 0.6, x(0) ~ U(0.3, 2.3)^2:
    concentrations of ADP (x) and fructose 6-phosphate (y). The equilibrium x = b,
    y = b / (a + b^2) is unstable, and a limit cycle surrounds it.

    Args:
        num_series: Number of series, each with its own initial state.
        num_times: Number of times of each series; without effect for times of one's own.
        seed: Decides everything random. Neither times nor noise nor missing entries change the
            initial states of a seed.
        noise_scale: Standard deviation of the Gaussian noise, one number or one per component;
            0.05 by default.
        times: None or "regular" (equally spaced over [0, horizon], shared), "irregular" (each
            series its own: 0, sorted uniform times, horizon), or times >= 0, shape (time,) or
            (series, time). The initial state holds at 0 always.
        missing: Fraction in [0, 1) of the single numbers that are missing completely at random;
            every series keeps at least one.
        horizon: Last time, 20 by default. Not with times of one's own.

    Returns:
        Observations and truth, values (series, time, state) with the components adp and f6p,
        all dimensionless, as is time.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.

    Source: Sel'kov (1968), European Journal of Biochemistry 4(1), 79-86; form and constants of
    Strogatz (2015), "Nonlinear Dynamics and Chaos", example 7.3.2.

    Example:
        >>> data = glycolysis(num_series=3, num_times=20, seed=1, missing=0.25)
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
