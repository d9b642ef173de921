"""A self-test of gradients: backpropagation, adjoint and finite differences must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from bayesode import tabular
from bayesode.errors import DataError
from bayesode.inference.checks import has_random_paths
from bayesode.inference.copies import own_copies
from bayesode.inference.objectives import Objective, objective_for
from bayesode.inference.randomness import seeded
from bayesode.inference.window_schemes import Window
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.solvers import ODESolver
from bayesode.threads import threads_for
from bayesode.trajectories import Trajectories

RTOL, ATOL = 1e-10, 1e-12  # at rtol 1e-7 the adjoint alone is off by 4e-8
NUM_DIRECTIONS = 3
STEPS = tuple(1e-2 * 4.0**-power for power in range(6))  # in the unconstrained parameters


@dataclass(frozen=True)
class GradientCheck:
    """How well the gradients of the ELBO agree, per parameter tensor; prints as a table.

    Args:
        rows: Per tensor its name, the norm of the gradient, and relative 2-norm differences of the
            adjoint gradient, of directional derivatives by finite differences, and of the gradient
            at the model's own solver, all to backpropagation through a tight solve.
    """

    rows: list[dict[str, Any]]

    @property
    def worst(self) -> float:
        """Largest difference of the adjoint to the direct gradient."""
        return max(row["adjoint"] for row in self.rows)

    @property
    def worst_finite_difference(self) -> float:
        """Largest difference of the directional derivatives."""
        return max(row["finite difference"] for row in self.rows)

    @property
    def own_solver(self) -> float:
        """Largest difference at the model's own solver settings: a solver error, not a fault."""
        return max(row["own solver"] for row in self.rows)

    def __str__(self) -> str:
        table = tabular.frame(self.rows, index="parameter")
        text = table.to_string(float_format=lambda number: f"{number:.2e}")
        return (
            f"{text}\n"
            f"relative to backpropagation through dopri5 at rtol {RTOL:g}, atol {ATOL:g} in "
            f"float64: adjoint {self.worst:.1e}, finite differences "
            f"{self.worst_finite_difference:.1e}\n"
            f"the model's own solver differs by {self.own_solver:.1e} (its error, not judged)"
        )


def check_gradients(
    model: DynamicalModel,
    guide: Any,
    trajectories: Trajectories,
    *,
    num_particles: int = 1,
    seed: int = 0,
) -> GradientCheck:
    """Compare direct, adjoint and finite-difference gradients of the ELBO.

    In a float64 copy, with the same noise, through dopri5 at rtol 1e-10 and atol 1e-12. Finite
    differences are central and extrapolated, along three random directions per tensor.

    Args:
        model: The generative model.
        guide: Ours, an autoguide or your own.
        trajectories: The data.
        num_particles: Draws to average over.
        seed: Of the draws and directions.

    Returns:
        An object that prints as a table, with `.worst` and `.worst_finite_difference`.

    Raises:
        DataError: If paths have noise of their own.

    Source: the adjoint: Chen et al. (2018), arXiv:1806.07366, appendix B.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=1, num_times=4, horizon=1.0).observed
        >>> model, guide = bo.neural_ode(train, hidden=[2], verbose=False)
        >>> bo.check_gradients(model, guide, train).worst < 1e-6
        True
    """
    if has_random_paths(model, trajectories):
        raise DataError(
            "check_gradients compares solvers of ODEs, and this model's paths have noise of their "
            "own. Along fixed increments SDESolver is a plain function of them, of x0 and of the "
            "field: torch.autograd.gradcheck tells its gradients."
        )
    data = trajectories.to(dtype=torch.float64)
    with (
        pyro.get_param_store().scope(),
        seeded(seed),
        threads_for(num_particles * data.num_series),
    ):
        model, guide = own_copies(model, guide, dtype=torch.float64, device=data.start.device)
        objective = objective_for(model, guide, is_minibatch=False)
        objective.prepare(data, num_particles)

        def loss(solver: Any) -> Tensor:
            model.solver = solver
            with seeded(seed):
                return objective.loss(Window(data), num_particles)

        return GradientCheck(_compare(objective, loss, model.solver))


def _compare(objective: Objective, loss: Callable[[Any], Tensor], own: Any) -> list[dict[str, Any]]:
    direct = ODESolver("dopri5", RTOL, ATOL, max_num_steps=100_000)
    adjoint = ODESolver("dopri5", RTOL, ATOL, "adjoint", max_num_steps=100_000)
    named = objective.named_parameters()
    gradients = [_gradient(loss(solver), list(named.values())) for solver in (direct, adjoint, own)]
    rows = []
    for (name, parameter), exact, back, rough in zip(named.items(), *gradients, strict=True):
        directions = torch.randn(NUM_DIRECTIONS, *parameter.shape).to(parameter)
        directions /= directions.flatten(1).norm(dim=1).view(-1, *[1] * parameter.dim())
        numeric = torch.stack([_derivative(loss, direct, parameter, v) for v in directions])
        analytic = (directions * exact).flatten(1).sum(1)
        rows.append(
            {
                "parameter": name,
                "norm": exact.norm().item(),
                "adjoint": _difference(back, exact),
                "finite difference": _difference(numeric, analytic),
                "own solver": _difference(rough, exact),
            }
        )
    return rows


def _gradient(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@torch.no_grad()
def _derivative(
    loss: Callable[[Any], Tensor], solver: Any, parameter: Tensor, direction: Tensor
) -> Tensor:
    """Derivative along a direction by central differences at shrinking steps.

    Neighbouring steps are extrapolated to fourth order; of these estimates the one is taken that
    changes least from its neighbour: there neither curvature nor rounding rules (Ridders 1982).
    """
    start = parameter.detach().clone()

    def at(step: float) -> Tensor:
        parameter.copy_(start + step * direction)
        return loss(solver)

    central = torch.stack([(at(step) - at(-step)) / (2 * step) for step in STEPS])
    parameter.copy_(start)
    estimates = (16 * central[1:] - central[:-1]) / 15  # each step is a quarter of the last
    return estimates[1 + int(estimates.diff().abs().argmin())]


def _difference(found: Tensor, exact: Tensor) -> float:
    """Relative 2-norm difference; 0 where both are 0."""
    distance = (found - exact).norm()
    return 0.0 if distance == 0 else (distance / exact.norm().clamp_min(1e-300)).item()
