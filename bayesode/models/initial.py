"""Laws of the initial state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Priors, Values
from bayesode.units import Units


class NormalInitial(nn.Module):
    """Normal law of x(t0), on the scale of the units' transform.

    Args:
        dim: Size of the state.
        location: In users' units, shape (dim,); the data's mean by default.
        scale: In users' units, shape (dim,), positive; twice the data's sd by default. Under a log
            transform it is the sd of the logarithm.

    Raises:
        ShapeError: If location or scale do not have `dim` entries.
        DataError: If a scale is not positive, or a location is not finite, or not positive under a
            log transform.

    Example:
        >>> NormalInitial(2).build({}).event_shape
        torch.Size([2])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        dim: int,
        *,
        location: Tensor | Sequence[float] | None = None,
        scale: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.location, self.scale = dim, _vector(dim, location), _vector(dim, scale)
        if self.scale is not None and not (self.scale.isfinite() & (self.scale > 0)).all():
            raise DataError(f"scale must be positive numbers, not {self.scale.tolist()}.")
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.full((dim,), 2.0))
        if location is not None or scale is not None:
            self.with_units(Units())

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        given = {"location": self.location, "scale": self.scale}
        return {"dim": self.dim} | {k: None if v is None else v.tolist() for k, v in given.items()}

    def with_units(self, units: Units) -> None:
        """Take on the units of a model."""
        if self.location is not None:
            mean = units.to_state(self.location)
            if not mean.isfinite().all():
                raise DataError(
                    f"location={self.location.tolist()} has no place under the transform "
                    f"{units.transform!r} of the units, which needs "
                    f"{'positive' if units.transform == 'log' else 'finite'} numbers."
                )
            self.mean = mean.to(self.mean)
        if self.scale is not None:
            self.deviation = (self.scale / units.scale[: self.dim]).to(self.deviation)

    def set_moments(self, mean: Tensor, deviation: Tensor) -> None:
        """Take means and sds of the leading components from a start, in dimensionless units."""
        self.mean[: len(mean)] = mean.to(self.mean)
        self.deviation[: len(deviation)] = deviation.to(self.deviation)

    def priors(self) -> Priors:
        """Nothing is random beside x0 itself."""
        return {}

    def build(self, values: Values, inputs: Inputs | None = None) -> dist.TorchDistribution:
        """The law of x0, event shape (dim,), in dimensionless units."""
        return dist.Normal(self.mean, self.deviation).to_event(1)


def _vector(dim: int, value: Tensor | Sequence[float] | None) -> Tensor | None:
    if value is None:
        return None
    vector = torch.as_tensor(value, dtype=torch.float64)
    if vector.shape != (dim,):
        raise ShapeError(f"{dim} numbers are needed, not {tuple(vector.shape)}.")
    return vector
