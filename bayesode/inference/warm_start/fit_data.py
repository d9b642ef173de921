"""What a trajectory fit needs of model and data, and paths with their sensitivities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from bayesode.inference.warm_start.flat import FlatField
from bayesode.inference.warm_start.levenberg_marquardt import Point
from bayesode.inference.warm_start.measurement import Measurement
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.solvers.fixed_grid import FixedGridSolver
from bayesode.models.solvers.grid import substeps
from bayesode.trajectories import Trajectories

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
        measurement: What the data say of a path: a `Measurement`, or what stands for one.
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
    measurement: Any
    x0_mean: Tensor
    x0_sd: Tensor

    @classmethod
    def of(cls, model: DynamicalModel, train: Trajectories) -> FitData:
        """The fit of a model without process noise to data: knots are the start and the times."""
        times = model.units.dimensionless_times(train)[1]
        field, measurement = FlatField.of(model.field), Measurement.of(model, train)
        return cls.through(model, train, times, field, measurement)

    @classmethod
    def through(
        cls,
        model: DynamicalModel,
        train: Trajectories,
        times: Tensor,
        field: FlatField,
        measurement: Any,
    ) -> FitData:
        """The fit of a field with knots at the start and at given times.

        Args:
            model: Gives units, solver and the law of x0.
            train: Series with their starts.
            times: Dimensionless, shape (series, time), not decreasing, none before the start.
            field: What moves the states.
            measurement: What the data say of a path through these knots.
        """
        start = model.units.dimensionless_times(train)[0]
        knots = torch.cat([start.unsqueeze(-1), times], -1)
        gaps = knots.diff(dim=-1)
        own = getattr(model.solver, "drift_solver", lambda: FixedGridSolver(step=FALLBACK_STEP))
        solver = own()
        ends = knots[:, 1:].reshape(-1, 1)
        lengths, begins, _ = substeps(knots[:, :-1].flatten(), ends, solver.step)
        shape = (*gaps.shape, lengths.shape[-1])
        *walk, reached = substeps(start, times, solver.step)
        law = model.build({s: v.double() for s, v in model.prototype().items()}, train)[0]
        return cls(
            field,
            solver,
            begins.view(shape),
            lengths.view(shape),
            gaps,
            (walk[0], walk[1]),
            torch.nn.functional.pad(reached, (1, 0)),
            measurement,
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

    def rows(self, rows: slice) -> FitData:
        """The same fit to some series alone."""
        names = ("begins", "lengths", "gaps", "reached", "x0_mean", "x0_sd")
        own = {name: getattr(self, name)[rows] for name in names}
        walk = self.walk[0][rows], self.walk[1][rows]
        measurement = self.measurement.part(rows)
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

    def flow_by_states(
        self, weights: Tensor, states: Tensor, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Ends of all intervals and their derivatives by the states, by plain backpropagation.

        Args:
            weights: Shape (weight,).
            states: At the beginnings, shape (series, interval, state).
            create_graph: Whether the result can be differentiated again.

        Returns:
            Shapes (series, interval, state) and (series, interval, state, state).
        """
        with torch.enable_grad():
            place = states if create_graph else states.detach().requires_grad_()
            ends, size = self.flow(weights, place), states.shape[-1]
            rows = [
                torch.autograd.grad(  # intervals do not see each other: one pass for all
                    ends[..., i].sum(),
                    place,
                    create_graph=create_graph,
                    retain_graph=create_graph or i + 1 < size,
                )[0]
                for i in range(size)
            ]
        return ends if create_graph else ends.detach(), torch.stack(rows, -2)

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
