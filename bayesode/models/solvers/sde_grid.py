"""Stochastic differential equations on a grid of given increments, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesode.data_checks import check_positive, check_size
from bayesode.errors import DataError, ShapeError
from bayesode.models.contracts import SDE, Priors, Solution
from bayesode.models.solvers.fixed_grid import FixedGridSolver, gather_states, inside
from bayesode.models.solvers.grid import substeps
from bayesode.models.solvers.sde_steps import METHODS, NoiseGrid

SAME_TIME = 1e-9  # relative distance at which an asked time is a grid point

# Number of a noise step, state right before it -> standard-normal increment (..., series, state).
Increments = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class SDESolver:
    """Paths of an SDE as a function of standard-normal increments, the site `path.noise`.

    From the start every series walks its own noise grid through its own asked times, so the law of
    the states there is that of the method whatever else is asked. A noise step of length h has the
    Brownian increment sqrt(h) noise. Another question lays another grid: to ask one and the same
    path at other times, fix its grid by `on(grid)`. Times between the points of a fixed grid are
    reached by drift from the last one; they change nothing else.

    Methods, all for noise per component in Ito's sense (`SDEField` translates Stratonovich's):
    "split": the drift alone by RK4 over a noise step, in steps no longer than `step`, then the
    noise; strong order 1 in the noise step for additive noise, else 1/2. "euler"
    (Euler-Maruyama): noise in every step, same orders. "heun": additive noise, drift to second
    order, strong order 1. "milstein": strong order 1 if the noise of a component depends on that
    component alone.

    Args:
        dim: Size of the state.
        step: Largest step of the drift, in dimensionless time.
        method: "split", "euler", "heun" or "milstein".
        noise_step: Of "split": the largest distance of noise steps; by default noise enters at the
            asked times alone. The other methods take noise in each step.
        max_state: As in `FixedGridSolver`.
        grid: Times of a fixed noise grid, shape (series, time), in place of the asked times; set by
            `on`.

    Raises:
        DataError: For an unknown method, numbers that are not positive, or a noise_step for a
            method that has none.

    Source: Kloeden and Platen (1992), Numerical Solution of Stochastic Differential Equations,
    sections 10.2-10.4. https://doi.org/10.1007/978-3-662-12616-5 ("split" is Lie's splitting.)

    Example:
        >>> import torch
        >>> from bayesode.models.contracts import Diffusion, VectorField
        >>> sde = SDE(VectorField(lambda t, x: -x), Diffusion(lambda t, x: torch.ones(1)))
        >>> solver, start, times = SDESolver(1, step=0.1), torch.zeros(1), torch.tensor([[1.0]])
        >>> solver(sde, torch.ones(1, 1), start, times, noise=torch.zeros(1, 1, 1)).flatten()
        tensor([0.3679])
    """

    dim: int
    step: float = 0.1
    method: str = "split"
    noise_step: float | None = None
    max_state: float = 30.0
    grid: Tensor | None = None

    def __post_init__(self) -> None:
        if self.method not in list(METHODS):  # a list: what cannot be hashed is unknown too
            raise DataError(f"method must be one of {sorted(METHODS)}, not {self.method!r}.")
        check_size(dim=self.dim)
        check_positive(step=self.step, max_state=self.max_state)
        if self.noise_step is not None:
            check_positive(noise_step=self.noise_step)
            if self.method != "split":
                raise DataError(f"{self.method!r} takes noise in each step; leave noise_step out.")

    @property
    def config(self) -> dict[str, object]:
        """Constructor arguments, without the grid of a single question."""
        names = ("dim", "step", "method", "noise_step", "max_state")
        return {name: getattr(self, name) for name in names}

    # ---- the noise grid --------------------------------------------------------------------------
    def on(self, grid: Tensor, noise_step: float | None = None) -> SDESolver:
        """The solver with a fixed noise grid through the times `grid (series, time)`.

        Args:
            grid: Not decreasing, none before the start; one row per series that is asked.
            noise_step: In place of the solver's own, for "split".
        """
        own = self.noise_step if noise_step is None else noise_step
        return replace(self, grid=grid, noise_step=own if self.method == "split" else None)

    def noise_grid(self, start: Tensor, times: Tensor) -> NoiseGrid:
        """The noise steps of a question, start (series,) and times (series, time).

        Raises:
            DataError: If times decrease, or lie before the start.
            ShapeError: If a fixed grid has another number of series.
        """
        times = times if self.grid is None else self.grid
        if len(times) != len(start):
            raise ShapeError(f"a noise grid of {len(times)} series meets {len(start)} series.")
        points = torch.cat([start.unsqueeze(-1), times], -1)
        gaps = points.diff()
        if not (gaps >= -SAME_TIME * (1 + points[:, 1:].abs())).all():  # NaN compares False
            raise DataError(
                "the times of a noise grid must be sorted, finite and none before the start of "
                "their series."
            )
        longest = gaps.max().item() if self.noise_step is None else self.noise_step
        step = longest if self.method == "split" else self.step
        lengths, begins, reached = substeps(start, times, step or 1.0)
        return NoiseGrid(begins, lengths, reached)

    def priors(self, start: Tensor, times: Tensor) -> Priors:
        """Standard-normal increments `noise`, event (steps, state), per series."""
        location = times.new_zeros(self.noise_grid(start, times).num_steps, self.dim)
        return {"noise": dist.Normal(location, torch.ones_like(location)).to_event(2)}

    # ---- paths -----------------------------------------------------------------------------------
    def solve(
        self, field: Any, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Solution:
        """The path from x0 (*draws, series, state) at the asked times.

        Args:
            field: The drawn `SDE`.
            x0: Shape (*draws, series, state).
            start: Shape (series,), dimensionless.
            times: Shape (series, time), dimensionless, none before the start.
            noise: `noise`, standard-normal increments (*draws, series, steps, state).

        Raises:
            DataError: If the field is no SDE, the increments are missing, or "heun" meets noise
                that depends on the state.
            ShapeError: If drift, noise or increments have other sizes than the state or the grid.
            SolverError: If a series needs more than a million steps.
        """
        self.check(field, x0, start)
        grid = self.noise_grid(start, times)
        increments = self._checked(noise, grid, x0)
        states, is_alive, num_steps = self.walk(field, x0, grid, lambda k, x: increments[k])
        path, is_alive = self._at(field, states, is_alive, start, times, grid)
        return Solution(path, num_steps, ~is_alive.squeeze(-1))

    def __call__(
        self, field: Any, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Tensor:
        """The path of `solve`, shape (*draws, series, time, state)."""
        return self.solve(field, x0, start, times, **noise).path

    def walk(
        self, field: SDE, x0: Tensor, grid: NoiseGrid, increments: Increments
    ) -> tuple[list[Tensor], Tensor, int]:
        """Take the noise steps of a grid, with increments that may depend on the past.

        Args:
            field: The drawn SDE.
            x0: Shape (*draws, series, state).
            grid: From `noise_grid`.
            increments: (k, state right before the noise of step k) -> standard-normal increments.
                It is asked once per step, in order.

        Returns:
            The states before the first and after every noise step, whether a trajectory is inside
            the bound at the end (*draws, series, 1), and the number of drift evaluations.
        """
        take, drift, bound = METHODS[self.method], self.drift_solver(), self.max_state
        is_alive = (x0.abs() <= bound).all(-1, keepdim=True)
        x, states, num_evaluations = inside(x0, bound), [x0], 0
        roots = grid.lengths.to(x0.dtype).sqrt().mT.unsqueeze(-1).unbind()  # (series, 1) each
        for k, interval in enumerate(grid.intervals(self.step, x0.dtype)):
            moved, is_inside, count = take(
                drift, field, x, interval, lambda y, k=k: roots[k] * increments(k, y)
            )
            is_alive = is_alive & is_inside & (moved.abs() <= bound).all(-1, keepdim=True)
            # NaN compares False: an undefined state freezes too
            x = torch.where(is_alive, moved, x.detach())
            states.append(x)
            num_evaluations += count
        # increments or field may have draws that x0 has not
        return list(torch.broadcast_tensors(*states)), is_alive, num_evaluations

    def tight(self) -> SDESolver:
        """The reference on the same increments: the drift by RK4 at half the step."""
        noise_step = self.noise_step if self.method == "split" else self.step
        return replace(self, method="split", step=self.step / 2, noise_step=noise_step)

    def drift_solver(self) -> FixedGridSolver:
        """What moves a state between two noise steps of "split"."""
        return FixedGridSolver("rk4", self.step, self.max_state)

    # ---- inside ----------------------------------------------------------------------------------
    def _at(
        self,
        field: SDE,
        states: list[Tensor],
        is_alive: Tensor,
        start: Tensor,
        times: Tensor,
        grid: NoiseGrid,
    ) -> tuple[Tensor, Tensor]:
        """The states at the asked times, and whether a trajectory stayed inside the bound."""
        path = torch.stack(states, -2)
        if self.grid is None:
            return gather_states(path, grid.reached), is_alive
        points = torch.cat([start.unsqueeze(-1), grid.begins + grid.lengths], -1)
        slack = SAME_TIME * (1 + times.abs())
        done = (points[:, None, 1:] <= (times + slack).unsqueeze(-1)).sum(-1)
        path = gather_states(path, done)
        last = points.gather(-1, done)
        if not (times - last > slack).any():
            return path, is_alive
        columns, drift = list(path.unbind(-2)), self.drift_solver()
        for j in range(times.shape[-1]):
            is_between = (times[:, j] - last[:, j] > slack[:, j]).unsqueeze(-1)
            if not is_between.any():
                continue
            end = torch.where(is_between, times[:, j : j + 1], last[:, j : j + 1])
            lengths, begins, _ = substeps(last[:, j], end, self.step)
            moved, is_inside = drift.walk(field.drift, columns[j], begins, lengths)
            columns[j] = moved[-1]
            is_alive = is_alive & is_inside
        return torch.stack(torch.broadcast_tensors(*columns), -2), is_alive

    def check(self, field: Any, x0: Tensor, start: Tensor) -> None:
        """Raise the error that explains why this field has no path from x0, if any."""
        if not hasattr(field, "diffusion"):
            raise DataError(
                f"SDESolver needs a field with noise, SDEField(drift, AdditiveNoise({self.dim})); "
                "an ODE is solved by FixedGridSolver."
            )
        if self.method == "heun" and not field.is_additive:
            raise DataError(
                "'heun' is for additive noise, which does not depend on the state; take 'split' "
                "(or 'milstein' to simulate)."
            )
        begin = start.to(x0.dtype).unsqueeze(-1)
        size = field.diffusion(begin, x0).shape[-1]
        if not x0.shape[-1] == self.dim == size:
            raise ShapeError(
                f"the state has {x0.shape[-1]} components, the noise {size} and SDESolver "
                f"dim={self.dim}: all three must agree."
            )

    def _checked(self, noise: dict[str, Tensor], grid: NoiseGrid, x0: Tensor) -> list[Tensor]:
        """The increments of each noise step, (*draws, series, state)."""
        if set(noise) != {"noise"}:
            raise DataError(
                "the path of an SDE needs its increments, noise=draw of priors(start, times) "
                f"(in a guide the site 'path.noise'), not {sorted(noise)}."
            )
        increments = noise["noise"]
        if increments.shape[-2:] != (grid.num_steps, self.dim):
            raise ShapeError(
                f"increments of {tuple(increments.shape[-2:])} (steps, state) meet a noise grid of "
                f"{(grid.num_steps, self.dim)}: they were drawn for other times. Solve on the grid "
                "that they belong to: solver.on(grid)."
            )
        series = increments.shape[-3:-2]
        if series and series[0] not in (1, len(grid.lengths)):
            raise ShapeError(f"increments of {series[0]} series meet {len(grid.lengths)} series.")
        return list(increments.to(x0.dtype).unbind(-2))
