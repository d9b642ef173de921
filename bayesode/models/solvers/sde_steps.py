"""Single steps of stochastic methods, and the grids that they walk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesode.models.contracts import SDE, rate_of
from bayesode.models.solvers.fixed_grid import FixedGridSolver, inside
from bayesode.models.solvers.grid import substeps

# State right before a noise step -> increment of the Brownian motion, shaped like the state.
Kick = Callable[[Tensor], Tensor]
# State after the step, whether it stayed inside the bound on the way, and how often the drift was
# evaluated.
Moved = tuple[Tensor, Tensor, int]


@dataclass(frozen=True, eq=False)
class Interval:
    """One noise step of all series: its begin and length, (series, 1), and its drift steps.

    Args:
        begin: Time at which it begins, shape (series, 1).
        length: Shape (series, 1).
        drift_begins: Shape (series, substep).
        drift_lengths: Shape (series, substep).
    """

    begin: Tensor
    length: Tensor
    drift_begins: Tensor
    drift_lengths: Tensor


@dataclass(frozen=True, eq=False)
class NoiseGrid:
    """Each series' own noise steps; shorter lists are filled up with steps of length 0.

    Args:
        begins: Times at which they begin, shape (series, steps).
        lengths: Shape (series, steps).
        reached: Number of noise steps before each point that the grid was laid through, shape
            (series, time).
    """

    begins: Tensor
    lengths: Tensor
    reached: Tensor

    @property
    def num_steps(self) -> int:
        """Of the longest series."""
        return self.lengths.shape[-1]

    def intervals(self, step: float, dtype: torch.dtype) -> list[Interval]:
        """The noise steps one by one, each cut into drift steps no longer than `step`."""
        shape, ends = self.lengths.shape, self.begins + self.lengths
        if not self.num_steps:
            return []
        # each interval of each series is cut on its own: no series sees its batch-mates' steps
        lengths, begins, reached = substeps(self.begins.flatten(), ends.reshape(-1, 1), step)
        counts = reached.view(shape).amax(0).tolist()
        lengths, begins = lengths.view(*shape, -1), begins.view(*shape, -1)
        return [
            Interval(
                self.begins[:, k, None].to(dtype),
                self.lengths[:, k, None].to(dtype),
                begins[:, k, :count],
                lengths[:, k, :count],
            )
            for k, count in enumerate(counts)
        ]


def _split(solver: FixedGridSolver, sde: SDE, x: Tensor, interval: Interval, kick: Kick) -> Moved:
    states, is_inside = solver.walk(sde.drift, x, interval.drift_begins, interval.drift_lengths)
    y = states[-1]
    moved = y + sde.diffusion(interval.begin + interval.length, y) * kick(y)
    return moved, is_inside, 4 * interval.drift_lengths.shape[-1]


def _euler(solver: FixedGridSolver, sde: SDE, x: Tensor, interval: Interval, kick: Kick) -> Moved:
    t, h = interval.begin, interval.length
    moved = x + h * rate_of(sde.drift, t, x) + sde.diffusion(t, x) * kick(x)
    return moved, _everywhere(moved), 1


def _heun(solver: FixedGridSolver, sde: SDE, x: Tensor, interval: Interval, kick: Kick) -> Moved:
    t, h = interval.begin, interval.length
    noise, first = sde.diffusion(t, x) * kick(x), rate_of(sde.drift, t, x)
    second = sde.drift(t + h, inside(x + h * first + noise, solver.max_state))
    moved = x + h / 2 * (first + second) + noise
    return moved, _everywhere(moved), 2


def _milstein(
    solver: FixedGridSolver, sde: SDE, x: Tensor, interval: Interval, kick: Kick
) -> Moved:
    t, h = interval.begin, interval.length
    brownian, (g, slope) = kick(x), sde.diffusion.with_slope(t, x)
    noise = g * brownian + g * slope * (brownian.square() - h) / 2
    moved = x + h * rate_of(sde.drift, t, x) + noise
    return moved, _everywhere(moved), 1


def _everywhere(x: Tensor) -> Tensor:
    return torch.ones_like(x[..., :1], dtype=torch.bool)


# (solver of the drift, SDE, x, interval, kick) -> Moved
METHODS = {"split": _split, "euler": _euler, "heun": _heun, "milstein": _milstein}
