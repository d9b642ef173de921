"""What the parts of a model owe each other: read this first.

A *random part* is a module with `priors()`, what is random, and `build(values, inputs)`, which
turns one draw into a plain object that is run: a `VectorField` or an `SDE`, a law of the initial
state, an `Observe`.
`draw` issues the declared sites, `nest` puts a part inside a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs

Values = Mapping[str, Tensor]
Prior = dist.TorchDistribution | Callable[[dict[str, Tensor]], dist.TorchDistribution]
Priors = dict[str, Prior]


class RandomPart(Protocol):
    """A module that declares what is random in it; fields, initial states and likelihoods are."""

    def priors(self) -> Priors:
        """Sites and their priors; a prior may be a function of the values drawn before it."""
        ...

    def build(self, values: Values, inputs: Inputs | None = None) -> Any:
        """The plain object that one draw stands for; values may carry leading draws."""
        ...


@dataclass(frozen=True, eq=False)
class Tuning:
    """Prior scales of a site that a fit may set by the evidence.

    Args:
        groups: Which numbers share one scale, integers of the shape of the site.
        buffer: Name of the part's buffer that holds the prior sds, of the same shape.
    """

    groups: Tensor
    buffer: str


@dataclass(frozen=True, eq=False)
class VectorField:
    """One drawn, non-random right-hand side dx/dt = f(t, x).

    Args:
        function: f(t, x) with x (*draws, series, state) and t a scalar or (series, 1).
        tensors: Everything that `function` closes over and gradients must reach. An adjoint
            differentiates these alone; what is missing here gets no gradient, without an error.
        matrix: Of a linear field, dx/dt = x @ matrix, shape (*draws, state, state); None of any
            other. A solver may use it in place of the function.
        num_unbounded: Last components that are no states, as a log density that is integrated along
            with them: no bound of a solver applies to these.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    tensors: tuple[Tensor, ...] = ()
    matrix: Tensor | None = None
    num_unbounded: int = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """dx/dt, shaped like x."""
        return self.function(t, x)


@dataclass(frozen=True, eq=False)
class Diffusion:
    """One drawn, non-random noise scale g(t, x), with an independent noise per component.

    Args:
        function: g(t, x) with x (*draws, series, state), broadcastable to x; in state units per
            square root of the unit of time.
        tensors: As in `VectorField`.
        is_additive: Whether g does not depend on x.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    tensors: tuple[Tensor, ...] = ()
    is_additive: bool = False

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """g(t, x), broadcastable to x."""
        return self.function(t, x)

    def with_slope(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """g_i and dg_i/dx_i, each shaped like x."""
        x = x.expand(torch.broadcast_shapes(x.shape, self.function(t, x).shape))
        found: Any = torch.func.vjp(lambda y: self.function(t, y).expand_as(y), x)
        value, pull = found
        slopes = []
        for component in range(x.shape[-1]):  # rows do not see each other: one product for all
            direction = torch.zeros_like(x)
            direction[..., component] = 1.0
            slopes.append(pull(direction)[0][..., component])
        return value, torch.stack(slopes, -1)


@dataclass(frozen=True, eq=False)
class SDE:
    """One drawn stochastic differential equation dx = f(t, x) dt + g(t, x) dW, in Ito's sense.

    Args:
        drift: f.
        diffusion: g, one independent Brownian motion per component.
    """

    drift: VectorField
    diffusion: Diffusion

    @property
    def is_additive(self) -> bool:
        """Whether the noise does not depend on the state."""
        return self.diffusion.is_additive

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that drift and diffusion close over."""
        return (*self.drift.tensors, *self.diffusion.tensors)

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Refused: without its noise an SDE would pass for an ODE.

        Raises:
            DataError: Always.
        """
        raise DataError(
            "this field is an SDE, with a drift and a diffusion, where a rate alone is needed: "
            "take SDESolver as the model's solver, SDEGuide as the guide, and add fields inside "
            "the drift, SDEField(Sum(...), noise)."
        )


@dataclass(frozen=True, eq=False)
class Observe:
    """How one draw of a model is seen.

    Args:
        law: (path, mask) -> distribution of values (time, *event); `base_dist.log_prob` is the
            pointwise log likelihood. mask may be None.
        signal: path -> what would be seen without noise, in users' units: the median, or the mean
            under a decoder.
    """

    law: Callable[[Tensor, Tensor | None], dist.TorchDistribution]
    signal: Callable[[Tensor], Tensor]

    def __call__(self, path: Tensor, mask: Tensor | None = None) -> dist.TorchDistribution:
        """The law of the values along a path (*draws, series, time, state)."""
        return self.law(path, mask)


@dataclass(frozen=True, eq=False)
class Solution:
    """A solved path.

    Args:
        path: Shape (*draws, series, time, state).
        num_evaluations: How often the field was evaluated (for all draws and series at once).
        failed: Trajectories that were frozen because they left the bound, (*draws, series).
    """

    path: Tensor
    num_evaluations: int
    failed: Tensor


@runtime_checkable
class Solver(Protocol):
    """Frozen settings of a numerical method."""

    def priors(self, start: Tensor, times: Tensor) -> Priors:
        """What is random in a path given field and initial state: nothing for an ODE."""
        ...

    def solve(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Solution:
        """The path from x0 at `start (series,)` at the asked `times (series, time)`."""
        ...

    def __call__(
        self, field: VectorField, x0: Tensor, start: Tensor, times: Tensor, **noise: Tensor
    ) -> Tensor:
        """The path of `solve`."""
        ...


def draw(name: str, priors: Priors) -> dict[str, Tensor]:
    """Issue each declared site once, in order, as `name.site`."""
    values: dict[str, Tensor] = {}
    for site, prior in priors.items():
        values[site] = pyro.sample(f"{name}.{site}", resolve(prior, values))
    return values


def resolve(prior: Prior, values: dict[str, Tensor]) -> dist.TorchDistribution:
    """The distribution of a prior, given the values drawn before it."""
    is_law = isinstance(prior, torch.distributions.Distribution)
    return prior if is_law else prior(values)  # type: ignore[return-value, arg-type]


def nest(name: str, priors: Priors) -> Priors:
    """The sites of a part inside a part: `name.` before each, unseen by the part's own priors."""

    def renamed(prior: Prior) -> Prior:
        if isinstance(prior, torch.distributions.Distribution):
            return prior
        return lambda values: prior(unnest(name, values))  # type: ignore[arg-type]

    return {f"{name}.{site}": renamed(prior) for site, prior in priors.items()}


