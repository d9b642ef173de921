"""Fields made of fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs
from bayesode.models.contracts import (
    Priors,
    Tuning,
    Values,
    VectorField,
    named_sites,
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

    def silent(self) -> dict[str, Tensor]:
        """Values of sites at which networks of the parts give 0, see `BayesianMLP.silent`."""
        return {
            f"{name}.{site}": value
            for name, part in self.parts()
            if hasattr(part, "silent")
            for site, value in part.silent().items()  # type: ignore[operator]
        }

    def linear_site(self) -> str | None:
        """The site that takes the flat matrix of a linear field, of the first part that has one."""
        for name, part in self.parts():
            site = part.linear_site() if hasattr(part, "linear_site") else None
            if site is not None:
                return f"{name}.{site}"
        return None


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
        """The field of drawn values of all parts; linear if all of them are.

        Its rate raises a ShapeError if the parts have rates of different sizes.
        """
        built = {name: part.build(unnest(name, values), inputs) for name, part in self.parts()}

        def total(t: Tensor, x: Tensor) -> Tensor:
            rates: dict[str, Tensor] = {name: field(t, x) for name, field in built.items()}
            first, *others = rates.values()
            if any(rate.shape[-1] != first.shape[-1] for rate in others):  # 1 would be broadcast
                sizes = {name: rate.shape[-1] for name, rate in rates.items()}
                raise ShapeError(
                    f"the fields of a sum have rates of {sizes} components for states of shape "
                    f"{tuple(x.shape)}: give all of them the same (dim_out of a network)."
                )
            return sum(others, start=first)

        tensors = tuple(tensor for field in built.values() for tensor in field.tensors)
        matrices = [getattr(field, "matrix", None) for field in built.values()]
        is_linear = all(matrix is not None for matrix in matrices)
        return VectorField(total, tensors, sum(matrices) if is_linear else None)  # type: ignore
