"""Paths that frames determine: at the frames, and nowhere between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesode.data_checks import check_positive
from bayesode.errors import DataError
from bayesode.models.contracts import Priors, Solution, Solver, VectorField
from bayesode.models.solvers.fixed_grid import FixedGridSolver

ON_A_FRAME = 1e-6  # of a gap: what rounding of times may move


@dataclass(frozen=True)
class OnFrames:
    """A solver that answers on the frame grid alone: start, start + gap, start + 2 gap, ...

    Frames at even gaps tell a motion up to whole turns between two of them: x' = 2 pi x per frame
    and a standstill give the same frames (aliasing). A field fitted to frames is right on their
    grid; what it says between them is one of many motions, and no data have chosen it.

    Args:
        solver: What solves.
        gap: Time between two frames, dimensionless.

    Raises:
        DataError: For a solver that is none, or a gap that is not positive.

    Example:
        >>> import torch
        >>> decay = VectorField(lambda t, x: -x)
        >>> solver = OnFrames(FixedGridSolver("rk4", step=0.1), gap=0.5)
        >>> solver(decay, torch.ones(1, 1), torch.zeros(1), torch.tensor([[0.5, 2.0]])).flatten()
        tensor([0.6065, 0.1353])
    """

    solver: Any
    gap: float = 1.0

    def __post_init__(self) -> None:
        check_positive(gap=self.gap)
        if not isinstance(self.solver, Solver) or isinstance(self.solver, type):
            raise DataError(f"solver={self.solver!r} is no solver; take FixedGridSolver(...).")

    @property
    def config(self) -> dict[str, object]:
        """Constructor arguments, of the solver its type and its own."""
        inner = {"type": type(self.solver).__name__} | getattr(self.solver, "config", {})
        return {"solver": inner, "gap": self.gap}

    @property
    def step(self) -> float:
        """Largest step of the solver; infinite if it has none."""
        return getattr(self.solver, "step", math.inf)

    @property
    def max_state(self) -> float:
        """Bound of the solver's paths; infinite if it has none."""
        return getattr(self.solver, "max_state", math.inf)

    def priors(self, start: Tensor, times: Tensor) -> Priors:
        """What is random in a path of the solver."""
        return self.solver.priors(start, times)

    def drift_solver(self) -> Any:
        """What moves a state between two times: the solver's own, or small steps."""
        return getattr(self.solver, "drift_solver", FixedGridSolver)()

    def solve(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Solution:
        """The path from x0 (*draws, series, state) at asked frames.

        Args:
            field: The drawn vector field.
            x0: Shape (*draws, series, state).
            start: Shape (series,), dimensionless.
            times: Shape (series, time), dimensionless, each a whole number of gaps after the start.
            noise: As of the solver.

        Raises:
            DataError: For a time between two frames.
        """
        self._check(start, times)
        return self.solver.solve(field, x0, start, times, **noise)

    def __call__(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Tensor:
        """The path of `solve`, shape (*draws, series, time, state)."""
        return self.solve(field, x0, start, times, **noise).path

    def _check(self, start: Tensor, times: Tensor) -> None:
        frames = (times - start.unsqueeze(-1)).to(torch.float64) / self.gap
        distance = (frames - frames.round()).abs()
        is_between = distance > ON_A_FRAME * (1 + frames.abs())
        if is_between.any():
            row, column = (int(i) for i in is_between.nonzero()[0])
            raise DataError(
                f"series {row} is asked {frames[row, column].item():.6g} frames after its start: "
                "frames do not determine the motion between them (aliasing: whole turns between "
                "two frames leave no trace). Ask at start + whole multiples of the gap between "
                f"frames ({self.gap:g} in dimensionless time), or train on irregular times and "
                "take the solver inside OnFrames alone."
            )
