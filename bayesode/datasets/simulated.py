"""Simulated data: a known system, solved by scipy and seen through noise at chosen times."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Generator, Tensor

from bayesode.data_checks import shape_of
from bayesode.datasets.arguments import check_whole, choose_missing, choose_times, noise_scales
from bayesode.errors import DataError, ShapeError, SolverError
from bayesode.trajectories import Trajectories

NUM_STEPS = 4000  # of a path with process noise: the bias of its moments is far below their spread
RTOL, ATOL = 1e-9, 1e-10  # far below any noise, and an independent check of our own solvers


@dataclass(frozen=True, eq=False)
class Simulated:
    """Simulated data and the truth behind them.

    Args:
        observed: With noise and missing entries, float32, values (series, time, component): the
            state, or its leading components where the others are not observed.
        truth: Noise-free path at the same times, complete, float64 as it was integrated.
        noise_scale: Standard deviation of the noise, shape (component,), float64, units of the
            state.
        parameters: Constants of the system.
        derivative: The equations, `derivative(*state, **parameters)`, see `System`. With process
            noise it is the drift.
    """

    observed: Trajectories
    truth: Trajectories
    noise_scale: Tensor
    parameters: dict[str, float]
    derivative: Callable[..., tuple[Any, ...]]

    def field(self, states: Tensor) -> Tensor:
        """The true vector field dx/dt, for `vector_field(posterior, truth=data.field)`.

        Args:
            states: Shape (*, state), units of the state.

        Returns:
            Shape (*, state), units of the state per unit of time.

        Raises:
            ShapeError: If the states have another number of components.

        Example:
            >>> from bayesode.datasets import van_der_pol
            >>> van_der_pol().field(torch.tensor([[2.0, 1.0]]))  # x2, (1 - x1^2) x2 - x1
            tensor([[ 1., -5.]])
        """
        names = self.truth.names
        if states.shape[-1] != len(names):
            raise ShapeError(
                f"states need the components {list(names)} as last axis, not {shape_of(states)}."
            )
        return torch.stack(self.derivative(*states.unbind(-1), **self.parameters), -1)


@dataclass(frozen=True)
class System:
    """A system to simulate.

    Args:
        derivative: `derivative(*state, **parameters)`, one array (series,) per component in and
            out; plain arithmetic, so that it takes tensors too.
        names: Names of the components.
        parameters: Constants of the derivative.
        draw_initial: `draw_initial(num_series, generator)`, x(0) of shape (series, state), float32.
        horizon: Usual end of the observations, in units of time.
        noise_scale: Usual standard deviation of the noise.
        diffusion: Of a system with process noise, in the same form: the sd of the noise of each
            component per square root of the unit of time (Ito). None for an ODE.
        num_observed: How many components are observed, the leading ones; None for all.
    """

    derivative: Callable[..., tuple[Any, ...]]
    names: tuple[str, ...]
    parameters: dict[str, float]
    draw_initial: Callable[[int, Generator], Tensor]
    horizon: float
    noise_scale: float
    diffusion: Callable[..., tuple[Any, ...]] | None = None
    num_observed: int | None = None


def uniform_initial(low: float, high: float, dim: int) -> Callable[[int, Generator], Tensor]:
    """The law U(low, high)^dim of initial states, as `System.draw_initial`.

    Example:
        >>> law = uniform_initial(1.0, 5.0, 2)
        >>> law(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """

    def draw(num_series: int, generator: Generator) -> Tensor:
        unit = torch.rand(num_series, dim, generator=generator, dtype=torch.float32)
        return low + (high - low) * unit

    return draw


def simulate(
    system: System,
    *,
    num_series: int,
    num_times: int,
    seed: int,
    noise_scale: Any,
    times: Any,
    missing: float,
    horizon: float | None,
) -> Simulated:
    """Noisy observations of several series of a system that start at time 0.

    The initial states are drawn first: neither times nor noise nor missing entries change them.
    Process noise is drawn last, along steps that end at the asked times: other times are another
    path.

    Args:
        system: Equations, law of x(0), usual horizon and noise.
        num_series: Number of series, each with its own initial state.
        num_times: Number of times of each series; without effect for times of one's own.
        seed: Decides everything random; the global random state is not touched.
        noise_scale: Standard deviation of the Gaussian noise, one number or one per component;
            None for the system's own.
        times: None or "regular" (equally spaced over [0, horizon], shared), "irregular" (each
            series its own: 0, sorted uniform times, horizon), or times >= 0, shape (time,) or
            (series, time).
        missing: Fraction in [0, 1) of the single numbers that are missing completely at random,
            rounded to a whole number of them; every series keeps at least one.
        horizon: Last time; None for the system's own. Not with times of one's own.

    Returns:
        Observations, truth at the same times, noise scale and constants.

    Raises:
        DataError: For arguments out of range, or times before 0, repeated or not sorted.
        ShapeError: If times or noise_scale do not fit the number of series or components.
        SolverError: If scipy cannot integrate the system to the last time.

    Source: scipy's `solve_ivp`, DOP853 (Hairer, Norsett and Wanner 1993, section II.5).

    Example:
        >>> decay = System(
        ...     lambda x, rate: (-rate * x,),
        ...     ("x",),
        ...     {"rate": 1.0},
        ...     uniform_initial(1.0, 1.0, 1),
        ...     2.0,
        ...     0.1,
        ... )
        >>> data = simulate(
        ...     decay,
        ...     num_series=1,
        ...     num_times=3,
        ...     seed=0,
        ...     noise_scale=0.0,
        ...     times=None,
        ...     missing=0.0,
        ...     horizon=None,
        ... )
        >>> data.observed.values.flatten()  # 1, exp(-1), exp(-2)
        tensor([1.0000, 0.3679, 0.1353])
    """
    check_whole("num_series", num_series, least=1)
    check_whole("seed", seed)
    if horizon is not None and times is not None and not isinstance(times, str):
        raise DataError("give either times of your own or horizon=, not both.")
    end = system.horizon if horizon is None else horizon
    usual = system.noise_scale if noise_scale is None else noise_scale
    seen_names = system.names[: system.num_observed]
    scale = noise_scales(usual, len(seen_names))
    generator = Generator().manual_seed(int(seed))
    x0 = system.draw_initial(int(num_series), generator)
    grid = choose_times(times, int(num_series), num_times, end, generator)
    question = Trajectories(  # checks times of the user's own before they are used
        grid, None, series=tuple(range(len(x0))), names=system.names, start=torch.zeros(len(x0))
    )
    shape = torch.Size([*question.grid.shape, len(seen_names)])
    noise = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    is_missing = choose_missing(shape, missing, generator)
    if system.diffusion is None:
        path = _paths(system, x0, question.times)
    else:
        path = random_paths(system, x0, question.grid, generator)
    shown = path[..., : len(seen_names)]
    seen = torch.where(is_missing, torch.nan, shown + noise).to(torch.float32)
    observed, truth = (
        Trajectories(grid, values, names=names, start=question.start)
        for values, names in ((seen, seen_names), (path, system.names))
    )
    return Simulated(observed, truth, scale, dict(system.parameters), system.derivative)


def _paths(system: System, x0: Tensor, grid: Tensor) -> Tensor:
    """Shape (series, time, state); one call for all series if they share times, else one each."""
    if grid.dim() == 1:
        return _integrate(system, x0, grid)
    rows = [_integrate(system, x0[row : row + 1], times) for row, times in enumerate(grid)]
    return torch.cat(rows)


def random_paths(system: System, x0: Tensor, grid: Tensor, generator: Generator) -> Tensor:
    """Paths with process noise by Euler-Maruyama in about 4,000 steps, shape (series, time, state).

    Args:
        system: With a diffusion.
        x0: Shape (series, state), at time 0.
        grid: Times, shape (series, time).
        generator: Draws the noise.

    Raises:
        SolverError: If a path explodes.

    Source: Kloeden and Platen (1992), "Numerical Solution of Stochastic Differential Equations",
    section 10.2.
    """
    parts: Any = system.derivative, system.diffusion
    knots = torch.cat([torch.zeros_like(grid[:, :1]), grid], 1)
    longest, states, x = grid.max().item() / NUM_STEPS, [], x0.double()
    for gap in knots.diff(dim=1).unbind(1):
        count = max(1, math.ceil(gap.max().item() / max(longest, 1e-300)))
        h = (gap / count).unsqueeze(-1)
        noise = torch.randn(count, *x.shape, generator=generator, dtype=torch.float64)
        for increment in noise:
            drift, scale = (
                torch.stack(
                    [*torch.broadcast_tensors(*part(*x.unbind(-1), **system.parameters))], -1
                )
                for part in parts
            )
            x = x + h * drift + h.sqrt() * scale * increment
        states.append(x)
    path = torch.stack(states, 1)
    if not path.isfinite().all():
        raise SolverError("a simulated path explodes: ask for a shorter horizon.")
    return path


def _integrate(system: System, x0: Tensor, times: Tensor) -> Tensor:
    num_series, dim = x0.shape

    def derivative(_: float, state: np.ndarray) -> np.ndarray:
        components = state.reshape(dim, num_series)
        return np.concatenate(system.derivative(*components, **system.parameters))

    solution = solve_ivp(
        derivative,
        (0.0, times[-1].item() or 1.0),  # over an empty span scipy returns no state at all
        x0.double().T.numpy().ravel(),
        method="DOP853",
        t_eval=times.numpy(),
        rtol=RTOL,
        atol=ATOL,
    )
    if not solution.success:
        raise SolverError(
            f"scipy stopped before t = {times[-1].item():g}: {solution.message} Ask for a shorter "
            "horizon or earlier times."
        )
    return torch.from_numpy(solution.y.reshape(dim, num_series, -1)).permute(1, 2, 0).contiguous()
