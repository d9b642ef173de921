"""Second-order dynamics: a field of accelerations moves positions and velocities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Values, VectorField, unnest
from bayesode.models.fields.combine import Composite
from bayesode.units import Units


class SecondOrder(Composite):
    """The state (s, v), positions and velocities, with ds/dt = v and dv/dt = acceleration.

    The acceleration reads the whole state of 2q components and gives rates of q: a network
    `BayesianMLP(2 * q, hidden, q)`, linear forces `LinearField(q, dim_in=2 * q)`, equations
    `PhysicsField(rhs, priors, dim_rate=q)` or a `Sum` of such. Sites: its own, as
    `acceleration.site`.

    In a model with units of every component, ds/dt = v holds in users' units: dz_s/ds = (location_v
    + scale_v z_v) time_unit / scale_s for the dimensionless state z and time s. Units of the time
    alone say nothing of the state: velocities are per dimensionless unit of time then.
    `Units.from_data(train).with_velocities()` makes units in which both are the same. Of a state
    that is observed by its positions alone, `GaussianLikelihood(q)`, fits begin at the rates of the
    smoothed data.

    Args:
        acceleration: Random field from states of 2q components to rates of q.
        dim_constants: Number of components behind (s, v) that the acceleration reads as well and
            that stand still: `WithConstants(SecondOrder(acceleration, dim_constants=c), c)`.

    Raises:
        DataError: For an acceleration that is no random part or a dim_constants below 0; by
            `with_units`, under a log transform.
        ShapeError: By `with_units` for units of an odd number of components. By the rate for states
            of an odd number, and for an acceleration of another number than half of it.

    Source: Yildiz, Heinonen and Lahdesmaki (2019), "ODE2VAE: Deep generative second order ODEs with
    Bayesian neural networks", section 2. arXiv:1905.10994

    Example:
        >>> import torch
        >>> from bayesode.models.fields import LinearField
        >>> field = SecondOrder(LinearField(1))  # a spring
        >>> f = field.build({"acceleration.weights": torch.tensor([-4.0])})
        >>> f(torch.tensor(0.0), torch.tensor([[1.0, 3.0]]))
        tensor([[ 3., -4.]])
    """

    def __init__(self, acceleration: nn.Module, *, dim_constants: int = 0) -> None:
        super().__init__()
        if not isinstance(acceleration, nn.Module) or not hasattr(acceleration, "build"):
            raise DataError(
                f"acceleration={acceleration!r} is no random part; take BayesianMLP(2 * q, [8], q)."
            )
        if not isinstance(dim_constants, int) or dim_constants < 0:
            raise DataError(f"dim_constants is a number of components, not {dim_constants!r}.")
        self.acceleration: Any = acceleration
        self.dim_constants = dim_constants
        self.units: Units | None = None  # of the state, if it has any

    def parts(self) -> Iterator[tuple[str, Any]]:
        """The acceleration; the units are a submodule that is no part."""
        yield "acceleration", self.acceleration

    @property
    def config(self) -> dict[str, Any]:
        """Type and constructor arguments of the acceleration, and the number of constants."""
        return super().config | {"dim_constants": self.dim_constants}

    def with_units(self, units: Units) -> None:
        """Take on the units of a model."""
        if units.transform != "identity":
            raise DataError(
                f"the units have the transform {units.transform!r}, under which a velocity would "
                "have to be positive: SecondOrder takes Units of the transform 'identity'."
            )
        has_own = not _is_of_time_alone(units)
        if has_own and units.scale.numel() % 2:
            raise ShapeError(
                f"SecondOrder has a state of positions and velocities, the units have "
                f"{units.scale.numel()} component(s), an odd number: if only positions are "
                "observed take Units.from_data(train).with_velocities()."
            )
        super().with_units(units)
        self.units = units if has_own else None

    def build(self, values: Values, inputs: Inputs | None = None) -> VectorField:
        """The field of drawn values; linear if the acceleration is and velocities are about 0."""
        field = self.acceleration.build(unnest("acceleration", values), inputs)
        dim_constants, speed = self.dim_constants, _speed(self.units)

        def rate(t: Tensor, x: Tensor) -> Tensor:
            size = _half(x, dim_constants)
            acceleration = field(t, x)
            if acceleration.shape[-1] != size:
                raise ShapeError(
                    f"the acceleration has {acceleration.shape[-1]} component(s) for a state of "
                    f"{size} position(s) and {size} velocities: its rate has to be of {size} "
                    "(dim_out of a network)."
                )
            velocity = x[..., size : 2 * size]
            moved = velocity if speed is None else speed.of(velocity)
            lead = torch.broadcast_shapes(moved.shape[:-1], acceleration.shape[:-1])
            both = (moved.expand(*lead, size), acceleration.expand(*lead, size))
            return torch.cat(both, -1)

        return VectorField(rate, field.tensors, _matrix(field.matrix, speed))

    def hidden_components(self, rate: Tensor) -> Tensor:
        """The dimensionless velocities of a path of positions.

        Args:
            rate: Derivative of dimensionless positions by dimensionless time, shape (..., q).

        Raises:
            ShapeError: If the units are those of another number of positions.
        """
        speed = _speed(self.units)
        return rate if speed is None else speed.inverse(rate)


@dataclass(frozen=True, eq=False)
class _Speed:
    """Rates of dimensionless positions at dimensionless velocities v: offset + slope v.

    ds/dt = v in users' units is scale_s dz_s / time_unit = location_v + scale_v z_v.

    Args:
        offset: Shape (q,).
        slope: Shape (q,).
    """

    offset: Tensor
    slope: Tensor

    def of(self, velocity: Tensor) -> Tensor:
        """Rates of positions (..., q) at velocities (..., q)."""
        self._check(velocity)
        return self.offset.to(velocity) + self.slope.to(velocity) * velocity

    def inverse(self, rate: Tensor) -> Tensor:
        """Velocities (..., q) at which positions have a rate (..., q)."""
        self._check(rate)
        return (rate - self.offset.to(rate)) / self.slope.to(rate)

    def _check(self, velocity: Tensor) -> None:
        size = velocity.shape[-1]
        if len(self.slope) != size:  # one scale would be broadcast
            raise ShapeError(
                f"the units have {2 * len(self.slope)} components for {size} position(s) and "
                f"{size} velocities: give them one scale for each."
            )


def _half(x: Tensor, dim_constants: int) -> int:
    """Number of positions of a state."""
    size, rest = divmod(x.shape[-1] - dim_constants, 2)
    if rest or size < 1:
        beside = f" beside {dim_constants} constants" if dim_constants else ""
        raise ShapeError(
            f"a second-order state holds as many velocities as positions{beside}, so it cannot "
            f"have {x.shape[-1]} components: give x0, field and units 2q of them."
        )
    return size


def _is_of_time_alone(units: Units) -> bool:
    """Whether the units leave the state as it is, for all components alike."""
    is_one = units.scale.numel() == 1 and not units.names
    return is_one and bool((units.location == 0).all() and (units.scale == 1).all())


def _speed(units: Units | None) -> _Speed | None:
    """How velocities move positions under units of the state; None if as in the plain equation."""
    if units is None:
        return None
    positions, velocities = units.scale.chunk(2)
    unit = units.time_unit / positions
    return _Speed(unit * units.location.chunk(2)[1], unit * velocities)


def _matrix(acceleration: Tensor | None, speed: _Speed | None) -> Tensor | None:
    """The matrix of the whole field from that of its acceleration (*draws, read, q)."""
    if acceleration is None:
        return None
    num_read, size = acceleration.shape[-2:]
    is_affine = speed is not None and bool(speed.offset.any())
    if is_affine or num_read > 2 * size:  # driven by constants
        return None
    right = functional.pad(acceleration, (0, 0, 0, 2 * size - num_read))
    own = torch.ones(size).to(right)
    slope = own if speed is None else speed.slope.to(right)
    left = functional.pad(torch.diag(slope), (0, 0, size, 0))
    return torch.cat([left.expand_as(right), right], -1)
