"""Adaptive and fixed-step methods of torchdiffeq; the only door to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint
from torchdiffeq._impl.odeint import SOLVERS

from bayesode.errors import DataError, SolverError
from bayesode.models.contracts import Priors, Solution, VectorField
from bayesode.models.solvers.grid import substeps

ADAPTIVE = tuple(
    name
    for name in ("dopri5", "tsit5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
    if name in SOLVERS
)
# The Adams methods are left out: their coefficients hold on even grids only.
FIXED_STEP = tuple(n for n in ("euler", "midpoint", "heun2", "heun3", "rk4") if n in SOLVERS)
GRADIENTS = {"direct": odeint, "adjoint": odeint_adjoint}


def worst_trajectory(error: Tensor) -> Tensor:
    """Root mean square over the state, largest over draws and series.

    torchdiffeq's own norm averages over the batch, so a hard trajectory hides among easy ones.
    """
    return error.pow(2).mean(-1).sqrt().max()


@dataclass(frozen=True)
class ODESolver:
    """torchdiffeq's methods, for series with their own starts, ends and grids.

    The series are integrated together in elapsed time: dx/ds = span f(start + s span, x), with s in
    [0, 1] on the union of all asked times.

    Args:
        method: Of torchdiffeq: adaptive (as "dopri5") or fixed-step (as "rk4").
        rtol: Relative tolerance per trajectory (adaptive methods).
        atol: Absolute tolerance per trajectory, in dimensionless units (adaptive methods).
        gradient: "direct" backpropagates through the steps; "adjoint" integrates backwards, with
            constant memory and an error of its own (about 1e-4 at rtol 1e-4).
        step_size: Largest step in dimensionless time; required by fixed-step methods, which would
            otherwise step from asked time to asked time, however far these are apart.
        max_num_steps: Steps after which an adaptive method gives up.
        max_state: As in `FixedGridSolver`.

    Raises:
        DataError: For an unknown method or gradient, or a missing or superfluous step_size.
    """

    method: str = "dopri5"
    rtol: float = 1e-4
    atol: float = 1e-5
    gradient: str = "direct"
    step_size: float | None = None
    max_num_steps: int = 20_000
    max_state: float = 30.0

    def __post_init__(self) -> None:
        if self.method not in ADAPTIVE + FIXED_STEP:
            raise DataError(
                f"method must be one of {list(ADAPTIVE)} (adaptive) or {list(FIXED_STEP)} "
                f"(fixed-step, with step_size=), not {self.method!r}."
            )
        if self.gradient not in GRADIENTS:
            raise DataError(f"gradient must be 'direct' or 'adjoint', not {self.gradient!r}.")
        if self.method in FIXED_STEP and not (self.step_size and self.step_size > 0):
            raise DataError(
                f"the fixed-step method {self.method!r} needs step_size=, the largest step in "
                "dimensionless time (0.1 is a good start); the asked times alone do not bound it."
            )
        if self.method in ADAPTIVE and self.step_size is not None:
            raise DataError(f"{self.method!r} chooses its own steps; leave step_size out.")
        if min(self.rtol, self.atol, self.max_num_steps, self.max_state) <= 0:
            raise DataError("rtol, atol, max_num_steps and max_state must be positive.")

    @property
    def config(self) -> dict[str, object]:
        """Constructor arguments."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def priors(self, start: Tensor, times: Tensor) -> Priors:
        """Nothing is random in an ODE's path."""
        return {}

    def solve(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Solution:
        """The path from x0 (*draws, series, state) at the asked times.

        Args:
            field: The drawn vector field; its `tensors` are what an adjoint differentiates.
            x0: Shape (*draws, series, state).
            start: Shape (series,), dimensionless.
            times: Shape (series, time), dimensionless, none before the start.
            noise: None for an ODE.

        Raises:
            SolverError: If the method gives up; with draw, series, time and the mend.
        """
        # equal positions differ in their last digits after the division: 12 digits are one time
        elapsed = times.to(torch.float64) - start.to(torch.float64).unsqueeze(-1)
        span = elapsed[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
        position = (elapsed / span).round(decimals=12)
        grid, index = torch.unique(
            torch.cat([position.new_zeros(1), position.flatten()]), return_inverse=True
        )
        index = index[1:].view(times.shape)
        right = _Elapsed(field, start.to(x0), span.to(x0), self.max_state)
        if len(grid) == 1:
            path = x0.unsqueeze(-2).expand(*x0.shape[:-1], times.shape[-1], x0.shape[-1])
        else:
            steps = self._integrate(right, x0, grid.to(self._time_dtype(x0)), float(span.max()))
            index = index.unsqueeze(-1).expand(*x0.shape[:-1], times.shape[-1], x0.shape[-1])
            path = steps.movedim(0, -2).gather(-2, index)
        is_outside = ~(path.abs() <= self.max_state).all(-1, keepdim=True)
        path = torch.where(is_outside, path.detach(), path)
        return Solution(path, right.num_evaluations, is_outside.squeeze(-1).any(-1))

    def __call__(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Tensor:
        """The path of `solve`, shape (*draws, series, time, state)."""
        return self.solve(field, x0, start, times, **noise).path

    def _time_dtype(self, x0: Tensor) -> torch.dtype:
        return torch.float64 if self.method in ADAPTIVE else x0.dtype

    def _integrate(self, right: _Elapsed, x0: Tensor, grid: Tensor, span: float) -> Tensor:
        keywords: dict[str, Any] = {"method": self.method}
        if self.method in ADAPTIVE:
            options = {"norm": worst_trajectory, "max_num_steps": self.max_num_steps}
            keywords |= {"rtol": self.rtol, "atol": self.atol, "options": options}
        else:
            step = float(self.step_size or 0.0) / span
            keywords["options"] = {"grid_constructor": lambda f, y, t: _fine(t, step)}
        if self.gradient == "adjoint":
            keywords["adjoint_params"] = right.field.tensors
        try:
            return GRADIENTS[self.gradient](right, x0, grid, **keywords)
        except AssertionError as error:  # torchdiffeq's own way to say that it gave up
            raise SolverError(right.explain(self.method, str(error))) from error


class _Elapsed:
    """The right-hand side in elapsed time, frozen outside the bound, with what an error needs."""

    def __init__(self, field: VectorField, start: Tensor, span: Tensor, bound: float) -> None:
        self.field, self.start, self.span, self.bound = field, start.unsqueeze(-1), span, bound
        self.num_evaluations = 0
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, s: Tensor, x: Tensor) -> Tensor:
        self.num_evaluations += 1
        is_alive = (x.abs() <= self.bound).all(-1, keepdim=True)
        t = self.start + s.to(x.dtype) * self.span
        rate = self.field(t, x.clamp(-self.bound, self.bound))
        speed = torch.where(is_alive, self.span * rate, 0.0)
        self.last = (t.detach(), speed.detach())
        return speed

    def explain(self, method: str, reason: str) -> str:
        t, speed = self.last if self.last is not None else (self.start, self.span)
        size = torch.nan_to_num(speed.abs().amax(-1), nan=torch.inf)
        place = [int(i) for i in torch.unravel_index(size.argmax(), size.shape)]
        draw = f"draw {place[0] if len(place) == 2 else tuple(place[:-1])}, " if place[:-1] else ""
        at = t.expand(size.shape[-1], 1)[place[-1], 0].item()
        return (
            f"{method} gave up after {self.num_evaluations} evaluations ({reason}) in {draw}"
            f"series {place[-1]} near the dimensionless time {at:.3g}: the drawn field is too "
            "stiff or explodes. Tighten the weight prior, shorten the time span, loosen rtol, or "
            "take FixedGridSolver."
        )


def _fine(grid: Tensor, step: float) -> Tensor:
    """The grid with every interval cut into equal parts no longer than `step`."""
    lengths, begins, _ = substeps(grid[:1], grid[None, 1:], step)
    return torch.cat([begins[0], grid[-1:]])
