"""Systems whose state is what was observed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from bayesode.data_checks import as_list
from bayesode.errors import DataError, ShapeError
from bayesode.inference.guides import MeanFieldGuide
from bayesode.inference.laplace import fit_laplace
from bayesode.inference.sde_guide import SDEGuide
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.fields import AdditiveNoise, BayesianMLP, SDEField
from bayesode.models.initial import NormalInitial
from bayesode.models.likelihoods import (
    GaussianLikelihood,
    LogNormalLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from bayesode.models.solvers import FixedGridSolver, SDESolver
from bayesode.plan import (
    LITTLE_DATA,
    SMALL_WIDTHS,
    WIDTHS,
    FitPlan,
    check_engine,
    check_likelihood,
    choose_engine,
    count_weights,
    longest_gap,
)
from bayesode.plan import plan as make_plan
from bayesode.trajectories import Trajectories
from bayesode.units import Units

LIKELIHOODS = {
    "gaussian": GaussianLikelihood,
    "student_t": StudentTLikelihood,
    "lognormal": LogNormalLikelihood,
    "poisson": PoissonLikelihood,
}


def neural_ode(
    train: Trajectories,
    *,
    likelihood: str = "gaussian",
    hidden: Sequence[int] | None = None,
    engine: str = "auto",
    plan: FitPlan | None = None,
    verbose: bool = True,
) -> tuple[DynamicalModel, MeanFieldGuide]:
    """A Bayesian neural ODE in data space, with the settings of a plan.

    Args:
        train: Training data, values (series, time, component).
        likelihood: "gaussian", "student_t" (noise with outliers), "lognormal" (positive data that
            vary by factors) or "poisson" (counts).
        hidden: Widths of the hidden layers, in place of the plan's.
        engine: "laplace", "svi" or "auto", as in `bayesode.plan`: the width depends on it.
        plan: Made by `bayesode.plan(train, likelihood, engine=engine)` if not given; a given one
            decides likelihood and engine too. One with candidates is decided first.
        verbose: Print the plan.

    Returns:
        Model and mean-field guide, ready for `fit`.

    Raises:
        ShapeError: If the plan was made for other components than those of the data.
        DataError: For data without values, an unknown likelihood or engine, others than the
            plan's, or widths that are no whole numbers; and as `bayesode.plan`.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=10).observed
        >>> model, guide = bo.neural_ode(train, verbose=False)
        >>> model.field.num_weights
        17
    """
    chosen = _decided(train, likelihood, hidden, engine, plan, verbose)
    dim = len(train.names)
    solver = FixedGridSolver("rk4", step=chosen.step)
    model = _model("neural_ode", train, chosen, _network(chosen, dim), solver)
    return model, MeanFieldGuide(model, train)


def neural_sde(
    train: Trajectories,
    *,
    likelihood: str = "gaussian",
    hidden: Sequence[int] | None = None,
    engine: str = "auto",
    plan: FitPlan | None = None,
    noise_step: float | None = None,
    verbose: bool = True,
) -> tuple[DynamicalModel, SDEGuide]:
    """A Bayesian neural SDE in data space: `neural_ode` with additive process noise.

    dx = f(x) dt + g dW with a latent scale g per component; under "lognormal" and "poisson" the
    state is a logarithm, so the noise multiplies. Where the data are those of an ODE, the evidence
    shrinks g to nothing and forecasts are those of `neural_ode`.

    Noise enters at the times of the data; of a single component, whose drift can only pull back
    what the noise has moved, in the middles between them too. A drift that undoes much of the noise
    within a step makes g too small: take a shorter noise_step then.

    Args:
        train: Training data, values (series, time, component).
        likelihood: As in `neural_ode`.
        hidden: Widths of the hidden layers of the drift, in place of the plan's.
        engine: As in `neural_ode`; Laplace is the one whose bands hold.
        plan: As in `neural_ode`.
        noise_step: Largest distance between two kicks of the noise, in the data's unit of time, in
            place of the rule above. Twice as many cost twice the time.
        verbose: Print the plan.

    Returns:
        Model and guide, ready for `fit`.

    Raises:
        ShapeError: As `neural_ode`.
        DataError: As `neural_ode`, or for a noise_step that is not positive.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.stochastic_lotka_volterra(num_series=3, num_times=20).observed
        >>> model, guide = bo.neural_sde(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit(model, guide, train, seed=0, progress=False)
        >>> posterior.draws(10, seed=0)["field.diffusion.scale"].shape
        torch.Size([10, 2])
    """
    chosen = _decided(train, likelihood, hidden, engine, plan, verbose)
    dim = len(train.names)
    field = SDEField(_network(chosen, dim), AdditiveNoise(dim))
    unit = chosen.units["time_unit"]
    if noise_step is None and dim == 1:
        noise_step = longest_gap(Units(**chosen.units), train) * unit / 2
    own = None if noise_step is None else noise_step / unit
    solver = SDESolver(dim, chosen.step, noise_step=own)
    model = _model("neural_sde", train, chosen, field, solver, noise_step=noise_step)
    return model, SDEGuide(model, train)


def _decided(
    train: Trajectories,
    likelihood: str,
    hidden: Sequence[int] | None,
    engine: str,
    plan: FitPlan | None,
    verbose: bool,
) -> FitPlan:
    """The plan of a system, made or checked, with the width that was asked for."""
    chosen = make_plan(train, likelihood, engine=engine) if plan is None else plan
    if plan is not None:
        _check_plan(plan, train, likelihood, engine)
    if hidden is not None:
        chosen = _with_hidden(chosen, tuple(as_list(hidden)), len(train.names), engine)
    if not all(isinstance(width, int) and width > 0 for width in chosen.hidden):
        raise DataError(f"hidden must be positive whole numbers, not {list(chosen.hidden)}.")
    if chosen.candidates:
        chosen = plan_by_evidence(train, chosen)
    if verbose:
        print(chosen)
    return chosen


def _network(plan: FitPlan, dim: int) -> BayesianMLP:
    return BayesianMLP(dim, plan.hidden, dim, prior_scale=plan.prior_scale)


def _model(
    system: str,
    train: Trajectories,
    plan: FitPlan,
    field: nn.Module,
    solver: Any,
    **arguments: Any,
) -> DynamicalModel:
    """What all systems in data space share; further arguments of the system are kept for saving."""
    dim = len(train.names)
    model = DynamicalModel(
        initial=NormalInitial(dim),
        field=field,
        likelihood=LIKELIHOODS[plan.likelihood](dim),
        solver=solver,
        units=Units(**plan.units),
    ).to(train.values.dtype)  # type: ignore[union-attr]
    model.recipe = {"system": system, "arguments": {"plan": plan.config} | arguments}
    return model


def plan_by_evidence(
    train: Trajectories, plan: FitPlan, *, seed: int = 0, progress: bool = True
) -> FitPlan:
    """The width that Laplace's evidence chooses, as an ordinary plan.

    The candidates are fitted; from 100 observed numbers on the winner is doubled, to at least 8: an
    evidence that prefers the smallest field which fits errs on the narrow side.

    Args:
        train: Training data.
        plan: Whose other settings are kept; without candidates the widths 4, 8, 16 and 32 compete,
            and 3, 4, 6 and 8 for fewer than 100 observed numbers.
        seed: Of the fits.
        progress: Show bars on anything over two seconds.

    Raises:
        DataError: If the data cannot be fitted as they are.
        FitError: If no candidate can be fitted.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=2, num_times=40).observed
        >>> plan = replace(bo.plan(train), candidates=(2, 4))
        >>> plan_by_evidence(train, plan, progress=False).hidden
        (8,)
    """
    is_little = train.num_observed < LITTLE_DATA
    widths = plan.candidates or (SMALL_WIDTHS if is_little else WIDTHS)
    settled = replace(plan, candidates=())
    evidence: dict[int, float] = {}
    for width in widths:
        model, _ = neural_ode(train, plan=replace(settled, hidden=(width,)), verbose=False)
        with warnings.catch_warnings():  # that one is too narrow is what the evidence is to tell
            warnings.filterwarnings("ignore", message="no trajectory fit")
            posterior = fit_laplace(model, train, seed=seed, progress=progress)
        evidence[width] = posterior.log_evidence
    best = max(evidence, key=lambda width: evidence[width])
    width = best if is_little else max(8, 2 * best)
    told = ", ".join(f"{width}: {nats:.1f}" for width, nats in evidence.items())
    rule = "" if is_little else f", twice the best ({best}), at least 8"
    reasons = plan.reasons | {"hidden": f"log evidence {told}{rule}"}
    return replace(settled, hidden=(width,), reasons=reasons)


def _with_hidden(plan: FitPlan, hidden: tuple[int, ...], dim: int, engine: str) -> FitPlan:
    """The plan with widths that were asked for; too many weights for Laplace change the engine."""
    reasons = plan.reasons | {"hidden": "as asked"}
    changed = replace(plan, hidden=hidden, reasons=reasons, candidates=())
    is_asked = engine != "auto" or plan.reasons.get("engine") == "as asked"
    if is_asked or plan.engine != "laplace" or not all(isinstance(n, int) for n in hidden):
        return changed
    chosen, why = choose_engine(count_weights(dim, hidden))
    return replace(changed, engine=chosen, reasons=reasons | {"engine": why})


def _check_plan(plan: FitPlan, train: Trajectories, likelihood: str, engine: str) -> None:
    check_likelihood(plan.likelihood)
    check_engine(engine)
    check_engine(plan.engine)
    if engine not in ("auto", plan.engine):
        raise DataError(
            f"engine={engine!r} but the plan says {plan.engine!r}, and its width is for that; make "
            f"it by bayesode.plan(train, {plan.likelihood!r}, engine={engine!r})."
        )
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
