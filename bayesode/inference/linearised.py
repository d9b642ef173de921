"""A Gaussian posterior of weights and initial states, and predictions linearised around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesode.inference.guides import rows_of
from bayesode.inference.initial_states import infer_initial_states
from bayesode.inference.linear_draws import (
    SMALLEST_FREEDOM,
    capped,
    check_given_weights,
    is_frozen_path,
    linearised_rates,
    log_scale_draws,
)
from bayesode.inference.predictive import Given, solve_draws, solver_error
from bayesode.inference.warm_start.covariance import Covariance
from bayesode.inference.warm_start.evidence import LaplaceFit
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.flat import MAX_WEIGHTS, FlatField, LastLayer
from bayesode.inference.warm_start.levenberg_marquardt import Point
from bayesode.inference.warm_start.problem import PathProblem
from bayesode.models.contracts import Solver
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories
from bayesode.units import Float64Module


class LaplaceGuide(Float64Module):
    """Mean and covariance of weights and initial states, and the posterior of the noise.

    Args:
        model: The fit's own copy of the model.
        train: The series whose initial states it holds.
    """

    held: Tensor
    weights: Tensor
    x0: Tensor
    covariance_weights: Tensor
    gain: Tensor
    own: Tensor
    noise: Tensor
    freedom: Tensor
    log_evidence: Tensor

    def __init__(self, model: DynamicalModel, train: Trajectories) -> None:
        super().__init__()
        data = FitData.of(model, train)
        size, (num_series, dim) = len(data.field.mean), data.x0_mean.shape
        self.register_buffer("held", torch.zeros(size if size > MAX_WEIGHTS else 0).double())
        num_weights = len(self.field(model).mean)
        num_noise = len(data.measurement.sites.mean)
        shapes = {
            "weights": (num_weights,),
            "x0": (num_series, dim),
            "covariance_weights": (num_weights, num_weights),
            "gain": (num_series, dim, num_weights),
            "own": (num_series, dim, dim),
            "noise": (num_noise,),
            "freedom": (num_noise,),
            "log_evidence": (),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.series = train.series

    def field(self, model: DynamicalModel) -> FlatField:
        """The numbers of the field that are random: of a large network the last layer."""
        whole = FlatField.of(model.field)
        return LastLayer.below(whole, self.held, MAX_WEIGHTS) if len(self.held) else whole

    def moving(self, model: DynamicalModel) -> Any:
        """The part of the model whose numbers are the weights."""
        return model.field

    def fill(self, fit: LaplaceFit) -> None:
        """Take on a fit."""
        self.held.copy_(getattr(fit.data.field, "rest", self.held))
        values = {
            "weights": fit.point.weights,
            "x0": fit.point.states[:, 0],
            "covariance_weights": fit.covariance.weights,
            "gain": fit.covariance.gain,
            "own": fit.covariance.own,
            "noise": fit.noise,
            "freedom": fit.freedom.clamp_min(SMALLEST_FREEDOM),
            "log_evidence": torch.tensor(fit.log_evidence, dtype=torch.float64),
        }
        for name, value in values.items():
            getattr(self, name).copy_(value)

    def rows(self, trajectories: Trajectories) -> Tensor:
        """Rows of the initial states that belong to these series, (series,).

        Raises:
            DataError: For a series that was not in the fit.
        """
        return rows_of(self.series, trajectories).to(self.x0.device)

    def predictive(self, model: DynamicalModel, train: Trajectories) -> LinearisedPredictive:
        """Draws and linearised paths of this posterior."""
        return LinearisedPredictive(model, self)

    def condition(self, model: DynamicalModel, new: Trajectories) -> LaplaceGuide:
        """The same weights and noise with the initial states of new series, given their data.

        The most probable x0 at the mean weights; it follows the weights as the data demand,
        x0 = gain w + e, so that their covariance is carried along.
        """
        center = LinearisedPredictive(model, self).shared(self.weights[None], self.noise[None])
        x0 = infer_initial_states(model, center, new).mean[0]
        data = replace(FitData.of(model, new), field=self.field(model))
        point = Point(self.weights, x0.unsqueeze(1))
        found = Covariance.of(PathProblem(data, self.noise).linearise(point))
        guide = LaplaceGuide(model, new).to(self.x0.device)
        own = {"x0": x0, "gain": found.gain, "own": found.own}
        guide.load_state_dict(self.state_dict() | own)
        return guide

    def covariance(self, rows: Tensor) -> Covariance:
        """Joint covariance of the weights and of some series' initial states."""
        return Covariance(self.covariance_weights, self.gain, self.own).rows(rows)


