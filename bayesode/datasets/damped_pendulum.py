"""The damped pendulum: swings that die away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bayesode.datasets.simulated import Simulated, System, simulate, uniform_initial


def _derivative(q: Any, p: Any, *, stiffness: float, damping: float) -> tuple[Any, Any]:
    # numpy's function for arrays, torch's for tensors
    sine = q.sin() if hasattr(q, "sin") else np.sin(q)
    return p, -stiffness * sine - damping * p


SYSTEM = System(
    derivative=_derivative,
    names=("q", "p"),
    parameters={"stiffness": 2.0, "damping": 0.1},
    draw_initial=uniform_initial(-1.5, 1.5, dim=2),
    horizon=10.0,
    noise_scale=0.05,
)


def damped_pendulum(
    *,
    num_series: int = 10,
    num_times: int = 50,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of a damped pendulum.

    q' = p, p' = -stiffness sin q - damping p with stiffness = 2, damping = 0.1,
    (q, p)(0) ~ U(-1.5, 1.5)^2: angle and angular velocity. The energy p^2 / 2 - stiffness cos q
    falls at the rate damping p^2.

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
        horizon: Last time, 10 by default. Not with times of one's own.

    Returns:
        Observations and truth, values (series, time, state) with the components q (an angle in
        radians) and p (its rate),
        time is dimensionless.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.

    Source: Strogatz (2015), "Nonlinear Dynamics and Chaos", section 6.7, there with stiffness 1.

    Example:
        >>> data = damped_pendulum(num_series=3, num_times=20, seed=1, missing=0.25)
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


def damped_pendulum_angles(
    *,
    num_series: int = 10,
    num_times: int = 50,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of the angle of a damped pendulum, whose velocity is not observed.

    The system of `damped_pendulum`, and of the same seed the same paths.

    Args:
        num_series: As in `damped_pendulum`.
        num_times: As there.
        seed: As there.
        noise_scale: Standard deviation of the noise of the angle; 0.05 by default.
        times: As there.
        missing: As there, of the angles.
        horizon: As there.

    Returns:
        Observations, values (series, time, 1) of the component q (an angle in radians), and truth,
        values (series, time, 2) of q and p (its rate). Time is dimensionless.

    Raises:
        DataError: As `damped_pendulum`.
        ShapeError: As `damped_pendulum`.

    Source: Strogatz (2015), "Nonlinear Dynamics and Chaos", section 6.7, there with stiffness 1.

    Example:
        >>> data = damped_pendulum_angles(num_series=3, num_times=20, seed=1)
        >>> data.observed.values.shape, data.truth.values.shape
        (torch.Size([3, 20, 1]), torch.Size([3, 20, 2]))
    """
    return simulate(
        replace(SYSTEM, num_observed=1),
        num_series=num_series,
        num_times=num_times,
        seed=seed,
        noise_scale=noise_scale,
        times=times,
        missing=missing,
        horizon=horizon,
    )
