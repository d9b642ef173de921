"""Noise scales and the evidence of a trajectory fit, by Laplace's approximation."""

from __future__ import annotations

from collections.abc import Sequence
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
PROBE = 0.1  # step of the logarithms of scales in differences
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

    is_vanishing: Any  # which of the scales may be none at all, booleans
    num_free: Any  # of the scales, from the first one on, that are not fixed
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
        stride: Largest factor by which steps of scales that may vanish are lengthened where they
            keep their direction: towards nothing they are short and many.
    """

    most: int = MAX_ROUNDS
    first: int = 5
    later: int = 5
    tolerance: float = 1e-5
    damping: float = 1e-3
    last: int = 0
    stride: float = 1.0


@dataclass(frozen=True, eq=False)
class LaplaceFit:
    """A converged fit with its noise scales and log evidence.

    Args:
        problem: The fit, with the prior scales and noise scales that were found.
        point: Weights and x0.
        covariance: Of weights and states.
        freedom: Degrees of freedom of each noise scale.
        num_used: Effective number of fitted numbers.
        log_evidence: In nats, of the data in users' units; noise scales are integrated over,
            prior scales of weights are not.
        num_rounds: Rounds of fit and scales that were needed.
    """

    problem: Any
    point: Point
    covariance: Any
    freedom: Tensor
    num_used: float
    log_evidence: float
    num_rounds: int

    @property
    def data(self) -> FitData:
        """The fit with the prior scales that were found."""
        return self.problem.data

    @property
    def noise(self) -> Tensor:
        """The noise scales, unconstrained: those of the likelihood, then of the process."""
        return self.problem.noise

    @property
    def is_singular(self) -> bool:
        """Whether the measurement noise of a component has collapsed."""
        measurement = self.data.measurement
        return measurement.is_singular(self.noise[: len(measurement.sites.mean)])


def best_of(fits: Sequence[LaplaceFit]) -> LaplaceFit:
    """The fit of largest evidence.

    One whose measurement noise has collapsed comes after all others: random paths can go through
    the values themselves, and how likely that is no curvature tells.
    """
    return max(fits, key=lambda fit: (not fit.is_singular, fit.log_evidence))


def fit_noise(data: FitData, point: Point, noise: Tensor, *, is_tuned: bool = False) -> LaplaceFit:
    """Fit of a path, noise scales and prior scales that agree with each other.

    Args:
        data: The fit.
        point: Weights and x0 near the optimum.
        noise: First guess, unconstrained, see `Measurement`.
        is_tuned: Whether prior scales are set by the evidence too, for sites that allow it.
    """
    return fit_scales(PathProblem(data, noise), point, is_tuned=is_tuned)


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
        longer = _lengthened(step, before, rounds.stride)
        noise = problem.noise + torch.where(problem.is_vanishing, longer, step)
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
    return LaplaceFit(
        problem,
        found.point,
        around.covariance,
        around.freedom,
        around.num_used,
        _log_evidence(problem, found.point, around),
        num_rounds,
    )


def with_open_scales(fit: LaplaceFit) -> LaplaceFit:
    """The fit with the joint volume of its noise scales, the fit following them.

    At a fixed fit their curvature is a little sharp, by a nat or so where little data leave them
    open by a factor, and by nothing where they are well known.
    """
    problem, curvature = fit.problem, _curvature(fit.problem, fit.point)
    if curvature is None:
        return fit
    variance = torch.linalg.inv(curvature).diagonal()
    freedom = torch.cat([1 / (2 * variance), fit.freedom[len(curvature) :]])
    change = problem.log_volume(freedom) - problem.log_volume(fit.freedom)
    joint = float(curvature.logdet() + variance.log().sum()) / 2  # scales hang together
    return replace(fit, freedom=freedom, log_evidence=fit.log_evidence + change - joint)


def _curvature(problem: NoisyProblem, point: Point) -> Tensor | None:
    """Of the log evidence along the scales that are not fixed; None if it is no maximum there."""

    def probed(step: Tensor) -> tuple[Tensor, Tensor]:
        """Slope there, and how far the scales have moved: some may be at their smallest."""
        moved = problem.at(problem.data, problem.noise + step)
        found = levenberg_marquardt(moved, point, max_iterations=5, tolerance=1e-9, damping=1e-4)
        return moved.around(found.point).slope, (moved.noise - problem.noise).sum()

    columns = []
    for step in PROBE * torch.eye(len(problem.noise)).to(point.states)[: problem.num_free]:
        (above, up), (below, down) = probed(step), probed(-step)
        columns.append((below - above) / (up - down))
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
