"""Predictions from a Gaussian posterior of drift and states under process noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.course import Course
from bayesode.inference.linear_draws import (
    capped,
    check_given_weights,
    linearised_rates,
    log_scale_draws,
)
from bayesode.inference.predictive import ERROR_SERIES, Given, solve_draws, solver_error
from bayesode.inference.warm_start.covariance import sample_normal
from bayesode.models.contracts import Solver
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

QUARTILES, QUARTILE_RANGE = torch.tensor([0.25, 0.5, 0.75]), 1.349  # the range of a normal sd 1


def _spread_of(states: Tensor, is_lost: Tensor) -> tuple[Tensor, Tensor]:
    """Median and variance of draws by their quartiles, (series, time, state); the lost ones aside.

    A few draws that run away say nothing of where the others are.
    """
    kept = torch.where(is_lost, torch.nan, states)
    low, middle, high = kept.nanquantile(QUARTILES.to(kept), dim=0)
    sd = (high - low) / QUARTILE_RANGE
    return middle.nan_to_num(0.0), sd.square().nan_to_num(torch.inf)


@dataclass(frozen=True, eq=False)
class LinearisedSDEPredictive:
    """Predictions linearised around the fitted states: smoothed inside the data, free after them.

    Args:
        model: The fit's own copy of the model.
        guide: The posterior, a `LaplaceSDEGuide`.
    """

    model: DynamicalModel
    guide: Any
    _last: list[tuple[Trajectories, Course]] = field(default_factory=list, repr=False)

    def course(self, question: Trajectories) -> Course:
        """The course through a question; that of the last one is remembered."""
        if not self._last or self._last[0][0] is not question:
            self._last[:] = [(question, self.guide.course(self.model, question))]
        return self._last[0][1]

    def sample(
        self, question: Trajectories, num_draws: int, given: Given = None
    ) -> dict[str, Tensor]:
        """Joint draws per site: global ones (draws, 1, *event), x0 and `path.noise` per series.

        Noise scales are drawn as `LinearisedPredictive` draws them. The increments are those on
        the grid of the course; inside the data they follow the data, after them they are the
        prior's.

        Args:
            question: Series and times.
            num_draws: Joint draws.
            given: Drawn weights and noise scales, then x0: they are kept, and the states follow.

        Raises:
            DataError: If other sites are given, or some of the field's without the rest.
        """
        guide, course, kept = self.guide, self.course(question), dict(given or {})
        weights = sample_normal(guide.covariance_weights, num_draws)
        noise = log_scale_draws(guide.noise, guide.freedom, num_draws)
        values = self._shared(guide.weights + weights, noise) | kept
        if kept:
            check_given_weights(self.model, kept)
            weights = self._deviation(values)
        change = torch.einsum("nksp,dp->dnks", course.gain, weights)
        first = None if "x0" not in kept else kept["x0"] - course.states[:, 0] - change[:, :, 0]
        change = change + course.chain.sample(num_draws, first)
        ratio = course.spread / self._spread(values, course)
        ratio = torch.where(course.is_inside.unsqueeze(-1), ratio, 1.0)
        increments = course.noise_of(change, weights) * ratio
        x0 = course.states[:, 0] + change[:, :, 0]
        return values | {"x0": x0, "path.noise": increments} | kept  # kept to the last digit

    def paths(
        self, values: dict[str, Tensor], question: Trajectories, solver: Solver | None = None
    ) -> tuple[Tensor, Tensor]:
        """Paths of draws, within the climate, as in `LinearisedPredictive`.

        Inside the data they are linearised around the fitted states. After the data each draw goes
        on from its own last state with its own noise, linearised in the weights alone: noise turns
        cycles out of phase, which no path that is linear in its states can follow.

        Args:
            values: From `sample`.
            question: Series and times.
            solver: Solves each draw by the same increments; to measure its error only.

        Returns:
            Paths (draws, series, time, state) and which draws failed: none.
        """
        course = self.course(question)
        if solver is not None:
            return solve_draws(self.model, values, question, self._on(course, solver))
        spread, weights = self._spread(values, course), self._deviation(values)
        x0, noise = values["x0"] - course.states[:, 0], values["path.noise"]
        change = course.change_of(x0, noise, weights, spread)
        states, lost = course.run_on(change, spread * noise, self.guide.weights, weights)
        center, variance, is_frozen = self._asked(course)
        asked = course.asked.unsqueeze(-1).expand(len(states), -1, -1, -1)
        states = states.gather(2, asked.expand(-1, -1, -1, center.shape[-1]))
        is_lost, is_after = lost.gather(2, asked), self._is_after(course)
        middle, robust = _spread_of(states, is_lost)
        center = torch.where(is_after, middle, center)
        variance = torch.where(is_after, robust, variance)
        paths = capped(center, states - center, variance, is_lost | (is_frozen & ~is_after))
        return paths, torch.zeros_like(paths[:, :, 0, 0], dtype=torch.bool)

    def rates(self, values: dict[str, Tensor], t: Tensor, points: Tensor) -> Tensor:
        """Linearised drifts dz/ds of draws at dimensionless points (draws, points, state)."""
        drift = self.guide.field(self.model)
        return linearised_rates(drift, self.guide.weights, self._deviation(values), t, points)

    def solver_error(self, values: dict[str, Tensor], question: Trajectories) -> float:
        """Error of the solver at the fit itself, against the drift at half the step."""
        rows = torch.arange(min(ERROR_SERIES, question.num_series)).to(question.start.device)
        few = question.rows(rows)

        def solvers(compared: Trajectories) -> tuple[Solver, Solver]:
            own = self._on(self.course(few), self.model.solver)
            return own, own.tight()

        return solver_error(self.model, self.center(few), few, solvers)

    def center(self, question: Trajectories) -> dict[str, Tensor]:
        """The fit as one draw."""
        course, guide = self.course(question), self.guide
        values = self._shared(guide.weights[None], guide.noise[None])
        noise = course.miss / course.spread
        return values | {"x0": course.states[None, :, 0], "path.noise": noise[None]}

    def uncapped_sd(self, question: Trajectories) -> Tensor:
        """Posterior sd of the path in data sds, (series, time, state); above 1: not determined."""
        _, variance, is_frozen = self._asked(self.course(question))
        return torch.where(is_frozen, torch.inf, variance.sqrt())

    # ---- inside ----------------------------------------------------------------------------------
    def _shared(self, weights: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Values per global site (draws, 1, *event) of weights and noise (draws, num_numbers)."""
        guide, found = self.guide, {}
        parts = guide.noise_parts(self.model)
        pieces = noise.split([len(part.mean) for part in parts.values()], -1)
        drift = {"field.drift": (guide.field(self.model), weights)}
        known = drift | {
            name: (part, piece) for (name, part), piece in zip(parts.items(), pieces, strict=True)
        }
        for name in ("field.drift", "field.diffusion", "likelihood"):
            part, vector = known[name]
            found |= {f"{name}.{s}": v.unsqueeze(1) for s, v in part.unpack(vector).items()}
        return found

    def _deviation(self, values: dict[str, Tensor]) -> Tensor:
        """Deviation of drawn weights from the mean, shape (draws, weight)."""
        drift = self.guide.field(self.model)
        drawn = {site: values[f"field.drift.{site}"].squeeze(1) for site in drift.sites}
        vectors = drift.pack(drawn)  # of a drift without random numbers a single empty one
        return vectors.expand(len(next(iter(values.values()))), -1) - self.guide.weights

    def _is_after(self, course: Course) -> Tensor:
        """Which asked times lie after the data, shape (series, asked, 1)."""
        return (course.asked > course.is_inside.sum(-1, keepdim=True)).unsqueeze(-1)

    def _spread(self, values: dict[str, Tensor], course: Course) -> Tensor:
        """Sd of drawn process noise over each interval, (draws, series, interval, state)."""
        name = "field.diffusion."
        sites = {s.removeprefix(name): v for s, v in values.items() if s.startswith(name)}
        noise = self.model.field.diffusion.build(sites)  # type: ignore[union-attr, operator]
        times, lengths = course.grid.times, course.grid.times - course.grid.begins
        nowhere = torch.zeros_like(course.spread).flatten(0, 1)
        scale = noise(times.reshape(-1, 1), nowhere)
        scale = scale.expand(*scale.shape[:-2], *nowhere.shape)
        scale = scale.unflatten(-2, course.spread.shape[:2])
        return torch.where(
            lengths.unsqueeze(-1) > 0, scale * lengths.sqrt().unsqueeze(-1), course.spread
        )

    def _asked(self, course: Course) -> tuple[Tensor, Tensor, Tensor]:
        """The fit's path at the asked times, its variances, and where it is frozen."""
        index = course.asked.unsqueeze(-1).expand(-1, -1, course.states.shape[-1])
        path = course.states.gather(1, index)
        variance = course.variance(self.guide.covariance_weights).gather(1, index)
        return path, variance, course.is_frozen.gather(1, course.asked).unsqueeze(-1)

    def _on(self, course: Course, solver: Any) -> Any:
        """A solver that takes the increments of a course.

        Raises:
            DataError: If it takes none.
        """
        if not hasattr(solver, "on"):
            raise DataError(
                f"{type(solver).__name__} takes no noise: solve the draws of a model with process "
                "noise by an SDESolver, posterior.model.solver.tight() for example."
            )
        return solver.on(course.grid.times, course.grid.longest or None)
