"""Predictions of paths with process noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.predictive import (
    ERROR_SERIES,
    Given,
    declared_draws,
    solve_draws,
    solver_error,
)
from bayesode.models.contracts import Solver, unnest
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class SDEPredictive:
    """Predictions of paths with process noise: steered inside the data, free after them.

    Args:
        model: The fit's own copy of the model.
        guide: The fitted `SDEGuide`.
    """

    model: DynamicalModel
    guide: Any

    def sample(
        self, question: Trajectories, num_draws: int, given: Given = None
    ) -> dict[str, Tensor]:
        """Joint draws per site; `path.noise` on the noise grid of the fit and its continuation."""
        return declared_draws(self.guide, question, num_draws, given)

    def paths(
        self, values: dict[str, Tensor], question: Trajectories, solver: Solver | None = None
    ) -> tuple[Tensor, Tensor]:
        """Solved paths and which of them failed; another solver takes the same increments."""
        own = self.guide.solver_on(question)
        if solver is None:
            return solve_draws(self.model, values, question, own)
        if not hasattr(solver, "on"):
            raise DataError(f"paths with process noise need an SDESolver, not {solver!r}.")
        other: Any = solver
        return solve_draws(self.model, values, question, other.on(own.grid, own.noise_step))

    def rates(self, values: dict[str, Tensor], t: Tensor, points: Tensor) -> Tensor:
        """Drawn drifts at points."""
        sde = self.model.field.build(unnest("field", values))  # type: ignore[operator]
        return sde.drift(t, points)

    def solver_error(self, values: dict[str, Tensor], question: Trajectories) -> float:
        """Distance to the drift at half the step, by the same increments."""
        compared = question.rows(range(min(ERROR_SERIES, question.num_series)))
        own = self.guide.solver_on(compared)
        grid = own.noise_grid(*self.model.units.dimensionless_times(compared))
        # the noise grid of all series may be longer than that of the ones that are compared
        noise = values["path.noise"][..., : grid.num_steps, :]
        first = values | {"path.noise": noise}
        return solver_error(self.model, first, question, lambda _: (own, own.tight()))
