"""Motion capture: what is published, and what needs no model.

A baseline predicts walks from training walks and the given frames. It has no draws: its `mse` and
its `mse_mean` are the same, and its intervals, log scores and bands are missing.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import bayesode as bo
from bayesode.datasets.motion_capture import NUM_GIVEN
from bayesode.errors import DataError
from benchmarks.motion_capture_protocol import (
    SquaredErrors,
    cross_validation_scores,
    development,
    folds,
    scores,
    squared_errors,
)
from benchmarks.records import Record, reason

INTERVAL = ("mse", "mse_low", "mse_high", "mse_mean")
OVER_WALKS = ("mse_standard_error", "mse_mean_standard_error")
ALL_WALKS = tuple(f"{name}_all_walks" for name in ("mse", "mse_mean", *OVER_WALKS))
NUMBERS = (*INTERVAL, *OVER_WALKS, *ALL_WALKS, "mse_validation", "log_score", "coverage_90")
NUMBERS += ("seconds",)
LISTS = (
    "walks",
    "mse_by_walk",
    "mse_mean_by_walk",
    "mse_by_horizon",
    "mse_mean_by_horizon",
    "coverage_by_horizon",
)
SHORTEST_CYCLE, LONGEST_CYCLE = 90, 200  # frames: 0.75 to 1.7 s for a step of each foot


# ---- published -----------------------------------------------------------------------------------
class Published(NamedTuple):
    """A test `mse` and what its authors print after it, ±, on the file of per-walk means."""

    method: str
    mse: float
    plus_minus: float
    source: str


LI = "table of Li et al. 2020, arXiv:2001.01328"
PUBLISHED = (
    Published("DTSBN-S", 34.86, 0.02, LI),
    Published("npODE", 22.96, math.nan, LI),
    Published("NeuralODE", 22.49, 0.88, LI),
    Published("ODE2VAE", 10.06, 1.4, LI),
    Published("ODE2VAE-KL", 8.09, 1.95, LI),
    Published("ARCTA", 7.62, 0.93, "Course and Nair 2023, NeurIPS"),
    Published("Latent ODE", 5.98, 0.28, LI),
    Published("SDE Matching", 4.50, 0.32, "Bartosh et al. 2025, arXiv:2502.02472"),
    Published("Latent SDE", 4.03, 0.20, LI),
)


# ---- baselines -----------------------------------------------------------------------------------
def train_mean(train: bo.Trajectories, walks: bo.Trajectories) -> Tensor:
    """One pose, the mean of all frames of all training walks."""
    return train.values.mean((0, 1)).expand_as(walks.values)


def persistence(train: bo.Trajectories, walks: bo.Trajectories) -> Tensor:
    """The last frame that is given."""
    return walks.values[:, [NUM_GIVEN - 1]].expand_as(walks.values)


def nearest_walk(train: bo.Trajectories, walks: bo.Trajectories) -> Tensor:
    """The training walk whose first frames are nearest to the given ones."""
    first, given = (part.values[:, :NUM_GIVEN].flatten(1) for part in (train, walks))
    return train.values[torch.cdist(given, first).argmin(1)]


def aligned_walks(train: bo.Trajectories, walks: bo.Trajectories, *, num: int) -> Tensor:
    """Mean of the `num` nearest training walks, each from its frame that fits the given ones best.

    All if there are fewer. Any frame of a training walk may be the first. Where the training walk
    ends it goes on one cycle earlier, again and again.
    """
    length = train.values.shape[1]
    windows = train.values.unfold(1, NUM_GIVEN, 1).transpose(2, 3)  # (train, shift, given, channel)
    given = walks.values[:, :NUM_GIVEN].flatten(1)
    distance = torch.cdist(given, windows.flatten(0, 1).flatten(1))
    nearest, shift = distance.unflatten(1, windows.shape[:2]).min(2)  # (walk, train)
    row = nearest.topk(min(num, len(nearest.T)), largest=False).indices
    frame = shift.gather(1, row)[..., None] + torch.arange(walks.values.shape[1])
    period = torch.tensor([cycle(walk) for walk in train.values])[row][..., None]
    beyond = length - period + (frame - length) % period
    return train.values[row[..., None], torch.where(frame < length, frame, beyond)].mean(1)


def cycle(walk: Tensor) -> int:
    """Frames after which a walk, (frame, channel), is most like itself.

    Raises:
        DataError: If it is shorter than the shortest cycle.
    """
    lags = range(SHORTEST_CYCLE, min(LONGEST_CYCLE + 1, len(walk)))
    if not lags:
        raise DataError(f"a cycle takes more than {SHORTEST_CYCLE} frames, not {len(walk)}.")
    return min(lags, key=lambda lag: (walk[lag:] - walk[:-lag]).square().mean().item())


def components(train: bo.Trajectories, walks: bo.Trajectories, *, num: int) -> Tensor:
    """The true frames in the principal components of the training frames: a floor, no forecast."""
    mean = train.values.mean((0, 1))
    basis = torch.linalg.svd((train.values - mean).flatten(0, 1), full_matrices=False).Vh[:num]
    return (walks.values - mean) @ basis.T @ basis + mean


# By cross-validation on the .npz: 1, 2, 3, 5, 8, 12 walks have 6.7, 5.1, 4.8, 4.3, 3.9, 3.9.
NUM_ALIGNED = 8


class Baseline(NamedTuple):
    """Predicts all frames from (train, walks), and whether it reads those that it predicts."""

    predict: Callable[[bo.Trajectories, bo.Trajectories], Tensor]
    reads_future: bool = False


BASELINES = {
    "train mean": Baseline(train_mean),
    "persistence": Baseline(persistence),
    "nearest walk": Baseline(nearest_walk),
    "time-aligned nearest walk": Baseline(partial(aligned_walks, num=1)),
    f"mean of {NUM_ALIGNED} time-aligned walks": Baseline(partial(aligned_walks, num=NUM_ALIGNED)),
} | {f"PCA floor, q = {q}": Baseline(partial(components, num=q), True) for q in (3, 4, 6)}


# ---- records -------------------------------------------------------------------------------------
def baseline_records(data: bo.datasets.MotionCapture, file: str, protocol: str) -> list[Record]:
    """One flat record per baseline.

    Args:
        data: The walks of the file.
        file: "npz" or "mat".
        protocol: One of PROTOCOLS.
    """
    return [baseline_record(name, data, file, protocol) for name in BASELINES]


def published_records() -> list[Record]:
    """One flat record per published number."""
    return [
        blank("published", p.method, "mat", "split", None)
        | {"mse": p.mse, "mse_low": p.mse - p.plus_minus, "mse_high": p.mse + p.plus_minus}
        | {"source": p.source}
        for p in PUBLISHED
    ]


def blank(system: str, method: str, file: str, protocol: str, seed: int | None) -> Record:
    """A record in which every number is missing."""
    names = {"system": system, "method": method, "file": file, "protocol": protocol, "seed": seed}
    return names | dict.fromkeys(NUMBERS, math.nan) | dict.fromkeys(LISTS) | {"error": None}


def baseline_record(name: str, data: bo.datasets.MotionCapture, file: str, protocol: str) -> Record:
    """The record of one of BASELINES; what it raises is its `error`."""
    record, begin = blank("baseline", name, file, protocol, None), time.perf_counter()
    record["reads_future"] = BASELINES[name].reads_future
    try:
        record |= PROTOCOLS[protocol](BASELINES[name], data)
        record["walks"] = list(scored_walks(data, protocol).series)
        record["seconds"] = time.perf_counter() - begin
    except Exception as failure:  # whatever it is, the other methods go on
        record["error"] = reason(failure)
    return record


def scored_walks(data: bo.datasets.MotionCapture, protocol: str) -> bo.Trajectories:
    """Those that a record is about, in the order of its lists by walk."""
    return development(data) if protocol == "cross-validation" else data.test


def _errors(baseline: Baseline, train: bo.Trajectories, walks: bo.Trajectories) -> SquaredErrors:
    return squared_errors(baseline.predict(train, walks).unsqueeze(0), walks)


def _split(baseline: Baseline, data: bo.datasets.MotionCapture) -> dict[str, Any]:
    validation = _errors(baseline, data.train, data.validation)
    numbers = scores(_errors(baseline, data.train, data.test))
    return numbers | {"mse_validation": validation.of_draws.mean().item()}


def _cross_validation(baseline: Baseline, data: bo.datasets.MotionCapture) -> dict[str, Any]:
    parts = [(out, _errors(baseline, train, out)) for train, out in folds(data)]
    return cross_validation_scores(parts, data)


def _split_all(baseline: Baseline, data: bo.datasets.MotionCapture) -> dict[str, Any]:
    return scores(_errors(baseline, development(data), data.test))


# The test walks of "split" are predicted from the 16 training walks, those of "split-19" from the
# validation walks as well.
PROTOCOLS = {"split": _split, "split-19": _split_all, "cross-validation": _cross_validation}
