"""A Gaussian posterior of drift and states under process noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesode.inference.course import Course, smooth_states
from bayesode.inference.guides import rows_of
from bayesode.inference.linear_draws import (
    SMALLEST_FREEDOM,
)
from bayesode.inference.linearised_sde import LinearisedSDEPredictive
from bayesode.inference.warm_start.attempts import PROCESS_SCALES
from bayesode.inference.warm_start.diffusion import DiffusionProblem
from bayesode.inference.warm_start.evidence import LaplaceFit
from bayesode.inference.warm_start.flat import FlatField
from bayesode.inference.warm_start.grids import QuestionGrid
from bayesode.inference.warm_start.problem import StateProblem
from bayesode.inference.warm_start.quadratic import Quadratic, held
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories
from bayesode.units import Float64Module

BUFFERS = ("states", "slope", "curvature")  # of the knots, (series, knot, state)


class LaplaceSDEGuide(Float64Module):
    """Weights of the drift, noise scales, and the states at the knots of the noise.

    Args:
        model: The fit's own copy of the model.
        train: The series whose states it holds.
    """

    weights: Tensor
    covariance_weights: Tensor
    start: Tensor
    times: Tensor
    states: Tensor
    slope: Tensor
    curvature: Tensor
    noise: Tensor
    freedom: Tensor
    log_evidence: Tensor
    longest: Tensor

    def __init__(self, model: DynamicalModel, train: Trajectories) -> None:
        super().__init__()
        start, times = model.units.dimensionless_times(train)
        solver: Any = model.solver
        grid = QuestionGrid.of(start, times, solver.noise_step)
        num_weights = len(self.field(model).mean)
        num_noise = sum(len(part.mean) for part in self.noise_parts(model).values())
        knots = (len(start), grid.times.shape[1] + 1, solver.dim)
        shapes = {
            "weights": (num_weights,),
            "covariance_weights": (num_weights, num_weights),
            **dict.fromkeys(BUFFERS, knots),
            "noise": (num_noise,),
            "freedom": (num_noise,),
            "log_evidence": (),
        }
        self.register_buffer("start", start.double().clone())
        self.register_buffer("times", grid.times.double().clone())
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        longest = solver.noise_step or grid.longest
        self.register_buffer("longest", torch.tensor(longest, dtype=torch.float64))
        self.series, self.num_steps = train.series, grid.reached.amax(-1)

    def moving(self, model: DynamicalModel) -> Any:
        """The part of the model whose numbers are the weights."""
        return model.field.drift

    def field(self, model: DynamicalModel) -> FlatField:
        """The drift as a function of one vector."""
        return FlatField.of(self.moving(model))

    def noise_parts(self, model: DynamicalModel) -> dict[str, FlatField]:
        """The parts of the model whose sites are noise scales, in the order of `noise`."""
        diffusion: Any = model.field.diffusion
        return {
            "likelihood": FlatField.of(model.likelihood),
            "field.diffusion": FlatField.of(diffusion),
        }

    def fill(self, fit: LaplaceFit) -> None:
        """Take on a fit."""
        measurement, states = fit.data.measurement, fit.point.states
        seen = fit.noise[: len(measurement.sites.mean)]
        values = {
            "weights": fit.point.weights,
            "covariance_weights": fit.covariance.weights,
            "states": held(states, self.num_steps.to(states.device)),
            "slope": measurement.pull(states, seen),
            "curvature": measurement.information(states, seen),
            "noise": fit.noise,
            "freedom": fit.freedom.clamp_min(SMALLEST_FREEDOM),
            "log_evidence": torch.tensor(fit.log_evidence, dtype=torch.float64),
        }
        for name, value in values.items():
            getattr(self, name).copy_(value)

    def rows(self, trajectories: Trajectories) -> Tensor:
        """Rows of the states that belong to these series, (series,).

        Raises:
            DataError: For a series that was not in the fit.
        """
        return rows_of(self.series, trajectories).to(self.states.device)

    def course(self, model: DynamicalModel, question: Trajectories) -> Course:
        """The path of the fit through the times of a question, and what is linear there."""
        rows, process = self.rows(question), self.scales(model)["field.diffusion"]
        states, slope, curvature = (getattr(self, name)[rows] for name in BUFFERS)
        known = self.times[rows], Quadratic(states, slope, curvature)
        drift, longest = self.field(model), self.longest.item() or None
        return Course.of(model, question, drift, self.weights, process, known, longest)

    def scales(self, model: DynamicalModel) -> dict[str, Tensor]:
        """The noise scales of each part, unconstrained."""
        parts = self.noise_parts(model)
        return dict(
            zip(parts, self.noise.split([len(p.mean) for p in parts.values()]), strict=True)
        )

    def predictive(self, model: DynamicalModel, train: Trajectories) -> LinearisedSDEPredictive:
        """Draws and paths of this posterior."""
        return LinearisedSDEPredictive(model, self)

    def condition(self, model: DynamicalModel, new: Trajectories) -> LaplaceSDEGuide:
        """The same weights and noise with the smoothed states of new series, given their data."""
        scales = self.scales(model)
        problem = DiffusionProblem.of(model, new)
        data, spread = problem.data, problem.process.spread(scales["field.diffusion"])
        seen, states = scales["likelihood"], _level(problem)
        for scale in PROCESS_SCALES:  # a drift that is known well lets no first guess move
            wide = StateProblem.shrunk(data, seen, scale).spread
            states = smooth_states(
                StateProblem(data, seen, spread.maximum(wide)), self.weights, states
            )
        states = smooth_states(StateProblem(data, seen, spread), self.weights, states)
        guide = LaplaceSDEGuide(model, new).to(self.states.device)
        own = {
            "states": held(states, guide.num_steps.to(states.device)),
            "slope": data.measurement.pull(states, seen),
            "curvature": data.measurement.information(states, seen),
            "start": guide.start,
            "times": guide.times,
        }
        guide.load_state_dict(self.state_dict() | own)
        return guide


def _level(problem: DiffusionProblem) -> Tensor:
    """States that stand at the nearest value before them, the first value before that."""
    data = problem.data
    seen = torch.where(data.measurement.mask, data.measurement.response, torch.nan)
    knots = data.x0_mean.unsqueeze(1).repeat(1, data.gaps.shape[1] + 1, 1).fill_(torch.nan)
    index = data.measurement.knots.unsqueeze(-1).expand_as(seen)
    knots[..., : seen.shape[-1]] = knots[..., : seen.shape[-1]].scatter(1, index, seen)
    for k in range(1, knots.shape[1]):
        knots[:, k] = torch.where(knots[:, k].isnan(), knots[:, k - 1], knots[:, k])
    for k in range(knots.shape[1] - 2, -1, -1):
        knots[:, k] = torch.where(knots[:, k].isnan(), knots[:, k + 1], knots[:, k])
    return torch.where(knots.isnan(), data.x0_mean.unsqueeze(1), knots)
