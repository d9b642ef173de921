"""All random numbers of a field as one unconstrained vector with a normal prior."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from bayesode.models.contracts import resolve
from bayesode.models.dynamical import median
from bayesode.plan import MAX_LAPLACE_WEIGHTS

MAX_WEIGHTS = MAX_LAPLACE_WEIGHTS  # normal equations beyond this cost more than they save
NUM_DRAWS = 1000  # for the sd of an unconstrained prior without a closed form


@dataclass(frozen=True, eq=False)
class FlatField:
    """A random field as a function of one vector, in float64.

    Args:
        field: The random part.
        sites: Per site its bijection from unconstrained numbers, and the shape of these.
        mean: Prior mean of the vector, shape (num_numbers,).
        sd: Prior sd of the vector, shape (num_numbers,).
        groups: Which numbers share a prior scale that may be tuned, -1 for none, (num_numbers,).
    """

    field: nn.Module
    sites: dict[str, tuple[Any, torch.Size]]
    mean: Tensor
    sd: Tensor
    groups: Tensor

    @classmethod
    def of(cls, field: nn.Module) -> FlatField:
        """The flat form of a field.

        Priors are normal in unconstrained coordinates: exactly so for Normal and LogNormal, by
        the sd of draws for others; a prior that depends on another site is taken at its median.
        """
        field = copy.deepcopy(field).double()
        values: dict[str, Tensor] = {}
        sites, means, sds = {}, [], []
        for site, prior in field.priors().items():  # type: ignore[operator]
            law: Any = resolve(prior, values)
            values[site] = median(law)
            bijection = biject_to(law.support)
            center = bijection.inv(values[site])
            sites[site] = bijection, center.shape
            means.append(center.flatten())
            exact = _normal_sd(law)
            sd = bijection.inv(_draws(law)).std(0) if exact is None else exact.expand_as(center)
            sds.append(sd.flatten())
        # a prior of constants stays float32 when its part is cast
        none = torch.empty(0, dtype=torch.float64)  # a part may have nothing random in it
        mean, sd = (torch.cat(parts).double() if parts else none for parts in (means, sds))
        return cls(field, sites, mean, sd, _groups(field, sites).to(mean.device))

    def build(self, vector: Tensor) -> Any:
        """What the part builds of a vector (num_numbers,)."""
        return self.field.build(self.unpack(vector), None)  # type: ignore[operator]

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """Values per site of vectors (*draws, num_numbers), each (*draws, *event)."""
        pieces = vector.split([shape.numel() for _, shape in self.sites.values()], -1)
        return {
            site: bijection(piece.reshape((*vector.shape[:-1], *shape)))
            for piece, (site, (bijection, shape)) in zip(pieces, self.sites.items(), strict=True)
        }

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """The vectors (*draws, num_numbers) of values per site (*draws, *event)."""
        pieces = []
        for site, (bijection, shape) in self.sites.items():
            free = bijection.inv(values[site].to(self.mean))
            pieces.append(free.reshape(*free.shape[: free.dim() - len(shape)], -1))
        return torch.cat(pieces, -1) if pieces else self.mean

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector (as of scales) cut into sites, without bijection."""
        pieces = vector.split([shape.numel() for _, shape in self.sites.values()])
        return {
            site: piece.view(shape)
            for piece, (site, (_, shape)) in zip(pieces, self.sites.items(), strict=True)
        }

    def write_prior(self, field: nn.Module) -> None:
        """Put the prior sds that were tuned into the buffers of a field."""
        tunable = field.tunable() if hasattr(field, "tunable") else {}  # type: ignore[operator]
        for site, tuning in tunable.items():
            buffer = field.get_buffer(tuning.buffer)
            buffer.copy_(self.split(self.sd)[site].view_as(buffer))

    def random_start(self) -> Tensor:
        """A third of a prior draw around the mean: zero weights would be a saddle point."""
        return self.mean + self.sd * torch.randn_like(self.mean) / 3


@dataclass(frozen=True, eq=False)
class LastLayer(FlatField):
    """The last numbers of a field as one vector, all others held where they are.

    Args:
        whole: The field with all its numbers.
        rest: All numbers, shape (num_numbers of the whole,); the last ones do not matter.
    """

    whole: FlatField
    rest: Tensor

    @classmethod
    def below(cls, whole: FlatField, rest: Tensor, most: int) -> LastLayer:
        """The longest end of whole groups (matrices and biases) with at most so many numbers."""
        begins = (whole.groups.diff() != 0).nonzero().flatten() + 1
        fitting = begins[len(rest) - begins <= most]
        first = int(fitting[0]) if len(fitting) else len(rest) - most
        mean, sd, groups = whole.mean[first:], whole.sd[first:], whole.groups[first:]
        return cls(whole.field, whole.sites, mean, sd, groups, whole, rest)

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """Values per site of vectors (*draws, num_numbers), each (*draws, *event)."""
        held = self.rest[: len(self.rest) - vector.shape[-1]].expand(*vector.shape[:-1], -1)
        return self.whole.unpack(torch.cat([held, vector], -1))

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """The vectors (*draws, num_numbers) of values per site (*draws, *event)."""
        return self.whole.pack(values)[..., len(self.rest) - len(self.mean) :]

    def write_prior(self, field: nn.Module) -> None:
        """Put the prior sds that were tuned into the buffers of a field."""
        sd = torch.cat([self.whole.sd[: -len(self.sd)], self.sd])
        replace(self.whole, sd=sd).write_prior(field)


def _groups(field: nn.Module, sites: dict[str, tuple[Any, torch.Size]]) -> Tensor:
    tunable = field.tunable() if hasattr(field, "tunable") else {}  # type: ignore[operator]
    pieces, first = [], 0
    for site, (_, shape) in sites.items():
        piece = torch.full((shape.numel(),), -1)
        if site in tunable:
            piece = first + tunable[site].groups.flatten().cpu()
            first = int(piece.max()) + 1
        pieces.append(piece)
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.long)


def _draws(law: Any) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return law.sample(torch.Size([NUM_DRAWS]))


def _normal_sd(law: Any) -> Tensor | None:
    """Sd in unconstrained coordinates where it is known: of Normal and LogNormal."""
    while hasattr(law, "base_dist") and not hasattr(law, "transforms"):
        law = law.base_dist
    is_known = isinstance(law, torch.distributions.Normal | torch.distributions.LogNormal)
    return law.scale if is_known else None
