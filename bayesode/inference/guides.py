"""Guides that mirror what a model declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from bayesode.errors import DataError
from bayesode.inference.checks import has_random_paths
from bayesode.inference.site_table import SiteTable
from bayesode.models.contracts import resolve
from bayesode.models.dynamical import DynamicalModel, median
from bayesode.trajectories import Trajectories


def is_local(site: str) -> bool:
    """Whether a site is drawn once per series, inside the plate."""
    return site == "x0" or site.startswith("path.")


class GuideFactor(Protocol):
    """A term that an objective adds to a guide for each series, from its draws."""

    def issue(
        self, laws: Mapping[str, Any], values: Mapping[str, Tensor], trajectories: Trajectories
    ) -> None:
        """Issue it, inside the plate, given the law and the draw of every site."""
        ...


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

    path_half: GuideFactor | None = None  # of an objective that adds terms, see `path_objective`

    def __init__(self, model: DynamicalModel, trajectories: Trajectories) -> None:
        super().__init__()
        if has_random_paths(model, trajectories):
            raise DataError(
                "a model with random paths needs a guide that draws them, SDEGuide(model, data)."
            )
        self.sites = SiteTable.of_shared(model)
        law = model.build(model.prototype(), trajectories)[0]
        x0 = median(law).expand(trajectories.num_series, *law.event_shape)
        self.sites.add("x0", x0, constraints.real, event_dim=1)
        self.series = trajectories.series
        self.to(dtype=None if trajectories.values is None else trajectories.values.dtype)

    def posteriors(self, trajectories: Trajectories) -> dict[str, dist.TorchDistribution]:
        """The posterior of each site, in the model's order; x0 for the series that are asked.

        Raises:
            DataError: For a series that has no row.
        """
        laws = {site: self.sites.law(site) for site in self.supports}
        location, scale = self.sites.moments("x0")
        if trajectories.series != self.series:
            rows = self.rows(trajectories)
            location, scale = location[rows], scale[rows]
        laws["x0"] = dist.Normal(location, scale).to_event(1)
        return laws

    @property
    def supports(self) -> dict[str, Any]:
        """Support and event dimensions of each global site."""
        return {site: own for site, own in self.sites.supports.items() if not is_local(site)}

    def location(self, site: str) -> Tensor:
        """Location of the unconstrained site."""
        return self.sites.moments(site)[0].detach()

    def forward(self, trajectories: Trajectories) -> dict[str, Tensor]:
        """The guide as a Pyro program."""
        return draw_declared(self.posteriors(trajectories), trajectories, self.path_half)

    def rows(self, trajectories: Trajectories) -> Tensor:
        """Rows of the table of initial states that belong to these series, (series,)."""
        return rows_of(self.series, trajectories).to(self.location("x0").device)

    def row_parameters(self) -> list[nn.Parameter]:
        """Parameters with one row per series, in the order of `series`."""
        return self.sites.parameters_of("x0")

    def set_site(
        self, site: str, value: Tensor, scale: Tensor | None = None, unit: Tensor | None = None
    ) -> None:
        """Put the posterior of a site at a value, see `SiteTable.set_site`."""
        self.sites.set_site(site, value, scale, unit)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any
    ) -> None:
        # runs that were saved before the sites had a table of their own
        own = prefix + "sites."
        for name in [n for n in state_dict if n.startswith(prefix) and not n.startswith(own)]:
            state_dict[own + name.removeprefix(prefix)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def draw_declared(
    laws: Mapping[str, Any], trajectories: Trajectories, half: GuideFactor | None = None
) -> dict[str, Tensor]:
    """Issue the posteriors that a guide declares as sites of a Pyro program.

    Args:
        laws: The law of each site, in the model's order, or a function of earlier values.
        trajectories: Whose plate holds the local sites.
        half: A term that is issued after them.
    """
    values: dict[str, Tensor] = {}
    for site, law in laws.items():
        if not is_local(site):
            values[site] = pyro.sample(site, resolve(law, values))
    with trajectories.plate():
        for site, law in laws.items():
            if is_local(site):
                values[site] = pyro.sample(site, resolve(law, values))
        if half is not None:
            resolved = {site: resolve(law, values) for site, law in laws.items()}
            half.issue(resolved, values, trajectories)
    return values


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
