"""A first fit of a field without solving it: its derivative is matched to that of a smoother."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.first_order import descend
from bayesode.inference.warm_start.flat import MAX_WEIGHTS, FlatField
from bayesode.inference.warm_start.levenberg_marquardt import Point, levenberg_marquardt
from bayesode.smoothing import Smoothed

MAX_POINTS = 1000
FLOOR = 0.05  # sd of the derivative below which a point weighs no more, dimensionless
PULL = 1e-5  # towards 0, of the sum of squares beside the mean squared difference


def match_gradients(field: FlatField, times: Tensor, smoothed: Smoothed) -> Tensor:
    """Numbers of a field whose derivative agrees with that of a smoothed path.

    Minimises the squared difference weighted by 1 / (sd of the derivative^2 + .05^2), with a weak
    pull to 0, from a random start: by Levenberg-Marquardt, a tenth of the time of first-order
    steps and closer; by those for more than 2,000 numbers. Numbers of which the derivative says
    nothing, as weights of components that are 0 on the path, stay at their random start.

    Args:
        field: The field as a function of one vector.
        times: Grid of the smoothed path, shape (series, grid), dimensionless; repeated times (of
            padding) are left out.
        smoothed: Path and derivative on this grid, dimensionless.

    Returns:
        The vector, shape (num_numbers,).

    Source: Varah (1982), "A spline least squares method for numerical parameter estimation in
    differential equations", SIAM J. Sci. Stat. Comput. 3(1).
    """
    problem = MatchProblem(field, *_points(times, smoothed))
    vector = field.random_start()
    if len(vector) > MAX_WEIGHTS:
        return _first_order(problem, vector)
    start = Point(vector, vector.new_zeros(0, 1, 1))
    is_told = problem.linearise(start).corner.diagonal() > problem.pull
    found = levenberg_marquardt(problem, start, max_iterations=40, tolerance=1e-3)
    return torch.where(is_told, found.point.weights, vector)


@dataclass(frozen=True, eq=False)
class MatchProblem:
    """Weighted least squares of a field at given points; there are no states to fit.

    Args:
        field: The field as a function of one vector.
        state: Where, shape (points, state).
        time: When, shape (points, 1).
        target: Derivative there, shape (points, state).
        weight: Of each difference, shape (points, state), mean 1.
    """

    field: FlatField
    state: Tensor
    time: Tensor
    target: Tensor
    weight: Tensor

    @property
    def pull(self) -> float:
        """Precision of the pull to 0, beside a sum over all points."""
        return PULL * self.target.numel()

    def residual(self, vector: Tensor) -> Tensor:
        """Weighted differences, shape (points, state)."""
        rates = self.field.build(vector)(self.time, self.state)
        return self.weight.sqrt() * (self.target - rates)

    def cost(self, point: Point) -> float:
        """Sum of squares, the pull included."""
        vector = point.weights
        return float(self.residual(vector).square().sum() + self.pull * vector.square().sum())

    def linearise(self, point: Point) -> BorderedChain:
        """Normal equations of a step."""

        def one(vector: Tensor, x: Tensor, t: Tensor) -> Tensor:
            return self.field.build(vector)(t.unsqueeze(0), x.unsqueeze(0)).squeeze(0)

        vector = point.weights
        slope = vmap(jacrev(one), (None, 0, 0))(vector, self.state, self.time)
        slope = (slope * self.weight.sqrt().unsqueeze(-1)).flatten(0, 1)
        right = slope.mT @ self.residual(vector).flatten() - self.pull * vector
        corner = slope.mT @ slope + self.pull * torch.eye(len(vector)).to(vector)
        return BorderedChain.without_states(corner, right)


def _first_order(problem: MatchProblem, vector: Tensor) -> Tensor:
    """The same minimum by Adam."""

    def cost(share: float) -> Tensor:
        return problem.residual(vector).square().mean() + PULL * vector.square().sum()

    descend([vector], cost, num_steps=800, rate=1e-2)
    return vector


def _points(times: Tensor, smoothed: Smoothed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At most MAX_POINTS points of the smoothed paths: state, time, derivative and weight."""
    is_new = torch.nn.functional.pad(times.diff(dim=-1), (1, 0), value=1.0) > 0
    index = is_new.flatten().nonzero().squeeze(-1)
    if len(index) > MAX_POINTS:
        order = torch.randperm(len(index))[:MAX_POINTS].sort().values
        index = index[order.to(index.device)]
    weight = 1 / (smoothed.derivative_scale.square() + FLOOR**2)
    columns = (smoothed.path, times.unsqueeze(-1), smoothed.derivative, weight / weight.mean())
    state, time, target, share = (column.flatten(0, 1)[index] for column in columns)
    return state, time, target, share
