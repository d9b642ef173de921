"""Trajectory fits as least squares: over states with process noise, and over the path itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import Point

SHORTEST = 1e-6  # of the mean interval: padding and an asked start are intervals of length 0


@dataclass(frozen=True, eq=False)
class StateProblem:
    """Weights and the states at all knots; intervals may miss by process noise.

    Every interval is integrated on its own, so nothing explodes and chaos is no obstacle.

    Args:
        data: The fit.
        noise: Of the observations, unconstrained, see `Measurement`.
        process_scale: Of the miss in an interval of mean length, dimensionless.

    Source: weak-constraint smoothing, Tremolet (2006), QJRMS 132.
    """

    data: FitData
    noise: Tensor
    process_scale: float

    @cached_property
    def best(self) -> float:
        """Log likelihood of the path through the data."""
        return self.data.measurement.largest(self.noise, self.data.x0_mean.shape[-1])

    def cost(self, point: Point) -> float:
        """Deviance of the data and sum of squared misses, prior included."""
        data = self.data
        miss = point.states[:, 1:] - data.flow(point.weights, point.states[:, :-1])
        prior = ((point.weights - data.field.mean) / data.field.sd).square().sum()
        first = ((point.states[:, 0] - data.x0_mean) / data.x0_sd).square().sum()
        seen = 2 * (self.best - data.measurement.log_prob(point.states, self.noise))
        return float((miss * self._rate()).square().sum() + prior + first + seen)

    def linearise(self, point: Point) -> BorderedChain:
        """Normal equations of a step."""
        data, rate = self.data, self._rate()
        ends, by_weights, by_states = data.flow_jacobians(point.weights, point.states[:, :-1])
        miss = (point.states[:, 1:] - ends) * rate
        a, b = by_states * rate.unsqueeze(-1), by_weights * rate.unsqueeze(-1)
        diagonal = torch.diag_embed(data.measurement.information(point.states, self.noise))
        diagonal[:, :-1] += a.mT @ a
        diagonal[:, 1:] += torch.diag_embed(rate.square().expand_as(miss))
        diagonal[:, 0] += torch.diag_embed(data.x0_sd.pow(-2))
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
        return BorderedChain(diagonal, -a.mT * rate.unsqueeze(-1), border, corner, states, weights)

    def _rate(self) -> Tensor:
        """1 / sd of the miss per interval, shape (series, interval, 1)."""
        gaps = self.data.gaps
        mean = gaps[gaps > 0].mean()
        share = (gaps / mean).clamp_min(SHORTEST)
        return 1 / (self.process_scale * share.sqrt()).unsqueeze(-1)


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
