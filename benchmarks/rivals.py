"""Simple rivals of `benchmarks.dynamics`: fits without a posterior, smoothing, laws of values."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

import bayesode as bo
from bayesode.baselines import baselines
from bayesode.inference.predictive import solve_draws
from bayesode.smoothing import smooth
from benchmarks.equations import right_equations
from benchmarks.methods import of_new_series
from benchmarks.plain import plain_pyro
from benchmarks.scoring import Method, Outcome, Scored, Size, score_members, score_normal
from benchmarks.tasks import NUM_GIVEN, Target, Task

NUM_MEMBERS = 5
AMPLITUDES = torch.logspace(-1, 2, 61, 10.0, dtype=torch.float64)  # over the noise


# ---- fits without a posterior --------------------------------------------------------------------
class Member(NamedTuple):
    """A least-squares fit as one draw: path (1, series, time, state), noise, rates, new series."""

    path: Tensor
    noise_scale: Tensor
    rates: Tensor
    new_path: Tensor | None
    problem: str | None


def least_squares_of_networks(num_members: int) -> Method:
    """Levenberg-Marquardt fits from different random starts, as an equal mixture.

    The prior of the weights is fixed, the noise the residual's; new series are fitted by their
    initial states.
    """

    def method(task: Task, size: Size) -> Outcome:
        begin = time.perf_counter()
        fits = []
        for k in range(num_members):
            model, _ = bo.neural_ode(task.train, verbose=False)
            own_seed = task.seed + 10_000 * k
            fits.append(
                bo.fit_laplace(
                    model, task.train, seed=own_seed, prior_scale="fixed", progress=False
                )
            )
        seconds = time.perf_counter() - begin
        members = [_member(posterior, task, size) for posterior in fits]
        path, noise, rates = (torch.cat(part) for part in list(zip(*members, strict=True))[:3])
        new_paths = [member.new_path for member in members if member.new_path is not None]
        new_series = None
        if len(new_paths) == num_members:
            new_series = score_members(torch.cat(new_paths), noise, task.new_series, size)
        return Outcome(
            seconds=seconds,
            path=score_members(path, noise, task.target, size),
            new_series=new_series,
            rates=rates,
            noise_scale=noise.square().mean(0).sqrt(),
            problem=next((member.problem for member in members if member.problem), None),
        )

    return method


def _member(posterior: bo.Posterior, task: Task, size: Size) -> Member:
    units, own = posterior.model.units, posterior.predictive
    values = own.center(task.train)
    points = units.to_state(task.visited)[None]
    rates = own.rates(values, torch.zeros((), dtype=points.dtype), points)
    new_path, problem = of_new_series(posterior, task, size, lambda p: _path(p, task.new_series))
    noise = values["likelihood.noise_scale"].flatten(1).double()
    path = _path(posterior, task.target)
    return Member(path, noise, units.to_users_rate(points, rates), new_path, problem)


def _path(posterior: bo.Posterior, target: Target) -> Tensor:
    """The fit's own solution, (1, series, time, state)."""
    question = posterior.train.at(target.new.times)
    values = posterior.predictive.center(question)
    with torch.no_grad():
        path, _ = solve_draws(posterior.model, values, question)
    return posterior.model.units.to_users(path).double()


# ---- smoothing -----------------------------------------------------------------------------------
def gp_smoother(task: Task, size: Size) -> Outcome:
    """The Gaussian-process smoother alone: no dynamics, so nothing beyond the training data."""
    begin = time.perf_counter()
    train = task.train
    values = torch.where(train.mask, train.values.double(), 0.0)
    found = smooth(train.grid, values, train.mask, train.grid)
    sd = _sd_of_smooth(train, found.lengthscale, found.noise_scale)
    seconds = time.perf_counter() - begin
    sd_value = (sd.square() + found.noise_scale.square()).sqrt()
    whole = [
        _whole(part, task.target, slice(task.num_train)) for part in (found.path, sd, sd_value)
    ]
    path = score_normal(*whole, task.target)
    return Outcome(seconds, path, noise_scale=found.noise_scale)


