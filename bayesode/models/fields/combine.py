"""Fields made of fields."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bayesode.errors import DataError
from bayesode.inputs import Inputs
from bayesode.models.contracts import (
    Priors,
    Tuning,
    Values,
    VectorField,
    named_sites,
    rate_of,
    unnest,
)
from bayesode.units import Units


class Sum(nn.Module):
    """The sum of named fields, each with its own sites `name.site`.

    Args:
        fields: Random fields of the same state.

    Raises:
        DataError: Without fields.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from bayesode.models.fields import BayesianMLP, PhysicsField
        >>> decay = PhysicsField(lambda t, x, rate: -rate * x, {"rate": dist.LogNormal(0.0, 1.0)})
        >>> field = Sum(physics=decay, network=BayesianMLP(1, [4], 1))
        >>> list(field.priors())
        ['physics.rate', 'network.weights']
    """

    def __init__(self, **fields: nn.Module) -> None:
        super().__init__()
        if not fields:
            raise DataError("a sum needs at least one field, Sum(name=field, ...).")
        self.fields = nn.ModuleDict(fields)

    @property
    def config(self) -> dict[str, Any]:
        """Types and constructor arguments of the fields."""
        return {
            name: {"type": type(field).__name__, **getattr(field, "config", {})}
            for name, field in self.fields.items()
        }

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site that has them."""
        return {
            f"{name}.{site}": labels
            for name, field in self.fields.items()
            for site, labels in getattr(field, "labels", {}).items()
        }

    def with_units(self, units: Units) -> None:
        """Take on the units of a model."""
        for field in self.fields.values():
            if hasattr(field, "with_units"):
                field.with_units(units)  # type: ignore[operator]

    def priors(self) -> Priors:
        """The sites of all fields."""
        return dict(named_sites(iter(self.fields.items())))  # type: ignore[arg-type]

    def tunable(self) -> dict[str, Tuning]:
        """The prior scales of all fields that may be set by the evidence."""
        return {
            f"{name}.{site}": Tuning(tuning.groups, f"fields.{name}.{tuning.buffer}")
            for name, field in self.fields.items()
            if hasattr(field, "tunable")
            for site, tuning in field.tunable().items()  # type: ignore[operator]
        }

    def build(self, values: Values, inputs: Inputs | None = None) -> VectorField:
        """The field of drawn values of all parts."""
        built = [
            field.build(unnest(name, values), inputs)  # type: ignore[operator]
            for name, field in self.fields.items()
        ]

        def total(t: Tensor, x: Tensor) -> Tensor:
            first, *others = (rate_of(field, t, x) for field in built)
            return sum(others, start=first)

        return VectorField(total, tuple(tensor for field in built for tensor in field.tensors))
