"""The `path` objective of ODE2VAE: a divergence at every time, in two halves."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bayesode.errors import DataError, FitError
from bayesode.models.contracts import unnest
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.solvers.density import ExactTrace, Trace, log_density_along
from bayesode.trajectories import Trajectories

TERM = "path.objective"  # its name among the terms of the bound
MEND = "take both from path_objective(model, guide)"


def path_objective(
    model: DynamicalModel,
    guide: Any,
    *,
    trace: Trace = ExactTrace(),  # noqa: B008
) -> tuple[DynamicalModel, Any]:
    """Model and guide for the `path` objective: the strict ELBO less a KL term at every later time.

    ELBO(path) = ELBO - E_weights sum over t > start of KL[q_t || N(0, I)]

    with q_t the law of x0 in the guide, pushed forward by the drawn field, over the dimensionless
    state. No KL is negative: it is a looser bound of the same model, and draws paths towards the
    unit ball. Every real time counts, seen or hidden, weighted as its likelihood; the start does
    not: x0 has a KL of its own. The model adds log N(x_t; 0, I) at the site `path.prior`, the guide
    log q_t(x_t) at `path.density`; `elbo_terms` shows their difference as `path.objective`.

    Args:
        model: The generative model.
        guide: `MeanFieldGuide` or `AmortizedGuide` of it.
        trace: How the trace of the field's Jacobian is taken.

    Returns:
        Copies of both, for `fit_svi` or Pyro. One without the other raises `FitError`. Predictions
        are those of the plain pair. Copy them together, copy.deepcopy((model, guide)), and give
        both to `load`, whose own pair is the plain one.

    Raises:
        DataError: If paths are random, or the guide is of another kind or has its half already.

    Source: Yildiz, Heinonen and Lahdesmaki (2019), arXiv:1905.10994, equation 13. There the sum is
    part of a joint posterior of all states; these are functions of x0 and weights, whose strict
    ELBO has no such terms.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=10).observed
        >>> model, guide = path_objective(*bo.neural_ode(train, verbose=False))
        >>> sorted(bo.elbo_terms(model, guide, train).kl)
        ['field.weights', 'likelihood.noise_scale', 'path.objective', 'x0']
    """
    if hasattr(model.solver, "noise_grid"):
        raise DataError("random paths have no density that a flow pushes forward; solve an ODE.")
    if not hasattr(guide, "path_half"):
        raise DataError(
            f"{type(guide).__name__} has no place for its half of the objective: take "
            "MeanFieldGuide or AmortizedGuide."
        )
    if model.path_half is not None or guide.path_half is not None:
        raise DataError("model or guide has a half of an objective already: give the plain ones.")
    model, guide = copy.deepcopy((model, guide))
    model.path_half, guide.path_half = PathPrior(), PathDensity(model, trace)
    return model, guide


def guide_half(model: DynamicalModel, guide: Any) -> PathDensity | None:
    """The guide's half of the `path` objective, None without the objective.

    Raises:
        FitError: If one of them alone has its half.
    """
    half = getattr(guide, "path_half", None)
    if (half is None) != (model.path_half is None):
        who, other = ("guide", "model") if model.path_half is None else ("model", "guide")
        raise FitError(
            f"the {who} has its half of the `path` objective and the {other} has not, which would "
            f"be no bound: {MEND}."
        )
    return half


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
    """The half of the guide: log q_t(x_t) at each later time.

    Args:
        model: Whose field pushes x0 forward.
        trace: How the trace of its Jacobian is taken.
    """

    model: DynamicalModel
    trace: Trace

    def issue(self, x0_law: Any, values: Mapping[str, Tensor], trajectories: Trajectories) -> None:
        """Issue the factor, as `pyro.factor(..., has_rsample=True)`, and offer it to the model."""
        if trajectories.values is None:
            return
        log_density = self.log_density(x0_law, values, trajectories)
        _OFFERED[values["x0"]] = half = _Half()
        law = _Density(_summed(log_density, trajectories, None), half)
        pyro.sample("path.density", law, obs=law.sample(), infer={"is_auxiliary": True})

    def log_density(
        self, x0_law: Any, values: Mapping[str, Tensor], trajectories: Trajectories
    ) -> Tensor:
        """Log density of each state of the path of drawn values, shape (*draws, series, time)."""
        field = self.model.field.build(unnest("field", values), trajectories.inputs)
        start, times = self.model.units.dimensionless_times(trajectories)
        x0 = values["x0"]
        log_q0 = x0_law.log_prob(x0)
        solver = self.model.solver
        return log_density_along(field, solver, x0, log_q0, start, times, trace=self.trace)[1]

    def divergence(
        self,
        x0_law: Any,
        values: Mapping[str, Tensor],
        trajectories: Trajectories,
        path: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Sum over later times of log q_t - log N(0, I), shape (*draws, series).

        Its mean over the draws of x0 is the sum of the KL divergences.
        """
        log_density = self.log_density(x0_law, values, trajectories)
        return _summed(log_density - log_normal(path), trajectories, weights)
