"""Explicit Runge-Kutta methods on each series' own grid, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.models.contracts import Priors, Solution, VectorField, bound_of, rate_of
from bayesode.models.solvers.grid import substeps

# (field, x, (h, h / 2, h / 6), (t, t + h / 2, t + h), bound) -> x one step later
Bound = float | Tensor  # a tensor has one for each component
Step = Callable[[VectorField, Tensor, tuple[Tensor, ...], tuple[Tensor, ...], Bound], Tensor]


def inside(stage: Tensor, bound: Bound) -> Tensor:
    """A state on which a field can be evaluated."""
    # a field's NaN must not reach its next evaluation: 0 times NaN is the gradient of its weights
    return torch.nan_to_num(stage, nan=0.0).clamp(-bound, bound)  # pyright: ignore


def _euler(
    field: VectorField, x: Tensor, h: tuple[Tensor, ...], t: tuple[Tensor, ...], bound: Bound
) -> Tensor:
    return torch.addcmul(x, h[0], rate_of(field, t[0], x))


def _midpoint(
    field: VectorField, x: Tensor, h: tuple[Tensor, ...], t: tuple[Tensor, ...], bound: Bound
) -> Tensor:
    middle = inside(torch.addcmul(x, h[1], rate_of(field, t[0], x)), bound)
    return torch.addcmul(x, h[0], field(t[1], middle))


def _rk4(
    field: VectorField, x: Tensor, h: tuple[Tensor, ...], t: tuple[Tensor, ...], bound: Bound
) -> Tensor:
    k1 = rate_of(field, t[0], x)
    k2 = field(t[1], inside(torch.addcmul(x, h[1], k1), bound))
    k3 = field(t[1], inside(torch.addcmul(x, h[1], k2), bound))
    k4 = field(t[2], inside(torch.addcmul(x, h[0], k3), bound))
    return torch.addcmul(x, h[2], torch.add(k1 + k4, k2 + k3, alpha=2))


# name: (one step, evaluations in it, order)
METHODS: dict[str, tuple[Step, int, int]] = {
    "euler": (_euler, 1, 1),
    "midpoint": (_midpoint, 2, 2),
    "rk4": (_rk4, 4, 4),
}


@dataclass(frozen=True)
class FixedGridSolver:
    """Euler, midpoint or classical Runge-Kutta with a bounded step.

    From the start every series walks its own grid through its own asked times. Asked times become
    grid points; beyond that the path does not depend on which times are asked. All draws and all
    series take their steps together, without data-dependent control flow, so `torch.func`,
    float64 and compilation work.

    Args:
        method: "euler", "midpoint" or "rk4".
        step: Largest step, in dimensionless time.
        max_state: A trajectory with a component beyond this bound, in dimensionless units, is
            frozen there: no derivative and no gradient from there on.

    Raises:
        DataError: For an unknown method, or a step or bound that is not positive.

    Example:
        >>> import torch
        >>> solver = FixedGridSolver("rk4", step=0.1)
        >>> decay = VectorField(lambda t, x: -x)
        >>> path = solver(decay, torch.ones(1, 1), torch.zeros(1), torch.tensor([[0.5, 1.0]]))
        >>> path.flatten()
        tensor([0.6065, 0.3679])
    """

    method: str = "rk4"
    step: float = 0.1
    max_state: float = 30.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise DataError(f"method must be one of {sorted(METHODS)}, not {self.method!r}.")
        for name in ("step", "max_state"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{name} must be a positive number, not {getattr(self, name)}.")

    @property
    def config(self) -> dict[str, object]:
        """Constructor arguments."""
        return {"method": self.method, "step": self.step, "max_state": self.max_state}

    def priors(self, start: Tensor, times: Tensor) -> Priors:
        """Nothing is random in an ODE's path."""
        return {}

    def drift_solver(self) -> FixedGridSolver:
        """What moves a state between two times: itself."""
        return self

    def solve(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Solution:
        """The path from x0 (*draws, series, state) at the asked times.

        Args:
            field: The drawn vector field.
            x0: Shape (*draws, series, state).
            start: Shape (series,), dimensionless.
            times: Shape (series, time), dimensionless, none before the start.
            noise: None for an ODE.

        Raises:
            ShapeError: If the field's rate has not the size of the state.
            SolverError: If a series needs more than a million steps.
        """
        lengths, begins, reached = substeps(start, times, self.step)
        states, is_alive = self.walk(field, x0, begins, lengths)
        path = gather_states(torch.stack(states, -2), reached)
        num_evaluations = lengths.shape[-1] * METHODS[self.method][1]
        return Solution(path, num_evaluations, ~is_alive.squeeze(-1))

    def walk(
        self, field: VectorField, x0: Tensor, begins: Tensor, lengths: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Take given steps.

        Args:
            field: The drawn vector field.
            x0: Shape (*draws, series, state).
            begins: Time at which each step begins, shape (series, substep).
            lengths: Shape (series, substep).

        Returns:
            The states before the first and after every step, and whether a trajectory is inside
            the bound at the end, shape (*draws, series, 1).
        """
        step, bound = METHODS[self.method][0], bound_of(field, x0, self.max_state)
        h = lengths.to(x0.dtype).mT.unsqueeze(-1)  # (substep, series, 1)
        t = begins.to(x0.dtype).mT.unsqueeze(-1)
        # one vectorised call each in place of one per step: small operations are all overhead
        sizes = zip(h.unbind(), (h / 2).unbind(), (h / 6).unbind(), strict=True)
        moments = zip(t.unbind(), (t + h / 2).unbind(), (t + h).unbind(), strict=True)
        is_alive = (x0.abs() <= bound).all(-1, keepdim=True)
        x, states = inside(x0, bound), [x0]
        for size, moment in zip(sizes, moments, strict=True):
            moved = step(field, x, size, moment, bound)
            is_alive = is_alive & (moved.abs() <= bound).all(-1, keepdim=True)
            # NaN compares False: an undefined state freezes too
            x = torch.where(is_alive, moved, x.detach())
            states.append(x)
        states[0] = x0.expand_as(x)  # the draws may be those of the field alone
        return states, is_alive

    def __call__(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Tensor:
        """The path of `solve`, shape (*draws, series, time, state)."""
        return self.solve(field, x0, start, times, **noise).path


def gather_states(states: Tensor, index: Tensor) -> Tensor:
    """States (*draws, series, substep, state) at the positions `index` (series, time)."""
    identity = torch.arange(states.shape[-2], device=states.device)
    if index.shape[-1] == len(identity) and bool((index == identity).all()):
        return states
    index = index.unsqueeze(-1).expand(*states.shape[:-2], index.shape[-1], states.shape[-1])
    return states.gather(-2, index)
