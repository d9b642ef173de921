"""Motion capture, how walks are scored: 3 frames are given, frames 4 to 300 are predicted.

Errors are over all 50 channels in the units of the file. `mse` is the mean over draws of each
draw's mean squared error, the published convention, with its t-interval over draws; `mse_mean` is
that of the mean of the draws, which is smaller. Neither tells how far four walks represent walking:
the standard error over walks does.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

import bayesode as bo
from bayesode.datasets.motion_capture import CONSTANT_CHANNELS, NUM_GIVEN
from bayesode.errors import ShapeError

NUM_DRAWS = 50  # as published
NUM_FOLDS = 5


# ---- errors --------------------------------------------------------------------------------------
class SquaredErrors(NamedTuple):
    """Squared errors at the predicted frames, averaged over channels, float64.

    Args:
        of_draws: Of each draw, (draws, walk, frame).
        of_mean: Of the mean of the draws, (walk, frame).
    """

    of_draws: Tensor
    of_mean: Tensor

    def rows(self, index: Any) -> "SquaredErrors":
        """Those of some walks."""
        return SquaredErrors(self.of_draws[:, index], self.of_mean[index])


def squared_errors(draws: Tensor, walks: bo.Trajectories) -> SquaredErrors:
    """Errors of predicted walks; given frames do not count.

    Args:
        draws: All frames, noise-free, (draws, walk, frame, channel).
        walks: What is predicted.

    Raises:
        ShapeError: If the draws are not of these walks.
    """
    truth = walks.values.double()
    if draws.dim() != 4 or draws.shape[1:] != truth.shape:
        raise ShapeError(f"draws need (draws, *{list(truth.shape)}), not {list(draws.shape)}.")
    draws, truth = draws[:, :, NUM_GIVEN:].double(), truth[:, NUM_GIVEN:]
    mean = draws.mean(0)
    return SquaredErrors((draws - truth).square().mean(-1), (mean - truth).square().mean(-1))


def scores(errors: SquaredErrors) -> dict[str, Any]:
    """The numbers of a record: one of all walks, one per walk, one per third of the horizon."""
    low, high = t_interval(errors.of_draws.mean((1, 2)))
    of_draws = errors.of_draws.mean(0)
    return {
        "mse": of_draws.mean().item(),
        "mse_low": low,
        "mse_high": high,
        "mse_mean": errors.of_mean.mean().item(),
        "mse_standard_error": standard_error(of_draws.mean(1)),
        "mse_mean_standard_error": standard_error(errors.of_mean.mean(1)),
        "mse_by_walk": of_draws.mean(1).tolist(),
        "mse_mean_by_walk": errors.of_mean.mean(1).tolist(),
        "mse_by_horizon": by_third(of_draws.mean(0)),
        "mse_mean_by_horizon": by_third(errors.of_mean.mean(0)),
    }


def t_interval(numbers: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of independent numbers, (n,); NaN for a single one."""
    quantile = stdtrit(len(numbers) - 1, (1 + level) / 2) if len(numbers) > 1 else torch.nan
    mean, half = numbers.mean().item(), float(quantile) * standard_error(numbers)
    return mean - half, mean + half


def standard_error(numbers: Tensor) -> float:
    """Of the mean of independent numbers, (n,); NaN for a single one."""
    if len(numbers) < 2:
        return torch.nan
    return (numbers.std() / len(numbers) ** 0.5).item()


def by_third(numbers: Tensor) -> list[float]:
    """Means over the first, second and last third of the predicted frames, from (frame,)."""
    return [third.mean().item() for third in numbers.tensor_split(3)]


# ---- densities and bands -------------------------------------------------------------------------
def predictive_scores(
    low: Tensor, high: Tensor, log_score: Tensor, walks: bo.Trajectories
) -> dict[str, Any]:
    """Mean log score per number and coverage of bands; constant channels do not count.

    Args:
        low: Lower end of 90 % bands for observations, noise included, shape of walks.values.
        high: Their upper end.
        log_score: Log predictive density of each number, nats per degree, of that shape.
        walks: What is predicted.
    """
    truth = walks.values
    covered = _counted((low <= truth) & (truth <= high))
    return {
        "log_score": _counted(log_score).mean().item(),
        "coverage_90": covered.mean().item(),
        "coverage_by_horizon": by_third(covered.mean((0, 2))),
    }


def _counted(numbers: Tensor) -> Tensor:
    """Predicted frames of channels that move, float64."""
    moves = torch.ones(numbers.shape[-1], dtype=torch.bool)
    moves[list(CONSTANT_CHANNELS)] = False
    return numbers[:, NUM_GIVEN:, moves].double()


# ---- cross-validation over walks -----------------------------------------------------------------
def development(data: bo.datasets.MotionCapture) -> bo.Trajectories:
    """Training and validation walks, in this order, as one data set; test walks are not seen."""
    parts = (data.train, data.validation)
    return bo.Trajectories(
        data.train.times,
        torch.cat([part.values for part in parts]),
        series=(*data.train.series, *data.validation.series),
        names=data.train.names,
    )


def folds(
    data: bo.datasets.MotionCapture, num_folds: int = NUM_FOLDS, seed: int = 0
) -> Iterator[tuple[bo.Trajectories, bo.Trajectories]]:
    """`parted` of training and validation walks; test walks are not touched."""
    return parted(development(data), num_folds, seed)


def parted(
    walks: bo.Trajectories, num_folds: int = NUM_FOLDS, seed: int = 0
) -> Iterator[tuple[bo.Trajectories, bo.Trajectories]]:
    """Leave-walk-out splits: each walk is held out once.

    Args:
        walks: All of them.
        num_folds: How many.
        seed: Of the order of the walks; 0 for every method, so that scores are paired by walk.

    Yields:
        What is fitted, and what is held out.
    """
    order = np.random.RandomState(seed).permutation(walks.num_series)
    for k in range(num_folds):
        is_out = torch.zeros(walks.num_series, dtype=torch.bool)
        is_out[order[k::num_folds]] = True
        yield walks.rows(~is_out), walks.rows(is_out)


def joined(
    parts: list[tuple[bo.Trajectories, SquaredErrors]], walks: bo.Trajectories
) -> SquaredErrors:
    """Errors of the held-out walks of all folds, in the order of `walks`, each walk once.

    Args:
        parts: What was held out, with its errors; as many draws everywhere.
        walks: All of them.

    Raises:
        ShapeError: If walks are missing or held out twice.
    """
    labels = [label for held_out, _ in parts for label in held_out.series]
    if sorted(labels) != sorted(walks.series):
        raise ShapeError(f"each of {list(walks.series)} must be held out once, not {labels}.")
    together = SquaredErrors(
        torch.cat([errors.of_draws for _, errors in parts], 1),
        torch.cat([errors.of_mean for _, errors in parts]),
    )
    return together.rows([labels.index(label) for label in walks.series])


def cross_validation_scores(
    parts: list[tuple[bo.Trajectories, SquaredErrors]], data: bo.datasets.MotionCapture
) -> dict[str, Any]:
    """The numbers of a record over the training walks, and the errors over all walks beside them.

    Two of the three validation walks are slower than any training walk: over all walks they decide.
    """
    errors = joined(parts, development(data))
    everything = scores(errors)
    return scores(errors.rows(slice(data.train.num_series))) | {
        **{name: everything[name] for name in ("mse_by_walk", "mse_mean_by_walk")},
        **{
            f"{name}_all_walks": everything[name]
            for name in ("mse", "mse_mean", "mse_standard_error", "mse_mean_standard_error")
        },
    }
