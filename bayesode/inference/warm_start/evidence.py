"""Noise scales and the evidence of a trajectory fit, by Laplace's approximation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import (
    LeastSquares,
    Minimum,
    Point,
    levenberg_marquardt,
)
from bayesode.inference.warm_start.problem import Around, PathProblem

MAX_ROUNDS, TOLERANCE = 12, 0.02  # of the logarithm of a noise scale
LARGEST_STRIDE = 1.0  # of the logarithm of a scale, where a step is lengthened
PRIOR_SHARE = 0.3  # of a change of a log prior precision in the test of convergence
PRECISIONS = (1e-3, 1e3)  # bounds of tuned prior precisions


class NoisyProblem(LeastSquares, Protocol):
    """A trajectory fit with noise scales, as one unconstrained vector."""

    @property
    def data(self) -> FitData:
        """The fit."""
        ...

    @property
    def noise(self) -> Tensor:
        """The scales."""
        ...

    best: Any  # log density at cost 0, a number; constants of priors left out

    def at(self, data: FitData, noise: Tensor) -> Any:
        """The same problem under other prior scales and another noise."""
        ...

    def around(self, point: Point) -> Around:
        """Covariance and better noise at the optimum."""
        ...

    def deviance(self, point: Point) -> float:
        """The cost without the volume of what is integrated out."""
        ...

    def log_volume(self, freedom: Tensor) -> float:
        """The share of the scales in the log evidence, given their degrees of freedom."""
        ...


@dataclass(frozen=True)
class Rounds:
    """How often fit and scales take turns, and how long each fit may take.

    Args:
        most: Largest number of rounds.
        first: Largest number of steps in the first round.
        later: In the others.
        tolerance: Relative decrease at which the steps of a round stop.
        damping: Of the first step.
        last: Largest number of steps, to rounding, once the scales are settled.
        stride: Largest factor by which a step of the scales is lengthened where steps keep their
            direction: towards a scale of nothing they are short and many.
        probe: Step of the logarithms of scales in the differences by which their joint curvature is
            found, the fit following; 0 takes the curvature at a fixed fit, which is a little sharp.
            It matters for the volume of scales that little data leave open.
    """

    most: int = MAX_ROUNDS
    first: int = 5
    later: int = 5
    tolerance: float = 1e-5
    damping: float = 1e-3
    last: int = 0
    stride: float = 1.0
    probe: float = 0.0


@dataclass(frozen=True, eq=False)
class LaplaceFit:
    """A converged fit with its noise scales and log evidence.

    Args:
        data: The fit, with the prior scales that were found.
        point: Weights and x0.
        noise: The noise scales, unconstrained: the likelihood's own sites, see `Measurement`, then
            those of process noise.
        covariance: Of weights and states.
        freedom: Degrees of freedom of each noise scale.
        num_used: Effective number of fitted numbers.
        log_evidence: In nats, of the data in users' units; noise scales are integrated over,
            prior scales of weights are not.
        num_rounds: Rounds of fit and scales that were needed.
    """

    data: FitData
    point: Point
    noise: Tensor
    covariance: Any
    freedom: Tensor
    num_used: float
    log_evidence: float
    num_rounds: int


def fit_noise(
    data: FitData,
    point: Point,
    noise: Tensor,
    *,
    is_tuned: bool = False,
    rounds: Rounds | None = None,
) -> LaplaceFit:
    """Fit of a path, noise scales and prior scales that agree with each other.

    Args:
        data: The fit.
        point: Weights and x0 near the optimum.
        noise: First guess, unconstrained, see `Measurement`.
        is_tuned: Whether prior scales are set by the evidence too, for sites that allow it.
        rounds: As in `fit_scales`.
    """
    return fit_scales(PathProblem(data, noise), point, is_tuned=is_tuned, rounds=rounds)


def fit_scales(
    problem: NoisyProblem, point: Point, *, is_tuned: bool = False, rounds: Rounds | None = None
) -> LaplaceFit:
    """A fit, noise scales and prior scales that agree with each other.

    Args:
        problem: With first guesses of the scales.
        point: Near the optimum.
        is_tuned: Whether prior scales are set by the evidence too, for sites that allow it.
        rounds: How long it may take.

    Source: MacKay (1992), "A practical Bayesian framework for backpropagation networks", Neural
    Computation 4(3), section 2.
    """
    rounds = rounds or Rounds()
    damping, num_rounds, num_steps = rounds.damping, 0, rounds.first
    before = torch.zeros_like(problem.noise)
    while True:
        num_rounds += 1
        found = levenberg_marquardt(
            problem,
            point,
            max_iterations=num_steps,
            tolerance=rounds.tolerance,
            damping=max(damping, 1e-5),
        )
        point, damping, num_steps = found.point, found.damping, rounds.later
        around, data = problem.around(point), problem.data
        sd = _tuned_sd(data, point, around.covariance) if is_tuned else data.field.sd
        step = around.noise - problem.noise
        changes = [step.abs()]
        changes.append(PRIOR_SHARE * 2 * (sd / data.field.sd).log().abs())
        if torch.cat(changes).max() < TOLERANCE or num_rounds == rounds.most:
            return _settled(problem, found, around, rounds, num_rounds)
        noise = problem.noise + _lengthened(step, before, rounds.stride)
        before = step
        problem = problem.at(replace(data, field=replace(data.field, sd=sd)), noise)


def _lengthened(step: Tensor, before: Tensor, most: float) -> Tensor:
    """Steps as if their ratio to the ones before stayed what it is (Aitken), in bounds."""
    ratio = torch.where(before != 0, step / before, 0.0).clamp(0, 1 - 1 / most)
    longer = (step / (1 - ratio)).clamp(-LARGEST_STRIDE, LARGEST_STRIDE)
    return torch.where(longer.abs() > step.abs(), longer, step)


def _settled(
    problem: NoisyProblem, found: Minimum, around: Around, rounds: Rounds, num_rounds: int
) -> LaplaceFit:
    """The fit for scales that change no more."""
    if rounds.last:
        problem = problem.at(problem.data, around.noise)
        found = levenberg_marquardt(
            problem, found.point, max_iterations=rounds.last, tolerance=1e-12, damping=1e-6
        )
        around = problem.around(found.point)
    freedom, evidence = around.freedom, _log_evidence(problem, found.point, around)
    curvature = _curvature(problem, found.point, rounds.probe) if rounds.probe else None
    if curvature is not None:
        free = len(curvature)
        variance = torch.linalg.inv(curvature).diagonal()
        freedom = torch.cat([1 / (2 * variance), freedom[free:]])
        evidence += problem.log_volume(freedom) - problem.log_volume(around.freedom)
        evidence -= float(curvature.logdet() + variance.log().sum()) / 2  # scales hang together
    return LaplaceFit(
        problem.data,
        found.point,
        problem.noise,
        around.covariance,
        freedom,
        around.num_used,
        evidence,
        num_rounds,
    )


def _curvature(problem: NoisyProblem, point: Point, probe: float) -> Tensor | None:
    """Of the log evidence along the scales that are not fixed; None if it is no maximum there."""

    def slope(step: Tensor) -> Tensor:
        moved = problem.at(problem.data, problem.noise + step)
        found = levenberg_marquardt(moved, point, max_iterations=5, tolerance=1e-9, damping=1e-4)
        return moved.around(found.point).slope

    free = len(problem.around(point).slope)
    steps = probe * torch.eye(len(problem.noise)).to(problem.noise)[:free]
    columns = [(slope(-step) - slope(step)) / (2 * probe) for step in steps]
    if not columns:
        return None
    curvature = (torch.stack(columns) + torch.stack(columns, 1)) / 2
    return None if int(torch.linalg.cholesky_ex(curvature).info) else curvature


def _tuned_sd(data: FitData, point: Point, covariance: Any) -> Tensor:
    """Prior sds by MacKay's fixed point, precision = (determined numbers) / (sum of squares)."""
    groups, sd = data.field.groups, data.field.sd
    sd_new = sd.clone()
    determined = 1 - covariance.weights.diagonal() / sd.square()
    squares = (point.weights - data.field.mean).square()
    for group in groups[groups >= 0].unique():
        chosen = groups == group
        precision = determined[chosen].sum().clamp_min(1e-3) / squares[chosen].sum().clamp_min(1e-8)
        sd_new[chosen] = precision.clamp(*PRECISIONS).rsqrt()
    return sd_new


def _log_evidence(problem: NoisyProblem, point: Point, around: Around) -> float:
    """Log of the integral of exp(-deviance / 2) over fit and noise scales, with all constants."""
    data, cost = problem.data, problem.deviance(point)
    priors = float(-data.field.sd.log().sum() - data.x0_sd.log().sum())
    fit = problem.best - cost / 2 + priors - around.covariance.log_determinant / 2
    return fit + problem.log_volume(around.freedom)
