"""Initial states of series given draws of everything else, by damped Gauss-Newton steps."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from bayesode.errors import DataError
from bayesode.inference.checks import has_random_paths
from bayesode.inference.warm_start.attempts import horizons
from bayesode.inference.warm_start.fit_data import FALLBACK_STEP
from bayesode.inference.warm_start.measurement import observed_response
from bayesode.models.contracts import Observe, VectorField
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.solvers import FixedGridSolver
from bayesode.models.solvers.grid import substeps
from bayesode.trajectories import Trajectories

MAX_TOGETHER = 200_000  # steps of all rows that are differentiated at once: a few 100 MB
MAX_STEPS, FIRST_DAMPING, LARGEST_DAMPING = 50, 1e-2, 1e6
CONVERGED = 1e-10  # squared distance to the optimum, in posterior sds
NEAR = 1e-2  # the same where a longer horizon follows, and what counts as found in the end


@dataclass(frozen=True, eq=False)
class InitialStates:
    """Normal posteriors of initial states, one for each draw of everything else.

    Args:
        mean: Most probable initial states, dimensionless, shape (draws, series, state).
        precision: Of the posterior around them, shape (draws, series, state, state).
        failed: Where none was found, or its path leaves the bound, shape (draws, series).
    """

    mean: Tensor
    precision: Tensor
    failed: Tensor


def infer_initial_states(
    model: DynamicalModel, values: Mapping[str, Tensor], new: Trajectories
) -> InitialStates:
    """Posteriors of the initial states of series for given draws of all global sites.

    For each draw and series on its own: the most probable x0, from the prior's mean and from the
    first observed values, over a horizon that grows, and the expected information there.

    Args:
        model: A model whose paths are not random and whose likelihood tells its information.
        values: Draws of the global sites, each (draws, 1, *event), dimensionless.
        new: Observed series.

    Raises:
        DataError: If the model's paths are random, or the likelihood has no `fisher`.

    Example:
        >>> import bayesode as bo
        >>> new = bo.datasets.van_der_pol(num_series=3, num_times=10).observed
        >>> model, _ = bo.neural_ode(new, hidden=[4], verbose=False)
        >>> values = {site: value.expand(7, 1, -1) for site, value in model.prototype().items()}
        >>> infer_initial_states(model, values, new).mean.shape
        torch.Size([7, 3, 2])
    """
    _check_model(model, new)
    model, new = copy.deepcopy(model).double(), new.to(dtype=torch.float64)
    draws = {site: value.double() for site, value in values.items()}
    num_draws = max((len(value) for value in draws.values()), default=1)
    chunk, parts = _draws_at_once(model, new), []
    for first in range(0, num_draws, chunk):
        some = {site: value[first : first + chunk] for site, value in draws.items()}
        parts.append(_infer(model, some, new, min(chunk, num_draws - first)))
    names = ("mean", "precision", "failed")
    found = InitialStates(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
    if found.failed.any():
        row = int(found.failed.double().mean(0).argmax())
        warnings.warn(
            f"for {found.failed.double().mean():.1%} of the draws no initial state was found that "
            f"suits the new data ({found.failed[:, row].double().mean():.0%} for series "
            f"{new.series[row]!r}): their paths leave the model's bound, or nothing comes near "
            "the data. They count as failed.",
            stacklevel=4,
        )
    return found


def _check_model(model: DynamicalModel, new: Trajectories) -> None:
    if has_random_paths(model, new):
        raise DataError(
            "the paths of this model are random: their noise would have to be inferred along with "
            "the initial states. Fit again with the new series included."
        )
    if not hasattr(model.likelihood, "fisher"):
        raise DataError(
            f"{type(model.likelihood).__name__} has no fisher(path, values), which says how much "
            "a value tells of the initial state: add it, or fit again with the series included."
        )


def _draws_at_once(model: DynamicalModel, new: Trajectories) -> int:
    """How many draws are followed together; their derivatives have to fit into memory."""
    start, times = model.units.dimensionless_times(new)
    num_steps = times.shape[-1] + int((times[:, -1] - start).max() / _solver(model).step)
    return max(1, MAX_TOGETHER // (new.num_series * num_steps))


def _solver(model: DynamicalModel) -> FixedGridSolver:
    """What the model has to take small steps, which forward derivatives pass through."""
    return getattr(model.solver, "drift_solver", lambda: FixedGridSolver(step=FALLBACK_STEP))()


def _infer(
    model: DynamicalModel, values: dict[str, Tensor], new: Trajectories, num_draws: int
) -> InitialStates:
    problem = _Problem.of(model, values, new)
    best: tuple[Tensor, _Place] | None = None
    for x0 in _starts(model, new, problem.law):
        found = problem.climb(x0.expand(num_draws, new.num_series, -1).clone())
        best = found if best is None else _better(best, found)
    x0, place = best  # type: ignore[misc]
    is_found = (
        place.is_inside
        & place.cost.isfinite()
        & (place.step(torch.zeros_like(place.cost))[1] < NEAR)
    )
    return InitialStates(x0, place.precision, ~is_found)


def _starts(model: DynamicalModel, new: Trajectories, law: Any) -> Iterator[Tensor]:
    """The prior's mean, and the first observed value of each component in its place."""
    yield law.mean
    if not hasattr(model.likelihood, "working_response"):
        return
    response, mask = observed_response(model, new), new.mask
    first = mask.long().argmax(1, keepdim=True)  # type: ignore[union-attr]
    seen = response.gather(1, first).squeeze(1)
    x0 = law.mean.expand(*law.mean.shape[:-2], new.num_series, -1).clone()
    size = seen.shape[-1]
    x0[..., :size] = torch.where(mask.any(1), seen, x0[..., :size])  # type: ignore[union-attr]
    yield x0


