"""Paths of many draws at once, and how far a solver is from the solution."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from bayesode.inference.guides import is_local
from bayesode.models.contracts import Solver
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.solvers import ODESolver
from bayesode.trajectories import Trajectories

MAX_NUMBERS = 20_000_000  # of all steps in one chunk of a prediction: 160 MB in float64
ERROR_DRAWS, ERROR_SERIES = 8, 16
LARGEST_SOLVER_ERROR = 0.1  # of the noise


def solve_draws(
    model: DynamicalModel,
    values: Mapping[str, Tensor],
    question: Trajectories,
    solver: Solver | None = None,
) -> tuple[Tensor, Tensor]:
    """Paths of all draws in one solve, or in few if they would not fit into memory.

    Args:
        model: The generative model.
        values: Drawn sites, each (draws, ...), dimensionless.
        question: Series and times.
        solver: In place of the model's own.

    Returns:
        Paths (draws, series, time, state) and which of them failed (draws, series).
    """
    num_draws, (start, times) = len(values["x0"]), model.units.dimensionless_times(question)
    step = getattr(model.solver if solver is None else solver, "step", math.inf)
    num_steps = times.shape[-1] + int((times[:, -1] - start).max() / step)  # all are kept
    chunk = max(1, min(num_draws, MAX_NUMBERS // (values["x0"][0].numel() * num_steps)))
    parts = []
    for first in range(0, num_draws, chunk):
        some = {site: value[first : first + chunk] for site, value in values.items()}
        _, field, _ = model.build(some, question)
        parts.append(model.solve(field, some, question, solver))
    return torch.cat([p.path for p in parts]), torch.cat([p.failed for p in parts])


@torch.no_grad()
def solver_error(
    model: DynamicalModel, values: Mapping[str, Tensor], question: Trajectories
) -> float:
    """Distance of the model's solver to a tight solve, in units of the noise.

    Root mean square over at most 8 draws of 16 series, failed ones left out; infinite if all fail.
    A warning tells if it is large.
    """
    rows = torch.arange(min(ERROR_SERIES, question.num_series)).to(question.start.device)
    some = {
        site: (value[:, rows] if is_local(site) else value)[:ERROR_DRAWS].double()
        for site, value in values.items()
    }
    own, has_failed = solve_draws(model, some, question.rows(rows))
    tight = ODESolver("dopri5", rtol=1e-8, atol=1e-8)
    reference, has_no_reference = solve_draws(model, some, question.rows(rows), tight)
    is_compared = ~(has_failed | has_no_reference)
    if not is_compared.any():
        return math.inf
    site_values = {s.removeprefix("likelihood."): v for s, v in some.items()}
    information = model.likelihood.fisher(own, site_values)  # type: ignore[operator]
    distance = (own - reference)[..., : information.shape[-1]]
    error = (distance.square() * information)[is_compared].mean().sqrt().item()
    if error > LARGEST_SOLVER_ERROR:
        warnings.warn(
            f"the solver's error is {error:.2g} of the noise; take a smaller step.", stacklevel=4
        )
    return error
