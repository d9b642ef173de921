"""The two halves of the `path` objective: the model's prior along a path, the guide's density."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bayesode.distributions import divergence
from bayesode.errors import FitError
from bayesode.inference.encoder_penalty import EncoderPenalty
from bayesode.models.contracts import resolve, unnest
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.solvers.density import Trace, log_density_along
from bayesode.trajectories import Trajectories

# names of the terms of the bound
TERM, PENALTY, TEMPERING = "path.objective", "path.encoder", "path.tempering"
MEND = "take both from path_objective(model, guide)"


def field_sites(sites: Iterable[str]) -> list[str]:
    """Those whose KL `beta` weighs."""
    return [site for site in sites if site.startswith("field.")]


def log_normal(path: Tensor) -> Tensor:
    """Log density of N(0, I) along a path, shape (*draws, series, time)."""
    return -0.5 * (path.square() + math.log(2 * math.pi)).sum(-1)


def later_times(trajectories: Trajectories) -> Tensor:
    """1 for the real times after the start, 0 for others, shape (series, time)."""
    grid = trajectories.grid
    is_real = torch.arange(grid.shape[-1], device=grid.device) < trajectories.num_times[:, None]
    return (is_real & (grid > trajectories.start[:, None])).to(grid.dtype)


def _summed(log_density: Tensor, trajectories: Trajectories, weights: Tensor | None) -> Tensor:
    """Sum over the later times, shape (*draws, series)."""
    each = later_times(trajectories) if weights is None else weights * later_times(trajectories)
    return (each.to(log_density) * log_density).sum(-1)


# ---- the two halves ------------------------------------------------------------------------------
class _Half:
    """Whether the model has answered a draw of the guide."""

    def __init__(self) -> None:
        self.is_answered = False


# x0 as the guide drew it -> its half; a trace of model and guide has the same tensor in both
_OFFERED = WeakTensorKeyDictionary()


class _Density(dist.Unit):
    """The factor of a guide, which is no term of a bound before the model has added its own."""

    def __init__(self, log_factor: Tensor, half: _Half) -> None:
        super().__init__(log_factor, has_rsample=True)
        self.half = half

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Density:
        return _Density(self.log_factor.expand(torch.Size(batch_shape)), self.half)

    def log_prob(self, value: Tensor) -> Tensor:
        if not self.half.is_answered:
            raise FitError(
                "the guide has its half of the `path` objective and the model that it runs with "
                f"has not, which would be no bound: {MEND}."
            )
        return super().log_prob(value)


class PathPrior:
    """The half of the model: log N(x_t; 0, I) at each later time."""

    def issue(self, x0: Tensor, path: Tensor, trajectories: Trajectories) -> None:
        """Issue the factor; a question without values has none.

        Raises:
            FitError: If x0 is no draw of a guide that has the other half.
        """
        if trajectories.values is None:
            return
        half = _OFFERED.get(x0)
        if half is None:
            raise FitError(
                "the model has its half of the `path` objective and x0 comes from no guide with "
                f"the other, which would be no bound: {MEND}, or use the plain model."
            )
        half.is_answered = True
        pyro.factor("path.prior", _summed(log_normal(path), trajectories, None))


@dataclass(frozen=True, eq=False)
class PathDensity:
    """The half of the guide: log q_t(x_t) at each later time, and the two weights' terms.

    Args:
        model: Whose field pushes x0 forward.
        trace: How the trace of its Jacobian is taken.
        penalty: Of the divergence from an encoder, if any.
        beta: Weight of the KL of the field's sites.
    """

    model: DynamicalModel
    trace: Trace
    penalty: EncoderPenalty | None = None
    beta: float = 1.0

    def issue(
        self, laws: Mapping[str, Any], values: Mapping[str, Tensor], trajectories: Trajectories
    ) -> None:
        """Issue factors, as `pyro.factor(..., has_rsample=True)`, and offer them to the model."""
        if trajectories.values is None:
            return
        path, log_density = self.pushed_forward(laws["x0"], values, trajectories)
        factors = {"path.density": _summed(log_density, trajectories, None)}
        factors |= self._penalties(log_density, path, trajectories, None)
        for term, extra in self.tempering(self._field_divergences(laws, values)).items():
            # every series bears its share: the plate scales a batch to the whole
            factors[term] = (extra / trajectories.num_total).expand(values["x0"].shape[:-1])
        _OFFERED[values["x0"]] = half = _Half()
        for name, factor in factors.items():
            law = _Density(factor, half)
            pyro.sample(name, law, obs=law.sample(), infer={"is_auxiliary": True})

    def pushed_forward(
        self, x0_law: Any, values: Mapping[str, Tensor], trajectories: Trajectories
    ) -> tuple[Tensor, Tensor]:
        """Path of drawn values, (*draws, series, time, state), and the log density of each state.

        The latter has the shape (*draws, series, time).
        """
        field = self.model.field.build(unnest("field", values), trajectories.inputs)
        start, times = self.model.units.dimensionless_times(trajectories)
        x0 = values["x0"]
        log_q0 = x0_law.log_prob(x0)
        solver = self.model.solver
        return log_density_along(field, solver, x0, log_q0, start, times, trace=self.trace)

    def divergences(
        self,
        x0_law: Any,
        values: Mapping[str, Tensor],
        trajectories: Trajectories,
        path: Tensor,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of each series, shape (*draws, series) each, summed over later times.

        `path.objective` is log q_t - log N(0, I), whose mean over the draws of x0 is the sum of the
        KL divergences; `path.encoder`, if it has a weight, the same of the encoder's laws, times
        gamma.
        """
        log_density = self.pushed_forward(x0_law, values, trajectories)[1]
        terms = {TERM: _summed(log_density - log_normal(path), trajectories, weights)}
        return terms | self._penalties(log_density, path, trajectories, weights)

    def tempering(self, kl: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What beta adds to the KL of sites, (beta - 1) times that of the field; empty at 1."""
        of_field = [kl[site] for site in field_sites(kl)]
        if self.beta == 1 or not of_field:
            return {}
        return {TEMPERING: (self.beta - 1) * sum(of_field[1:], of_field[0])}

    def _penalties(
        self,
        log_density: Tensor,
        path: Tensor,
        trajectories: Trajectories,
        weights: Tensor | None,
    ) -> dict[str, Tensor]:
        if self.penalty is None:
            return {}
        each = self.penalty.divergences(log_density, path, trajectories)
        return {PENALTY: _summed(each, trajectories, weights)}

    def _field_divergences(
        self, laws: Mapping[str, Any], values: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        priors = self.model.global_priors()
        return {
            site: divergence(laws[site], resolve(priors[site], dict(values)), values[site])[0]
            for site in field_sites(priors)
        }
