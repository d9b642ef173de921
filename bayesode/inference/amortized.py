"""A guide whose initial states come from an encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayesode.errors import DataError
from bayesode.inference.guides import GuideFactor, draw_declared, rows_of
from bayesode.inference.predictive import Given, SolvedPredictive, declared_draws
from bayesode.inference.site_table import SiteTable
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.modules import check_is_function
from bayesode.trajectories import Trajectories

# (model, guide, train) -> None: puts both near the data before a fit
Start = Callable[[DynamicalModel, "AmortizedGuide", Trajectories], None]


class AmortizedGuide(PyroModule):
    """Mean-field posteriors of every global site, and x0 of each series from its own values.

    One encoder serves all series: a fit costs no parameters per series, and new series need no fit.
    Predictions encode the data of the fit, never the values of the question; for new series
    `posterior.condition(new)` encodes what is visible of them.

    Args:
        model: Whose declared sites are mirrored.
        encoder: `encoder(trajectories)` is a law of x0 with batch shape (series,); it is copied.
        start: Called as start(model, guide, train) in place of a warm start.
        defaults: Settings of `fit_svi` where it is not told otherwise.

    Raises:
        DataError: If the model declares random paths, a site is discrete, or the encoder is no
            module, or another function in training than in prediction (dropout, batch
            normalisation).

    Example:
        >>> import torch, bayesode as bo
        >>> train = bo.Trajectories(torch.arange(5.0), torch.rand(6, 5, 3))
        >>> model = bo.DynamicalModel(
        ...     initial=bo.NormalInitial(3),
        ...     field=bo.LinearField(3),
        ...     likelihood=bo.GaussianLikelihood(3),
        ...     solver=bo.MatrixExponentialSolver(),
        ... )
        >>> guide = bo.AmortizedGuide(model, bo.MLPEncoder((3,), 3))
        >>> posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)
        >>> new = bo.Trajectories([0.0, 1.0], torch.rand(1, 2, 3), series=["new"])
        >>> posterior.condition(new).predict(new.at([2.0]), num_draws=10, seed=0).values.shape
        torch.Size([10, 1, 1, 3])
    """

    path_half: GuideFactor | None = None  # of an objective that adds terms, see `path_objective`

    def __init__(
        self,
        model: DynamicalModel,
        encoder: nn.Module,
        *,
        start: Start | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise DataError(
                f"encoder={encoder!r} is no module; take ConvEncoder(event_shape, dim) or another."
            )
        check_is_function(encoder)
        if hasattr(model.solver, "noise_grid"):
            raise DataError(
                "a model with random paths needs a guide that draws them, SDEGuide(model, data)."
            )
        self.sites = SiteTable.of_shared(model)
        self.encoder: Any = copy.deepcopy(encoder)
        self.start, self.defaults = start, dict(defaults or {})

    # ---- the declaration -------------------------------------------------------------------------
    def posteriors(self, trajectories: Trajectories) -> dict[str, dist.TorchDistribution]:
        """The posterior of each site, in the model's order; x0 from the values that are given.

        Raises:
            DataError: For a question without values, or values that the encoder cannot read.
        """
        laws = {site: self.sites.law(site) for site in self.supports}
        return laws | {"x0": self.encoder(trajectories)}

    def forward(self, trajectories: Trajectories) -> dict[str, Tensor]:
        """The guide as a Pyro program."""
        return draw_declared(self.posteriors(trajectories), trajectories, self.path_half)

    @property
    def supports(self) -> dict[str, Any]:
        """Support and event dimensions of each global site."""
        return self.sites.supports

    def location(self, site: str) -> Tensor:
        """Location of an unconstrained global site."""
        return self.sites.moments(site)[0].detach()

    def set_site(
        self, site: str, value: Tensor, scale: Tensor | None = None, unit: Tensor | None = None
    ) -> None:
        """Put the posterior of a global site at a value, see `SiteTable.set_site`."""
        self.sites.set_site(site, value, scale, unit)

    # ---- what fits ask of a guide ----------------------------------------------------------------
    def warm_start(self, model: DynamicalModel, train: Trajectories) -> None:
        """Run the start that was given, if any."""
        if self.start is not None:
            self.start(model, self, train)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the size of the steps that suit them.

        Returns:
            "locations" of sites, in units of their posterior scales; "log_scales" of sites and of
            the encoder, where they are parameters; "networks", the rest of the encoder.
        """
        declared = self.encoder.log_scales() if hasattr(self.encoder, "log_scales") else []
        own = {id(parameter) for parameter in declared}
        return {
            "locations": list(self.sites.offset.values()),
            "log_scales": [*self.sites.log_scale.values(), *declared],
            "networks": [p for p in self.encoder.parameters() if id(p) not in own],
        }

    def row_parameters(self) -> list[nn.Parameter]:
        """Parameters with a row per series: those of the encoder, if it has any."""
        return self.encoder.row_parameters() if hasattr(self.encoder, "row_parameters") else []

    def rows(self, trajectories: Trajectories) -> Tensor:
        """Rows in these of the series that have one, (rows,)."""
        return self.encoder.rows(trajectories)

    # ---- what posteriors ask of a guide ----------------------------------------------------------
    def predictive(self, model: DynamicalModel, train: Trajectories) -> SolvedPredictive:
        """Predictions from the values of `train`, whatever a question holds.

        Asked for a series that `train` has not, it raises a DataError.
        """

        def draw(question: Trajectories, num_draws: int, given: Given) -> dict[str, Tensor]:
            seen = train.rows(rows_of(train.series, question))
            return declared_draws(self, seen, num_draws, given)

        return SolvedPredictive(model, draw)

    def condition(self, model: DynamicalModel, new: Trajectories) -> AmortizedGuide:
        """A guide for new series, a copy: the encoder reads them.

        Raises:
            DataError: If it cannot.
        """
        self.encoder(new)
        return copy.deepcopy(self)
