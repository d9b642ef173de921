"""Trajectory fits by first-order steps, for fields with too many numbers for normal equations."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesode.inference.warm_start.first_order import descend
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import Point

WINDOW = 8  # intervals that are integrated in one go
NUM_WINDOW_STEPS, WINDOW_RATE = 400, 1e-2
NUM_PATH_STEPS, PATH_RATE = 800, 3e-3
PENALTIES = (1.0, 10.0)  # of the miss between windows, in noise sds, first and last


def fit_windows(data: FitData, point: Point, noise: Tensor, miss_scale: Tensor) -> Point:
    """Weights and x0 by multiple shooting, then by the path of largest posterior density.

    All windows of all series are solved as one batch; their first states are free and the misses
    between them cost more and more. Then the whole path is fitted, the noise along with it.

    Args:
        data: The fit.
        point: Weights, and states at all knots near the data.
        noise: Unconstrained, see `Measurement`.
        miss_scale: Unit of a miss, a scalar: about the noise of the data.

    Returns:
        Weights and first states (series, 1, state).

    Source: Bock and Plitt (1984), "A multiple shooting algorithm for direct solution of optimal
    control problems", IFAC Proceedings 17(2).
    """
    weights, states = point.weights.clone(), point.states[:, :-1:WINDOW].clone()

    def by_windows(share: float) -> Tensor:
        path, miss = _windowed(data, weights, states)
        penalty = PENALTIES[0] * (PENALTIES[1] / PENALTIES[0]) ** share / miss_scale
        return _cost(data, weights, path, noise) + (penalty * miss).square().sum()

    descend([weights, states], by_windows, num_steps=NUM_WINDOW_STEPS, rate=WINDOW_RATE)
    first, free, sites = states[:, :1].clone(), noise.clone(), data.measurement.sites

    def by_path(share: float) -> Tensor:
        prior = ((free - sites.mean) / sites.sd).square().sum()
        return _cost(data, weights, data.path(Point(weights, first)), free) + prior

    descend([weights, first, free], by_path, num_steps=NUM_PATH_STEPS, rate=PATH_RATE)
    return Point(weights, first)


def _windowed(data: FitData, weights: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Path (series, knot, state) from the first states of windows, and misses between these."""
    num_series, num_intervals = data.gaps.shape
    begins, lengths = (_windows(x) for x in (data.begins, data.lengths))
    field, current, ends = data.field.build(weights), states.flatten(0, 1), []
    for k in range(WINDOW):
        step = begins[:, :, k].flatten(0, 1), lengths[:, :, k].flatten(0, 1)
        current = data.solver.walk(field, current, *step)[0][-1]
        ends.append(current.unflatten(0, (num_series, -1)))
    inside = torch.stack(ends, 2)  # (series, window, interval, state)
    path = torch.cat([states[:, :1], inside.flatten(1, 2)[:, :num_intervals]], 1)
    return path, states[:, 1:] - inside[:, :-1, -1]


def _windows(steps: Tensor) -> Tensor:
    """Substeps (series, interval, substep) in windows; the last one stands still at its end."""
    rest = torch.zeros_like(steps[:, :1]).expand(-1, -steps.shape[1] % WINDOW, -1)
    return torch.cat([steps, rest], 1).unflatten(1, (-1, WINDOW))


def _cost(data: FitData, weights: Tensor, path: Tensor, noise: Tensor) -> Tensor:
    """Minus twice the log posterior, up to a constant."""
    prior = ((weights - data.field.mean) / data.field.sd).square().sum()
    first = ((path[:, 0] - data.x0_mean) / data.x0_sd).square().sum()
    return prior + first - 2 * data.measurement.log_prob(path, noise)
