"""The van der Pol oscillator: one limit cycle that attracts every path."""

from __future__ import annotations

from typing import Any

from bayesode.datasets.simulated import Simulated, System, simulate, uniform_initial


def _derivative(x1: Any, x2: Any, *, mu: float) -> tuple[Any, Any]:
    # 1 - x1^2, not 1 - x2^2: a common slip that has another limit cycle
    return x2, mu * (1 - x1**2) * x2 - x1


SYSTEM = System(
    derivative=_derivative,
    names=("x1", "x2"),
    parameters={"mu": 1.0},
    draw_initial=uniform_initial(-3.0, 3.0, dim=2),
    horizon=10.0,
    noise_scale=0.1,
)


def van_der_pol(
    *,
    num_series: int = 10,
    num_times: int = 50,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of the van der Pol oscillator.

    x1' = x2, x2' = mu (1 - x1^2) x2 - x1 with mu = 1, x(0) ~ U(-3, 3)^2. The limit cycle has the
    amplitudes 2.009 in x1 and 2.678 in x2.

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

    Source: van der Pol (1926), "On relaxation-oscillations", Phil. Mag. 2(11), 978-992.

    Example:
        >>> data = van_der_pol(num_series=3, num_times=20, seed=1, missing=0.25)
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
