"""Paths of linear fields without an error of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesode.data_checks import check_positive
from bayesode.errors import ShapeError, SolverError
from bayesode.models.contracts import Priors, Solution, VectorField
from bayesode.models.solvers.fixed_grid import FixedGridSolver, inside

SAME_GAP = 10  # decimals of a dimensionless gap: equal ones differ in the digits behind
# Largest norm at which the Taylor polynomial of degree 16 is exact to rounding: the rest is below
# norm^17 / 17!, 6e-17 and 2e-8.
LARGEST_NORM = {torch.float64: 0.8, torch.float32: 2.5}
MAX_SQUARINGS = 60  # an exponential that needs more overflows


@dataclass(frozen=True)
class MatrixExponentialSolver:
    """Exact paths of linear fields, those with a `matrix`: x(t + h) = x(t) exp(h matrix).

    Each distinct gap between asked times costs one matrix exponential per draw; series on one grid
    of even times share a single one, and all draws and series go on together by one product for
    each time. On irregular times of many series and large states FixedGridSolver is cheaper.

    Args:
        max_state: As in `FixedGridSolver`, looked at on the asked times.

    Raises:
        DataError: For a bound that is not positive.

    Example:
        >>> import torch
        >>> decay = VectorField(lambda t, x: -x, matrix=-torch.eye(1))
        >>> start, times = torch.zeros(1), torch.tensor([[0.5, 1.0]])
        >>> MatrixExponentialSolver()(decay, torch.ones(1, 1), start, times).flatten()
        tensor([0.6065, 0.3679])
    """

    max_state: float = 30.0

    def __post_init__(self) -> None:
        check_positive(max_state=self.max_state)

    @property
    def config(self) -> dict[str, object]:
        """Constructor arguments."""
        return {"max_state": self.max_state}

    def priors(self, start: Tensor, times: Tensor) -> Priors:
        """Nothing is random in an ODE's path."""
        return {}

    def drift_solver(self) -> FixedGridSolver:
        """What moves a state in small steps, where derivatives along its way are asked for."""
        return FixedGridSolver(max_state=self.max_state)

    def solve(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Solution:
        """The path from x0 (*draws, series, state) at the asked times.

        Args:
            field: The drawn vector field, with its `matrix`.
            x0: Shape (*draws, series, state).
            start: Shape (series,), dimensionless.
            times: Shape (series, time), dimensionless, none before the start.
            noise: None for an ODE.

        Returns:
            The path; `num_evaluations` is the number of matrix exponentials.

        Raises:
            SolverError: If the field is not linear.
            ShapeError: If its matrix has not the size of the state.
        """
        matrix = self._matrix_of(field, x0)
        gaps = torch.cat([start.unsqueeze(-1), times], -1).to(torch.float64).diff()
        lengths, kind = gaps.round(decimals=SAME_GAP).clamp_min(0).unique(return_inverse=True)
        steps = _Steps(matrix, lengths, kind)
        is_alive = (x0.abs() <= self.max_state).all(-1, keepdim=True)
        lead = torch.broadcast_shapes(x0.shape[:-2], matrix.shape[:-2])
        x, shown, path = inside(x0, self.max_state), x0.expand(*lead, *x0.shape[-2:]), []
        for column in range(times.shape[-1]):
            moved, is_finite = steps.take(x, column)
            is_inside = (moved.abs() <= self.max_state).all(-1, keepdim=True)
            is_alive = is_alive & is_finite & is_inside
            x = torch.where(is_alive, moved, x.detach())
            shown = torch.where((gaps[:, column] > 0).unsqueeze(-1), x, shown)
            path.append(shown)
        failed = ~is_alive.squeeze(-1).expand(shown.shape[:-1])
        return Solution(torch.stack(path, -2), steps.num_exponentials, failed)

    def __call__(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Tensor:
        """The path of `solve`, shape (*draws, series, time, state)."""
        return self.solve(field, x0, start, times, **noise).path

    def _matrix_of(self, field: VectorField, x0: Tensor) -> Tensor:
        matrix = getattr(field, "matrix", None)
        if matrix is None:
            raise SolverError(
                "MatrixExponentialSolver solves linear fields alone, LinearField(dim) or a Sum of "
                "such; take FixedGridSolver for a field with a network."
            )
        if matrix.shape[-1] != x0.shape[-1]:
            raise ShapeError(
                f"the linear field has a matrix of {tuple(matrix.shape[-2:])} for states of shape "
                f"{tuple(x0.shape)}: the last numbers must agree."
            )
        return matrix


class _Steps:
    """What carries states across each distinct gap, made when it is first needed.

    Args:
        matrix: Shape (*draws, state, state).
        lengths: Distinct gaps, shape (gap,).
        kind: Which of them lies before each asked time, shape (series, time).
    """

    def __init__(self, matrix: Tensor, lengths: Tensor, kind: Tensor) -> None:
        self.matrix, self.lengths, self.num_exponentials = matrix, lengths.tolist(), 0
        self.columns = [column.unique().tolist() for column in kind.unbind(-1)]
        self.kind = kind
        self.last_use = {gap: at for at, column in enumerate(self.columns) for gap in column}
        self.made: dict[int, tuple[Tensor, Tensor]] = {}

    def take(self, x: Tensor, column: int) -> tuple[Tensor, Tensor]:
        """States (*draws, series, state) after the gap before a time, and which are defined."""
        moved, is_finite = x, torch.ones_like(x[..., :1], dtype=torch.bool)
        chosen = self.kind[:, column].unsqueeze(-1)
        for gap in self.columns[column]:
            if self.lengths[gap] == 0:
                continue
            power, is_defined = self._across(gap)
            rows = chosen == gap
            # one product for all rows: picking those of the gap would copy them twice
            moved = torch.where(rows, x @ power, moved)
            is_finite = torch.where(rows, is_defined, is_finite)
            if self.last_use[gap] == column:  # with irregular times every gap comes once
                del self.made[gap]
        return moved, is_finite

    def _across(self, gap: int) -> tuple[Tensor, Tensor]:
        """exp(gap matrix), and whether it is finite, (*draws, 1, 1)."""
        if gap not in self.made:
            self.made[gap] = _finite_exponential(self.lengths[gap] * self.matrix)
            self.num_exponentials += 1
        return self.made[gap]


def _finite_exponential(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The exponential of each matrix, of 0 where it is not finite, and where that is so."""
    found = matrix_exponential(matrix)
    is_finite = found.isfinite().flatten(-2).all(-1)[..., None, None]
    if not is_finite.all():  # an infinity has the gradient NaN, also where nobody uses it
        found = matrix_exponential(torch.where(is_finite, matrix, 0.0))
    return found, is_finite


def matrix_exponential(matrix: Tensor) -> Tensor:
    """exp(matrix) by Taylor's polynomial of degree 16, scaling and squaring.

    Plain products, whose gradient costs two products each. `torch.matrix_exp` takes its gradient
    from the exponential of a matrix of twice the size: 61 ms in place of 7 for 256 x 256.

    Args:
        matrix: Shape (*draws, state, state).

    Returns:
        Shape (*draws, state, state); not finite where the exponential overflows.

    Source: Higham (2008), Functions of Matrices, section 10.3 (scaling and squaring) and 4.2
    (polynomials after Paterson and Stockmeyer). https://doi.org/10.1137/1.9780898717778

    Example:
        >>> matrix_exponential(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        tensor([[1., 1.],
                [0., 1.]])
    """
    norm = float(torch.linalg.matrix_norm(matrix.detach(), 1).nan_to_num().amax())
    doublings = math.ceil(math.log2(max(norm / LARGEST_NORM[matrix.dtype], 1.0)))
    num_squarings = min(doublings, MAX_SQUARINGS)
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    x = matrix / 2**num_squarings
    square = x @ x
    cube, fourth = square @ x, square @ square

    def terms(power: int) -> Tensor:
        a, b, c, d = (1 / math.factorial(power + k) for k in range(4))
        return a * one + b * x + c * square + d * cube

    result = fourth / math.factorial(16)
    for power in (12, 8, 4):
        result = fourth @ (terms(power) + result)
    result = terms(0) + result
    for _ in range(num_squarings):
        result = result @ result
    return result