def unnest(name: str, values: Values) -> dict[str, Tensor]:
    """The values of the part `name` inside a part, under its own site names."""
    prefix = f"{name}."
    return {s.removeprefix(prefix): v for s, v in values.items() if s.startswith(prefix)}


def rate_of(field: VectorField, t: Tensor, x: Tensor) -> Tensor:
    """dx/dt as a solver needs it, with as many components as the state.

    Raises:
        ShapeError: If the field has another number of components. One alone would be broadcast.
    """
    rate = field(t, x)
    if rate.shape[-1:] != x.shape[-1:]:
        raise ShapeError(
            f"the field gives a rate of shape {tuple(rate.shape)} for states of shape "
            f"{tuple(x.shape)}: the last numbers must agree (dim_out of a network is the size of "
            "the state)."
        )
    return rate


def bound_of(field: VectorField, x: Tensor, max_state: float) -> float | Tensor:
    """The bound of a solver, of each component (state,) where the field leaves out some."""
    num_unbounded = getattr(field, "num_unbounded", 0)
    if num_unbounded == 0:
        return max_state
    bound = x.new_full((x.shape[-1],), max_state)
    bound[-num_unbounded:] = torch.inf
    return bound


class PathFactor(Protocol):
    """A term that an objective adds to the program for each series, from its path."""

    def issue(self, x0: Tensor, path: Tensor, trajectories: Any) -> None:
        """Issue it, inside the plate."""
        ...


def without_plate(value: Tensor, event_dim: int = 1) -> Tensor:
    """A global value without the plate's place: (*draws, 1, *event) -> (*draws, *event).

    Raises:
        ShapeError: If the value was drawn once per series.
    """
    if value.dim() <= event_dim:
        return value
    if value.shape[-event_dim - 1] != 1:
        raise ShapeError(
            f"a global site has the shape {tuple(value.shape)}: it needs a 1 in the plate's place, "
            "(draws, 1, ...). Draw it outside the plate of series: inside, every series gets a "
            "field of its own."
        )
    return value.squeeze(-event_dim - 1)


def named_sites(parts: Iterator[tuple[str, RandomPart]]) -> Iterator[tuple[str, Prior]]:
    """All global sites of some parts under their full names, in the order of drawing."""
    for name, part in parts:
        yield from nest(name, part.priors()).items()
