"""Noise grids that pass through the times of a fit and of a question."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesode.models.solvers.grid import substeps

SAME_TIME = 1e-9  # relative distance at which two times are one


@dataclass(frozen=True, eq=False)
class QuestionGrid:
    """Each series' own knots: its start, then the asked times, with steps no longer than allowed.

    Args:
        start: Shape (series,).
        times: Of the knots after the start, shape (series, knot), padded with the last one.
        reached: Number of the knot at each asked time, the start being 0, (series, asked).
    """

    start: Tensor
    times: Tensor
    reached: Tensor

    @classmethod
    def of(cls, start: Tensor, asked: Tensor, longest: float | None = None) -> QuestionGrid:
        """The grid through asked times.

        Args:
            start: Shape (series,).
            asked: Shape (series, asked), none before the start, in any order, also repeated.
            longest: Largest step; by default no further knots are added.
        """
        ordered, order = asked.sort(-1)
        merged = _merged(torch.cat([start.unsqueeze(-1), ordered], -1))[:, 1:]
        most = torch.cat([start.unsqueeze(-1), merged], -1).diff().max().item()
        lengths, begins, reached = substeps(start, merged, longest or most or 1.0)
        times = begins + lengths
        # exactly the asked times, not their sums of steps
        padded = torch.cat([start.unsqueeze(-1), times], -1).scatter(-1, reached, merged)
        rank = order.argsort(-1)
        return cls(start, padded[:, 1:], reached.gather(-1, rank))

    @property
    def begins(self) -> Tensor:
        """Times at which the intervals begin, shape (series, knot)."""
        return torch.cat([self.start.unsqueeze(-1), self.times[:, :-1]], -1)

    @property
    def longest(self) -> float:
        """Longest interval."""
        return (self.times - self.begins).max().item() if self.times.numel() else 0.0


def _merged(times: Tensor) -> Tensor:
    """Sorted times in which those that differ by rounding alone are equal."""
    slack = SAME_TIME * (1 + times.abs().amax(-1, keepdim=True))
    is_new = torch.nn.functional.pad(times.diff(dim=-1), (1, 0), value=torch.inf) > slack
    place = torch.arange(times.shape[-1], device=times.device).expand_as(times)
    first = torch.where(is_new, place, 0).cummax(-1).values
    return times.gather(-1, first)
