"""Stochastic variational inference: one function for our guides, Pyro's and the user's own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch

from bayesode.errors import FitError, SolverError
from bayesode.inference.checks import check_data
from bayesode.inference.copies import own_copies
from bayesode.inference.empirical import EmpiricalScales, check_prior_scale
from bayesode.inference.encoder_use import encoder_use
from bayesode.inference.learning_rates import group_rates
from bayesode.inference.loop import History, Loop, random_rows
from bayesode.inference.objectives import objective_for
from bayesode.inference.posterior import Posterior
from bayesode.inference.randomness import seeded
from bayesode.inference.svi_settings import (
    check_counts,
    check_guide,
    check_looks,
    check_target,
    over_time,
    told,
    with_defaults,
)
from bayesode.inference.validation import Validation
from bayesode.inference.window_schemes import Schedule, whole
from bayesode.models.dynamical import DynamicalModel
from bayesode.threads import threads_for
from bayesode.trajectories import Trajectories

FEWEST_STEPS = 100  # after which an encoder that tells nothing is ignored, not untrained
LARGEST_SHARE_FAILED = 0.05  # of a fit's paths: more is no accident of single draws


def fit_svi(
    model: DynamicalModel,
    guide: Any,
    train: Trajectories,
    *,
    seed: int | None = None,
    num_steps: int | None = None,
    learning_rate: float | Mapping[str, float] | None = None,
    num_particles: int | None = None,
    batch_size: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    warm_start: bool = True,
    prior_scale: str | None = None,
    schedule: Schedule | None = None,
    kl_weight: float | Callable[[float], float] | None = None,
    validation: Trajectories | None = None,
    patience: int | None = None,
    callback: Callable[[int, History], bool | None] | None = None,
    progress: bool = True,
) -> Posterior:
    """Fit a guide to data by maximising the ELBO, from a warm start.

    The warm start fits the trajectories by Levenberg-Marquardt from smoothed data and sets every
    posterior scale from the Gauss-Newton diagonal; the steps then maximise the full ELBO.
    What is not random in the model (a decoder's weights, say) is optimised along with the guide.
    Everything happens on copies: model, guide, parameter store and random state stay as they were.
    A guide may suggest other defaults, in its `defaults`, as those of latent systems do.

    Args:
        model: The generative model.
        guide: One of ours (run on `elbo_terms`), a Pyro autoguide or your own (run on Pyro's
            `Trace_ELBO`).
        train: Training data.
        seed: Same seed, same posterior; None takes one from torch's generator.
        num_steps: Optimiser steps. By default as many as pay: cycles of 100, until the upper 95 %
            limit of the ELBO's gain over the next 100 is below 1 nat; at most 3,000.
        learning_rate: It decays to 0 along a cosine, over all steps that are asked for or over each
            cycle. For our guides in units of each location's posterior scale (.05, or .02 in
            cycles), for others absolute (1e-3, and 30 times that for parameters whose names say
            scale). Guides with `parameter_groups()` have "locations" (the same), "log_scales" (.03)
            and "networks" (1e-3, with what is not random in any model): a number is that of the
            locations, a dictionary sets groups by name.
        num_particles: Draws per step, solved as one batch; 4 by default.
        batch_size: Series per step; all by default.
        optimizer: A torch optimiser class or a function of parameter groups. Per-series rows keep
            Adam moments of their own when there are minibatches.
        warm_start: Whether to start from the smoothed data. Needs a guide of ours or an autoguide
            that has not run yet.
        prior_scale: "fixed", the model's prior as it stands, by default; "hierarchical", which
            needs a field with a latent scale (`BayesianMLP(..., hierarchical=True)`); or
            "empirical", type-II maximum likelihood: the prior sds of `tunable()` sites are set in
            closed form before each step but the last 50, on the fit's copy of the model.
        schedule: (fraction of the fit, batch) -> `Window`, what a step sees of its batch:
            `GrowingWindows(prefix, first=5.0)`. `History.elbo` says what is reported then.
        kl_weight: Weight of the KL terms, a number or a function of the fraction of the fit, in the
            gradients alone: what is reported has weight 1. 1 by default.
        validation: Other series, for guides that encode them. After every 20th of the fit (25 steps
            at least) their bound is taken, by the same random draws each time; the posterior is the
            best state that was looked at, and `history.validation` has the looks.
        patience: Looks without improvement after which the fit ends.
        callback: (number of steps, history) after each step; True ends the fit.
        progress: Show a bar on anything over two seconds.

    Returns:
        The posterior. Ctrl-C ends the fit early and returns what was reached, with validation data
        the best state that was looked at.

    Raises:
        DataError: If the data cannot be fitted as they are, or a setting does not suit the guide.
        FitError: If the data lie outside the model's units, the guide does not suit minibatches,
            or tell what an empirical prior scale needs, or no gradient is finite.
        SolverError: If an adaptive solver gives up.

    Source: Kingma and Welling (2014), arXiv:1312.6114; Ranganath et al. (2014), arXiv:1401.0118.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=2, num_times=12).observed
        >>> model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)
        >>> len(posterior.history.elbo)
        5
    """
    check_data(model, train)
    chosen = with_defaults(
        guide,
        train,
        num_steps=num_steps,
        learning_rate=learning_rate,
        num_particles=num_particles,
        batch_size=batch_size,
        prior_scale=prior_scale,
        schedule=schedule,
        kl_weight=kl_weight,
    )
    check_counts(
        train,
        chosen.batch_size,
        num_steps=chosen.num_steps,
        num_particles=chosen.num_particles,
        patience=patience,
    )
    check_guide(guide, train)
    check_prior_scale(model, chosen.prior_scale, chosen.num_steps)
    check_target(guide, chosen.num_steps, chosen.schedule, chosen.kl_weight)
    check_looks(model, guide, validation, patience)
    history, begin = History(), time.perf_counter()
    size = train.num_series if chosen.batch_size is None else int(chosen.batch_size)
    with (
        seeded(seed) as used_seed,
        pyro.get_param_store().scope() as state,
        threads_for(size * chosen.num_particles),
    ):
        dtype, device = train.values.dtype, train.values.device  # type: ignore[union-attr]
        model, guide = own_copies(model, guide, dtype=dtype, device=device)
        objective = objective_for(model, guide, is_minibatch=size < train.num_series)
        is_open = chosen.num_steps is None  # the number of steps
        default = objective.cycle_learning_rate if is_open else objective.default_learning_rate
        rates = group_rates(chosen.learning_rate, objective.groups(), default)
        update = None
        if chosen.prior_scale == "empirical":
            update = EmpiricalScales(model, guide, train).update
        start = objective.warm_start(train) if warm_start else None
        if start is not None:
            history.start_ratio, history.num_attempts = start.ratio, start.num_attempts
        objective.prepare(train.batch(random_rows(train, size)), chosen.num_particles)
        watchers: list[Callable[[int], bool]] = []
        if validation is not None:
            data, looks = validation.to(device, dtype), history.validation
            options = {"num_particles": chosen.num_particles, "patience": patience}
            best = Validation(model, guide, data, looks, chosen.num_steps, **options)
            watchers.append(best)
        if callback is not None:  # after the looks, so that it sees them
            watchers.append(lambda step: bool(callback(step, history)))
        Loop(
            objective,
            train,
            size,
            chosen.num_particles,
            history,
            update=update,
            schedule=chosen.schedule or whole,
            kl_weight=over_time(chosen.kl_weight),
            watchers=watchers,
        ).run(optimizer, rates, chosen.num_steps, progress)
        if validation is not None:
            best.restore()
    history.seconds = time.perf_counter() - begin
    settings = {
        "engine": "svi",
        "seed": used_seed,
        "num_steps": chosen.num_steps,
        "learning_rate": rates["locations"] if list(rates) == ["locations"] else rates,
        "num_particles": chosen.num_particles,
        "batch_size": chosen.batch_size,
        "warm_start": warm_start,
        "prior_scale": chosen.prior_scale,
    } | told(chosen.schedule, chosen.kl_weight, validation, patience)
    state = dict(state)
    posterior = Posterior(model, guide, train, history=history, settings=settings, state=state)
    _check_paths(posterior)
    _check_encoder(posterior)
    return posterior


def _check_paths(posterior: Posterior) -> None:
    """Say so if the fit's own paths leave the model's bound within the data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # predict's own, which speaks of one series
        try:
            share = posterior.predict(posterior.train, num_draws=20, seed=0).share_failed
        except SolverError as error:  # the fit is done: it must not be lost
            share, reason = 0.0, f"paths of the fit cannot be solved: {error}"
        else:
            reason = f"{share:.0%} of the fit's paths leave the model's bound within the data"
            if share <= LARGEST_SHARE_FAILED:
                return
    mend = "tighten the prior of the field, shorten the series, or look at the units"
    if share == 1:
        raise FitError(f"{reason}: the drawn fields explode. Please {mend}.")
    warnings.warn(f"{reason}; {mend}.", stacklevel=3)


def _check_encoder(posterior: Posterior) -> None:
    """Say so if a trained encoder tells nothing of its sequences."""
    if not hasattr(posterior.guide, "encoder") or len(posterior.history.elbo) < FEWEST_STEPS:
        return
    warning = encoder_use(posterior).warning
    if warning is not None:
        warnings.warn(warning, stacklevel=3)
