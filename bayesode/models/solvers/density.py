"""Log densities along a flow, by the instantaneous change of variables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bayesode.data_checks import check_size
from bayesode.errors import DataError
from bayesode.models.contracts import Solver, VectorField, rate_of


class Trace(Protocol):
    """How the trace of a Jacobian is taken."""

    def directions(self, x0: Tensor) -> Tensor:
        """Directions e, shape (direction, *draws, series, state), whose sum of e'Je is the trace.

        They are taken once for a solve: the field that is solved must not change on its way.
        """
        ...


@dataclass(frozen=True)
class ExactTrace:
    """The trace itself, one product of the Jacobian per component.

    Args:
        components: Those whose own slope df_i/dx_i may differ from 0; all by default. Of a
            second-order field (position, velocity) with `dim` positions they are the velocities,
            range(dim, 2 * dim): dx/dt = v does not depend on x.

    Raises:
        DataError: For an empty list of components.

    Example:
        >>> ExactTrace().directions(torch.zeros(5, 2)).shape
        torch.Size([2, 1, 2])
    """

    components: Iterable[int] | None = None

    def __post_init__(self) -> None:
        if self.components is None:
            return
        object.__setattr__(self, "components", tuple(self.components))
        if not self.components:
            raise DataError("components must name one component at least; None stands for all.")

    def directions(self, x0: Tensor) -> Tensor:
        """Unit vectors, shape (component, ..., 1, state)."""
        units = _units(x0, self.components)
        return units.view(len(units), *[1] * (x0.dim() - 1), -1)


@dataclass(frozen=True)
class HutchinsonTrace:
    """An unbiased estimate by random signs, drawn once per solve, trajectory and draw.

    Its cost does not grow with the state.

    Args:
        num_probes: Random directions that are averaged over.
        components: As in `ExactTrace`; fewer components, less variance.

    Raises:
        DataError: For a num_probes that is not positive, or an empty list of components.

    Source: Hutchinson (1990), https://doi.org/10.1080/03610919008812866; with a fixed probe per
    solve: Grathwohl et al. (2019), arXiv:1810.01367, section 3.1.
    """

    num_probes: int = 1
    components: Iterable[int] | None = None

    def __post_init__(self) -> None:
        check_size(num_probes=self.num_probes)
        object.__setattr__(self, "components", ExactTrace(self.components).components)

    def directions(self, x0: Tensor) -> Tensor:
        """Random signs over the root of their number, shape (probe, *draws, series, state)."""
        signs = torch.randint(2, (self.num_probes, *x0.shape), device=x0.device).to(x0.dtype)
        kept = _units(x0, self.components).sum(0)
        return (2 * signs - 1) * kept / self.num_probes**0.5


def _units(x0: Tensor, components: Iterable[int] | None) -> Tensor:
    """Unit vectors of some components, shape (component, state)."""
    dim = x0.shape[-1]
    chosen = list(range(dim) if components is None else components)
    wrong = [i for i in chosen if not 0 <= i < dim]
    if wrong:
        raise DataError(f"components {wrong} are none of a state of size {dim}.")
    return torch.eye(dim, dtype=x0.dtype, device=x0.device)[chosen]


def log_density_along(
    field: VectorField,
    solver: Solver,
    x0: Tensor,
    log_q0: Tensor,
    start: Tensor,
    times: Tensor,
    *,
    trace: Trace = ExactTrace(),
) -> tuple[Tensor, Tensor]:
    """Paths of a drawn field and the log density of each state under the law that x0 was drawn of.

    d log q / dt = -tr(df/dx) along a path, integrated with it by the same solver. The bound of the
    solver holds for the states alone; the density of a frozen trajectory stays where it was. Of a
    field with a `matrix` the trace is a constant, and nothing is integrated beside the path.

    Args:
        field: The drawn vector field.
        solver: Of ordinary differential equations.
        x0: Shape (*draws, series, state).
        log_q0: Log density of x0, shape (*draws, series).
        start: Shape (series,), dimensionless.
        times: Shape (series, time), dimensionless, none before the start.
        trace: How the trace is taken, `ExactTrace` or `HutchinsonTrace`.

    Returns:
        The path, shape (*draws, series, time, state), and the log density, (*draws, series, time).

    Raises:
        DataError: If paths have noise of their own: there is no flow then.

    Source: Chen et al. (2018), arXiv:1806.07366, theorem 1.

    Example:
        >>> from bayesode.models.solvers.fixed_grid import FixedGridSolver
        >>> decay, x0 = VectorField(lambda t, x: -x), torch.zeros(1, 2)
        >>> start, times = torch.zeros(1), torch.tensor([[0.5, 1.0]])
        >>> log_density_along(decay, FixedGridSolver(), x0, torch.zeros(1), start, times)[1]
        tensor([[1.0000, 2.0000]])
    """
    if solver.priors(start, times):
        raise DataError(
            f"paths of {type(solver).__name__} have noise of their own, so the field pushes no "
            "density forward: take FixedGridSolver or ODESolver."
        )
    if field.matrix is not None:
        return _linear(field, solver, x0, log_q0, start, times)
    with torch.no_grad():  # the draws may be those of the field alone
        shape = rate_of(field, start.to(x0).unsqueeze(-1), x0).shape
    x0 = x0.expand(torch.broadcast_shapes(x0.shape, shape))
    both = torch.cat([x0, torch.zeros_like(x0[..., :1])], -1)
    states = solver(with_density(field, trace.directions(x0)), both, start, times)
    return states[..., :-1], log_q0.unsqueeze(-1) + states[..., -1]


def with_density(field: VectorField, directions: Tensor) -> VectorField:
    """The field of (x, log density), whose last component is no state.

    Args:
        field: The drawn vector field.
        directions: As of `Trace`.
    """

    def rate(t: Tensor, both: Tensor) -> Tensor:
        x = both[..., :-1]
        found: Any = torch.func.vjp(lambda y: rate_of(field, t, y), x)
        value, pull = found
        wanted = directions.expand(-1, *x.shape)
        if len(wanted) == 1:  # a batch of one costs a third more
            pulled = pull(wanted[0])[0].unsqueeze(0)
        else:
            pulled = torch.func.vmap(lambda e: pull(e)[0])(wanted)
        divergence = (pulled * directions).sum((0, -1))
        return torch.cat([value, -divergence.unsqueeze(-1)], -1)

    return replace(field, function=rate, matrix=None, num_unbounded=1)


def _linear(
    field: VectorField, solver: Solver, x0: Tensor, log_q0: Tensor, start: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    solution = solver.solve(field, x0, start, times)
    matrix: Any = field.matrix
    elapsed = (times - start.unsqueeze(-1)).to(x0.dtype)
    lost = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * elapsed
    # a trajectory that left the bound has no gradient
    lost = torch.where(solution.failed.unsqueeze(-1), lost.detach(), lost)
    return solution.path, log_q0.unsqueeze(-1) - lost
