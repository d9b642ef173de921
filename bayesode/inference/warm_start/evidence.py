"""Noise scales and the evidence of a trajectory fit, by Laplace's approximation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesode.errors import FitError
from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.levenberg_marquardt import Point, levenberg_marquardt
from bayesode.inference.warm_start.problem import FitData, PathProblem

MAX_ROUNDS, TOLERANCE = 12, 0.02  # of the logarithm of a noise scale
SMALLEST_SHARE = 0.1  # of the observations that always count as degrees of freedom
SMALLEST_NOISE = 0.005  # of a data sd


@dataclass(frozen=True, eq=False)
class Covariance:
    """Posterior covariance of weights and initial states: an arrow, never a dense matrix.

    Args:
        weights: Shape (weight, weight).
        states: Of each x0, shape (series, state, state).
        cross: Between x0 and weights, shape (series, state, weight).
        log_determinant: Of the precision matrix.
    """

    weights: Tensor
    states: Tensor
    cross: Tensor
    log_determinant: float

    @classmethod
    def of(cls, system: BorderedChain) -> Covariance:
        """The inverse of normal equations with one knot per series.

        Raises:
            FitError: If the matrix is not positive definite.
        """
        own, border = torch.linalg.cholesky(system.diagonal[:, 0]), system.border[:, 0]
        solved = torch.cholesky_solve(border, own)  # (series, state, weight)
        schur = system.corner - (border.mT @ solved).sum(0)
        factor, info = torch.linalg.cholesky_ex((schur + schur.mT) / 2)
        if int(info) != 0:
            raise FitError(
                "the curvature of the fit is not positive: the weights are not determined and the "
                "prior is too wide. Lower prior_scale or the width."
            )
        weights = torch.cholesky_inverse(factor)
        cross = -solved @ weights
        inverse = torch.cholesky_inverse(own)
        diagonals = [torch.diagonal(f, dim1=-2, dim2=-1).log().sum() for f in (own, factor)]
        return cls(weights, inverse - cross @ solved.mT, cross, 2 * float(sum(diagonals)))

    def along(self, by_weights: Tensor, by_x0: Tensor) -> Tensor:
        """Variances of linear functions of weights and x0.

        Args:
            by_weights: Derivatives, shape (series, *, weight).
            by_x0: Derivatives, shape (series, *, state).

        Returns:
            Shape (series, *).
        """
        shape = by_weights.shape[:-1]
        w, x = by_weights.flatten(1, -2), by_x0.flatten(1, -2)
        variance = ((w @ self.weights + 2 * x @ self.cross) * w).sum(-1)
        return (variance + ((x @ self.states) * x).sum(-1)).view(shape).clamp_min(0)


@dataclass(frozen=True, eq=False)
class LaplaceFit:
    """A converged fit with its noise scales and log evidence.

    Args:
        point: Weights and x0.
        noise_scale: Per component, dimensionless: residual over (observations - leverage).
        covariance: Of weights and x0.
        leverage: Effective number of fitted numbers per component.
        log_evidence: In nats, in dimensionless units.
        num_rounds: Rounds of fit and noise that were needed.
    """

    point: Point
    noise_scale: Tensor
    covariance: Covariance
    leverage: Tensor
    log_evidence: float
    num_rounds: int


def fit_noise(data: FitData, point: Point, noise_scale: Tensor) -> LaplaceFit:
    """Fit and noise scales that agree with each other.

    Args:
        data: The fit.
        point: Weights and x0 near the optimum.
        noise_scale: First guess per component, dimensionless.

    Source: MacKay (1992), "A practical Bayesian framework for backpropagation networks".
    """
    count = data.mask.sum((0, 1))
    damping = 1e-3
    for num_rounds in range(1, MAX_ROUNDS + 1):
        problem = PathProblem(data, noise_scale)
        found = levenberg_marquardt(
            problem, point, max_iterations=5, tolerance=1e-5, damping=max(damping, 1e-5)
        )
        point, damping = found.point, found.damping
        covariance = Covariance.of(problem.linearise(point))
        path, by_weights, by_x0 = data.sensitivities(point)
        size = data.response.shape[-1]
        variance = covariance.along(by_weights[:, :, :size], by_x0[:, :, :size])
        leverage = torch.where(data.mask, variance, 0.0).sum((0, 1)) / noise_scale.square()
        freedom = (count - leverage).maximum(SMALLEST_SHARE * count)
        fresh = data.residual_scale(path) * (count / freedom).sqrt()
        fresh = fresh.clamp_min(SMALLEST_NOISE)
        change = (fresh / noise_scale).log().abs().max()
        if change < TOLERANCE or num_rounds == MAX_ROUNDS:
            break
        noise_scale = fresh
    evidence = _log_evidence(data, found.cost, noise_scale, covariance)
    return LaplaceFit(point, noise_scale, covariance, leverage, evidence, num_rounds)


def _log_evidence(data: FitData, cost: float, noise_scale: Tensor, covariance: Covariance) -> float:
    """Log of the integral of exp(-cost / 2), with all constants of likelihood and priors."""
    count = data.mask.sum((0, 1))
    likelihood = -(count * (noise_scale.log() + math.log(2 * math.pi) / 2)).sum()
    num_series = len(data.response)
    priors = -data.field.sd.log().sum() - num_series * data.x0_sd.log().sum()
    return float(-cost / 2 + likelihood + priors - covariance.log_determinant / 2)
