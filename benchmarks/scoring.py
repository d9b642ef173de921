"""From predictions to the numbers of a record: everything in units of the true noise."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from bayesode import scores
from benchmarks.tasks import NUM_GIVEN, Target, Task

LEVEL = 0.9
NUM_DRAWS = 400
QUANTILE = Normal(0.0, 1.0).icdf(torch.tensor((1 + LEVEL) / 2)).item()
PARTS = ("in", "forecast")
SCORES = ("rmse", "coverage_latent", "coverage_observed", "crps", "log_score")
PHASES = {"smooth": "smoothing", "lm": "lm", "laplace": "laplace", "elbo": "elbo"}  # of a history
NUMBERS = [f"{score}_{part}" for score in SCORES for part in PARTS]
NUMBERS += ["rmse_new_series", "coverage_latent_new_series", "field_rmse", "coverage_field"]
NUMBERS += ["noise_ratio", "evidence", "elbo", "seconds", *(f"seconds_{p}" for p in PHASES)]


class Scored(NamedTuple):
    """Of every number (series, time, state) of a target; NaN where a method says nothing."""

    mean: Tensor
    covers_latent: Tensor
    covers_observed: Tensor
    crps: Tensor
    log_score: Tensor


class Outcome(NamedTuple):
    """What one method makes of one task.

    Args:
        seconds: Of the fit, without its predictions.
        path: Of the training series, both halves.
        new_series: Of series with a few given points; None for methods without one.
        rates: Draws of dx/dt at `Task.visited`, (draws, points, state).
        noise_scale: Estimate, (state,).
        evidence: Log evidence, nats.
        elbo: Evidence lower bound, nats.
        phases: Seconds of the fit's parts, as far as they are known.
        problem: What went wrong beside the fit.
    """

    seconds: float
    path: Scored
    new_series: Scored | None = None
    rates: Tensor | None = None
    noise_scale: Tensor | None = None
    evidence: float = math.nan
    elbo: float = math.nan
    phases: dict[str, float] | None = None
    problem: str | None = None


class Size(NamedTuple):
    """How much is done beside the data; None is the usual."""

    num_draws: int = NUM_DRAWS
    num_steps: int | None = None


USUAL, SMOKE = Size(), Size(num_draws=20, num_steps=5)
Method = Callable[[Task, Size], Outcome]


# ---- predictions ---------------------------------------------------------------------------------
def score_draws(
    signal: Tensor, values: Tensor, log_prob: Tensor, target: Target, valid: Tensor
) -> Scored:
    """Draws of paths and of values, (draws, series, time, state), and which of them count.

    A series of which every draw failed is covered nowhere, and its other scores are NaN.
    """
    signal, values = signal.double(), values.double()
    latent, observed = (
        scores.interval_covers(draws, truth, LEVEL, valid).double()
        for draws, truth in ((signal, target.truth), (values, target.new.values))
    )
    is_valid = valid[:, :, None, None]
    return Scored(
        mean=torch.where(is_valid, signal, 0.0).sum(0) / is_valid.sum(0),
        covers_latent=latent,
        covers_observed=observed,
        crps=scores.crps(signal, target.truth, valid),
        log_score=scores.log_score(log_prob.double(), valid),
    )


def score_noisy(signal: Tensor, noise_scale: Tensor, target: Target, seed: int) -> Scored:
    """As many draws of paths as of noise scales (draws, state); one that is not finite fails."""
    noise_scale = noise_scale[:, None, None].double()
    valid = signal.isfinite().flatten(2).all(-1)
    signal = torch.where(valid[:, :, None, None], signal.double(), 0.0)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(signal.shape, generator=generator, dtype=signal.dtype)
    log_prob = Normal(signal, noise_scale).log_prob(target.new.values)
    return score_draws(signal, signal + noise_scale * noise, log_prob, target, valid)


def score_members(paths: Tensor, noise_scale: Tensor, target: Target, size: Size) -> Scored:
    """A few paths with their noise scales, as an equal mixture of normal distributions.

    The band of the path is normal with the members' sd, because quantiles of five draws cannot
    reach 90 %; a single path has none.
    """
    repeats = -(-size.num_draws // len(paths))
    scored = score_noisy(
        paths.repeat(repeats, 1, 1, 1), noise_scale.repeat(repeats, 1), target, seed=0
    )
    distance = (target.truth - paths.mean(0)).abs()
    if len(paths) == 1:
        return scored._replace(covers_latent=torch.full_like(distance, torch.nan))
    covers = (distance <= QUANTILE * paths.std(0)).to(distance)
    return scored._replace(covers_latent=covers)


def score_normal(mean: Tensor, sd_path: Tensor | None, sd_value: Tensor, target: Target) -> Scored:
    """Normal laws of path and value.

    Without a law of the path its coverage is NaN, and the CRPS is that of the value's law.
    """
    values, nothing = target.new.values, torch.full_like(mean, torch.nan)
    observed = ((values - mean).abs() <= QUANTILE * sd_value).to(mean)
    latent = nothing
    if sd_path is not None:
        latent = ((target.truth - mean).abs() <= QUANTILE * sd_path).to(mean)
        latent = latent.where(~mean.isnan(), nothing)
    return Scored(
        mean=mean,
        covers_latent=latent,
        covers_observed=observed.where(~mean.isnan(), nothing),
        crps=scores.gaussian_crps(mean, sd_value if sd_path is None else sd_path, target.truth),
        log_score=Normal(mean, sd_value, validate_args=False).log_prob(values),
    )


# ---- numbers -------------------------------------------------------------------------------------
def numbers_of(outcome: Outcome, task: Task) -> dict[str, float]:
    """The numbers of one fit: paths and CRPS in true noise sds, log scores minus the oracle's."""
    numbers = dict.fromkeys(NUMBERS, math.nan)
    windows = (slice(task.num_train), slice(task.num_train, None))
    for part, window in zip(PARTS, windows, strict=True):
        means = _means(outcome.path, task.target, task.noise_scale, window)
        numbers |= {f"{name}_{part}": value for name, value in means.items()}
    if outcome.new_series is not None:
        window = slice(NUM_GIVEN, None)
        means = _means(outcome.new_series, task.new_series, task.noise_scale, window)
        numbers |= {f"{name}_new_series": means[name] for name in ("rmse", "coverage_latent")}
    if outcome.rates is not None:
        numbers |= _field_numbers(outcome.rates.double(), task)
    if outcome.noise_scale is not None:
        numbers["noise_ratio"] = (outcome.noise_scale / task.noise_scale).mean().item()
    numbers |= {"evidence": outcome.evidence, "elbo": outcome.elbo, "seconds": outcome.seconds}
    return numbers | {f"seconds_{part}": value for part, value in (outcome.phases or {}).items()}


def _means(scored: Scored, target: Target, noise: Tensor, window: slice) -> dict[str, float]:
    oracle = Normal(target.truth, noise).log_prob(target.new.values)
    error = ((scored.mean - target.truth) / noise)[:, window]
    means = {
        "rmse": error.square().mean((1, 2)).sqrt(),  # per trajectory
        "coverage_latent": scored.covers_latent[:, window],
        "coverage_observed": scored.covers_observed[:, window],
        "crps": (scored.crps / noise)[:, window],
        "log_score": (scored.log_score - oracle)[:, window],
    }
    return {name: value.mean().item() for name, value in means.items()}


def _field_numbers(rates: Tensor, task: Task) -> dict[str, float]:
    """Error of the mean field along the true training paths over the field's size, and coverage."""
    truth = task.data.field(task.visited)
    error = (rates.mean(0) - truth).square().sum(-1).mean() / truth.square().sum(-1).mean()
    numbers = {"field_rmse": error.sqrt().item()}
    if len(rates) > 1:
        covers = scores.interval_covers(rates[:, None], truth[None], LEVEL)
        numbers["coverage_field"] = covers.double().mean().item()
    return numbers
