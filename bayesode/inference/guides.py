"""Guides that mirror what a model declares."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from bayesode.errors import DataError
from bayesode.inference.checks import has_random_paths
from bayesode.models.contracts import resolve
from bayesode.models.dynamical import DynamicalModel, median
from bayesode.trajectories import Trajectories

INITIAL_SCALE = 0.01  # of the unconstrained site, before any start is known
INITIAL_UNIT = 0.1  # in which a location moves until then


def is_local(site: str) -> bool:
    """Whether a site is drawn once per series, inside the plate."""
    return site == "x0" or site.startswith("path.")


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


class MeanFieldGuide(PyroModule):
    """Independent posteriors of every site: all weights, noise scales, and x0 of every series.

    True `Normal` and `LogNormal` sites, so that KL divergences are closed where the priors allow
    it. The initial states are a table with one row per series label.

    Args:
        model: Whose declared sites are mirrored.
        trajectories: The series whose initial states get a row.

    Raises:
        DataError: If the model declares random paths, which need a guide of their own, or a site
            is discrete.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=10).observed
        >>> model, guide = bo.neural_ode(train, verbose=False)
        >>> {site: law.event_shape for site, law in guide.posteriors(train).items()}["x0"]
        torch.Size([2])
    """

    def __init__(self, model: DynamicalModel, trajectories: Trajectories) -> None:
        super().__init__()
        if has_random_paths(model, trajectories):
            raise DataError(
                "a model with random paths needs a guide that draws them, SDEGuide(model, data)."
            )
        prototype, priors = model.prototype(), model.global_priors()
        self.supports: dict[str, tuple[Any, int]] = {}
        self.offset, self.log_scale = nn.ParameterDict(), nn.ParameterDict()
        for site, value in prototype.items():
            prior = resolve(priors[site], prototype)
            if prior.support.is_discrete:  # pyright: ignore[reportOptionalMemberAccess]
                raise DataError(
                    f"{site} has a discrete prior, {prior}, and no gradient: sum it out of the "
                    "likelihood or give it a continuous prior."
                )
            self.supports[site] = scalar_support(prior), prior.event_dim
            self._add(site, biject_to(scalar_support(prior)).inv(value))
        law = model.build(prototype, trajectories)[0]
        self._add("x0", median(law).expand(trajectories.num_series, *law.event_shape))
        self.series = trajectories.series
        self.to(dtype=None if trajectories.values is None else trajectories.values.dtype)

    def posteriors(self, trajectories: Trajectories) -> dict[str, dist.TorchDistribution]:
        """The posterior of each site, in the model's order; x0 for the series that are asked.

        Raises:
            DataError: For a series that has no row.
        """
        laws = {}
        for site, (support, event_dim) in self.supports.items():
            law = posterior_family(support, *self._moments(site))
            laws[site] = law.to_event(event_dim - law.event_dim)
        location, scale = self._moments("x0")
        if trajectories.series != self.series:
            rows = self.rows(trajectories)
            location, scale = location[rows], scale[rows]
        laws["x0"] = dist.Normal(location, scale).to_event(1)
        return laws

    def _moments(self, site: str) -> tuple[Tensor, Tensor]:
        """Location and scale of the unconstrained site."""
        key = _key(site)
        origin, unit = getattr(self, f"origin_{key}"), getattr(self, f"unit_{key}")
        return origin + unit * self.offset[key], self.log_scale[key].exp()

    def location(self, site: str) -> Tensor:
        """Location of the unconstrained site."""
        return self._moments(site)[0].detach()

    def _add(self, site: str, origin: Tensor) -> None:
        key, origin = _key(site), origin.detach().clone()
        self.register_buffer(f"origin_{key}", origin)
        self.register_buffer(f"unit_{key}", torch.full_like(origin, INITIAL_UNIT))
        self.offset[key] = nn.Parameter(torch.zeros_like(origin))
        self.log_scale[key] = nn.Parameter(torch.full_like(origin, math.log(INITIAL_SCALE)))

    def forward(self, trajectories: Trajectories) -> dict[str, Tensor]:
        """The guide as a Pyro program."""
        laws = self.posteriors(trajectories)
        values = {site: pyro.sample(site, law) for site, law in laws.items() if not is_local(site)}
        with trajectories.plate():
            values["x0"] = pyro.sample("x0", laws["x0"])
        return values

    def rows(self, trajectories: Trajectories) -> Tensor:
        """Rows of the table of initial states that belong to these series, (series,)."""
        return rows_of(self.series, trajectories).to(self.offset["x0"].device)

    def row_parameters(self) -> list[nn.Parameter]:
        """Parameters with one row per series, in the order of `series`."""
        return [self.offset["x0"], self.log_scale["x0"]]

    @torch.no_grad()
    def set_site(
        self, site: str, value: Tensor, scale: Tensor | None = None, unit: Tensor | None = None
    ) -> None:
        """Put the posterior of a site at a value; `scale` is that of the unconstrained site.

        From here on the location is optimised in `unit`, by default `scale`: with steps of one size
        for every weight the first one alone would throw a stiff direction many sds away.
        """
        support = constraints.real if site == "x0" else self.supports[site][0]
        key, origin = _key(site), getattr(self, f"origin_{_key(site)}")
        origin.copy_(biject_to(support).inv(value.to(origin)))
        self.offset[key].zero_()
        if scale is not None:
            getattr(self, f"unit_{key}").copy_((scale if unit is None else unit).to(origin))
            self.log_scale[key].copy_(scale.to(origin).log().expand_as(origin))


def rows_of(known: tuple[str | int, ...], trajectories: Trajectories) -> Tensor:
    """Rows that series have in a fit which knows these labels, (series,).

    Raises:
        DataError: For a series that was not in the fit.
    """
    rows = {label: row for row, label in enumerate(known)}
    unknown = [label for label in trajectories.series if label not in rows]
    if unknown:
        raise DataError(
            f"series {unknown[0]!r} was not in the fit, so nothing is known of its initial "
            f"state; the fit knows {list(known[:8])}. Infer it from the series' first points: "
            "posterior.condition(new)."
        )
    return torch.tensor([rows[label] for label in trajectories.series])


def _key(site: str) -> str:
    return site.replace(".", "__")  # torch forbids dots in the names of parameters
