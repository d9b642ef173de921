"""The fitted path of a model with process noise through any times, and all that is linear there."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bayesode.inference.warm_start.chains import ChainFactor
from bayesode.inference.warm_start.covariance import factor_chain, variance_along
from bayesode.inference.warm_start.diffusion import process_of
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.flat import FlatField, LastLayer
from bayesode.inference.warm_start.grids import QuestionGrid
from bayesode.inference.warm_start.levenberg_marquardt import Point, levenberg_marquardt
from bayesode.inference.warm_start.problem import StateProblem
from bayesode.inference.warm_start.quadratic import Quadratic
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class Course:
    """The most probable states at the knots of a question, and their law around them.

    Given the weights w the states are a chain, z = states + gain dw + e.

    Args:
        grid: The knots: those of the fit, the asked times, and steps between and after them.
        asked: Number of the knot at each asked time, shape (series, asked).
        states: Shape (series, knot, state).
        miss: Of the intervals at these states, shape (series, interval, state).
        spread: Sd of the process noise over each interval, shape (series, interval, state).
        by_weights: Derivatives of the intervals' ends, shape (series, interval, state, weight).
        by_states: Likewise by the states at their beginnings, (series, interval, state, state).
        gain: Shape (series, knot, state, weight).
        chain: The law of e, independent between series.
        is_inside: Which intervals lie within the data of their series, (series, interval).
        is_frozen: Which knots lie after one at which the drift has left the solver's bound, where
            states and derivatives mean nothing, (series, knot).
        data: The drift and the intervals.
    """

    grid: QuestionGrid
    asked: Tensor
    states: Tensor
    miss: Tensor
    spread: Tensor
    by_weights: Tensor
    by_states: Tensor
    gain: Tensor
    chain: ChainFactor
    is_inside: Tensor
    is_frozen: Tensor
    data: FitData

    @classmethod
    def of(
        cls,
        model: DynamicalModel,
        question: Trajectories,
        field: FlatField,
        weights: Tensor,
        process: Tensor,
        known: tuple[Tensor, Quadratic],
        longest: float | None,
    ) -> Course:
        """The course of a fit through the times of a question.

        Inside the data the asked times are knots like any others, so their states are smoothed
        from both sides; after the data nothing pulls at the states, and noise adds up.

        Args:
            model: The fit's own copy of the model.
            question: Series and times.
            field: The drift.
            weights: Of the drift.
            process: Scales of the process noise, unconstrained.
            known: Times of the fit's knots after the start (series, knot), and what its data say of
                the states there (series, knot + 1, state).
            longest: Largest noise step.
        """
        times, seen = known
        start, asked = model.units.dimensionless_times(question)
        grid = QuestionGrid.of(start, torch.cat([times, asked.to(times)], -1), longest)
        own, place = grid.reached.split([times.shape[-1], asked.shape[-1]], -1)
        own = torch.nn.functional.pad(own, (1, 0))
        measured = seen.on(own, grid.times.shape[-1] + 1)
        data = FitData.through(model, question, grid.times, field, measured)
        spread = process_of(model, data, grid).spread(process)
        problem = StateProblem(data, weights[:0], spread)  # what was measured has no noise left
        states = _first_states(data, weights, seen.center, own)
        if not _is_complete(own):
            states = smooth_states(problem, weights, states)
        point = Point(weights, states)
        ends, by_weights, by_states = data.flow_jacobians(weights, states[:, :-1])
        last = own.amax(-1, keepdim=True)
        inside = torch.arange(ends.shape[1], device=own.device) < last
        gain, chain = _law(problem, point, (ends, by_weights, by_states), inside[..., None, None])
        miss, frozen = states[:, 1:] - ends, _is_frozen(data, point, inside)
        flow = by_weights, by_states
        return cls(grid, place, states, miss, spread, *flow, gain, chain, inside, frozen, data)

    def variance(self, covariance: Tensor) -> Tensor:
        """Variances of the states for a covariance of the weights, (series, knot, state)."""
        own = self.chain.blocks().diagonal(dim1=-2, dim2=-1)
        return own + variance_along(covariance, self.gain)

    def noise_of(self, change: Tensor, weights: Tensor) -> Tensor:
        """Increments behind deviations of states (draws, series, knot, state) and of weights.

        Returns:
            Standard-normal ones, (draws, series, interval, state).
        """
        moved = torch.einsum("nkij,dnkj->dnki", self.by_states, change[:, :, :-1])
        moved += torch.einsum("nkip,dp->dnki", self.by_weights, weights)
        return (self.miss + change[:, :, 1:] - moved) / self.spread

    def change_of(self, x0: Tensor, noise: Tensor, weights: Tensor, spread: Tensor) -> Tensor:
        """Deviations of the states, linear in what is drawn: the inverse of `noise_of`.

        Args:
            x0: Deviation of initial states, shape (draws, series, state).
            noise: Increments, shape (draws, series, interval, state).
            weights: Deviation, shape (draws, weight).
            spread: Sd of the process noise, shape (draws, series, interval, state).
        """
        driven = spread * noise - self.miss
        driven = driven + torch.einsum("nkip,dp->dnki", self.by_weights, weights)
        states = [x0.movedim(0, -1)]
        for flow, own in zip(
            self.by_states.unbind(1), driven.permute(2, 1, 3, 0).unbind(), strict=True
        ):
            states.append(torch.baddbmm(own, flow, states[-1]))
        return torch.stack(states, 1).movedim(-1, 0)

    def run_on(
        self, change: Tensor, driven: Tensor, center: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Paths of draws: linear inside the data, after them nonlinear in states and noise.

        After the data each draw goes on from its own last state at the fitted weights; what its own
        weights change is linearised along that path.

        Args:
            change: Linear deviations of the states, (draws, series, knot, state).
            driven: What process noise adds over each interval, (draws, series, interval, state).
            center: The fitted weights, shape (weight,).
            weights: Deviations of the weights, shape (draws, weight).

        Returns:
            The paths, and which of their knots come after the solver's bound was left, (draws,
            series, knot, 1).
        """
        linear = torch.einsum("nksp,dp->dnks", self.gain, weights)
        path, tangents = (list(x.unbind(2)) for x in (self.states + change - linear, linear))
        lost = [torch.zeros_like(path[0][..., :1], dtype=torch.bool)] * len(path)
        fitted = center.repeat(len(weights), 1)
        _load_forward_mode()
        for k in range(int(self.is_inside.sum(-1).min()), driven.shape[2]):
            end, slope, is_alive = self._flow_along(k, (fitted, path[k]), (weights, tangents[k]))
            lost[k + 1] = lost[k] | (~self.is_inside[:, k, None] & ~is_alive)
            is_moved = ~self.is_inside[:, k, None] & ~lost[k + 1]
            path[k + 1] = torch.where(is_moved, end + driven[:, :, k], path[k + 1])
            tangents[k + 1] = torch.where(is_moved, slope, tangents[k + 1])
        return torch.stack(path, 2) + torch.stack(tangents, 2), torch.stack(lost, 2)

    def _flow_along(
        self, k: int, place: tuple[Tensor, Tensor], direction: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ends of interval k from weights and states, their derivative, and who is inside."""
        drift, steps = self.data.field, (self.data.begins[:, k], self.data.lengths[:, k])
        with forward_ad.dual_level():
            weights, states = map(forward_ad.make_dual, place, direction)
            values = {s: v.unsqueeze(1) for s, v in drift.unpack(weights).items()}
            field = drift.field.build(values)  # type: ignore[operator]
            walked, is_alive = self.data.solver.walk(field, states, *steps)
            end: Any = forward_ad.unpack_dual(walked[-1])
            return end.primal, end.tangent, forward_ad.unpack_dual(is_alive).primal


def _load_forward_mode() -> None:
    """Let torch load its forward mode, which warns of a deprecated part of its own, once."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def smooth_states(problem: StateProblem, weights: Tensor, states: Tensor) -> Tensor:
    """The most probable states at given weights, from states near them."""
    whole = problem.data.field
    none = whole.mean[:0]
    field = LastLayer(whole.field, whole.sites, none, none, whole.groups[:0], whole, weights)
    own = replace(problem, data=replace(problem.data, field=field))
    found = levenberg_marquardt(
        own, Point(none, states), max_iterations=30, tolerance=1e-10, damping=1e-4
    )
    return found.point.states


def _law(
    problem: StateProblem, point: Point, flow: tuple[Tensor, Tensor, Tensor], is_inside: Tensor
) -> tuple[Tensor, ChainFactor]:
    """Gain and chain of the states given the weights.

    After the data the chain is the flow itself: there, normal equations would only lose digits.
    """
    ends, by_weights, by_states = flow
    system = problem.assemble(point, ends, by_weights * is_inside, by_states * is_inside)
    chain = factor_chain(system)
    noise = -chain.noise_of(system.border)
    noise = torch.cat([noise[:, :1], torch.where(is_inside, noise[:, 1:], by_weights)], 1)
    chain = replace(chain, links=torch.where(is_inside, chain.links, by_states))
    return chain.run(noise), chain


def _is_frozen(data: FitData, point: Point, is_inside: Tensor) -> Tensor:
    """Knots after the data from the first one on that the drift does not reach within the bound.

    A walk that is frozen stands where it was, which may be anywhere: its end does not tell.
    """
    field, places = data.field.build(point.weights), (data.begins, data.lengths)
    _, is_alive = data.solver.walk(
        field, point.states[:, :-1].flatten(0, 1), *(x.flatten(0, 1) for x in places)
    )
    is_left = ~is_alive.view_as(is_inside) & ~is_inside
    return torch.nn.functional.pad(is_left.cumsum(-1) > 0, (1, 0), value=False)


def _is_complete(own: Tensor) -> bool:
    """Whether all knots up to the last one of the fit are knots of the fit."""
    return bool((own.diff(dim=-1) <= 1).all())


def _first_states(data: FitData, weights: Tensor, center: Tensor, own: Tensor) -> Tensor:
    """The fit's states at its own knots; from there the drift leads to the others."""
    num_knots = data.gaps.shape[1] + 1
    index = own.unsqueeze(-1).expand_as(center)
    known = center.new_zeros(len(center), num_knots, center.shape[-1]).scatter(1, index, center)
    is_known = torch.zeros_like(known[..., :1], dtype=torch.bool)
    is_known = is_known.scatter(1, own.unsqueeze(-1), True)
    field, states = data.field.build(weights), [known[:, 0]]
    for k in range(num_knots - 1):
        walked, _ = data.solver.walk(field, states[-1], data.begins[:, k], data.lengths[:, k])
        states.append(torch.where(is_known[:, k + 1], known[:, k + 1], walked[-1]))
    return torch.stack(states, 1)