def _sd_of_smooth(train: bo.Trajectories, lengthscale: Tensor, noise_scale: Tensor) -> Tensor:
    """Posterior sd of the smoothed path at its own times, (series, time, component).

    The amplitude is that of the largest marginal likelihood, given the other two numbers.
    """
    count = train.mask.sum((0, 1))
    mean = torch.where(train.mask, train.values, 0.0).sum((0, 1)) / count
    centred = torch.where(train.mask, train.values - mean, 0.0).double()
    lag = (train.grid.unsqueeze(-1) - train.grid.unsqueeze(-2)).abs().unsqueeze(1)
    x = 5**0.5 / lengthscale.view(-1, 1, 1) * lag
    kernel = (1 + x + x * x / 3) * (-x).exp()  # (series, component, time, time)
    weight = train.mask.mT.double()
    seen = kernel * weight.unsqueeze(-1) * weight.unsqueeze(-2)
    power, vectors = torch.linalg.eigh(seen)
    power = power.clamp_min(0)
    energy = (vectors.mT @ centred.mT.unsqueeze(-1)).squeeze(-1).square()
    spectrum = AMPLITUDES.square()[:, None, None, None] * power + 1  # noise is 1 here
    fit = -0.5 * (spectrum.log() + energy / noise_scale.square().view(-1, 1) / spectrum)
    ratio = AMPLITUDES[fit.sum((1, 3)).argmax(0)].view(-1, 1).square()  # (component, 1)
    cross = (kernel * weight.unsqueeze(-2)) @ vectors
    explained = (cross.square() * (ratio / (ratio * power + 1)).unsqueeze(-2)).sum(-1)
    variance = noise_scale.view(-1, 1).square() * ratio * (1 - explained).clamp_min(0)
    return variance.sqrt().mT


def _whole(part: Tensor, target: Target, window: slice) -> Tensor:
    """What is known of some times, NaN at the others."""
    out = torch.full_like(target.truth, torch.nan)
    out[:, window] = part.to(out)
    return out


# ---- laws of values ------------------------------------------------------------------------------
def persistence(task: Task, size: Size) -> Outcome:
    """The last value of each series, as a random walk: a forecast only."""
    begin = time.perf_counter()
    path = _forecast("random_walk", task.train, task.target, slice(task.num_train, None))
    seconds = time.perf_counter() - begin
    new_series = _forecast("random_walk", task.given, task.new_series, slice(NUM_GIVEN, None))
    return Outcome(seconds, path, new_series)


def ar2(task: Task, size: Size) -> Outcome:
    """AR(2) per component, pooled over the series: a forecast only, of regular complete series."""
    begin = time.perf_counter()
    path = _forecast("ar2", task.train, task.target, slice(task.num_train, None))
    return Outcome(time.perf_counter() - begin, path)


def _forecast(name: str, data: bo.Trajectories, target: Target, window: slice) -> Scored:
    law = baselines(data, data.at(target.new.times[..., window]))[name]
    mean, sd = (_whole(part, target, window) for part in (law.loc, law.scale))
    return score_normal(mean, None, sd, target)


def climatology(task: Task, size: Size) -> Outcome:
    """Mean and sd of all training values, at all times."""
    begin = time.perf_counter()
    law = baselines(task.train, task.train.at(task.target.new.times))["climatology"]
    seconds = time.perf_counter() - begin

    def scored(target: Target) -> Scored:
        shape = target.truth.shape
        mean, sd = (part[:1, :1].double().expand(shape) for part in (law.loc, law.scale))
        return score_normal(mean, None, sd, target)

    return Outcome(seconds, scored(task.target), scored(task.new_series))


RIVALS: dict[str, Method] = {
    "lm": least_squares_of_networks(1),
    "lm-ensemble": least_squares_of_networks(NUM_MEMBERS),
    "plain-pyro": plain_pyro,
    "gp-smoother": gp_smoother,
    "right-equations": right_equations,
    "persistence": persistence,
    "mean": climatology,
}
