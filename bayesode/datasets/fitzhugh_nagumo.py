"""The FitzHugh-Nagumo model of a spiking neuron: fast voltage, slow recovery."""

from __future__ import annotations

from typing import Any

from bayesode.datasets.simulated import Simulated, System, simulate, uniform_initial


def _derivative(v: Any, w: Any, *, a: float, b: float, c: float) -> tuple[Any, Any]:
    return c * (v - v**3 / 3 + w), -(v - a + b * w) / c


SYSTEM = System(
    derivative=_derivative,
    names=("v", "w"),
    parameters={"a": 0.2, "b": 0.2, "c": 3.0},
    draw_initial=uniform_initial(-2.0, 2.0, dim=2),
    horizon=10.0,
    noise_scale=0.1,
)


def fitzhugh_nagumo(
    *,
    num_series: int = 10,
    num_times: int = 50,
    seed: int = 0,
    noise_scale: Any = None,
    times: Any = None,
    missing: float = 0.0,
    horizon: float | None = None,
) -> Simulated:
    """Noisy series of the FitzHugh-Nagumo model.

    v' = c (v - v^3 / 3 + w), w' = -(v - a + b w) / c with a = b = 0.2, c = 3, x(0) ~ U(-2, 2)^2:
    a voltage v that spikes and a recovery w.

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
        Observations and truth, values (series, time, state) with the components v and w,
        all dimensionless, as is time.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.

    Source: FitzHugh (1961), Biophysical Journal 1(6), 445-466; form and constants of Ramsay et al.
    (2007), J. R. Stat. Soc. B 69(5), 741-796, section 1.2.

    Example:
        >>> data = fitzhugh_nagumo(num_series=3, num_times=20, seed=1, missing=0.25)
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
