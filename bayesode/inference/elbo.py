"""The evidence lower bound, term by term, in plain torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesode.distributions import divergence
from bayesode.errors import DataError, ShapeError
from bayesode.inference.guides import is_local
from bayesode.inference.path_halves import field_sites
from bayesode.inference.path_objective import guide_half
from bayesode.models.contracts import Solution, resolve
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories


@dataclass(frozen=True)
class ELBOTerms:
    """What the evidence lower bound is made of, in nats, for the full data set.

    Args:
        log_likelihood: Expected log likelihood of the values, a scalar.
        kl: Per site the KL divergence from prior to posterior, a scalar.
        is_closed_form: Per site whether the KL is exact or averaged over the draws.
        solution: The solved paths of the draws.
        is_type_two: Whether prior scales were set by the same data: then it bounds no evidence.
        log_likelihood_per_series: Of each series of the batch by itself, shape (series,).
        kl_per_series: Likewise, of the sites that every series has for itself.
    """

    log_likelihood: Tensor
    kl: dict[str, Tensor]
    is_closed_form: dict[str, bool]
    solution: Solution | None = None
    is_type_two: bool = False
    log_likelihood_per_series: Tensor | None = None
    kl_per_series: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def total_kl(self) -> Tensor:
        """Sum of the KL terms."""
        return torch.stack(list(self.kl.values())).sum()

    @property
    def elbo(self) -> Tensor:
        """The bound: log likelihood minus all KL terms."""
        return self.log_likelihood - self.total_kl

    def __str__(self) -> str:
        rows = [("log likelihood", self.log_likelihood, "")]
        for site, value in self.kl.items():
            how = "" if self.is_closed_form[site] else "  (estimated from draws)"
            rows.append((f"- KL {site}", -value, how))
        name = "ELBO (type-II)" if self.is_type_two else "ELBO"
        rows.append((name, self.elbo, "  nats"))
        return "\n".join(f"{name:<32}{value.item():>12.2f}{how}" for name, value, how in rows)


def sample_sites(
    posteriors: Mapping[str, Any],
    num_draws: int,
    num_series: int,
    given: Mapping[str, Tensor] | None = None,
) -> tuple[dict, dict]:
    """One joint draw per particle: values and the laws that they came from.

    Global sites get the shape (draws, 1, *event), local ones (draws, series, *event): the shapes
    that Pyro gives them under vectorised particles, from the same random numbers.

    Args:
        posteriors: The law of each site, in the model's order, or a function of earlier values.
        num_draws: Joint draws.
        num_series: Rows of the local sites.
        given: First sites that are drawn already, `num_draws` times each; they are kept, and the
            others are drawn given them.

    Raises:
        DataError: If the given sites are not the first ones.
    """
    kept = dict(given or {})
    check_given(posteriors, kept)
    values: dict[str, Tensor] = {}
    laws: dict[str, Any] = {}
    for site, posterior in posteriors.items():
        laws[site] = resolve(posterior, values)
        shape = torch.Size([num_draws, num_series if is_local(site) else 1])
        values[site] = kept[site] if site in kept else _draw(laws[site].expand(shape))
    return values, laws


def check_given(order: Iterable[str], given: Iterable[str]) -> None:
    """Refuse to draw a site from its marginal law that has to follow a given one.

    Raises:
        DataError: If the given sites are not the first ones of the order.
    """
    sites, kept = list(order), set(given)
    if set(sites[: len(kept)]) != kept:
        raise DataError(
            f"the given sites, {sorted(kept)}, have to be the first of {sites}: the others are "
            "drawn one after another, given what comes before them."
        )


def _draw(law: Any) -> Tensor:
    return law.rsample() if law.has_rsample else law.sample()


def elbo_terms(
    model: DynamicalModel,
    guide: Any,
    trajectories: Trajectories,
    *,
    num_particles: int = 1,
    time_weights: Tensor | None = None,
) -> ELBOTerms:
    """The terms of the ELBO, each a differentiable scalar.

    Equal to Pyro's `TraceMeanField_ELBO` for the same draws, without its bookkeeping. A minibatch
    scales log likelihood and the KL of local sites to the full data set.

    Args:
        model: The generative model.
        guide: A guide that declares `posteriors(trajectories)`.
        trajectories: All series or a batch.
        num_particles: Draws to average over, solved as one batch.
        time_weights: Of the pointwise log likelihood, (series, time); all 1 by default. Windows of
            the data need them to stand for the whole.

    Raises:
        DataError: If there is not a single particle.
        ShapeError: If the weights have another shape.
        FitError: If one of model and guide alone has its half of the `path` objective.

    Example:
        >>> import torch, bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=10).observed
        >>> model, guide = bo.neural_ode(train, verbose=False)
        >>> sorted(elbo_terms(model, guide, train).kl)
        ['field.weights', 'likelihood.noise_scale', 'x0']
    """
    if num_particles < 1:
        raise DataError(f"num_particles must be positive, not {num_particles}.")
    half = guide_half(model, guide)
    num_series = trajectories.num_series
    values, laws = sample_sites(guide.posteriors(trajectories), num_particles, num_series)
    initial, field, observe = model.build(values, trajectories)
    start, times = model.units.dimensionless_times(trajectories)
    path_priors = {f"path.{s}": p for s, p in model.solver.priors(start, times).items()}
    priors = model.global_priors() | {"x0": initial} | path_priors
    scale = trajectories.num_total / num_series
    kl, is_closed_form, kl_per_series = {}, {}, {}
    for site, prior in priors.items():
        prior = resolve(prior, values)
        found, is_closed_form[site] = divergence(laws[site], prior, values[site])
        if is_local(site):  # a law that the series share counts once for each of them
            each = found.expand(*found.shape[:-1], num_series)
            kl_per_series[site] = each.reshape(-1, num_series).mean(0)
            found = scale * each.sum(-1)
        kl[site] = found.mean()
    solution = model.solve(field, values, trajectories)
    law = observe(solution.path, trajectories.mask)
    by_series = _log_likelihood(law, trajectories, time_weights)
    if half is not None:
        for term, each in half.divergences(
            laws["x0"], values, trajectories, solution.path, time_weights
        ).items():
            kl[term], is_closed_form[term] = scale * each.sum(-1).mean(), False
            kl_per_series[term] = each.reshape(-1, num_series).mean(0)
        for term, found in half.tempering(kl).items():
            kl[term], is_closed_form[term] = found, all(is_closed_form[s] for s in field_sites(kl))
    return ELBOTerms(
        scale * by_series.sum(-1).mean(),
        kl,
        is_closed_form,
        solution,
        log_likelihood_per_series=by_series.mean(0),
        kl_per_series=kl_per_series,
    )


def _log_likelihood(law: Any, trajectories: Trajectories, weights: Tensor | None) -> Tensor:
    """Log likelihood of each series, its times weighted, (*draws, series)."""
    if weights is None:
        return law.log_prob(trajectories.values)
    if weights.shape != trajectories.grid.shape:
        raise ShapeError(
            f"time_weights have the shape {tuple(weights.shape)}, the times (series, time) = "
            f"{tuple(trajectories.grid.shape)}."
        )
    pointwise = law.base_dist.log_prob(trajectories.values)
    event = law.event_dim - 1  # beside the time
    return (weights.view(*weights.shape, *[1] * event) * pointwise).flatten(-1 - event).sum(-1)
