"""What a small-data forecast was worth on the last third of the training times."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesode import scores
from bayesode.baselines import baselines
from bayesode.errors import DataError
from bayesode.inference.ensemble import Ensemble
from bayesode.trajectories import Trajectories

SHARE = 2 / 3  # of the times, that are fitted
PRIOR_POINTS = 4  # at which the model's own variance counts as confirmed
NUM_DRAWS = 2000
NAMES = {"ar2": "AR(2)", "climatology": "climatology"}


@dataclass(frozen=True)
class HoldOut:
    """Forecasts of the last third of the training times from a fit of the others.

    Args:
        inflation: By which the predictive variance of forecasts is multiplied, 1 or more.
        num_points: Numbers that were forecast.
        log_score: Of the model before inflation, nats per point, values in users' units.
        baselines: The same of AR(2) and climatology, as far as they apply.
    """

    inflation: float
    num_points: int
    log_score: float
    baselines: dict[str, float]

    @property
    def best_baseline(self) -> str | None:
        """Name of the best one, None if none applies."""
        return max(self.baselines, key=lambda name: self.baselines[name], default=None)

    @property
    def is_won(self) -> bool:
        """Whether the model was better than every baseline."""
        return all(self.log_score > other for other in self.baselines.values())

    @property
    def config(self) -> dict[str, Any]:
        """Plain numbers, for saving."""
        return asdict(self)

    def __str__(self) -> str:
        what = f"Hold-out (last third of the times, {self.num_points} points): "
        what += f"{self.log_score:.2f} nats per point"
        for name, score in self.baselines.items():
            what += f", {NAMES[name]} {score:.2f}"
        if self.inflation > 1:
            spread = f"forecast variances are inflated x{self.inflation:.2g} by hold-out."
        else:
            spread = "the variance of forecasts held, nothing is inflated."
        if self.is_won:
            return f"{what}; {spread}"
        best = NAMES[str(self.best_baseline)]
        return f"{what}; the model does NOT beat {best} there, do not rely on it; {spread}"


def hold_out(
    train: Trajectories, fit: Callable[[Trajectories], Any], *, seed: int | None = None
) -> HoldOut:
    """Fit the first two thirds of the times and score the forecast of the last third.

    Args:
        train: Training data, values (series, time, component).
        fit: From the first part to a posterior, as the whole will be fitted.
        seed: Of the draws.

    Raises:
        DataError: If one of the parts would be empty; and as the fit.
        FitError: As the fit.
    """
    first, last = two_parts(train)
    ensemble = fit(first).predict(first.at(last), num_draws=NUM_DRAWS, seed=seed)
    seen: Tensor = last.mask  # type: ignore[assignment]
    points, draws = last.values[seen], ensemble.values[:, seen]  # type: ignore[index]
    is_valid = ~ensemble.failed[:, seen.nonzero()[:, 0]]
    transform = _transform(ensemble, first, last)
    score = scores.log_score(ensemble.log_prob(last)[:, seen], is_valid).mean().item()
    others = {
        name: law.log_prob(torch.where(seen, last.values, 1.0))[seen].mean().item()  # type: ignore
        for name, law in baselines(first, last, transform=transform).items()
        if name in NAMES
    }
    return HoldOut(_inflation(draws, points, is_valid, transform), len(points), score, others)


def two_parts(train: Trajectories) -> tuple[Trajectories, Trajectories]:
    """The first two thirds of the observed times since each start, and the rest."""
    if (train.start != train.start[0]).any():
        since = train.grid - train.start.unsqueeze(-1)
        train = replace(train, times=since, start=torch.zeros_like(train.start))
    observed = train.mask.flatten(2).any(-1)  # type: ignore[union-attr]
    times = train.grid[observed].sort().values
    last = times[max(0, math.ceil(SHARE * len(times)) - 1)].item()
    first, rest = train.split(time=last)
    if not rest.num_observed:
        raise DataError("there is nothing to hold out.")
    return first, rest.rows(_is_known(rest, first))


def _is_known(rest: Trajectories, first: Trajectories) -> list[int]:
    return [row for row, label in enumerate(rest.series) if label in first.series]


def _transform(ensemble: Ensemble, first: Trajectories, last: Trajectories) -> str:
    """The scale of the model, where all values are on it (counts may be 0)."""
    is_positive = all(bool((part.values[part.mask] > 0).all()) for part in (first, last))  # type: ignore
    return ensemble.transform if is_positive else "identity"


def _inflation(draws: Tensor, points: Tensor, is_valid: Tensor, transform: str) -> float:
    """(4 + sum z^2) / (4 + m), at least 1: a posterior mean of the variance's factor."""
    if transform == "log":
        draws, points = draws.clamp_min(1e-300).log(), points.log()
    kept = torch.where(is_valid, draws, torch.nan)
    mean = kept.nanmean(0)
    variance = (kept - mean).square().nanmean(0)
    squares = ((points - mean).square() / variance).sum().item()
    return max(1.0, (PRIOR_POINTS + squares) / (PRIOR_POINTS + len(points)))


def inflated(path: Tensor, failed: Tensor, information: Tensor, factor: float) -> Tensor:
    """Paths spread around their mean so that the variance of new values grows by a factor.

    The variance of values is that of the path, v, plus that of the noise, n; factor (v + n) - n is
    left for the path: what a hold-out finds beyond the noise is an error of the model. States that
    are not observed keep n = 0.

    Args:
        path: Dimensionless, shape (draws, series, time, state).
        failed: Draws that do not count for the mean, (draws, series).
        information: Fisher information of one value about the state, (draws, series, time, dim).
        factor: 1 or more.
    """
    valid = ~failed[:, :, None, None]
    count = valid.sum(0).clamp_min(1)
    mean = torch.where(valid, path, 0.0).sum(0) / count
    deviation = path - mean
    variance = torch.where(valid, deviation, 0.0).square().sum(0) / count
    noise = torch.zeros_like(variance)
    noise[..., : information.shape[-1]] = (1 / information).median(0).values
    ratio = (noise / variance).nan_to_num(0.0, 0.0, 0.0)
    return mean + deviation * (factor + (factor - 1) * ratio).sqrt()
