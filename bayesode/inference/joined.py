"""Draws of several members as one, each seen through the likelihood of its own member."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.blocks import Block
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.variance_parts import PairedPaths
from bayesode.models.contracts import Observe
from bayesode.units import Units


class JoinedLaw(dist.TorchDistribution):
    """Laws of the draws of several members as one law, whose draws are in an order of their own.

    Args:
        parts: One law per member, batch shapes (draws, series, time, *event) that differ in the
            number of draws alone.
        order: Where each joined draw is among the draws of all members, one member after the other.

    Example:
        >>> parts = [dist.Normal(torch.zeros(1, 3), 1.0), dist.Normal(torch.ones(2, 3), 2.0)]
        >>> JoinedLaw(parts, torch.tensor([2, 0, 1])).mean[:, 0]
        tensor([1., 0., 1.])
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]

    def __init__(self, parts: Sequence[dist.TorchDistribution], order: Tensor) -> None:
        self.parts, self.order = tuple(parts), order
        shape = torch.Size([len(order), *parts[0].batch_shape[1:]])
        super().__init__(shape, validate_args=False)

    @property
    def support(self) -> Any:  # type: ignore[override]
        """That of every part."""
        return self.parts[0].support

    @property
    def mean(self) -> Tensor:
        """Means of the draws."""
        return joined([part.mean for part in self.parts], self.order)

    @property
    def variance(self) -> Tensor:
        """Variances of the draws."""
        return joined([part.variance for part in self.parts], self.order)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Values of each draw, shape (*sample_shape, draws, series, time, *event)."""
        dim = len(sample_shape)
        drawn = torch.cat([part.sample(sample_shape) for part in self.parts], dim)
        return drawn.index_select(dim, self.order)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of a value (series, time, *event) for all draws, or of one for each."""
        return self._each(lambda part, own: part.log_prob(own), value)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function, of a value as in `log_prob`."""
        return self._each(lambda part, own: part.cdf(own), value)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles, at levels of a shape as in `log_prob`."""
        return self._each(lambda part, own: part.icdf(own), value)

    def _each(self, way: Callable[[Any, Tensor], Tensor], value: Tensor) -> Tensor:
        counts = [part.batch_shape[0] for part in self.parts]
        own = of_members(value, self.order, counts) if self._is_per_draw(value) else None
        values = own or [value] * len(counts)
        return joined([way(*pair) for pair in zip(self.parts, values, strict=True)], self.order)

    def _is_per_draw(self, value: Tensor) -> bool:
        return value.dim() == len(self.batch_shape) and len(value) == len(self.order)


def joined(parts: Sequence[Tensor], order: Tensor) -> Tensor:
    """Draws of all members, each (draws, ...), in the joined order."""
    return torch.cat(list(parts))[order]


def of_members(draws: Tensor, order: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Joined draws back to their members: the inverse of `joined`.

    Args:
        draws: Shape (draws, ...).
        order: As in `JoinedLaw`.
        counts: Draws of each member.
    """
    return list(draws[order.argsort()].split(list(counts)))


def joined_paths(parts: Sequence[Tensor], units: Sequence[Units], to: Units, order: Tensor) -> Any:
    """Paths of all members in common units.

    Args:
        parts: Dimensionless in the units of each member, (draws, series, time, state).
        units: Of each member.
        to: The common ones.
        order: As in `JoinedLaw`.

    Raises:
        DataError: If the states have different sizes.
    """
    sizes = sorted({part.shape[-1] for part in parts})
    if len(sizes) > 1:
        raise DataError(
            f"the members have states of {sizes} components, which have no place in one path: mix "
            "models of one size of the state."
        )
    pairs = zip(parts, units, strict=True)
    return joined([in_units(path, own, to) for path, own in pairs], order)


def joined_pairs(
    parts: Sequence[PairedPaths], units: Sequence[Units], to: Units, order: Tensor
) -> PairedPaths:
    """Partners of the draws of all members, as `joined_paths`."""
    return PairedPaths(
        redrawn=joined_paths([part.redrawn for part in parts], units, to, order),
        rewalked=joined_paths([part.rewalked for part in parts], units, to, order),
        failed=joined([part.failed for part in parts], order),
    )


def in_units(path: Tensor, own: Units, to: Units) -> Tensor:
    """A dimensionless path in other units of the same transform, shape (..., state)."""
    if torch.equal(own.location, to.location) and torch.equal(own.scale, to.scale):
        return path
    location, scale = (own.location - to.location) / to.scale, own.scale / to.scale
    return location.to(path) + scale.to(path) * path


def joined_observe(parts: Sequence[Ensemble], units: Units, order: Tensor, block: Block) -> Observe:
    """How the joined draws of one block are seen: those of a member through its own likelihood.

    Args:
        parts: Ensembles of the members.
        units: Of the joined paths.
        order: As in `JoinedLaw`.
        block: Which series and times.
    """
    members = [(part.observe_in(block), part.units) for part in parts]
    counts = [len(part.path) for part in parts]

    def seen(path: Tensor) -> list[tuple[Observe, Tensor]]:
        own = zip(members, of_members(path, order, counts), strict=True)
        return [(observe, in_units(piece, units, to)) for (observe, to), piece in own]

    def law(path: Tensor, mask: Tensor | None) -> dist.TorchDistribution:
        laws: list[Any] = [observe(piece, mask) for observe, piece in seen(path)]
        base = JoinedLaw([one.base_dist for one in laws], order)
        return dist.Independent(base, laws[0].reinterpreted_batch_ndims)

    return Observe(law, lambda p: joined([o.signal(piece) for o, piece in seen(p)], order))
