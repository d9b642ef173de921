"""A vector field in elapsed time, as torchdiffeq calls it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesode.errors import SolverError
from bayesode.models.contracts import VectorField, rate_of

# A step of this share of the span has found the place where a field ends; in single precision a
# state moves no more in steps of 1e-8.
SHORTEST = {torch.float64: 1e-9, torch.float32: 1e-5}
# The error of a step with an undefined stage: it is taken again, five times shorter. A NaN would
# end torchdiffeq's step control.
REFUSED = 1e10


class Elapsed:
    """dx/ds = span f(start + s span, x), with what has to be known of every trajectory.

    A trajectory is frozen for good by the step that leaves the bound, and where its field is not
    finite.

    Args:
        field: The drawn vector field.
        start: Shape (series, 1).
        span: Length of one unit of s, shape (series, 1).
        max_state: The bound, or that of each component, shape (state,).
        max_num_steps: Largest number of steps; None for fixed-step methods.
    """

    def __init__(
        self,
        field: VectorField,
        start: Tensor,
        span: Tensor,
        *,
        max_state: float | Tensor,
        max_num_steps: int | None,
    ) -> None:
        self.field, self.start, self.span = field, start, span
        self.max_state, self.max_num_steps = max_state, max_num_steps
        self.num_evaluations = self.num_steps = self.num_adjoint_steps = 0
        self.position = 0.0
        self.error = torch.zeros(())
        self.until = torch.full_like(start, torch.inf)
        self.is_undefined = torch.zeros_like(start, dtype=torch.bool)

    def __call__(self, s: Tensor, x: Tensor) -> Tensor:
        """dx/ds, shaped like x."""
        self.num_evaluations += 1
        bounded = x.clamp(-self.max_state, self.max_state)  # pyright: ignore
        rate = rate_of(self.field, self.start + s.to(x.dtype) * self.span, bounded)
        is_alive, is_defined = s < self.until, rate.isfinite().all(-1, keepdim=True)
        self.is_undefined = self.is_undefined | (is_alive & ~is_defined)
        return torch.where(is_alive & is_defined, self.span * rate, 0.0)

    def fit(self, x0: Tensor) -> Tensor:
        """The initial state with the draws of the field, (*draws, series, state)."""
        with torch.no_grad():
            rate = self(self.start.new_zeros(()), x0)
        self.until = self.until.expand(*rate.shape[:-1], 1)
        self.is_undefined = torch.zeros_like(self.until, dtype=torch.bool)
        self.error = rate.new_zeros(rate.shape[:-1])
        return x0.expand_as(rate)

    def is_frozen(self, position: Tensor, path: Tensor) -> Tensor:
        """Whether states (*draws, series, time, state) at some s (series, time) are frozen."""
        self._freeze(self.is_undefined)
        return self._is_outside(path).squeeze(-1) | (position > self.until)

    def _is_outside(self, x: Tensor) -> Tensor:
        return ~(x.abs() <= self.max_state).all(-1, keepdim=True)

    def _freeze(self, which: Tensor) -> None:
        self.until = torch.where(which, self.until.clamp_max(self.position), self.until)

    # ---- what torchdiffeq calls beside the field -------------------------------------------------
    def norm(self, error: Tensor) -> Tensor:
        """Root mean square over the state, largest over draws and series that are not frozen.

        torchdiffeq's own norm averages over the batch, so a hard trajectory hides among easy ones.
        The size of a step has no gradient here.
        """
        size = error.detach().pow(2).mean(-1).sqrt().nan_to_num(nan=REFUSED)
        size = torch.where(self.until.squeeze(-1) <= self.position, 0.0, size)
        self.error = torch.where(self.is_undefined.squeeze(-1), REFUSED, size)
        return self.error.max()

    def callback_step(self, s: Tensor, x: Tensor, step: Tensor) -> None:
        """Before every step that is tried, from the state x at s."""
        self.num_steps += 1
        # a fixed step is never taken again
        if self.max_num_steps is None or step < SHORTEST[self.start.dtype]:
            self._freeze(self.is_undefined)
        self.position, self.is_undefined = s.item(), torch.zeros_like(self.is_undefined)
        self._freeze(self._is_outside(x))
        self._check(self.num_steps, s, step, [x])

    def callback_step_adjoint(self, s: Tensor, x: Sequence[Tensor], step: Tensor) -> None:
        """Before every step that is tried on the way back."""
        self.num_adjoint_steps += 1
        self.position, self.is_undefined = s.item(), torch.zeros_like(self.is_undefined)
        self._check(self.num_adjoint_steps, s, step, x)

    def _check(self, num_steps: int, s: Tensor, step: Tensor, state: Sequence[Tensor]) -> None:
        if self.max_num_steps is None:
            return
        if num_steps > self.max_num_steps:
            raise SolverError(self.explain(f"max_num_steps={self.max_num_steps} are taken"))
        if not s.abs() + step > s.abs():
            raise SolverError(self.explain("the step has shrunk to nothing"))
        if not all(x.isfinite().all() for x in state):
            raise SolverError(self.explain("a state or a gradient is not finite"))

    def explain(self, reason: str) -> str:
        """What happened, in which trajectory (the one with the largest error) and the mend."""
        place = [int(i) for i in torch.unravel_index(self.error.argmax(), self.error.shape)]
        draw = f"draw {place[0] if len(place) == 2 else tuple(place[:-1])}, " if place[:-1] else ""
        at = (self.start + self.position * self.span)[place[-1]].item()
        return (
            f"the solver gave up after {self.num_evaluations} evaluations ({reason}) in {draw}"
            f"series {place[-1]} near the dimensionless time {at:.3g}: the drawn field is too "
            "stiff or explodes. Tighten the weight prior, shorten the time span, loosen rtol, "
            "raise max_num_steps, or take FixedGridSolver."
        )
