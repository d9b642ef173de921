"""What the variance of a prediction is made of, from paired draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.blocks import Block
from bayesode.inference.guides import is_local
from bayesode.inference.predictive import Predictive
from bayesode.models.contracts import Observe, Solver
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

PARTS = ("weights", "initial", "process", "observation")


@dataclass(frozen=True, eq=False)
class VarianceParts:
    """The parts of a predictive variance, in the order in which a prediction is generated.

    By the law of total variance, with the signal what would be observed without noise:

        weights      Var_w E[signal | w]             all that the series share, noise scales too
        initial      E_w Var_x0 E[signal | w, x0]    initial states, given what is shared
        process      E Var[signal | w, x0]           noise of the paths; 0 for an ODE
        observation  E Var[values | path]            measurement noise

    The first three add up to the variance of the signal over the ensemble's draws. Each is an
    unbiased estimate, nothing is clipped: a part that is next to nothing beside the others may come
    out a little below 0, by about sqrt(2 / draws) of the total. For skewed laws, as the log-normal
    one, the signal is a median, and the total is not exactly the variance of the values. A law
    without finite variance (Student t with two degrees of freedom or fewer, or a log-normal one
    whose scale has a wide prior) gives an infinite observation part.

    Args:
        weights: Shape (series, time, *event), in squared users' units, as all parts.
        initial: Likewise.
        process: Likewise.
        observation: Likewise.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> parts = VarianceParts(one, 2 * one, 0 * one, one)
        >>> print(parts)
        part          mean share of the variance
        weights        25.0 %
        initial        50.0 %
        process         0.0 %
        observation    25.0 %
    """

    weights: Tensor
    initial: Tensor
    process: Tensor
    observation: Tensor

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parts in their order."""
        return self.weights, self.initial, self.process, self.observation

    @property
    def total(self) -> Tensor:
        """Sum of the parts, shape (series, time, *event)."""
        return self.weights + self.initial + self.process + self.observation

    @property
    def shares(self) -> dict[str, Tensor]:
        """Each part as a share of the total, shape (series, time, *event)."""
        total = self.total
        return {name: getattr(self, name) / total for name in PARTS}

    def __str__(self) -> str:
        rows = [f"{'part':<14}mean share of the variance"]
        for name, share in self.shares.items():
            rows.append(f"{name:<12}{share.nanmean().item():>8.1%}".replace("%", " %"))
        if self.observation.isinf().any():
            rows.append("The law of the values has no finite variance everywhere.")
        return "\n".join(rows)


@dataclass(frozen=True, eq=False)
class PairedPaths:
    """Partners of the draws of an ensemble, dimensionless, (draws, series, time, state).

    Args:
        redrawn: Same global values, everything else drawn again.
        rewalked: Same global values and initial states, the noise of the paths drawn again; the
            ensemble's own paths if they have none.
        failed: Which draws have a partner that failed, (draws, series).
    """

    redrawn: Tensor
    rewalked: Tensor
    failed: Tensor

    def of(self, block: Block) -> PairedPaths:
        """Those of the series and times of one block."""
        failed = self.failed[:, block.rows]
        return PairedPaths(block.of(self.redrawn), block.of(self.rewalked), failed)


def paired_paths(
    model: DynamicalModel,
    predictive: Predictive,
    values: Mapping[str, Tensor],
    path: Tensor,
    question: Trajectories,
    solver: Solver | None = None,
) -> PairedPaths:
    """The partners of drawn paths.

    Args:
        model: Of the posterior.
        predictive: What drew them.
        values: The sites of the draws.
        path: Their paths, (draws, series, time, state).
        question: Series and times.
        solver: In place of the model's own.

    Raises:
        DataError: If the posterior cannot draw a site given others.
    """
    num_draws = len(values["x0"])
    shared = {site: value for site, value in values.items() if not is_local(site)}
    again = predictive.sample(question, num_draws, shared)
    redrawn, failed = predictive.paths(again, question, solver)
    if not _has_process_noise(model, values, question):
        return PairedPaths(redrawn, path, failed)
    again = predictive.sample(question, num_draws, shared | {"x0": values["x0"]})
    rewalked, is_lost = predictive.paths(again, question, solver)
    return PairedPaths(redrawn, rewalked, failed | is_lost)


def _has_process_noise(
    model: DynamicalModel, values: Mapping[str, Tensor], question: Trajectories
) -> bool:
    # of a simulated SDE the noise is drawn inside the solver: it is no site
    _, field, _ = model.build(values, question)
    return hasattr(field, "diffusion") or any(site.startswith("path.") for site in values)


def variance_parts(
    path: Tensor, observe: Observe, failed: Tensor, pairs: PairedPaths
) -> VarianceParts:
    """The parts of the variance of draws; those that failed, or whose partners did, are left out.

    Args:
        path: Dimensionless paths, (draws, series, time, state).
        observe: How the draws are seen.
        failed: Shape (draws, series).
        pairs: The partners of the draws.

    Returns:
        NaN for a series with fewer than two draws.

    Raises:
        DataError: If the law of the values does not tell its variance.
    """
    kept = ~(failed | pairs.failed)
    first, redrawn, rewalked = map(observe.signal, (path, pairs.redrawn, pairs.rewalked))
    noise = _noise_variance(observe, path)
    kept = kept.view(*kept.shape, *[1] * (noise.dim() - 2))
    if noise[kept.expand_as(noise)].isnan().any():
        raise DataError("the law of the values has no variance, so a prediction has no parts.")
    weights, initial, process = components(first, redrawn, rewalked, kept)
    return VarianceParts(weights, initial, process, _mean(noise, kept))


def components(
    first: Tensor, redrawn: Tensor, rewalked: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Nested components of variance, unbiased, with the sample variance of `first` as their sum.

    With draws a, b, c of which a and b share w, a and c share w and x0, half the mean square of
    a - c is the variance given (w, x0), half that of a - b or c - b is the variance given w.

    Args:
        first: Draws a, shape (draws, ...).
        redrawn: Draws b.
        rewalked: Draws c.
        kept: Draws that count, broadcastable to them.

    Returns:
        Var_w, E Var_x0, and the rest, each (...).

    Source: Jansen (1999), "Analysis of variance designs for model output", Computer Physics
    Communications 117. https://doi.org/10.1016/S0010-4655(98)00154-4
    """
    deviation, count = first - _mean(first, kept), kept.sum(0)
    variance = _mean(deviation.square(), kept) * (count / (count - 1).clamp_min(1))
    variance = torch.where(count > 1, variance, torch.nan)
    process = _mean((first - rewalked).square(), kept) / 2
    apart = (first - redrawn).square() + (rewalked - redrawn).square()
    given_weights = _mean(apart, kept) / 4
    return variance - given_weights, given_weights - process, process


def _mean(draws: Tensor, kept: Tensor) -> Tensor:
    """Mean over the draws that count; NaN if none does."""
    return torch.where(kept, draws, 0.0).sum(0) / kept.sum(0)


def _noise_variance(observe: Observe, path: Tensor) -> Tensor:
    law: Any = observe(path, None)
    try:
        return law.variance
    except NotImplementedError as error:
        raise DataError(
            f"the law of the values, {type(law.base_dist).__name__}, does not tell its variance."
        ) from error
