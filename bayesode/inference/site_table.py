"""A table of mean-field posteriors, which guides are made of."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from bayesode.errors import DataError
from bayesode.models.contracts import resolve
from bayesode.models.dynamical import DynamicalModel

INITIAL_SCALE = 0.01  # of the unconstrained site, before any start is known
INITIAL_UNIT = 0.1  # in which a location moves until then


def scalar_support(law: Any) -> constraints.Constraint:
    """The support of one entry of a distribution."""
    support = law.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def posterior_family(
    support: constraints.Constraint, location: Tensor, scale: Tensor
) -> dist.TorchDistribution:
    """The mean-field family on a support: Normal, LogNormal, or a Normal pushed onto it."""
    # by repr: a constraint of a copied guide is another object than torch's own
    if repr(support) == repr(constraints.real):
        return dist.Normal(location, scale)
    if repr(support) in (repr(constraints.positive), repr(constraints.nonnegative)):
        return dist.LogNormal(location, scale)
    return dist.TransformedDistribution(dist.Normal(location, scale), [biject_to(support)])


class SiteTable(nn.Module):
    """Independent posteriors of named sites, each with a location and a scale per number.

    Both are those of the unconstrained site. A location is `origin + unit * offset`: the offset
    alone is learned, in steps of a size that suits the site.

    Example:
        >>> table = SiteTable()
        >>> table.add("rate", torch.tensor([2.0]), constraints.positive, event_dim=1)
        >>> round(table.law("rate").base_dist.loc.exp().item(), 6)
        2.0
    """

    def __init__(self) -> None:
        super().__init__()
        self.supports: dict[str, tuple[constraints.Constraint, int]] = {}
        self.offset, self.log_scale = nn.ParameterDict(), nn.ParameterDict()

    @classmethod
    def of_shared(cls, model: DynamicalModel) -> SiteTable:
        """The table of every global site of a model, at the prior medians.

        Raises:
            DataError: If a site is discrete.
        """
        table, prototype, priors = cls(), model.prototype(), model.global_priors()
        for site, value in prototype.items():
            prior = resolve(priors[site], prototype)
            if prior.support.is_discrete:  # pyright: ignore[reportOptionalMemberAccess]
                raise DataError(
                    f"{site} has a discrete prior, {prior}, and no gradient: sum it out of the "
                    "likelihood or give it a continuous prior."
                )
            table.add(site, value, scalar_support(prior), prior.event_dim)
        return table

    def add(
        self, site: str, value: Tensor, support: constraints.Constraint, event_dim: int
    ) -> None:
        """Take on a site, at a value within its support."""
        key, origin = _key(site), biject_to(support).inv(value).detach().clone()
        self.supports[site] = support, event_dim
        self.register_buffer(f"origin_{key}", origin)
        self.register_buffer(f"unit_{key}", torch.full_like(origin, INITIAL_UNIT))
        self.offset[key] = nn.Parameter(torch.zeros_like(origin))
        self.log_scale[key] = nn.Parameter(torch.full_like(origin, math.log(INITIAL_SCALE)))

    def law(self, site: str) -> dist.TorchDistribution:
        """The posterior of a site."""
        support, event_dim = self.supports[site]
        law = posterior_family(support, *self.moments(site))
        return law.to_event(event_dim - law.event_dim)

    def moments(self, site: str) -> tuple[Tensor, Tensor]:
        """Location and scale of the unconstrained site."""
        key = _key(site)
        origin, unit = self.get_buffer(f"origin_{key}"), self.get_buffer(f"unit_{key}")
        return origin + unit * self.offset[key], self.log_scale[key].exp()

    def parameters_of(self, site: str) -> list[nn.Parameter]:
        """What is learned of a site: offset and logarithm of the scale."""
        return [self.offset[_key(site)], self.log_scale[_key(site)]]

    @torch.no_grad()
    def set_site(
        self, site: str, value: Tensor, scale: Tensor | None = None, unit: Tensor | None = None
    ) -> None:
        """Put the posterior of a site at a value; `scale` is that of the unconstrained site.

        From here on the location is optimised in `unit`, by default `scale`: with steps of one size
        for every weight the first one alone would throw a stiff direction many sds away.
        """
        key, origin = _key(site), self.get_buffer(f"origin_{_key(site)}")
        origin.copy_(biject_to(self.supports[site][0]).inv(value.to(origin)))
        self.offset[key].zero_()
        if scale is not None:
            self.get_buffer(f"unit_{key}").copy_((scale if unit is None else unit).to(origin))
            self.log_scale[key].copy_(scale.to(origin).log().expand_as(origin))


def _key(site: str) -> str:
    return site.replace(".", "__")  # torch forbids dots in the names of parameters
