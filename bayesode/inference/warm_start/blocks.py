"""Linear systems of a Gauss-Newton step: chains of states with a dense border of weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def solve(self, damping: float = 0.0) -> tuple[Tensor, Tensor] | None:
        """Weights and states that solve (H + damping diag H) x = rhs; None if H is not positive.

        The states are eliminated block by block, the cost is linear in the number of knots.
        """
        diagonal = _damped(self.diagonal, damping)
        right = torch.cat([self.border, self.states.unsqueeze(-1)], -1)
        solved = solve_chain(diagonal, self.upper, right)
        if solved is None:
            return None
        towards, own = solved[..., :-1], solved[..., -1]
        border = self.border.flatten(0, 2)
        schur = _damped(self.corner, damping) - border.mT @ towards.flatten(0, 2)
        factor, info = torch.linalg.cholesky_ex((schur + schur.mT) / 2)
        if int(info) != 0:
            return None
        rest = self.weights - border.mT @ own.flatten()
        weights = torch.cholesky_solve(rest.unsqueeze(-1), factor).squeeze(-1)
        return weights, own - towards @ weights


def solve_chain(diagonal: Tensor, upper: Tensor, right: Tensor) -> Tensor | None:
    """Solution of symmetric block-tridiagonal systems, all series at once.

    Args:
        diagonal: Shape (series, knot, state, state).
        upper: Shape (series, knot - 1, state, state).
        right: Shape (series, knot, state, column).

    Returns:
        Shape of `right`, or None if a block is not positive definite.
    """
    factors, rights = [], []
    pivot, column = diagonal[:, 0], right[:, 0]
    for knot in range(diagonal.shape[1]):
        if knot > 0:
            off = upper[:, knot - 1]
            both = torch.cat([off, rights[-1]], -1)
            both = off.mT @ torch.cholesky_solve(both, factors[-1])
            size = off.shape[-1]
            pivot = diagonal[:, knot] - both[..., :size]
            column = right[:, knot] - both[..., size:]
        factor, info = torch.linalg.cholesky_ex(pivot)
        if bool(info.any()):
            return None
        factors.append(factor)
        rights.append(column)
    solution = [torch.cholesky_solve(rights[-1], factors[-1])]
    for knot in range(diagonal.shape[1] - 2, -1, -1):
        rest = rights[knot] - upper[:, knot] @ solution[-1]
        solution.append(torch.cholesky_solve(rest, factors[knot]))
    return torch.stack(solution[::-1], 1)


def _damped(block: Tensor, damping: float) -> Tensor:
    return block + torch.diag_embed(damping * block.diagonal(dim1=-2, dim2=-1))
