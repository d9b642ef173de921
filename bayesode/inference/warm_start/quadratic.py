"""What a fit keeps of its data: their log likelihood to second order around the fitted states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Log likelihood of states near a fit, in the place of a `Measurement`.

    Args:
        center: Fitted states, shape (series, knot, state).
        slope: Of the log likelihood there, same shape.
        curvature: Information of the data, same shape, 0 where nothing was observed.
    """

    center: Tensor
    slope: Tensor
    curvature: Tensor

    def on(self, knots: Tensor, num_knots: int) -> Quadratic:
        """The same among further knots of which the data say nothing.

        Args:
            knots: New numbers of the knots, shape (series, knot).
            num_knots: New number of knots.
        """
        index = knots.unsqueeze(-1).expand_as(self.center)
        shape = (len(knots), num_knots, self.center.shape[-1])

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(shape).scatter_add(1, index, values)

        center = self.center.new_zeros(shape).scatter(1, index, self.center)
        return Quadratic(center, spread(self.slope), spread(self.curvature))

    def largest(self, noise: Tensor, size: int) -> float:
        """Reference of the log likelihood."""
        return 0.0

    def log_prob(self, path: Tensor, noise: Tensor) -> Tensor:
        """Log likelihood relative to the center, a scalar."""
        change = path - self.center
        return (self.slope * change - self.curvature * change.square() / 2).sum()

    def pull(self, path: Tensor, noise: Tensor) -> Tensor:
        """Slope of the log likelihood along a path, shaped like the path."""
        return self.slope - self.curvature * (path - self.center)

    def information(self, path: Tensor, noise: Tensor) -> Tensor:
        """Information about the states, shaped like the path."""
        return self.curvature


def held(states: Tensor, num_times: Tensor) -> Tensor:
    """Values (series, knot, *) whose padding repeats the last real knot, numbers (series,)."""
    knots = torch.arange(states.shape[1], device=states.device)
    index = knots.minimum(num_times.unsqueeze(-1)).unsqueeze(-1).expand_as(states)
    return states.gather(1, index)
