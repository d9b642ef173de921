"""Adaptive and fixed-step methods of torchdiffeq; the only door to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint
from torchdiffeq._impl.odeint import SOLVERS

from bayesode.errors import DataError, SolverError
from bayesode.models.contracts import Priors, Solution, VectorField, bound_of
from bayesode.models.solvers.elapsed import Elapsed
from bayesode.models.solvers.grid import substeps

ADAPTIVE = tuple(
    name
    for name in ("dopri5", "tsit5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
    if name in SOLVERS
)
# The Adams methods are left out: their coefficients hold on even grids only.
FIXED_STEP = tuple(n for n in ("euler", "midpoint", "heun2", "heun3", "rk4") if n in SOLVERS)
GRADIENTS = {"direct": odeint, "adjoint": odeint_adjoint}
# Between two steps torchdiffeq interpolates to order 4: at rtol 1e-8 an error of 2.5e-5 on van der
# Pol for a method of order 8, which has to step on the asked times.
STEPS_ON_ASKED_TIMES = ("dopri8",)


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
        max_num_steps: Steps, rejected ones included, after which an adaptive method gives up.
        max_state: As in `FixedGridSolver`.

    Raises:
        DataError: For an unknown method or gradient, a missing or superfluous step_size, or numbers
            that are not positive.
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
            raise DataError(f"gradient must be one of {list(GRADIENTS)}, not {self.gradient!r}.")
        if self.method in FIXED_STEP and self.step_size is None:
            raise DataError(
                f"the fixed-step method {self.method!r} needs step_size=, the largest step in "
                "dimensionless time (0.1 is a good start); the asked times alone do not bound it."
            )
        if self.method in ADAPTIVE and self.step_size is not None:
            raise DataError(f"{self.method!r} chooses its own steps; leave step_size out.")
        for name in ("rtol", "atol", "step_size", "max_num_steps", "max_state"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise DataError(f"{name} must be a positive number, not {value}.")

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
            ShapeError: If the field's rate has not the size of the state.
            SolverError: If the method gives up; with draw, series, time and the mend.
        """
        # equal positions differ in their last digits after the division: 12 digits are one time
        elapsed = times.to(torch.float64) - start.to(torch.float64).unsqueeze(-1)
        span = elapsed[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
        position = (elapsed / span).round(decimals=12)
        grid, index = torch.unique(
            torch.cat([position.new_zeros(1), position.flatten()]), return_inverse=True
        )
        right = Elapsed(
            field,
            start.to(x0).unsqueeze(-1),
            span.to(x0),
            max_state=bound_of(field, x0, self.max_state),
            max_num_steps=self.max_num_steps if self.method in ADAPTIVE else None,
        )
        x0 = right.fit(x0)
        steps = self._integrate(right, x0, grid, float(span.max())) if len(grid) > 1 else x0[None]
        index = index[1:].view(*times.shape, 1)
        path = steps.movedim(0, -2).gather(-2, index.expand(*x0.shape[:-1], -1, x0.shape[-1]))
        is_frozen = right.is_frozen(position, path)
        bound: Any = right.max_state
        held = path.detach().clamp(-bound, bound)
        path = torch.where(is_frozen.unsqueeze(-1), held, path)
        return Solution(path, right.num_evaluations, is_frozen.any(-1))

    def __call__(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Tensor:
        """The path of `solve`, shape (*draws, series, time, state)."""
        return self.solve(field, x0, start, times, **noise).path

    def _integrate(self, right: Elapsed, x0: Tensor, grid: Tensor, span: float) -> Tensor:
        """States on the grid, shape (grid, *draws, series, state)."""
        keywords: dict[str, Any] = {"method": self.method}
        if self.method in ADAPTIVE:
            options: dict[str, Any] = {"norm": right.norm}
            if self.method in STEPS_ON_ASKED_TIMES:
                options["step_t"] = grid[1:]
            keywords |= {"rtol": self.rtol, "atol": self.atol, "options": options}
        else:
            step = float(self.step_size or 0.0) / span
            keywords["options"] = {"grid_constructor": lambda f, y, t: _fine(t, step)}
        if self.gradient == "adjoint":
            keywords["adjoint_params"] = right.field.tensors
        try:
            return GRADIENTS[self.gradient](right, x0, grid, **keywords)
        except AssertionError as error:  # torchdiffeq's own way to say that it gave up
            raise SolverError(right.explain(str(error))) from error


def _fine(grid: Tensor, step: float) -> Tensor:
    """The grid with every interval cut into equal parts no longer than `step`."""
    if grid[0] > grid[-1]:  # an adjoint walks back
        return _fine(grid.flip(0), step).flip(0)
    _, begins, _ = substeps(grid[:1], grid[None, 1:], step)
    return torch.cat([begins[0], grid[-1:]])
