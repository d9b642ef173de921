"""Noise scales and the evidence of a trajectory fit, by Laplace's approximation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesode.errors import FitError
from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import Point, levenberg_marquardt
from bayesode.inference.warm_start.problem import PathProblem

MAX_ROUNDS, TOLERANCE = 12, 0.02  # of the logarithm of a noise scale
PRIOR_SHARE = 0.3  # of a change of a log prior precision in the test of convergence
JITTERS = (0.0, 1e-12, 1e-10, 1e-8)  # relative to the diagonal
PRECISIONS = (1e-3, 1e3)  # bounds of tuned prior precisions


@dataclass(frozen=True, eq=False)
class Covariance:
    """Posterior covariance of weights w and initial states x: an arrow, never a dense matrix.

    x = gain w + e with e of covariance `own`, independent between series.

    Args:
        weights: Covariance of w, shape (weight, weight).
        gain: Shape (series, state, weight).
        own: Shape (series, state, state).
        log_determinant: Of the joint precision matrix.
    """

    weights: Tensor
    gain: Tensor
    own: Tensor
    log_determinant: float = 0.0

    @classmethod
    def of(cls, system: BorderedChain) -> Covariance:
        """The inverse of normal equations with one knot per series.

        Raises:
            FitError: If the matrix is not positive definite.
        """
        own = _factor(system.diagonal[:, 0])
        solved = torch.cholesky_solve(system.border[:, 0], own)  # (series, state, weight)
        schur = system.corner - (system.border[:, 0].mT @ solved).sum(0)
        factor = _factor((schur + schur.mT) / 2)
        log_determinant = sum(
            2 * f.diagonal(dim1=-2, dim2=-1).log().sum().item() for f in (own, factor)
        )
        inverse = torch.cholesky_inverse(factor)
        return cls(inverse, -solved, torch.cholesky_inverse(own), log_determinant)

    def along(self, by_weights: Tensor, by_x0: Tensor) -> Tensor:
        """Variances of linear functions of weights and x0.

        Args:
            by_weights: Derivatives, shape (series, *, weight).
            by_x0: Derivatives, shape (series, *, state).

        Returns:
            Shape (series, *).
        """
        w, x = by_weights.flatten(1, -2), by_x0.flatten(1, -2)
        whole = w + x @ self.gain
        variance = ((whole @ self.weights) * whole).sum(-1) + ((x @ self.own) * x).sum(-1)
        return variance.view(by_weights.shape[:-1])

    def sample(self, num_draws: int) -> tuple[Tensor, Tensor]:
        """Deviations of weights (draws, weight) and of x0 (draws, series, state)."""
        noise = torch.randn(num_draws, len(self.weights)).to(self.weights)
        weights = noise @ torch.linalg.cholesky(self.weights).mT
        own = torch.randn(num_draws, *self.own.shape[:2]).to(self.own)
        own = (torch.linalg.cholesky(self.own) @ own.unsqueeze(-1)).squeeze(-1)
        return weights, torch.einsum("nsp,dp->dns", self.gain, weights) + own

    def rows(self, index: Tensor) -> Covariance:
        """The covariance of the weights and of some series."""
        return Covariance(self.weights, self.gain[index], self.own[index], self.log_determinant)


def _factor(matrix: Tensor) -> Tensor:
    """Cholesky factors; rounding may take the last bit of positivity from what no datum determines.

    Raises:
        FitError: If more than rounding is missing.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    for jitter in JITTERS:
        raised = matrix + torch.diag_embed(jitter * diagonal)
        factor, info = torch.linalg.cholesky_ex(raised)
        if not bool(info.any()):
            return factor
    raise FitError(
        "the curvature of the fit is not positive: the weights are not determined and the prior is "
        "too wide, or paths explode. Lower prior_scale or the width."
    )


@dataclass(frozen=True, eq=False)
class LaplaceFit:
    """A converged fit with its noise scales and log evidence.

    Args:
        data: The fit, with the prior scales that were found.
        point: Weights and x0.
        noise: The likelihood's own sites, unconstrained, see `Measurement`.
        covariance: Of weights and x0.
        freedom: Degrees of freedom of each noise scale.
        num_used: Effective number of fitted numbers.
        log_evidence: In nats, of the data in users' units.
        num_rounds: Rounds of fit and scales that were needed.
    """

    data: FitData
    point: Point
    noise: Tensor
    covariance: Covariance
    freedom: Tensor
    num_used: float
    log_evidence: float
    num_rounds: int


def fit_noise(data: FitData, point: Point, noise: Tensor, *, is_tuned: bool = False) -> LaplaceFit:
    """Fit, noise scales and prior scales that agree with each other.

    Args:
        data: The fit.
        point: Weights and x0 near the optimum.
        noise: First guess, unconstrained, see `Measurement`.
        is_tuned: Whether prior scales are set by the evidence too, for sites that allow it.

    Source: MacKay (1992), "A practical Bayesian framework for backpropagation networks", Neural
    Computation 4(3), section 2.
    """
    damping, num_rounds = 1e-3, 0
    while True:
        num_rounds += 1
        problem = PathProblem(data, noise)
        found = levenberg_marquardt(
            problem, point, max_iterations=5, tolerance=1e-5, damping=max(damping, 1e-5)
        )
        point, damping = found.point, found.damping
        path, by_weights, by_x0 = data.sensitivities(point, problem.path(point))
        covariance = Covariance.of(problem.assemble(point, path, by_weights, by_x0))
        variance = covariance.along(by_weights, by_x0)
        information = data.measurement.information(path, noise)
        size = data.measurement.response.shape[-1]
        fresh, freedom, _ = data.measurement.better_noise(path, noise, variance[:, 1:, :size])
        sd = _tuned_sd(data, point, covariance) if is_tuned else data.field.sd
        changes = [(fresh - noise).abs(), PRIOR_SHARE * 2 * (sd / data.field.sd).log().abs()]
        if torch.cat(changes).max() < TOLERANCE or num_rounds == MAX_ROUNDS:
            used = float((variance * information).sum())
            evidence = _log_evidence(problem, found.cost, covariance)
            return LaplaceFit(data, point, noise, covariance, freedom, used, evidence, num_rounds)
        noise, data = fresh, replace(data, field=replace(data.field, sd=sd))


def _tuned_sd(data: FitData, point: Point, covariance: Covariance) -> Tensor:
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


def _log_evidence(problem: PathProblem, cost: float, covariance: Covariance) -> float:
    """Log of the integral of exp(-cost / 2), with all constants of likelihood and priors."""
    data = problem.data
    priors = -data.field.sd.log().sum() - data.x0_sd.log().sum()
    return float(problem.best - cost / 2 + priors - covariance.log_determinant / 2)
