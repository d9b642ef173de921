"""Chains of normal states: block-tridiagonal precision matrices, all series at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ChainFactor:
    """A factored block-tridiagonal matrix H; as a precision, the Markov chain that it stands for.

    Knots are eliminated from the last to the first, so that a state given the one before it is
    x_{k+1} = link_k x_k + noise: draws run forward in time.

    Args:
        pivots: Cholesky factors of the precisions of these noises, (series, knot, state, state).
        links: Shape (series, knot - 1, state, state).
    """

    pivots: Tensor
    links: Tensor

    @classmethod
    def of(cls, diagonal: Tensor, upper: Tensor) -> ChainFactor | None:
        """The factor of a matrix, None if it is not positive definite.

        Args:
            diagonal: Shape (series, knot, state, state).
            upper: Blocks between a knot and the next, shape (series, knot - 1, state, state).
        """
        factor, info = torch.linalg.cholesky_ex(diagonal[:, -1])
        factors, links, problems = [factor], [], [info]
        blocks, offs = diagonal.unbind(1), upper.unbind(1)
        for block, off in zip(blocks[-2::-1], offs[::-1], strict=True):
            link = torch.cholesky_solve(off.mT, factors[-1]).neg_()
            factor, info = torch.linalg.cholesky_ex(torch.baddbmm(block, off, link))
            factors.append(factor)
            links.append(link)
            problems.append(info)
        if bool(torch.stack(problems).any()):
            return None
        stacked = torch.stack(links[::-1], 1) if links else upper
        return cls(torch.stack(factors[::-1], 1), stacked)

    def solve(self, right: Tensor) -> Tensor:
        """H^-1 right, shape (series, knot, state, column)."""
        return self.run(self.noise_of(right))

    def noise_of(self, right: Tensor) -> Tensor:
        """The noise with which the chain runs through H^-1 right, shaped like it."""
        column = right[:, -1]
        columns, links = [column], self.links.unbind(1)
        for own, link in zip(right.unbind(1)[-2::-1], links[::-1], strict=True):
            column = torch.baddbmm(own, link.mT, column)
            columns.append(column)
        return torch.cholesky_solve(torch.stack(columns[::-1], 1), self.pivots)

    def run(self, noise: Tensor) -> Tensor:
        """The chain x_0 = noise_0, x_{k+1} = link_k x_k + noise_{k+1}, (series, knot, state, *)."""
        first, *others = noise.unbind(1)
        states = [first]
        for link, own in zip(self.links.unbind(1), others, strict=True):
            states.append(torch.baddbmm(own, link, states[-1]))
        return torch.stack(states, 1)

    def sample(self, num_draws: int, first: Tensor | None = None) -> Tensor:
        """Draws of N(0, H^-1), shape (draws, series, knot, state).

        Args:
            num_draws: How many.
            first: States of the first knot (draws, series, state), if they are known.
        """
        num_series, num_knots, num_states = self.pivots.shape[:3]
        size = (num_series, num_states, num_draws)
        # knot by knot, so that a chain that goes on for longer begins with the same draws
        white = [
            torch.randn(size, dtype=self.pivots.dtype).to(self.pivots) for _ in range(num_knots)
        ]
        own = torch.linalg.solve_triangular(self.pivots.mT, torch.stack(white, 1), upper=True)
        if first is not None:
            own = torch.cat([first.movedim(0, -1).unsqueeze(1), own[:, 1:]], 1)
        return self.run(own).movedim(-1, 0)

    @property
    def own(self) -> Tensor:
        """Covariance of each knot's noise given the knot before, (series, knot, state, state)."""
        return torch.cholesky_inverse(self.pivots)

    def blocks(self) -> Tensor:
        """Diagonal blocks of H^-1, shape (series, knot, state, state)."""
        first, *others = self.own.unbind(1)
        found = [first]
        for link, own in zip(self.links.unbind(1), others, strict=True):
            found.append(own + link @ found[-1] @ link.mT)
        return torch.stack(found, 1)

    @property
    def log_determinant(self) -> float:
        """Of H."""
        return 2 * self.pivots.diagonal(dim1=-2, dim2=-1).log().sum().item()