@dataclass(frozen=True, eq=False)
class _Place:
    """What is known at initial states: cost (draws, series), its slope and curvature."""

    cost: Tensor
    slope: Tensor
    precision: Tensor
    is_inside: Tensor

    def step(self, damping: Tensor) -> tuple[Tensor, Tensor]:
        """Damped step (draws, series, state), and the squared distance that is left."""
        diagonal = torch.diag_embed(self.precision.diagonal(dim1=-2, dim2=-1))
        matrices = torch.stack(
            [self.precision + damping[..., None, None] * diagonal, self.precision]
        )
        factor, _ = torch.linalg.cholesky_ex(matrices)
        steps = torch.cholesky_solve(
            self.slope.unsqueeze(-1).expand(2, *self.slope.shape, 1), factor
        )
        step, whole = steps.squeeze(-1).nan_to_num(nan=0.0)
        return step, (whole * self.slope).sum(-1)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Data of series as functions of their initial states, one row per draw and series.

    Args:
        law: Prior of x0.
        field: The drawn fields.
        observe: How paths are seen.
        fisher: Path to the information of single values.
        solver: Follows the paths.
        start: Shape (series,).
        times: Shape (series, time).
        values: Shape (series, time, component).
        mask: Shaped like values.
    """

    law: Any
    field: VectorField
    observe: Observe
    fisher: Callable[[Tensor], Tensor]
    solver: FixedGridSolver
    start: Tensor
    times: Tensor
    values: Tensor
    mask: Tensor

    @classmethod
    def of(cls, model: DynamicalModel, values: dict[str, Tensor], new: Trajectories) -> _Problem:
        law, field, observe = model.build(values, new)
        own = {s.removeprefix("likelihood."): v for s, v in values.items()}
        return cls(
            law,
            field,
            observe,
            lambda path: model.likelihood.fisher(path, own),  # type: ignore[operator]
            _solver(model),
            *model.units.dimensionless_times(new),
            new.values,  # type: ignore[arg-type]
            new.mask,  # type: ignore[arg-type]
        )

    def climb(self, x0: Tensor) -> tuple[Tensor, _Place]:
        """The most probable initial states, from x0 over a horizon that grows."""
        *shorter, _ = horizons(self.times.shape[-1])
        for num_times in shorter:
            parts = {
                name: getattr(self, name)[:, :num_times] for name in ("times", "values", "mask")
            }
            x0, _ = replace(self, **parts)._climb(x0, NEAR)
        return self._climb(x0, CONVERGED)

    def _climb(self, x0: Tensor, tolerance: float) -> tuple[Tensor, _Place]:
        """Damped Gauss-Newton steps, each row with a damping of its own."""
        place = self.at(x0)
        damping = torch.full_like(place.cost, FIRST_DAMPING)
        for _ in range(MAX_STEPS):
            step, left = place.step(damping)
            if ((left < tolerance) | (damping > LARGEST_DAMPING)).all():
                break
            moved = x0 + step, self.at(x0 + step)
            is_better = moved[1].cost < place.cost  # False for NaN
            x0, place = _better((x0, place), moved)
            damping = torch.where(is_better, (damping / 5).clamp_min(1e-6), 4 * damping)
        return x0, place

    def at(self, x0: Tensor) -> _Place:
        """Cost, slope and curvature at initial states (draws, series, state)."""
        path, by_x0, has_left = self._path(x0)
        seen, pull = _slope(lambda y: self.observe(y, self.mask).log_prob(self.values), path)
        prior, back = _slope(self.law.log_prob, x0)
        information = self.fisher(path)
        size = information.shape[-1]
        information = torch.where(self.mask, information, 0.0)
        observed = by_x0[..., :size, :]
        weighted = observed * information.unsqueeze(-1)
        own = torch.diag_embed(self.law.variance.reciprocal().expand_as(x0))
        precision = own + torch.einsum("...tci,...tcj->...ij", observed, weighted)
        is_finite = precision.isfinite().all(-1).all(-1)[..., None, None]
        return _Place(
            (-2 * (seen + prior)).nan_to_num(nan=math.inf),
            (torch.einsum("...tci,...tc->...i", by_x0, pull) + back).nan_to_num(nan=0.0),
            torch.where(is_finite, precision, own),
            ~has_left,
        )

    def _path(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Path, its derivative by x0 (draws, series, time, state, state), and whether it left.

        All intervals are differentiated side by side along the path; the chain rule links them.
        """
        solution = self.solver.solve(self.field, x0, self.start, self.times)
        knots = torch.cat([x0.unsqueeze(-2), solution.path[..., :-1, :]], -2).movedim(-2, 0)
        before = torch.cat([self.start.unsqueeze(-1), self.times[:, :-1]], -1)
        steps = substeps(before.flatten(), self.times.reshape(-1, 1), self.solver.step)
        lengths, begins = (x.unflatten(0, before.shape).movedim(1, 0) for x in steps[:2])

        with torch.enable_grad():
            places = knots.detach().requires_grad_()
            ends = vmap(self._across)(places, begins, lengths)
            rows = [
                torch.autograd.grad(end.sum(), places, retain_graph=True)[0]
                for end in ends.unbind(-1)
            ]
        by_knots = torch.stack(rows, -2)
        chain = [by_knots[0]]
        for interval in by_knots[1:]:
            chain.append(interval @ chain[-1])
        return solution.path, torch.stack(chain, -3), solution.failed

    def _across(self, states: Tensor, begins: Tensor, lengths: Tensor) -> Tensor:
        """States at the end of an interval of each series."""
        return self.solver.walk(self.field, states, begins, lengths)[0][-1]


def _slope(function: Callable[[Tensor], Tensor], place: Tensor) -> tuple[Tensor, Tensor]:
    """Values (draws, series) of a function of rows and its gradient."""
    with torch.enable_grad():
        place = place.detach().requires_grad_()
        value = function(place)
        return value.detach(), torch.autograd.grad(value.sum(), place)[0]


def _better(one: tuple[Tensor, _Place], two: tuple[Tensor, _Place]) -> tuple[Tensor, _Place]:
    """Row by row that of two with the lower cost; the first one if the second is undefined."""
    is_better = two[1].cost < one[1].cost

    def choose(a: Tensor, b: Tensor) -> Tensor:
        chosen = is_better.view(*is_better.shape, *[1] * (a.dim() - is_better.dim()))
        return torch.where(chosen, b, a)

    names = ("cost", "slope", "precision", "is_inside")
    place = _Place(*(choose(getattr(one[1], name), getattr(two[1], name)) for name in names))
    return choose(one[0], two[0]), place
