"""Pyro's ELBO as what a fit maximises, for guides that are Pyro programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.poutine.messenger import Messenger
from torch import Tensor

from bayesode.errors import FitError
from bayesode.inference.checks import check_sites, drawn_sites
from bayesode.inference.copies import autoguides
from bayesode.inference.warm_start import UNFITTED_SCALE, Start, find_start
from bayesode.inference.window_schemes import Window
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

CREATE_PLATES = (
    "give it the model's plate, for example AutoNormal(model, create_plates=lambda data: "
    "data.plate()), or fit without batch_size."
)
NUM_CHECKS = 20  # rows that a guide draws itself agree by chance in one of two runs of two series


class PyroObjective:
    """Pyro's `Trace_ELBO`, for autoguides and hand-written guides."""

    default_learning_rate = 1e-3  # absolute: larger steps throw stiff weights off the fit
    cycle_learning_rate = 1e-3
    scale_ratio = 30  # parameters named scale move faster: they start at a guess

    def __init__(self, model: DynamicalModel, guide: Any, is_minibatch: bool) -> None:
        if hasattr(model.solver, "noise_grid"):
            raise FitError(
                f"{type(guide).__name__} does not know to which times the increments of a random "
                "path belong, so nothing could be predicted: take SDEGuide(model, train)."
            )
        if is_minibatch and isinstance(guide, AutoContinuous):
            raise FitError(
                f"{type(guide).__name__} has one joint law for all series and cannot be fitted by "
                "minibatches: leave batch_size out, or take MeanFieldGuide."
            )
        self.model, self.guide, self.is_minibatch = model, guide, is_minibatch
        self._parameters: dict[str, Tensor] = {}

    def warm_start(self, train: Trajectories) -> Start | None:
        """Put the guide near the data."""
        if not isinstance(self.guide, AutoGuide) or self.guide.prototype_trace is not None:
            return None
        start = find_start(self.model, train)
        dtype = train.values.dtype  # type: ignore[union-attr]
        values = {site: value.to(dtype) for site, value in start.values.items()}
        for part in autoguides(self.guide):
            part._model = (_StartAt(values)(part.model),)
            if hasattr(part, "_init_scale"):
                part._init_scale = UNFITTED_SCALE
        self.guide(train)  # the first call makes the parameters: with every series, not a batch
        return start

    def prepare(self, batch: Trajectories, num_particles: int) -> None:
        """Make the parameters and check that guide and model fit together."""
        if not callable(self.guide):
            raise FitError(f"a guide is a Pyro program, {self.guide!r} cannot be called.")
        self._check_plates(batch)
        with pyro.poutine.trace(param_only=True) as capture:
            self._elbo(num_particles).differentiable_loss(self.model, self.guide, batch)
        nodes: dict[str, Any] = dict(capture.trace.nodes)
        found = {name: site["value"].unconstrained() for name, site in nodes.items()}
        # a module that a guide uses twice gives each of its parameters two names
        self._parameters = {n: p for p, n in {p: n for n, p in found.items()}.items()}
        if not self._parameters:
            raise FitError("the guide has no parameters: nothing can be fitted.")

    def loss(self, window: Window, num_particles: int) -> Tensor:
        """A differentiable estimate of the negative ELBO, a scalar."""
        batch = window.trajectories
        return self._elbo(num_particles).differentiable_loss(self.model, self.guide, batch)

    def named_parameters(self) -> dict[str, Tensor]:
        """Everything that is optimised."""
        return self._parameters

    def groups(self) -> dict[str, list[Tensor]]:
        """One: the ratio of the rates within it is fixed."""
        return {"locations": list(self._parameters.values())}

    def optimizers(self, make: Callable[..., Any], rates: Mapping[str, float]) -> list[Any]:
        """Torch optimisers over all parameters."""
        fast = [p for name, p in self._parameters.items() if "scale" in name]
        slow = [p for name, p in self._parameters.items() if "scale" not in name]
        rate = rates["locations"]
        groups = [(slow, rate), (fast, self.scale_ratio * rate)]
        return [make([{"params": p, "lr": rate} for p, rate in groups if p])]

    def before_step(self, batch: Trajectories) -> None:
        """Called between backward and step."""

    def status(self) -> dict[str, str]:
        """Figures for the progress bar."""
        return {}

    def _elbo(self, num_particles: int) -> Trace_ELBO:
        return Trace_ELBO(
            num_particles=num_particles,
            vectorize_particles=num_particles > 1,
            max_plate_nesting=1,
        )

    def _check_plates(self, batch: Trajectories) -> None:
        """The guide must take the rows that the batch has, and not by chance."""
        for _ in range(NUM_CHECKS if self.is_minibatch else 1):
            trace = pyro.poutine.trace(self.guide).get_trace(batch)
            check_sites(self.model, drawn_sites(trace), batch)
            plate, local = trace.nodes.get("trajectories"), trace.nodes.get("x0")
            if plate is None and self.is_minibatch and local is not None:
                raise FitError(
                    "in a minibatch the guide draws x0 outside the plate 'trajectories' of the "
                    f"model: {CREATE_PLATES}"
                )
            if plate is not None and not torch.equal(torch.as_tensor(plate["value"]), batch.index):
                raise FitError(
                    "in a minibatch the guide takes the series "
                    f"{plate['value'].tolist()[:5]} where the model has "
                    f"{batch.index.tolist()[:5]}: {CREATE_PLATES}"
                )


class _StartAt(Messenger):
    """Latent sites begin at given values, whatever an autoguide's own rule says."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
