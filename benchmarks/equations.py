"""The floor of `benchmarks.dynamics`: the true equations, their constants by least squares.

Constants and initial states are unknown, everything else is known: a network cannot do better.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from bayesode.smoothing import smooth
from benchmarks.scoring import Outcome, Scored, Size, score_noisy
from benchmarks.tasks import Target, Task

TINY = 1e-30  # of a complex step, whose derivatives have no rounding error
BOUND = 1e6  # a path that explodes during the fit stays a number
NUM_STARTS, START_SPREAD = 3, 0.5  # sd of the logarithm of a constant at the start
SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)  # of the times, one after the other: chaos has many optima
Derivative = Callable[..., tuple[np.ndarray, ...]]


class Equations(NamedTuple):
    """Known equations with unknown constants.

    Args:
        derivative: `derivative(*state, **constants)`.
        names: Of the constants.
        substep: Largest step of RK4.
    """

    derivative: Derivative
    names: tuple[str, ...]
    substep: float

    def rate(self, constants: np.ndarray, states: np.ndarray) -> np.ndarray:
        """dx/dt, components first; constants (constant, ...)."""
        named = dict(zip(self.names, constants, strict=True))
        return np.stack(np.broadcast_arrays(*self.derivative(*states, **named)))

    def paths(self, constants: np.ndarray, x0: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Solved paths (component, ..., series, time) from x0 (component, ..., series) at time 0.

        `times` has the shape (series, time).
        """
        gaps = np.diff(times, axis=1, prepend=0.0)
        state, path = x0, []
        for gap in gaps.T:
            count = max(1, int(np.ceil(gap.max() / self.substep - 1e-9)))
            for _ in range(count if gap.max() > 0 else 0):
                state = self._step(constants, state, gap / count)
            path.append(state)
        return np.stack(path, -1)

    def _step(self, constants: np.ndarray, x: np.ndarray, h: np.ndarray) -> np.ndarray:
        k1 = self.rate(constants, x)
        k2 = self.rate(constants, x + h / 2 * k1)
        k3 = self.rate(constants, x + h / 2 * k2)
        k4 = self.rate(constants, x + h * k3)
        y = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return np.clip(y.real, -BOUND, BOUND) + 1j * np.nan_to_num(y.imag)

    def sensitivities(
        self, constants: np.ndarray, x0: np.ndarray, times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paths (series, time, state) and derivatives (series, time, state, constant + state).

        x0 has the shape (series, state). A series' path knows no other's x0, so one complex step
        per constant and per component serves all series at once.
        """
        num_constants, dim = len(constants), x0.shape[1]
        step = 1j * TINY * np.eye(num_constants + dim)
        varied = constants[:, None, None] + step[:num_constants, :, None]
        begin = x0.T[:, None, :] + step[num_constants:, :, None]
        path = self.paths(varied, begin, times).transpose(2, 3, 0, 1)  # series, time, state, column
        return path[..., 0].real, path.imag / TINY


class Normal(NamedTuple):
    """A normal law of constants: mean and covariance."""

    mean: np.ndarray
    covariance: np.ndarray


class Fitted(NamedTuple):
    """Constants and x0 (series, state), their joint covariance, noise sd and cost of the fit."""

    constants: np.ndarray
    x0: np.ndarray
    covariance: np.ndarray
    noise_scale: float
    freedom: float
    cost: float


class Data(NamedTuple):
    """times (series, time), values and mask (series, time, state)."""

    times: np.ndarray
    values: np.ndarray
    mask: np.ndarray


def fit(
    equations: Equations,
    data: Data,
    start: tuple[np.ndarray, np.ndarray],
    known: tuple[Normal, float] | None = None,
) -> Fitted:
    """Least squares over constants and initial states.

    Args:
        equations: The form.
        data: Observations.
        start: Constants and x0 (series, state) to begin with.
        known: Law of the constants and noise sd from other series; both are found if not given.
    """
    num_constants, x0_shape = len(start[0]), start[1].shape
    scale = 1.0 if known is None else known[1]
    root = None if known is None else np.linalg.inv(np.linalg.cholesky(known[0].covariance))

    def split(unknown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return unknown[:num_constants], unknown[num_constants:].reshape(x0_shape)

    def residual(unknown: np.ndarray) -> np.ndarray:
        constants, x0 = split(unknown)
        path = equations.paths(constants[:, None] + 0j, x0.T + 0j, data.times).real
        out = ((path.transpose(1, 2, 0) - data.values) / scale)[data.mask]
        return out if root is None else np.concatenate([out, root @ (constants - known[0].mean)])

    def jacobian(unknown: np.ndarray) -> np.ndarray:
        _, by_own = equations.sensitivities(*split(unknown), data.times)
        out = scattered(by_own, num_constants)[data.mask] / scale
        if root is None:
            return out
        prior = np.pad(root, ((0, 0), (0, x0_shape[0] * x0_shape[1])))
        return np.concatenate([out, prior])

    first = np.concatenate([start[0], start[1].ravel()])
    found = least_squares(residual, first, jacobian, method="lm", x_scale="jac", max_nfev=100)
    freedom = data.mask.sum() - len(first)
    noise = known[1] if known is not None else float(np.sqrt(2 * found.cost / freedom))
    precision = found.jac.T @ found.jac / (1.0 if known is not None else noise**2)
    return Fitted(*split(found.x), np.linalg.inv(precision), noise, float(freedom), found.cost)


def scattered(by_own: np.ndarray, num_constants: int) -> np.ndarray:
    """Derivatives by the constants and by all x0, zero for those of other series."""
    num_series, num_times, dim = by_own.shape[:3]
    out = np.zeros((num_series, num_times, dim, num_constants + num_series * dim))
    out[..., :num_constants] = by_own[..., :num_constants]
    for row in range(num_series):
        first = num_constants + row * dim
        out[row, ..., first : first + dim] = by_own[row, ..., num_constants:]
    return out


# ---- as a method ---------------------------------------------------------------------------------
def right_equations(task: Task, size: Size) -> Outcome:
    """Gauss-Newton posterior of the constants and initial states; best of three starts."""
    begin = time.perf_counter()
    equations = Equations(task.data.derivative, tuple(task.data.parameters), task.substep)
    data = _data(task.train)
    fits = [_grown(equations, data, start) for start in _starts(equations, task)]
    best = min(fits, key=lambda one: one.cost)
    seconds = time.perf_counter() - begin
    count = len(best.constants)
    law = Normal(best.constants, best.covariance[:count, :count])
    given = _data(task.given)
    x0 = np.where(given.mask[:, 0], given.values[:, 0], data.values[data.mask].mean())
    own = fit(equations, given, (best.constants, x0), (law, best.noise_scale))
    rng = np.random.default_rng(task.seed)
    constants = rng.multivariate_normal(law.mean, law.covariance, size.num_draws)
    states = task.visited.numpy().T[:, None, :]
    rates = equations.rate(constants.T[:, :, None], states).transpose(1, 2, 0)
    noise = torch.full((len(task.noise_scale),), best.noise_scale, dtype=torch.float64)
    return Outcome(
        seconds=seconds,
        path=_score(equations, best, best.freedom, task.target, size),
        new_series=_score(equations, own, best.freedom, task.new_series, size),
        rates=torch.from_numpy(rates),
        noise_scale=noise,
    )


def _grown(equations: Equations, data: Data, start: tuple[np.ndarray, np.ndarray]) -> Fitted:
    """A fit over a growing horizon."""
    for share in SHARES:
        count = max(3, round(share * data.times.shape[1]))
        part = Data(data.times[:, :count], data.values[:, :count], data.mask[:, :count])
        found = fit(equations, part, start)
        start = (found.constants, found.x0)
    return found


def _starts(equations: Equations, task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
    """Constants that match the smoothed derivative, from perturbed guesses, and smoothed x0."""
    train, rng = task.train, np.random.default_rng(task.seed)
    found = smooth(train.grid, train.values.double(), train.mask, train.grid)
    states, rates = (part.numpy().transpose(2, 0, 1) for part in (found.path, found.derivative))
    weight = 1 / (found.derivative_scale.numpy().transpose(2, 0, 1) + 1e-3 * np.abs(rates).max())

    def mismatch(constants: np.ndarray) -> np.ndarray:
        return (weight * (equations.rate(constants, states) - rates)).ravel()

    truth = np.array([task.data.parameters[name] for name in equations.names])
    starts = []
    for _ in range(NUM_STARTS):
        guess = truth * np.exp(START_SPREAD * rng.standard_normal(len(truth)))
        matched = least_squares(mismatch, guess, method="lm", max_nfev=200).x
        starts.append((matched, found.path[:, 0].numpy()))
    return starts


def _data(observed: object) -> Data:
    values = torch.where(observed.mask, observed.values, 0.0).double()
    return Data(observed.grid.numpy(), values.numpy(), observed.mask.numpy())


def _score(
    equations: Equations, fitted: Fitted, freedom: float, target: Target, size: Size
) -> Scored:
    """Linearised paths, and the noise scale integrated over its inverse chi-square law."""
    times = target.new.grid.numpy()
    path, by_own = equations.sensitivities(fitted.constants, fitted.x0, times)
    slope = scattered(by_own, len(fitted.constants))
    rng = np.random.default_rng(0)
    zero = np.zeros(len(fitted.covariance))
    change = rng.multivariate_normal(zero, fitted.covariance, size.num_draws)
    signal = torch.from_numpy(path + np.einsum("ntsp,dp->dnts", slope, change))
    noise = fitted.noise_scale * np.sqrt(freedom / rng.chisquare(freedom, size.num_draws))
    scales: Tensor = torch.from_numpy(noise)[:, None].expand(-1, path.shape[-1])
    return score_noisy(signal, scales, target, seed=1)
