"""Inverses of normal equations: joint covariances of weights and states, never dense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesode.errors import FitError
from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.chains import ChainFactor

JITTERS = (0.0, 1e-12, 1e-10, 1e-8)  # relative to the diagonal


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
        """The inverse of normal equations, of the first knot of each series.

        Raises:
            FitError: If the matrix is not positive definite.
        """
        return ChainCovariance.of(system).first

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
        weights = sample_normal(self.weights, num_draws)
        own = torch.randn(num_draws, *self.own.shape[:2]).to(self.own)
        own = (torch.linalg.cholesky(self.own) @ own.unsqueeze(-1)).squeeze(-1)
        return weights, torch.einsum("nsp,dp->dns", self.gain, weights) + own

    def rows(self, index: Tensor) -> Covariance:
        """The covariance of the weights and of some series."""
        return Covariance(self.weights, self.gain[index], self.own[index], self.log_determinant)


@dataclass(frozen=True, eq=False)
class ChainCovariance:
    """Posterior covariance of weights w and chains of states z = gain w + e.

    Args:
        weights: Covariance of w, shape (weight, weight).
        gain: Shape (series, knot, state, weight).
        chain: Of e, independent between series.
        log_determinant: Of the joint precision matrix.
    """

    weights: Tensor
    gain: Tensor
    chain: ChainFactor
    log_determinant: float = 0.0

    @classmethod
    def of(cls, system: BorderedChain) -> ChainCovariance:
        """The inverse of normal equations.

        Raises:
            FitError: If the matrix is not positive definite.
        """
        chain = factor_chain(system)
        solved = chain.solve(system.border)
        schur = system.corner - system.border.flatten(0, 2).mT @ solved.flatten(0, 2)
        factor = _factor((schur + schur.mT) / 2)
        own = 2 * factor.diagonal().log().sum().item()
        return cls(torch.cholesky_inverse(factor), -solved, chain, chain.log_determinant + own)

    @property
    def first(self) -> Covariance:
        """The joint covariance of the weights and the first state of each series."""
        own = self.chain.own[:, 0]
        return Covariance(self.weights, self.gain[:, 0], own, self.log_determinant)

    def of_states(self) -> Tensor:
        """Variances of all states, shape (series, knot, state)."""
        own = self.chain.blocks().diagonal(dim1=-2, dim2=-1)
        return own + variance_along(self.weights, self.gain)

    def of_misses(self, by_weights: Tensor, by_states: Tensor) -> Tensor:
        """Variances of z_{k+1} - F_z z_k - F_w w, shape (series, knot - 1, state).

        Args:
            by_weights: F_w, shape (series, knot - 1, state, weight).
            by_states: F_z, shape (series, knot - 1, state, state).
        """
        excess = self.chain.links - by_states
        own = self.chain.own[:, 1:] + excess @ self.chain.blocks()[:, :-1] @ excess.mT
        along = self.gain[:, 1:] - by_states @ self.gain[:, :-1] - by_weights
        return own.diagonal(dim1=-2, dim2=-1) + variance_along(self.weights, along)


def factor_chain(system: BorderedChain) -> ChainFactor:
    """The states of normal equations given the weights.

    Raises:
        FitError: If the matrix is not positive definite.
    """
    scale = system.diagonal.diagonal(dim1=-2, dim2=-1)
    for jitter in JITTERS:  # rounding may take the last bit of positivity
        raised = system.diagonal + torch.diag_embed(jitter * scale)
        chain = ChainFactor.of(raised, system.upper)
        if chain is not None:
            return chain
    raise _not_positive()


def variance_along(covariance: Tensor, directions: Tensor) -> Tensor:
    """Variances of linear functions (*, weight) of numbers with a covariance, shape (*)."""
    flat = directions.flatten(0, -2)
    return ((flat @ covariance) * flat).sum(-1).view(directions.shape[:-1])


def sample_normal(covariance: Tensor, num_draws: int) -> Tensor:
    """Draws of N(0, covariance), shape (draws, number)."""
    white = torch.randn(num_draws, len(covariance)).to(covariance)
    return white @ torch.linalg.cholesky(covariance).mT


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
    raise _not_positive()


def _not_positive() -> FitError:
    return FitError(
        "the curvature of the fit is not positive: the weights are not determined and the prior is "
        "too wide, or paths explode. Lower prior_scale or the width."
    )
