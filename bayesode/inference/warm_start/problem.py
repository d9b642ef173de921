"""Trajectory fits as least squares: over states with process noise, and over the path itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.flat import FlatField
from bayesode.inference.warm_start.levenberg_marquardt import Point
from bayesode.inference.warm_start.measurement import Measurement
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.solvers.fixed_grid import FixedGridSolver
from bayesode.models.solvers.grid import substeps
from bayesode.trajectories import Trajectories

SHORTEST = 1e-6  # of the mean interval: padding and an asked start are intervals of length 0
FALLBACK_STEP = 0.1  # for models whose solver has no grid of its own


@dataclass(frozen=True, eq=False)
class FitData:
    """What a trajectory fit needs of model and data, dimensionless and in float64.

    Args:
        field: The field as a function of one vector.
        solver: Walks the intervals between knots.
        begins: Times of the substeps of each interval, shape (series, interval, substep).
        lengths: Lengths of these substeps, shape (series, interval, substep).
        gaps: Lengths of the intervals, shape (series, interval).
        walk: Lengths and begins of each series' own substeps one after the other, without the
            padding of intervals, shape (series, step) each.
        reached: Number of these that lie before each knot, shape (series, knot).
        measurement: What the data say of a path.
        x0_mean: Prior mean of x0, shape (series, state).
        x0_sd: Prior sd of x0, shape (series, state).
    """

    field: FlatField
    solver: FixedGridSolver
    begins: Tensor
    lengths: Tensor
    gaps: Tensor
    walk: tuple[Tensor, Tensor]
    reached: Tensor
    measurement: Measurement
    x0_mean: Tensor
    x0_sd: Tensor

    @classmethod
    def of(cls, model: DynamicalModel, train: Trajectories) -> FitData:
        """The fit of a model to data."""
        start, times = model.units.dimensionless_times(train)
        knots = torch.cat([start.unsqueeze(-1), times], -1)
        gaps = knots.diff(dim=-1)
        own = model.solver
        solver = own if isinstance(own, FixedGridSolver) else FixedGridSolver(step=FALLBACK_STEP)
        ends = knots[:, 1:].reshape(-1, 1)
        lengths, begins, _ = substeps(knots[:, :-1].flatten(), ends, solver.step)
        shape = (*gaps.shape, lengths.shape[-1])
        *walk, reached = substeps(start, times, solver.step)
        law = model.build({s: v.double() for s, v in model.prototype().items()}, train)[0]
        return cls(
            FlatField.of(model.field),
            solver,
            begins.view(shape),
            lengths.view(shape),
            gaps,
            (walk[0], walk[1]),
            torch.nn.functional.pad(reached, (1, 0)),
            Measurement.of(model, train),
            law.mean.double().expand(len(gaps), *law.event_shape),
            law.stddev.double().expand(len(gaps), *law.event_shape),
        )

    def until(self, num_intervals: int) -> FitData:
        """The same fit to the first intervals alone."""
        begins, lengths = (x[:, :num_intervals] for x in (self.begins, self.lengths))
        reached = self.reached[:, : num_intervals + 1]
        num_steps = int(reached.max())
        return replace(
            self,
            begins=begins,
            lengths=lengths,
            gaps=self.gaps[:, :num_intervals],
            walk=(self.walk[0][:, :num_steps], self.walk[1][:, :num_steps]),
            reached=reached,
            measurement=self.measurement.part((slice(None), slice(num_intervals))),
        )

    def rows(self, row: int) -> FitData:
        """The same fit to one series alone."""
        names = ("begins", "lengths", "gaps", "reached", "x0_mean", "x0_sd")
        own = {name: getattr(self, name)[row : row + 1] for name in names}
        walk = self.walk[0][row : row + 1], self.walk[1][row : row + 1]
        measurement = self.measurement.part(slice(row, row + 1))
        return replace(self, walk=walk, measurement=measurement, **own)

    def flow(self, weights: Tensor, states: Tensor) -> Tensor:
        """Ends of all intervals from the states at their beginnings (series, interval, state)."""
        ends, _ = self.solver.walk(
            self.field.build(weights),
            states.flatten(0, 1),
            self.begins.flatten(0, 1),
            self.lengths.flatten(0, 1),
        )
        return ends[-1].view_as(states)

    def flow_jacobians(self, weights: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ends of all intervals, and their derivatives by weights and by states, in one call.

        Returns:
            Shapes (series, interval, state), (..., state, weight) and (..., state, state).
        """

        def one(w: Tensor, x: Tensor, begins: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            walked, _ = self.solver.walk(
                self.field.build(w), x.unsqueeze(0), begins.unsqueeze(0), lengths.unsqueeze(0)
            )
            end = walked[-1].squeeze(0)
            return end, end

        rows = states.flatten(0, 1), self.begins.flatten(0, 1), self.lengths.flatten(0, 1)
        derivative = vmap(jacrev(one, argnums=(0, 1), has_aux=True), in_dims=(None, 0, 0, 0))
        (by_weights, by_states), ends = derivative(weights, *rows)
        ends, by_weights, by_states = (
            rows.unflatten(0, states.shape[:2]) for rows in (ends, by_weights, by_states)
        )
        return ends, by_weights, by_states

    def path(self, point: Point) -> Tensor:
        """States at all knots from the first state of a point, shape (series, knot, state)."""
        lengths, begins = self.walk
        field = self.field.build(point.weights)
        states, _ = self.solver.walk(field, point.states[:, 0], begins, lengths)
        index = self.reached.unsqueeze(-1).expand(-1, -1, states[0].shape[-1])
        return torch.stack(states, 1).gather(1, index)

    def sensitivities(
        self, point: Point, path: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The path and its derivatives by weights and by x0.

        All intervals are differentiated in one batched call along the path; the chain rule then
        links them: S_{k+1} = F_x S_k + F_w.

        Args:
            point: Weights and x0.
            path: From `path(point)`, if it is known.

        Returns:
            Shapes (series, knot, state), (..., state, weight) and (..., state, state).
        """
        path = self.path(point) if path is None else path
        _, by_weights, by_states = self.flow_jacobians(point.weights, path[:, :-1])
        size = path.shape[-1]
        current = torch.cat(
            [
                path.new_zeros(len(path), size, len(point.weights)),
                torch.eye(size).to(path).expand(len(path), size, size),
            ],
            -1,
        )
        own = torch.nn.functional.pad(by_weights, (0, size))
        chain = [current]
        for interval in range(own.shape[1]):
            current = torch.baddbmm(own[:, interval], by_states[:, interval], current)
            chain.append(current)
        both = torch.stack(chain, 1)
        return path, both[..., :-size], both[..., -size:]


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