@dataclass(frozen=True, eq=False)
class LinearisedPredictive:
    """Predictions linearised around a fit: its solved path plus Jacobian times deviation.

    Weights that are drawn and solved again are useless; the linearisation is the posterior.

    Args:
        model: The fit's own copy of the model.
        guide: Mean and covariance.
    """

    model: DynamicalModel
    guide: LaplaceGuide

    def sample(
        self, question: Trajectories, num_draws: int, given: Given = None
    ) -> dict[str, Tensor]:
        """Draws per site, global ones (draws, 1, *event): weights, x0 and noise scales.

        A noise variance is inverse chi-square with (observations - p_eff) degrees of freedom, so
        that values are Student t: the scale is integrated, not plugged in.

        Args:
            question: Series and times.
            num_draws: Joint draws.
            given: Drawn weights, then noise scales, then x0: they are kept, and x0 follows the
                weights, x0 = mean + gain (w - mean) + own noise.

        Raises:
            DataError: If other sites are given, or some of the field's without the rest.
        """
        guide, rows = self.guide, self.guide.rows(question)
        covariance = guide.covariance(rows)
        weights, x0 = covariance.sample(num_draws)
        noise = log_scale_draws(guide.noise, guide.freedom, num_draws)
        if not given:
            return self._values(guide.weights + weights, guide.x0[rows] + x0, noise)
        check_given_weights(self.model, given)
        kept = self._deviation(dict(given))
        x0 = x0 + torch.einsum("nsp,dp->dns", covariance.gain, kept - weights)
        return self._values(guide.weights + kept, guide.x0[rows] + x0, noise) | dict(given)

    def _values(self, weights: Tensor, x0: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return self.shared(weights, noise) | {"x0": x0}

    def shared(self, weights: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Values per global site (draws, 1, *event) of weights and noise (draws, num_numbers)."""
        field = self.guide.field(self.model)
        values = {f"field.{s}": v for s, v in field.unpack(weights).items()}
        for site, value in FlatField.of(self.model.likelihood).unpack(noise).items():
            values[f"likelihood.{site}"] = value
        return {site: value.unsqueeze(1) for site, value in values.items()}

    def paths(
        self, values: dict[str, Tensor], question: Trajectories, solver: Solver | None = None
    ) -> tuple[Tensor, Tensor]:
        """Linearised paths of draws, within the climate.

        Where the path's sd exceeds the data's, mean and sd shrink towards the data's own mean and
        twice their sd. A path that is frozen gets the climate alone: its Jacobian says nothing.

        Args:
            values: From `sample`.
            question: Series and times.
            solver: Solves each draw in place of the linearisation; to measure its error only.

        Returns:
            Paths (draws, series, time, state) and which draws failed: none.
        """
        if solver is not None:
            return solve_draws(self.model, values, question, solver)
        guide, rows = self.guide, self.guide.rows(question)
        path, by_weights, by_x0, is_frozen = self._sensitivities(question)
        change = torch.einsum("ntsp,dp->dnts", by_weights, self._deviation(values))
        change += torch.einsum("ntsk,dnk->dnts", by_x0, values["x0"] - guide.x0[rows])
        variance = guide.covariance(rows).along(by_weights, by_x0)
        paths = capped(path, change, variance, is_frozen)
        return paths, torch.zeros_like(paths[:, :, 0, 0], dtype=torch.bool)

    def rates(self, values: dict[str, Tensor], t: Tensor, points: Tensor) -> Tensor:
        """Linearised fields dz/ds of draws at dimensionless points (draws, points, state)."""
        field = self.guide.field(self.model)
        return linearised_rates(field, self.guide.weights, self._deviation(values), t, points)

    def solver_error(self, values: dict[str, Tensor], question: Trajectories) -> float:
        """Error of the solver at the fit itself: only the center is solved."""
        return solver_error(self.model, self.center(question), question)

    def center(self, question: Trajectories) -> dict[str, Tensor]:
        """The fit as one draw."""
        guide, rows = self.guide, self.guide.rows(question)
        return self._values(guide.weights[None], guide.x0[rows][None], guide.noise[None])

    def uncapped_sd(self, question: Trajectories) -> Tensor:
        """Posterior sd of the path in data sds, (series, time, state); above 1: not determined."""
        _, by_weights, by_x0, is_frozen = self._sensitivities(question)
        rows = self.guide.rows(question)
        sd = self.guide.covariance(rows).along(by_weights, by_x0).sqrt()
        return torch.where(is_frozen, torch.inf, sd)

    def _sensitivities(self, question: Trajectories) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Path of the mean, its derivatives by weights and x0, and where it is frozen."""
        data = replace(FitData.of(self.model, question), field=self.guide.field(self.model))
        point = Point(self.guide.weights, self.guide.x0[self.guide.rows(question)].unsqueeze(1))
        path, by_weights, by_x0 = (part[:, 1:] for part in data.sensitivities(point))
        return path, by_weights, by_x0, is_frozen_path(path, data.solver.max_state)

    def _deviation(self, values: dict[str, Tensor]) -> Tensor:
        """Deviation of drawn weights from the mean, shape (draws, weight)."""
        field = self.guide.field(self.model)
        drawn = {site: values[f"field.{site}"].squeeze(1) for site in field.sites}
        return field.pack(drawn) - self.guide.weights
