"""Complete systems: functions that only compose parts and return (model, guide)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bayesode.data_checks import as_list
from bayesode.errors import DataError, ShapeError
from bayesode.inference.guides import MeanFieldGuide
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.fields import BayesianMLP
from bayesode.models.initial import NormalInitial
from bayesode.models.likelihoods import GaussianLikelihood, LogNormalLikelihood
from bayesode.models.solvers import FixedGridSolver
from bayesode.plan import FitPlan, check_likelihood
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
        plan: Made by `bayesode.plan(train, likelihood)` if not given; a given one decides the
            likelihood too.
        verbose: Print the plan.

    Returns:
        Model and mean-field guide, ready for `fit_svi`.

    Raises:
        ShapeError: If the plan was made for other components than those of the data.
        DataError: For data without values, an unknown likelihood, another likelihood than the
            plan's, or widths that are no whole numbers; and as `bayesode.plan`.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=10).observed
        >>> model, guide = bo.neural_ode(train, verbose=False)
        >>> model.field.num_weights
        17
    """
    chosen = make_plan(train, likelihood) if plan is None else plan
    if plan is not None:
        _check_plan(plan, train, likelihood)
    if hidden is not None:
        reasons = chosen.reasons | {"hidden": "as asked"}
        chosen = replace(chosen, hidden=tuple(as_list(hidden)), reasons=reasons)
    if not all(isinstance(width, int) and width > 0 for width in chosen.hidden):
        raise DataError(f"hidden must be positive whole numbers, not {list(chosen.hidden)}.")
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


def _check_plan(plan: FitPlan, train: Trajectories, likelihood: str) -> None:
    check_likelihood(plan.likelihood)
    if likelihood not in ("gaussian", plan.likelihood):
        raise DataError(
            f"likelihood={likelihood!r} but the plan says {plan.likelihood!r}; make it by "
            f"bayesode.plan(train, {likelihood!r})."
        )
    if train.values is None:
        raise DataError("a model needs observed values; this is a question without values.")
    names = list(plan.units["names"])
    if names != list(train.names):
        raise ShapeError(f"the plan is for components {names}, the data have {list(train.names)}.")


def rebuild(recipe: dict[str, Any], train: Trajectories) -> tuple[DynamicalModel, MeanFieldGuide]:
    """The system that `recipe` (of a saved run) describes, untrained."""
    settings = dict(recipe["arguments"]["plan"])
    settings["hidden"] = tuple(settings["hidden"])
    return SYSTEMS[recipe["system"]](train, plan=FitPlan(**settings), verbose=False)


SYSTEMS = {"neural_ode": neural_ode}
