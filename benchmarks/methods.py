"""The package's own fits, with default settings, as methods of `benchmarks.dynamics`."""

import math
import time
from collections.abc import Callable
from typing import Any

import bayesode as bo
from benchmarks.scoring import NUM_DRAWS, PHASES, Method, Outcome, Scored, Size, score_draws
from benchmarks.tasks import Target, Task

Fit = Callable[[Task, Size], bo.Posterior]


def default(task: Task, size: Size) -> bo.Posterior:
    """What the README says: the plan's model, the engine that suits it."""
    model, guide = bo.neural_ode(task.train, verbose=False)
    return bo.fit(model, guide, task.train, seed=task.seed, progress=False)


def laplace(task: Task, size: Size) -> bo.Posterior:
    model, _ = bo.neural_ode(task.train, engine="laplace", verbose=False)
    return bo.fit_laplace(model, task.train, seed=task.seed, progress=False)


def svi(task: Task, size: Size) -> bo.Posterior:
    model, guide = bo.neural_ode(task.train, engine="svi", verbose=False)
    posterior = bo.fit_svi(
        model, guide, task.train, seed=task.seed, num_steps=size.num_steps, progress=False
    )
    if posterior.history.is_interrupted:  # half a fit is no record
        raise KeyboardInterrupt
    return posterior


def method_of(fit: Fit) -> Method:
    """A fit, timed, and everything that is asked of its posterior."""

    def method(task: Task, size: Size) -> Outcome:
        begin = time.perf_counter()
        posterior = fit(task, size)
        seconds = time.perf_counter() - begin
        return outcome_of(posterior, task, size)._replace(seconds=seconds)

    return method


def outcome_of(posterior: bo.Posterior, task: Task, size: Size) -> Outcome:
    """What a posterior says of its own series and of new ones; the seconds are not known here."""
    new_series, problem = of_new_series(
        posterior, task, size, lambda own: score_posterior(own, task.new_series, task, size)
    )
    own = of_own_series(posterior, task, size)
    return own._replace(new_series=new_series, problem=problem)


def of_own_series(posterior: bo.Posterior, task: Task, size: Size) -> Outcome:
    """What a posterior says of the series of its fit; the seconds are not known here."""
    draws = posterior.draws(size.num_draws, seed=task.seed)
    evidence, elbo = math.nan, math.nan
    if posterior.settings["engine"] == "svi":
        elbo = float(posterior.elbo_terms().elbo)
    else:
        evidence = posterior.log_evidence
    return Outcome(
        seconds=math.nan,
        path=score_posterior(posterior, task.target, task, size),
        rates=posterior.field(
            task.visited, num_draws=min(size.num_draws, NUM_DRAWS), seed=task.seed
        ),
        noise_scale=draws["likelihood.noise_scale"].double().median(0).values,
        evidence=evidence,
        elbo=elbo,
        phases=phases_of(posterior.history),
    )


def score_posterior(posterior: bo.Posterior, target: Target, task: Task, size: Size) -> Scored:
    """The predictive draws of a fit against truth and new data."""
    question = posterior.train.at(target.new.times)
    ensemble = posterior.predict(question, num_draws=size.num_draws, seed=task.seed)
    log_prob = ensemble.log_prob(target.new)
    return score_draws(ensemble.signal, ensemble.values, log_prob, target, ~ensemble.failed)


def of_new_series(
    posterior: bo.Posterior, task: Task, size: Size, score: Callable[[Any], Any]
) -> tuple[Any, str | None]:
    """What `score` says of the posterior of series with a few given points, or what went wrong.

    The other numbers of the fit are worth keeping in that case.
    """
    try:
        own = posterior.condition(task.given, num_draws=size.num_draws, seed=task.seed)
        return score(own), None
    except Exception as error:
        return None, f"new series: {type(error).__name__}: {error}"


def phases_of(history: Any) -> dict[str, float]:
    """Seconds of the parts of a fit, as far as its history tells them."""
    known = getattr(history, "seconds_of", {})
    return {phase: known[name] for phase, name in PHASES.items() if name in known}


OWN: dict[str, Method] = {
    "bayesode": method_of(default),
    "bayesode-laplace": method_of(laplace),
    "bayesode-svi": method_of(svi),
}
