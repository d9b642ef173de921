"""Known equations with unknown constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesode.data_checks import check_size
from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Prior, Priors, Values, VectorField
from bayesode.units import Units


class PhysicsField(nn.Module):
    """A right-hand side dx/dt = rhs(t, x, **constants) in users' units, its constants random.

    Written in the units of the data, and pulled back to the model's own: constants are in users'
    units too.

    Args:
        rhs: From the time t, a scalar or (series,), the state x (*draws, series, state) and each
            constant to dx/dt, shaped like x. A scalar constant broadcasts against x[..., 0].
        priors: A distribution per constant, or a function of the constants drawn before it.
        dim_rate: Number of components that rhs gives the rates of, the last ones of the state; all
            by default. Accelerations, see `SecondOrder`, give those of the velocities alone.

    Raises:
        DataError: Without constants, for a name that is no Python identifier or a dim_rate that is
            not positive.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> def rhs(t, x, growth, loss):
        ...     prey, predator = x.unbind(-1)
        ...     return torch.stack([prey * (growth - predator), predator * (prey - loss)], -1)
        >>> field = PhysicsField(
        ...     rhs, {"growth": dist.LogNormal(0.0, 1.0), "loss": dist.LogNormal(0.0, 1.0)}
        ... )
        >>> f = field.build({"growth": torch.tensor(1.5), "loss": torch.tensor(3.0)})
        >>> f(torch.tensor(0.0), torch.tensor([[2.0, 1.0]]))
        tensor([[ 1., -1.]])
    """

    def __init__(
        self,
        rhs: Callable[..., Tensor],
        priors: Mapping[str, Prior],
        *,
        dim_rate: int | None = None,
    ) -> None:
        super().__init__()
        if not priors or not all(name.isidentifier() for name in priors):
            raise DataError(
                "priors must name one constant or more by Python identifiers, not "
                f"{list(priors)}; a field without unknowns needs no prior: write it into rhs of "
                "another."
            )
        if dim_rate is not None:
            check_size(dim_rate=dim_rate)
        self.rhs, self.units, self.given = rhs, Units(), dict(priors)
        self.dim_rate = dim_rate
        self.laws: dict[str, tuple[type, list[str], int]] = {}
        for name, prior in priors.items():
            self._keep(name, prior)

    def _keep(self, name: str, prior: Any) -> None:
        """Put the numbers of a distribution into buffers: they are cast, moved and saved so."""
        base, event_dim = prior, 0
        while hasattr(base, "reinterpreted_batch_ndims"):
            base, event_dim = base.base_dist, event_dim + base.reinterpreted_batch_ndims
        numbers = list(getattr(base, "arg_constraints", {}))
        if not numbers or "probs" in numbers or "covariance_matrix" in numbers:
            return  # a function, or a law with several ways to give its numbers: kept as it is
        for number in numbers:
            self.register_buffer(f"{name}_{number}", torch.as_tensor(getattr(base, number)).clone())
        self.laws[name] = type(base), numbers, event_dim

    @property
    def config(self) -> dict[str, Any]:
        """Names of the constants; the equations themselves are code."""
        return {"constants": list(self.given)}

    def with_units(self, units: Units) -> None:
        """Take on the units of a model."""
        self.units = units

    def priors(self) -> Priors:
        """The priors of the constants."""
        return {name: self._law(name) for name in self.given}

    def _law(self, name: str) -> Prior:
        if name not in self.laws:
            return self.given[name]
        kind, numbers, event_dim = self.laws[name]
        return kind(**{n: self.get_buffer(f"{name}_{n}") for n in numbers}).to_event(event_dim)

    def build(self, values: Values, inputs: Inputs | None = None) -> VectorField:
        """The field of drawn constants, in the model's own units.

        Raises:
            ShapeError: If rhs does not return the shape of the state.
        """
        constants, units = dict(values), self.units

        def rate(t: Tensor, state: Tensor) -> Tensor:
            x = units.to_users(state)
            time = units.time_origin + units.time_unit * torch.as_tensor(t).to(units.time_unit)
            time = time.squeeze(-1) if time.dim() else time  # (series, 1) to that of x[..., 0]
            found = self.rhs(time.to(x.dtype), x, **constants)
            size = x.shape[-1] if self.dim_rate is None else self.dim_rate
            if found.shape[-x.dim() :] != (*x.shape[:-1], size):
                wanted = "that of x" if self.dim_rate is None else f"that of x[..., -{size}:]"
                raise ShapeError(
                    f"rhs returns the shape {tuple(found.shape)} for states of shape "
                    f"{tuple(x.shape)}: it has to be {wanted}; stack the rates of the components "
                    "along the last dimension, torch.stack([...], -1)."
                )
            return units.to_state_rate(state, found)

        return VectorField(rate, tuple(constants.values()))
