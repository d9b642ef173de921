"""Complete systems: functions that only compose parts and return (model, guide)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bayesode.inference.guides import MeanFieldGuide
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.fields import BayesianMLP
from bayesode.models.initial import NormalInitial
from bayesode.models.likelihoods import GaussianLikelihood, LogNormalLikelihood
from bayesode.models.solvers import FixedGridSolver
from bayesode.plan import FitPlan
from bayesode.plan import plan as make_plan
from bayesode.trajectories import Trajectories
from bayesode.units import Units

LIKELIHOODS = {"gaussian": GaussianLikelihood, "lognormal": LogNormalLikelihood}


def neural_ode(
    train: Trajectories,
    *,
    likelihood: str = "gaussian",
    hidden: Sequence[int] | None = None,
    plan: FitPlan | None = None,
    verbose: bool = True,
) -> tuple[DynamicalModel, MeanFieldGuide]:
    """A Bayesian neural ODE in data space, with the settings of a plan.

    Args:
        train: Training data, values (series, time, component).
        likelihood: "gaussian", or "lognormal" for positive data that vary by factors.
        hidden: Widths of the hidden layers, in place of the plan's.
        plan: Made by `bayesode.plan(train, likelihood)` if not given.
        verbose: Print the plan.

    Returns:
        Model and mean-field guide, ready for `fit_svi`.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=10).observed
        >>> model, guide = bo.neural_ode(train, verbose=False)
        >>> model.field.num_weights
        42
    """
    chosen = make_plan(train, likelihood) if plan is None else plan
    if hidden is not None:
        reasons = chosen.reasons | {"hidden": "as asked"}
        chosen = replace(chosen, hidden=tuple(hidden), reasons=reasons)
    if verbose:
        print(chosen)
    dim = len(train.names)
    model = DynamicalModel(
        initial=NormalInitial(dim),
        field=BayesianMLP(dim, chosen.hidden, dim, prior_scale=chosen.prior_scale),
        likelihood=LIKELIHOODS[chosen.likelihood](dim),
        solver=FixedGridSolver("rk4", step=chosen.step),
        units=Units(**chosen.units),
    ).to(train.values.dtype)  # type: ignore[union-attr]
    model.recipe = {"system": "neural_ode", "arguments": {"plan": chosen.config}}
    return model, MeanFieldGuide(model, train)


def rebuild(recipe: dict[str, Any], train: Trajectories) -> tuple[DynamicalModel, MeanFieldGuide]:
    """The system that `recipe` (of a saved run) describes, untrained."""
    settings = dict(recipe["arguments"]["plan"])
    settings["hidden"] = tuple(settings["hidden"])
    return SYSTEMS[recipe["system"]](train, plan=FitPlan(**settings), verbose=False)


SYSTEMS = {"neural_ode": neural_ode}
