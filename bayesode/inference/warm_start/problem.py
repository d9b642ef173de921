"""Trajectory fits as least squares: over states with process noise, and over the path itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.covariance import Covariance
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import Point
from bayesode.inference.warm_start.scales import log_volume

SHORTEST = 1e-6  # of the mean interval: padding and an asked start are intervals of length 0


@dataclass(frozen=True, eq=False)
class Around:
    """What a fit looks like around its optimum, for given noise scales.

    Args:
        covariance: Of everything fitted, a `Covariance` or a `ChainCovariance`.
        noise: The scales of larger evidence.
        freedom: Degrees of freedom of each scale.
        slope: Of the log evidence along the scales that are not fixed.
        num_used: Effective number of fitted numbers.
    """

    covariance: Any
    noise: Tensor
    freedom: Tensor
    slope: Tensor
    num_used: float


@dataclass(frozen=True, eq=False)
class StateProblem:
    """Weights and the states at all knots; intervals may miss by process noise.

    Every interval is integrated on its own, so nothing explodes and chaos is no obstacle.

    Args:
        data: The fit.
        noise: Of the observations, unconstrained, see `Measurement`.
        spread: Sd of the miss in each interval, dimensionless, broadcastable to (series, interval,
            state).

    Source: weak-constraint smoothing, Tremolet (2006), QJRMS 132.
    """

    data: FitData
    noise: Tensor
    spread: Tensor

    @classmethod
    def shrunk(cls, data: FitData, noise: Tensor, scale: float) -> StateProblem:
        """With process noise that misses by `scale` in an interval of mean length."""
        return cls(data, noise, scale * (spans(data.gaps) / mean_span(data.gaps)).sqrt())

    @cached_property
    def best(self) -> float:
        """Log likelihood of the path through the data."""
        return self.data.measurement.largest(self.noise, self.data.x0_mean.shape[-1])

    def cost(self, point: Point, ends: Tensor | None = None) -> float:
        """Deviance of the data and sum of squared misses, prior included.

        Args:
            point: Weights and states.
            ends: Of the intervals, where they are known.
        """
        data = self.data
        if ends is None:
            ends = data.flow(point.weights, point.states[:, :-1])
        miss = (point.states[:, 1:] - ends) / self.spread
        prior = ((point.weights - data.field.mean) / data.field.sd).square().sum()
        first = ((point.states[:, 0] - data.x0_mean) / data.x0_sd).square().sum()
        seen = 2 * (self.best - data.measurement.log_prob(point.states, self.noise))
        return float(miss.square().sum() + prior + first + seen)

    def linearise(self, point: Point) -> BorderedChain:
        """Normal equations of a step."""
        return self.assemble(point, *self.data.flow_jacobians(point.weights, point.states[:, :-1]))

    def assemble(
        self, point: Point, ends: Tensor, by_weights: Tensor, by_states: Tensor
    ) -> BorderedChain:
        """Normal equations of a step from the flow over all intervals and its derivatives."""
        data, rate = self.data, (1 / self.spread).expand_as(ends)
        miss = (point.states[:, 1:] - ends) * rate
        a, b = by_states * rate.unsqueeze(-1), by_weights * rate.unsqueeze(-1)
        diagonal, upper = self.precision(point.states, by_states)
        border = a.new_zeros(*point.states.shape, len(point.weights))
        border[:, :-1] += a.mT @ b
        border[:, 1:] -= b * rate.unsqueeze(-1)
        flat = b.flatten(0, 2)
        corner = flat.mT @ flat + torch.diag(data.field.sd.pow(-2))
        states = data.measurement.pull(point.states, self.noise)
        states[:, :-1] += (a.mT @ miss.unsqueeze(-1)).squeeze(-1)
        states[:, 1:] -= rate * miss
        states[:, 0] -= (point.states[:, 0] - data.x0_mean) / data.x0_sd.square()
        weights = flat.mT @ miss.flatten() - (point.weights - data.field.mean) / data.field.sd**2
        return BorderedChain(diagonal, upper, border, corner, states, weights)

    def precision(self, states: Tensor, by_states: Tensor) -> tuple[Tensor, Tensor]:
        """Diagonal and upper blocks of the states' precision given the weights."""
        data, rate = self.data, (1 / self.spread).expand_as(states[:, 1:])
        a = by_states * rate.unsqueeze(-1)
        diagonal = torch.diag_embed(data.measurement.information(states, self.noise))
        diagonal[:, :-1] += a.mT @ a
        diagonal[:, 1:] += torch.diag_embed(rate.square())
        diagonal[:, 0] += torch.diag_embed(data.x0_sd.pow(-2))
        return diagonal, -a.mT * rate.unsqueeze(-2)


