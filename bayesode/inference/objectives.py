"""What a fit maximises: `elbo_terms` for our guides, Pyro's ELBO for any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from bayesode.errors import FitError
from bayesode.inference.checks import check_sites
from bayesode.inference.elbo import elbo_terms
from bayesode.inference.pyro_objective import PyroObjective
from bayesode.inference.warm_start import Start, find_start
from bayesode.inference.window_schemes import Window, check_labels
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories


class Objective(Protocol):
    """One way to the ELBO."""

    def warm_start(self, train: Trajectories) -> Start | None:
        """Put the guide near the data."""
        ...

    def prepare(self, batch: Trajectories, num_particles: int) -> None:
        """Make the parameters and check that guide and model fit together."""
        ...

    def loss(self, window: Window, num_particles: int) -> Tensor:
        """A differentiable estimate of the negative ELBO, a scalar."""
        ...

    def named_parameters(self) -> dict[str, Tensor]:
        """Everything that is optimised."""
        ...

    default_learning_rate: float  # over a number of steps that is given
    cycle_learning_rate: float  # of the first cycle where it is not

    def groups(self) -> dict[str, list[Tensor]]:
        """Parameters with a learning rate of their own, by the name of the group."""
        ...

    def optimizers(self, make: Callable[..., Any], rates: Mapping[str, float]) -> list[Any]:
        """Torch optimisers over all parameters, at the rate of each group."""
        ...

    def before_step(self, batch: Trajectories) -> None:
        """Called between backward and step."""
        ...

    def status(self) -> dict[str, str]:
        """Figures for the progress bar."""
        ...


def objective_for(model: DynamicalModel, guide: Any, *, is_minibatch: bool) -> Objective:
    """The objective that a guide runs on."""
    if hasattr(guide, "posteriors"):
        return TermsObjective(model, guide, is_minibatch)
    return PyroObjective(model, guide, is_minibatch)


class TermsObjective:
    """`elbo_terms`, for guides that declare their posteriors."""

    default_learning_rate = 0.05  # in units of each location's own posterior scale
    cycle_learning_rate = 0.02  # 200 steps in cycles reach what 300 from .05 reach

    def __init__(self, model: DynamicalModel, guide: Any, is_minibatch: bool) -> None:
        self.model, self.guide, self.is_minibatch = model, guide, is_minibatch
        self.num_evaluations = 0

    def warm_start(self, train: Trajectories) -> Start | None:
        """Put the guide near the data."""
        self.prepare(train, 1)
        if hasattr(self.guide, "warm_start"):  # a guide that knows a start of its own
            self.guide.warm_start(self.model, train)
            return None
        start = find_start(self.model, train)
        order = train.positions(self.guide.series)
        for site, value in start.values.items():
            scale, unit = start.scales[site], start.units.get(site)
            if site == "x0":
                value, scale = value[order], scale[order]
            self.guide.set_site(site, value, scale, unit)
        return start

    def prepare(self, batch: Trajectories, num_particles: int) -> None:
        """Make the parameters and check that guide and model fit together."""
        check_sites(self.model, self.guide.posteriors(batch), batch)

    def loss(self, window: Window, num_particles: int) -> Tensor:
        """A differentiable estimate of the negative ELBO, a scalar.

        The weight of the KL terms is that of their gradient: the value is the whole bound.
        """
        check_labels(self.guide, window.trajectories)
        terms = elbo_terms(
            self.model,
            self.guide,
            window.trajectories,
            num_particles=num_particles,
            time_weights=window.weights,
        )
        if terms.solution is not None:
            self.num_evaluations = terms.solution.num_evaluations
        kl = torch.lerp(terms.total_kl.detach(), terms.total_kl, window.kl_weight)
        return kl - terms.log_likelihood

    def named_parameters(self) -> dict[str, Tensor]:
        """Everything that is optimised: the guide and what is not random in the model."""
        own = {f"model.{name}": parameter for name, parameter in self.model.named_parameters()}
        everything = dict(self.guide.named_parameters()) | own
        return {name: p for name, p in everything.items() if p.requires_grad}

    def groups(self) -> dict[str, list[Tensor]]:
        """The guide's groups, by default one; the model's parameters are among the networks.

        Raises:
            FitError: If the guide's groups leave a parameter out.
        """
        mine = [p for p in self.guide.parameters() if p.requires_grad]
        groups: dict[str, list[Tensor]] = {"locations": mine}
        if hasattr(self.guide, "parameter_groups"):
            groups = {
                n: [p for p in ps if p.requires_grad]
                for n, ps in self.guide.parameter_groups().items()
            }
        own = [p for p in self.model.parameters() if p.requires_grad]
        if own:
            groups["networks"] = [*groups.get("networks", []), *own]
        grouped = {id(p) for parameters in groups.values() for p in parameters}
        missing = [n for n, p in self.named_parameters().items() if id(p) not in grouped]
        if missing:
            raise FitError(
                f"parameter_groups() of {type(self.guide).__name__} leaves out {missing}: they "
                "would stay where they are. Put them into a group, or freeze them."
            )
        return groups

    def optimizers(self, make: Callable[..., Any], rates: Mapping[str, float]) -> list[Any]:
        """Torch optimisers over all parameters, at the rate of each group."""
        # Rows that a batch does not visit must not move: Adam's momentum would carry them on.
        rows = {id(p) for p in self.guide.row_parameters()} if self.is_minibatch else set()
        shared, own = [], []
        for name, parameters in self.groups().items():
            for chosen, is_row in ((shared, False), (own, True)):
                some = [p for p in parameters if (id(p) in rows) == is_row]
                if some:
                    chosen.append({"params": some, "lr": rates[name]})
        optimizers = [make(shared)] if shared else []
        return optimizers + ([torch.optim.SparseAdam(own)] if own else [])

    def before_step(self, batch: Trajectories) -> None:
        """Called between backward and step."""
        own = self.guide.row_parameters() if self.is_minibatch else []
        if not own:
            return
        rows = self.guide.rows(batch)
        for parameter in own:
            gradient = parameter.grad[rows]
            parameter.grad = torch.sparse_coo_tensor(
                rows[None], gradient, parameter.shape, check_invariants=False
            )

    def status(self) -> dict[str, str]:
        """Figures for the progress bar."""
        shown = {"evaluations": str(self.num_evaluations)}
        if "likelihood.noise_scale" in getattr(self.guide, "supports", ()):
            noise = self.guide.location("likelihood.noise_scale").exp().mean()
            shown["noise"] = f"{noise.item():.3g}"
        return shown
