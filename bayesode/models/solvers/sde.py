"""Simulation of SDEs by torchsde; the only door to it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torchsde
from torch import Tensor

from bayesode.data_checks import check_positive
from bayesode.errors import DataError
from bayesode.models.contracts import SDE, Priors, Solution, rate_of
from bayesode.models.solvers.grid import substeps

# method: what it needs to know of the Brownian motion beside its increments
METHODS = {"euler": "none", "milstein": "none", "srk": "space-time"}
SHORTEST = 1e-5  # step of an adaptive method, of the longest span


@dataclass(frozen=True)
class TorchSDESolver:
    """torchsde's methods, to simulate and to check against; the noise is torchsde's own.

    Nothing is declared as random: each call draws a new Brownian motion, from torch's seed, for
    all draws and series. For inference take `SDESolver`, whose increments are a site. The series
    are walked together in elapsed time s in [0, 1], dx = span f ds + sqrt(span) g dW, from asked
    time to asked time: torchsde interpolates linearly between its steps, and a line between two
    states has too little variance.

    No gradients go through it. Along the same Brownian path torchsde's direct gradient is that of
    `SDESolver(method="euler")` to 10 digits. Its adjoint's is off by the order of the step under
    additive noise (.2 to .6 % at 1/32 of the span), and under multiplicative noise in Ito's sense
    by 1 to 3 %, of which .2 to 1 % remain at 1/256 (torchsde 0.2.6).

    Args:
        method: "euler", "milstein" or "srk" (strong orders 1/2, 1 and 1.5 for the noise that suits
            them).
        step: Largest step in dimensionless time; the first one of an adaptive method.
        rtol: Relative tolerance of adaptive steps; steps are fixed without it.
        atol: Absolute tolerance of adaptive steps, dimensionless.
        max_state: As in `FixedGridSolver`.

    Raises:
        DataError: For an unknown method, numbers that are not positive, or adaptive "euler", whose
            steps would not converge to the path.

    Source: Li et al. (2020), "Scalable gradients for stochastic differential equations".
    arXiv:2001.01328

    Example:
        >>> from bayesode.models.contracts import Diffusion, VectorField
        >>> sde = SDE(VectorField(lambda t, x: -x), Diffusion(lambda t, x: 0 * x))
        >>> path = TorchSDESolver(step=0.01)(
        ...     sde, torch.ones(1, 1), torch.zeros(1), torch.ones(1, 1)
        ... )
        >>> path.round(decimals=2).flatten()
        tensor([0.3700])
    """

    method: str = "milstein"
    step: float = 0.01
    rtol: float | None = None
    atol: float = 1e-4
    max_state: float = 30.0

    def __post_init__(self) -> None:
        if self.method not in list(METHODS):  # a list: what cannot be hashed is unknown too
            raise DataError(f"method must be one of {sorted(METHODS)}, not {self.method!r}.")
        check_positive(step=self.step, atol=self.atol, max_state=self.max_state)
        if self.rtol is not None:
            check_positive(rtol=self.rtol)
        if self.rtol is not None and self.method == "euler":
            raise DataError("adaptive steps need strong order 1: take 'milstein' or 'srk'.")

    @property
    def config(self) -> dict[str, object]:
        """Constructor arguments."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def priors(self, start: Tensor, times: Tensor) -> Priors:
        """Nothing is declared: the noise is drawn inside."""
        return {}

    @torch.no_grad()
    def solve(
        self, field: Any, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Solution:
        """A path from x0 (*draws, series, state) at the asked times, without gradients.

        Args:
            field: The drawn `SDE`.
            x0: Shape (*draws, series, state).
            start: Shape (series,), dimensionless.
            times: Shape (series, time), dimensionless, none before the start.
            noise: None.

        Raises:
            DataError: If the field is no SDE, or increments are given.
        """
        if not hasattr(field, "diffusion"):
            raise DataError("TorchSDESolver needs a field with noise, SDEField(drift, noise).")
        if noise:
            raise DataError("TorchSDESolver draws its own noise; to give it take SDESolver.")
        elapsed = times.double() - start.double().unsqueeze(-1)
        span = elapsed[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
        # equal positions differ in their last digits after the division: 12 digits are one time
        position = (elapsed / span).round(decimals=12)
        grid, index = torch.unique(
            torch.cat([position.new_zeros(1), position.flatten()]), return_inverse=True
        )
        rate = field.drift(start.to(x0).unsqueeze(-1), x0)
        x0 = x0.expand(torch.broadcast_shapes(x0.shape, rate.shape))
        flat = _Flat(field, start.to(x0).unsqueeze(-1), span.to(x0), x0.shape, self.max_state)
        states = self._walk(flat, x0.reshape(-1, x0.shape[-1]), grid, float(span.max()))
        index = index[1:].view(*times.shape, 1).expand(*x0.shape[:-1], -1, x0.shape[-1])
        path = states.view(len(grid), *x0.shape).movedim(0, -2).gather(-2, index)
        is_inside = (path.abs() <= self.max_state).all(-1)  # NaN compares False
        path = torch.nan_to_num(path).clamp(-self.max_state, self.max_state)
        return Solution(path, flat.num_evaluations, ~is_inside.all(-1))

    def __call__(
        self, field: Any, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Tensor:
        """The path of `solve`, shape (*draws, series, time, state)."""
        return self.solve(field, x0, start, times, **noise).path

    def _walk(self, flat: _Flat, y: Tensor, grid: Tensor, span: float) -> Tensor:
        """States on the grid, shape (grid, draws x series, state)."""
        if len(grid) == 1:  # nothing is asked but the start
            return y.unsqueeze(0)
        states, step = [y], self.step / span
        # torchsde would take numpy's seed, and without dt be a hundred times slower
        motion = torchsde.BrownianInterval(
            t0=0.0,
            t1=1.0,
            size=tuple(y.shape),
            dtype=y.dtype,
            device=y.device,
            entropy=int(torch.randint(2**31 - 1, ())),
            dt=step,
            levy_area_approximation=METHODS[self.method],
        )
        for begin, end in pairwise(grid):
            lengths, _, _ = substeps(begin.view(1), end.view(1, 1), step)
            found: Any = torchsde.sdeint(
                flat,
                states[-1],
                torch.stack([begin, end]),
                bm=motion,
                method=self.method,
                dt=float(lengths[0, 0]),
                adaptive=self.rtol is not None,
                rtol=self.rtol or 1.0,
                atol=self.atol,
                dt_min=SHORTEST,
            )
            states.append(found[-1])
        return torch.stack(states)


class _Flat:
    """An SDE in elapsed time with draws and series in one dimension, as torchsde calls it."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(
        self, sde: SDE, start: Tensor, span: Tensor, shape: torch.Size, max_state: float
    ) -> None:
        self.sde, self.start, self.span = sde, start, span
        self.shape, self.max_state, self.num_evaluations = shape, max_state, 0

    def f(self, s: Tensor, y: Tensor) -> Tensor:
        """Drift, shape (draws x series, state)."""
        self.num_evaluations += 1
        t, x, is_inside = self._at(s, y)
        return self._flatten(self.span * rate_of(self.sde.drift, t, x), is_inside)

    def g(self, s: Tensor, y: Tensor) -> Tensor:
        """Noise scale, shape (draws x series, state)."""
        t, x, is_inside = self._at(s, y)
        return self._flatten(self.span.sqrt() * self.sde.diffusion(t, x), is_inside)

    def _at(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = y.view(self.shape)
        is_inside = (x.abs() <= self.max_state).all(-1, keepdim=True)
        bounded = torch.nan_to_num(x).clamp(-self.max_state, self.max_state)
        return self.start + float(s) * self.span, bounded, is_inside

    def _flatten(self, rate: Tensor, is_inside: Tensor) -> Tensor:
        # frozen outside the bound
        return torch.where(is_inside, rate, 0.0).expand(self.shape).flatten(0, -2)
