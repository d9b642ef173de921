"""Linear systems of a Gauss-Newton step: chains of states with a dense border of weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesode.inference.warm_start.chains import ChainFactor


@dataclass(frozen=True, eq=False)
class BorderedChain:
    """Normal equations of weights and of per-series chains of states.

    Args:
        diagonal: Blocks of the states, shape (series, knot, state, state).
        upper: Blocks between a knot and the next, shape (series, knot - 1, state, state).
        border: Blocks between states and weights, shape (series, knot, state, weight).
        corner: Block of the weights, shape (weight, weight).
        states: Right-hand side of the states, shape (series, knot, state).
        weights: Right-hand side of the weights, shape (weight,).
    """

    diagonal: Tensor
    upper: Tensor
    border: Tensor
    corner: Tensor
    states: Tensor
    weights: Tensor

    @classmethod
    def without_states(cls, corner: Tensor, weights: Tensor) -> BorderedChain:
        """The system of weights alone."""
        none = weights.new_zeros
        diagonal, upper, border = none(0, 1, 1, 1), none(0, 0, 1, 1), none(0, 1, 1, len(weights))
        return cls(diagonal, upper, border, corner, none(0, 1, 1), weights)

    def solve(self, damping: float = 0.0) -> tuple[Tensor, Tensor] | None:
        """Weights and states that solve (H + damping diag H) x = rhs; None if H is not positive.

        The states are eliminated block by block, the cost is linear in the number of knots.
        """
        chain = ChainFactor.of(_damped(self.diagonal, damping), self.upper)
        if chain is None:
            return None
        solved = chain.solve(torch.cat([self.border, self.states.unsqueeze(-1)], -1))
        towards, own = solved[..., :-1], solved[..., -1]
        border = self.border.flatten(0, 2)
        schur = _damped(self.corner, damping) - border.mT @ towards.flatten(0, 2)
        factor, info = torch.linalg.cholesky_ex((schur + schur.mT) / 2)
        if int(info) != 0:
            return None
        rest = self.weights - border.mT @ own.flatten()
        weights = torch.cholesky_solve(rest.unsqueeze(-1), factor).squeeze(-1)
        return weights, own - towards @ weights


def _damped(block: Tensor, damping: float) -> Tensor:
    return block + torch.diag_embed(damping * block.diagonal(dim1=-2, dim2=-1))
