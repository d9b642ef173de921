"""The one generative program that every system shares."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.distributions import Independent, MaskedDistribution, TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayesode.errors import DataError
from bayesode.models.contracts import (
    Observe,
    PathFactor,
    Priors,
    RandomPart,
    Solution,
    Solver,
    Values,
    VectorField,
    draw,
    named_sites,
    resolve,
    unnest,
)
from bayesode.trajectories import Trajectories
from bayesode.units import Units


class DynamicalModel(PyroModule):
    """Initial state, vector field and likelihood, drawn once each, and a solver between them.

    Sites: `initial.*`, `field.*`, `likelihood.*` (global), then per series `x0`, `path.*` (random
    paths), `path` and `values`. The parts are copied and take on the units.

    Args:
        initial: Random part whose `build` gives the law of x(t0).
        field: Random part whose `build` gives a `VectorField`.
        likelihood: Random part whose `build` gives an `Observe`.
        solver: From drawn field and initial state to a path.
        units: From users' units to dimensionless ones; the identity by default.

    Example:
        >>> import torch, bayesode as bo
        >>> model = bo.DynamicalModel(
        ...     initial=bo.NormalInitial(2),
        ...     field=bo.BayesianMLP(2, [8], 2),
        ...     likelihood=bo.GaussianLikelihood(2),
        ...     solver=bo.FixedGridSolver("rk4", step=0.1),
        ... )
        >>> question = bo.Trajectories([0.0, 0.1], None, series=["a"], names=["x", "y"])
        >>> model(question).shape
        torch.Size([1, 2, 2])
    """

    path_half: PathFactor | None = None  # of an objective that adds terms, see `path_objective`

    def __init__(
        self,
        *,
        initial: nn.Module,
        field: nn.Module,
        likelihood: nn.Module,
        solver: Solver,
        units: Units | None = None,
    ) -> None:
        super().__init__()
        for name, part in (("initial", initial), ("field", field), ("likelihood", likelihood)):
            has_methods = hasattr(part, "priors") and hasattr(part, "build")
            if not (isinstance(part, nn.Module) and has_methods):
                raise DataError(
                    f"{name}={part!r} is no random part: it has to be a module with the methods "
                    "priors() and build(values, inputs) (see bayesode.models.contracts)."
                )
            setattr(self, name, copy.deepcopy(part))
        if not isinstance(solver, Solver) or isinstance(solver, type):
            raise DataError(f"solver={solver!r} is no solver; take FixedGridSolver or ODESolver.")
        self.solver = solver
        self.units = copy.deepcopy(units) if units is not None else Units()
        for _, part in self.parts():
            if hasattr(part, "with_units"):
                part.with_units(self.units)  # type: ignore[attr-defined]
        self.recipe: dict[str, Any] | None = None  # how `systems` composed it, for saving

    def parts(self) -> Iterator[tuple[str, RandomPart]]:
        """The random parts in the order in which they are drawn."""
        for name in ("initial", "field", "likelihood"):
            yield name, getattr(self, name)

    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each global site that has them."""
        return {
            f"{name}.{site}": labels
            for name, part in self.parts()
            for site, labels in getattr(part, "labels", {}).items()
        }

    def forward(self, trajectories: Trajectories) -> Tensor:
        """The generative program; see the sites above.

        Returns:
            The values, shape (*draws, series, time, *event).
        """
        initial, field, observe = (
            part.build(draw(name, part.priors()), trajectories.inputs)
            for name, part in self.parts()
        )
        start, times = self.units.dimensionless_times(trajectories)
        with trajectories.plate():
            x0 = pyro.sample("x0", initial)
            noise = draw("path", self.solver.priors(start, times))
            path = pyro.deterministic(
                "path", self.solver(field, x0, start, times, **noise), event_dim=2
            )
            if self.path_half is not None:
                self.path_half.issue(x0, path, trajectories)
            return pyro.sample("values", observe(path, trajectories.mask), obs=trajectories.values)

    # ---- the same program for values that are drawn already --------------------------------------
    def build(self, values: Values, trajectories: Trajectories) -> tuple[Any, VectorField, Observe]:
        """Law of x0, field and observation of drawn global values {"field.weights": ...}."""
        initial, field, observe = (
            part.build(unnest(name, values), trajectories.inputs) for name, part in self.parts()
        )
        return initial, field, observe

    def solve(
        self,
        field: VectorField,
        values: Values,
        trajectories: Trajectories,
        solver: Solver | None = None,
    ) -> Solution:
        """The path of drawn local values {"x0": ..., "path.*": ...}, by another solver if given."""
        start, times = self.units.dimensionless_times(trajectories)
        return (solver or self.solver).solve(
            field, values["x0"], start, times, **unnest("path", values)
        )

    def global_priors(self) -> Priors:
        """Every global site and its prior, in the order of drawing."""
        return dict(named_sites(self.parts()))

    def prototype(self) -> dict[str, Tensor]:
        """A value per global site at the prior's median: never a draw, most of which explode."""
        values: dict[str, Tensor] = {}
        for site, prior in self.global_priors().items():
            values[site] = median(resolve(prior, values))
        return values


def median(law: TorchDistribution, num_draws: int = 1000) -> Tensor:
    """The median of each entry: by `icdf` where there is one, else of draws."""
    base: Any = law
    while isinstance(base, (Independent, MaskedDistribution)):
        base = base.base_dist
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            return base.icdf(torch.full_like(law.sample(), 0.5))
        except NotImplementedError:  # as Gamma, Beta, StudentT in torch
            draws = law.sample(torch.Size([num_draws]))
            # torch 2.13 gives arbitrary numbers for the median of an expanded tensor, as of Delta
            return draws.contiguous().median(0).values
