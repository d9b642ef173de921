"""From a posterior to draws, their paths and fields: what every engine owes predictions."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.elbo import sample_sites
from bayesode.inference.guides import is_local
from bayesode.models.contracts import Solver, unnest
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.solvers import ODESolver
from bayesode.trajectories import Trajectories

MAX_NUMBERS = 20_000_000  # of all steps in one chunk of a prediction: 160 MB in float64
ERROR_DRAWS, ERROR_SERIES = 8, 16
LARGEST_SOLVER_ERROR = 0.1  # of the noise

Given = Mapping[str, Tensor] | None  # sites that are drawn already


class Predictive(Protocol):
    """Draws of one posterior and what follows from them; values are dimensionless."""

    def sample(
        self, question: Trajectories, num_draws: int, given: Given = None
    ) -> dict[str, Tensor]:
        """Joint draws per site, global ones (draws, 1, *event), local ones (draws, series, ...).

        Args:
            question: Series and times.
            num_draws: Joint draws.
            given: Sites that are drawn already, `num_draws` times each, the first ones in the order
                of generation (global sites, x0, path.*). They are kept, and every other site is
                drawn given them: `given=values` without the local sites redraws initial states and
                paths.

        Raises:
            DataError: If sites are given that are not the first, or to a posterior that is known by
                joint draws alone.
        """
        ...

    def paths(
        self, values: dict[str, Tensor], question: Trajectories, solver: Solver | None = None
    ) -> tuple[Tensor, Tensor]:
        """Paths (draws, series, time, state) and which of them failed (draws, series)."""
        ...

    def rates(self, values: dict[str, Tensor], t: Tensor, points: Tensor) -> Tensor:
        """Fields dz/ds of draws at points (draws, points, state)."""
        ...

    def solver_error(self, values: dict[str, Tensor], question: Trajectories) -> float:
        """Distance to a tight solve, in units of the noise."""
        ...


def predictive_of(model: DynamicalModel, guide: Any, train: Trajectories) -> Predictive:
    """How a fitted guide predicts: in its own way, by its declaration, or by running it."""
    if hasattr(guide, "predictive"):
        return guide.predictive(model, train)
    if hasattr(guide, "posteriors"):
        return SolvedPredictive(model, lambda q, n, given: declared_draws(guide, q, n, given))
    return SolvedPredictive(model, lambda q, n, given: _traced(model, guide, train, q, n, given))


@dataclass(frozen=True, eq=False)
class SolvedPredictive:
    """Predictions that solve every draw.

    Args:
        model: The fit's own copy of the model.
        draw: (question, num_draws, given) -> values per site.
    """

    model: DynamicalModel
    draw: Callable[[Trajectories, int, Given], dict[str, Tensor]]

    def sample(
        self, question: Trajectories, num_draws: int, given: Given = None
    ) -> dict[str, Tensor]:
        """Joint draws per site; those that are given are kept."""
        return self.draw(question, num_draws, given)

    def paths(
        self, values: dict[str, Tensor], question: Trajectories, solver: Solver | None = None
    ) -> tuple[Tensor, Tensor]:
        """Solved paths and which of them failed."""
        return solve_draws(self.model, values, question, solver)

    def rates(self, values: dict[str, Tensor], t: Tensor, points: Tensor) -> Tensor:
        """Drawn fields at points."""
        field = self.model.field.build(unnest("field", values))  # type: ignore[operator]
        return field(t, points)

    def solver_error(self, values: dict[str, Tensor], question: Trajectories) -> float:
        """Error over a few of the draws."""
        return solver_error(self.model, values, question)


def declared_draws(
    guide: Any, question: Trajectories, num_draws: int, given: Given = None
) -> dict[str, Tensor]:
    """Draws of what declares its laws, `posteriors(question)`; given ones are kept."""
    return sample_sites(guide.posteriors(question), num_draws, question.num_series, given)[0]


def refuse_given(given: Given, guide: Any) -> None:
    """Refuse to redraw a part of joint draws.

    Raises:
        DataError: If sites are given.
    """
    if given is not None:
        raise DataError(
            f"of {type(guide).__name__} only joint draws are known: nothing can be drawn again "
            "given the rest, as variance_parts() needs. Take fit_laplace or a guide that declares "
            "its laws (MeanFieldGuide, SDEGuide), and not condition(new) of an SVI fit."
        )


def _traced(
    model: DynamicalModel,
    guide: Any,
    train: Trajectories,
    question: Trajectories,
    num_draws: int,
    given: Given = None,
) -> dict[str, Tensor]:
    """Draws of a guide that is only a Pyro program; it knows the series of the fit alone."""
    refuse_given(given, guide)
    with pyro.plate("draws", num_draws, dim=-2):
        trace = pyro.poutine.trace(guide).get_trace(train)
    values = {}
    for site in [*model.global_priors(), "x0"]:
        value = trace.nodes[site]["value"]
        shape = (num_draws, train.num_series if is_local(site) else 1)
        values[site] = value.expand(*shape, *value.shape[2:]) if value.dim() > 2 else value
    return values | {"x0": values["x0"][:, train.positions(question.series)]}


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
    model: DynamicalModel,
    values: Mapping[str, Tensor],
    question: Trajectories,
    solvers: Callable[[Trajectories], tuple[Solver, Solver]] | None = None,
) -> float:
    """Distance of the model's solver to a tight solve, in units of the noise.

    Root mean square over at most 8 draws of 16 series, failed ones left out; infinite if all fail.
    A warning tells if it is large.

    Args:
        model: The generative model.
        values: Drawn sites, each (draws, ...), dimensionless.
        question: Series and times.
        solvers: Of the compared series: what solves them, and the reference. By default the model's
            own solver and torchdiffeq's dopri5 at 1e-8.

    Raises:
        DataError: If the likelihood tells neither its information nor its sd.
    """
    model = copy.deepcopy(model).double()  # with decoder and all: the reference is a tight one
    rows = torch.arange(min(ERROR_SERIES, question.num_series)).to(question.start.device)
    some = {
        site: (value[:, rows] if is_local(site) else value)[:ERROR_DRAWS].double()
        for site, value in values.items()
    }
    compared = question.rows(rows)
    solver, tight = model.solver, ODESolver("dopri5", rtol=1e-8, atol=1e-8)
    if solvers is not None:
        solver, tight = solvers(compared)
    own, has_failed = solve_draws(model, some, compared, solver)
    reference, has_no_reference = solve_draws(model, some, compared, tight)
    is_compared = ~(has_failed | has_no_reference)
    if not is_compared.any():
        return math.inf
    distance = squared_distance(model, some, compared, own, reference)
    error = distance[is_compared].mean().sqrt().item()
    if error > LARGEST_SOLVER_ERROR:
        warnings.warn(
            f"the solver's error is {error:.2g} of the noise; take a smaller step.", stacklevel=4
        )
    return error


def squared_distance(
    model: DynamicalModel,
    values: Mapping[str, Tensor],
    question: Trajectories,
    path: Tensor,
    reference: Tensor,
) -> Tensor:
    """Squared distance of two paths in units of the noise, (*draws, series, time, *event).

    By the information of the values about the state, where the likelihood tells it; else, as under
    a decoder, the difference of the signals over the sd of the values.

    Args:
        model: The generative model.
        values: Drawn global sites.
        question: Series and times.
        path: Dimensionless, (*draws, series, time, state).
        reference: Likewise.

    Raises:
        DataError: If the likelihood tells neither.
    """
    likelihood: Any = model.likelihood
    if hasattr(likelihood, "fisher"):
        own = {s.removeprefix("likelihood."): v for s, v in values.items()}
        information = likelihood.fisher(path, own)
        return (path - reference)[..., : information.shape[-1]].square() * information
    observe = likelihood.build(unnest("likelihood", values), question.inputs)
    try:
        sd = observe(reference).stddev
    except NotImplementedError as error:
        raise DataError(
            f"{type(likelihood).__name__} has no fisher(path, values), and its law no variance: "
            "nothing says how large an error is beside the noise."
        ) from error
    # a pixel that is certain has no noise at all, and rounding would count as an error
    floor = sd.amax() * torch.finfo(sd.dtype).eps ** 0.5
    return ((observe.signal(path) - observe.signal(reference)) / sd.clamp_min(floor)).square()