def spans(gaps: Tensor) -> Tensor:
    """Lengths of intervals, never 0, shape (series, interval, 1)."""
    return gaps.clamp_min(SHORTEST * mean_span(gaps)).unsqueeze(-1)


def mean_span(gaps: Tensor) -> Tensor:
    """Mean length of the intervals that have one."""
    return gaps[gaps > 0].mean()


@dataclass(frozen=True, eq=False)
class PathProblem:
    """Weights and x0; the path is a solution of the field.

    Args:
        data: The fit.
        noise: Of the observations, unconstrained, see `Measurement`.
    """

    data: FitData
    noise: Tensor
    _last: list[tuple[Point, Tensor]] = field(default_factory=list, repr=False)

    @cached_property
    def best(self) -> float:
        """Log likelihood of the path through the data."""
        return self.data.measurement.largest(self.noise, self.data.x0_mean.shape[-1])

    def cost(self, point: Point) -> float:
        """Deviance of the data, prior included; for normal noise the sum of squared residuals."""
        data = self.data
        prior = ((point.weights - data.field.mean) / data.field.sd).square().sum()
        first = ((point.states[:, 0] - data.x0_mean) / data.x0_sd).square().sum()
        seen = 2 * (self.best - data.measurement.log_prob(self.path(point), self.noise))
        return float(seen + prior + first)

    @property
    def is_vanishing(self) -> Tensor:
        """No scale may be none at all."""
        return torch.zeros_like(self.noise, dtype=torch.bool)

    @property
    def num_free(self) -> int:
        """All scales."""
        return len(self.noise)

    def log_volume(self, freedom: Tensor) -> float:
        """The share of the noise in the log evidence."""
        return log_volume(self.data.measurement.sites, self.noise, freedom)

    def at(self, data: FitData, noise: Tensor) -> PathProblem:
        """The same fit under other prior scales and another noise."""
        return PathProblem(data, noise)

    def around(self, point: Point) -> Around:
        """Covariance and better noise at the optimum."""
        data, noise, measurement = self.data, self.noise, self.data.measurement
        path, by_weights, by_x0 = data.sensitivities(point, self.path(point))
        covariance = Covariance.of(self.assemble(point, path, by_weights, by_x0))
        variance = covariance.along(by_weights, by_x0)
        seen = measurement.at_data(variance)[..., : measurement.response.shape[-1]]
        better = measurement.better_noise(path, noise, seen)
        num_used = float((variance * measurement.information(path, noise)).sum())
        return Around(covariance, better.best, better.freedom, better.slope, num_used)

    def deviance(self, point: Point) -> float:
        """The cost: nothing is integrated out."""
        return self.cost(point)

    def path(self, point: Point) -> Tensor:
        """The path of a point; that of the last one is remembered, a solve is what costs."""
        if not self._last or self._last[0][0] is not point:
            self._last[:] = [(point, self.data.path(point))]
        return self._last[0][1]

    def linearise(self, point: Point) -> BorderedChain:
        """Normal equations of a step."""
        return self.assemble(point, *self.data.sensitivities(point, self.path(point)))

    def assemble(
        self, point: Point, path: Tensor, by_weights: Tensor, by_x0: Tensor
    ) -> BorderedChain:
        """Normal equations of a step from the sensitivities at a point."""
        data, measurement = self.data, self.data.measurement
        information = measurement.information(path, self.noise).flatten(1).unsqueeze(-1)
        pull = measurement.pull(path, self.noise).flatten(1).unsqueeze(-1)
        b, a = by_weights.flatten(1, 2), by_x0.flatten(1, 2)  # (series, knot * state, ...)
        weighted = b * information
        corner = weighted.flatten(0, 1).mT @ b.flatten(0, 1) + torch.diag(data.field.sd.pow(-2))
        first = (point.states[:, 0] - data.x0_mean) / data.x0_sd.square()
        weights = b.flatten(0, 1).mT @ pull.flatten()
        return BorderedChain(
            (a.mT @ (a * information) + torch.diag_embed(data.x0_sd.pow(-2))).unsqueeze(1),
            a.new_zeros(len(a), 0, a.shape[-1], a.shape[-1]),
            (a.mT @ weighted).unsqueeze(1),
            corner,
            ((a.mT @ pull).squeeze(-1) - first).unsqueeze(1),
            weights - (point.weights - data.field.mean) / data.field.sd**2,
        )
