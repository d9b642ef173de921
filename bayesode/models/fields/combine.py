"""Fields made of fields."""

from __future__ import annotations

from collections.abc import Iterator
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


class Composite(nn.Module):
    """A random part made of named parts: it declares what they do, as `name.site`.

    The parts are its submodules. A subclass that keeps them elsewhere says so by `parts` and by
    `place`, what comes before the name of a part's buffers.
    """

    place = ""

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Names and parts, in the order of drawing."""
        yield from self.named_children()

    @property
    def config(self) -> dict[str, Any]:
        """Types and constructor arguments of the parts."""
        return {
            name: {"type": type(part).__name__, **getattr(part, "config", {})}
            for name, part in self.parts()
        }

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site that has them."""
        return {
            f"{name}.{site}": labels
            for name, part in self.parts()
            for site, labels in getattr(part, "labels", {}).items()
        }

    def with_units(self, units: Units) -> None:
        """Take on the units of a model."""
        for _, part in self.parts():
            if hasattr(part, "with_units"):
                part.with_units(units)  # type: ignore[operator]

    def priors(self) -> Priors:
        """The sites of all parts."""
        return dict(named_sites(self.parts()))  # type: ignore[arg-type]

    def tunable(self) -> dict[str, Tuning]:
        """The prior scales of all parts that may be set by the evidence."""
        return {
            f"{name}.{site}": Tuning(tuning.groups, f"{self.place}{name}.{tuning.buffer}")
            for name, part in self.parts()
            if hasattr(part, "tunable")
            for site, tuning in part.tunable().items()  # type: ignore[operator]
        }


class Sum(Composite):
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

    place = "fields."

    def __init__(self, **fields: nn.Module) -> None:
        super().__init__()
        if not fields:
            raise DataError("a sum needs at least one field, Sum(name=field, ...).")
        self.fields = nn.ModuleDict(fields)

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Names and fields, in the order of drawing."""
        yield from self.fields.items()

    def build(self, values: Values, inputs: Inputs | None = None) -> VectorField:
        """The field of drawn values of all parts."""
        built = [part.build(unnest(name, values), inputs) for name, part in self.parts()]

        def total(t: Tensor, x: Tensor) -> Tensor:
            first, *others = (rate_of(field, t, x) for field in built)
            return sum(others, start=first)

        return VectorField(total, tuple(tensor for field in built for tensor in field.tensors))
