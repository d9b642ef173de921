"""Rotating MNIST: what is published, what needs no model, and the errors that all are scored by.

A baseline gives one turn of every sequence. Its second turn is the first once more: it knows that
the digit comes round, which a differential equation has to find out. It has no draws: its "single
draw" is its prediction, and what is asked of densities and bands is NaN.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import bayesode as bo
from benchmarks.records import Record, reason

HIDDEN_FRAME = 4
ERRORS = (
    "mse_hidden",
    "mse_hidden_training_digits",
    "mse_hidden_single_draw",
    "mse_all",
    "mse_second_turn",
)
NUMBERS = (*ERRORS, "nats_per_frame", "spread_ratio", "coverage_90", "seconds")


# ---- published -----------------------------------------------------------------------------------
class Published(NamedTuple):
    """A pixel MSE at the hidden angle as its authors print it, and where."""

    method: str
    mse_hidden: float
    source: str


# The same protocol on a file of images that is not public any more: other pixels than ours. Where
# the code is public, the hidden frames are those of *training* digits: the column to compare with
# is mse_hidden_training_digits.
CASALE = "Casale et al. 2018, arXiv:1810.11738"
YILDIZ = "Yildiz et al. 2019, arXiv:1905.10994"
CORBETT = "Corbett and Kangin 2022, arXiv:2202.00113"
PUBLISHED = (
    Published("GPPVAE-dis", 0.0309, CASALE),
    Published("GPPVAE-joint", 0.0288, CASALE),
    Published("ODE2VAE", 0.0194, YILDIZ),
    Published("ODE2VAE-KL", 0.0184, YILDIZ),
    Published("InImNet, worst", 0.0176, CORBETT),
    Published("InImNet, best", 0.0125, CORBETT),
    Published("shooting particles", 0.0112, "Vialard et al. 2020, arXiv:2006.10330"),
)


# ---- errors --------------------------------------------------------------------------------------
class Predictions(NamedTuple):
    """Predicted frames, shape (series, time, 1, height, width), of a turn or more."""

    test: Tensor
    training_digits: Tensor


def errors(
    predicted: Predictions, frames: bo.datasets.RotatingFrames, single_draw: Tensor | None = None
) -> dict[str, float]:
    """Mean squared errors per pixel, by the names in ERRORS.

    Args:
        predicted: Of the test sequences two turns, of the training sequences at least one.
        frames: One turn, from the same angle and at the same speed for all.
        single_draw: Predicted test frames of each draw, (draws, series, time, ...); None if all
            draws are the same.
    """
    test, train = frames.test.values, frames.train.values
    angles = test.shape[1]
    draws = predicted.test if single_draw is None else single_draw
    return {
        "mse_hidden": mse(predicted.test[:, HIDDEN_FRAME], test[:, HIDDEN_FRAME]),
        "mse_hidden_training_digits": mse(
            predicted.training_digits[:, HIDDEN_FRAME], train[:, HIDDEN_FRAME]
        ),
        "mse_hidden_single_draw": mse(draws[..., HIDDEN_FRAME, :, :, :], test[:, HIDDEN_FRAME]),
        "mse_all": mse(predicted.test[:, :angles], test),
        "mse_second_turn": mse(predicted.test[:, angles : 2 * angles], test),
    }


def mse(predicted: Tensor, truth: Tensor) -> float:
    return (predicted - truth).square().mean().item()


# ---- baselines -----------------------------------------------------------------------------------
def global_mean(frames: bo.datasets.RotatingFrames) -> Predictions:
    """One image, the mean of all visible training frames."""
    mean = _visible_sum(frames.train).sum(0) / _num_visible(frames.train).sum(0)
    return Predictions(mean.expand_as(frames.test.values), mean.expand_as(frames.train.values))


def visible_angle_mean(frames: bo.datasets.RotatingFrames) -> Predictions:
    """Of every angle the mean of the visible training frames.

    An angle that is never visible gets the mean of its two neighbours.
    """
    count = _num_visible(frames.train)
    own = _visible_sum(frames.train) / count.clamp_min(1)
    mean = torch.where(count > 0, own, (own.roll(1, 0) + own.roll(-1, 0)) / 2)
    return Predictions(mean.expand_as(frames.test.values), mean.expand_as(frames.train.values))


def angle_mean(frames: bo.datasets.RotatingFrames) -> Predictions:
    """Of every angle the mean of all training frames, hidden ones included."""
    mean = frames.train.values.mean(0)
    return Predictions(mean.expand_as(frames.test.values), mean.expand_as(frames.train.values))


def nearest_digit(frames: bo.datasets.RotatingFrames) -> Predictions:
    """The sequence of the training digit with the nearest first frame, hidden frames included."""
    train = frames.train.values
    first = train[:, 0].flatten(1)
    distance = torch.cdist(first, first).fill_diagonal_(torch.inf)  # another digit than itself
    to_test = torch.cdist(frames.test.values[:, 0].flatten(1), first)
    return Predictions(train[to_test.argmin(1)], train[distance.argmin(1)])


def neighbour_blend(frames: bo.datasets.RotatingFrames) -> Predictions:
    """The mean of the true frames before and after, of the very sequence that is predicted."""
    test, train = (
        (values.roll(1, 1) + values.roll(-1, 1)) / 2
        for values in (frames.test.values, frames.train.values)
    )
    return Predictions(test, train)


class Baseline(NamedTuple):
    """A rule that predicts, and whether it reads frames that are hidden from models."""

    predict: Callable[[bo.datasets.RotatingFrames], Predictions]
    reads_hidden: bool


BASELINES = {
    "global mean": Baseline(global_mean, False),
    "angle mean of visible": Baseline(visible_angle_mean, False),
    "angle mean": Baseline(angle_mean, True),
    "nearest digit": Baseline(nearest_digit, True),
    "neighbour blend": Baseline(neighbour_blend, True),
}


def _visible_sum(train: bo.Trajectories) -> Tensor:
    """Sum over the sequences of what is visible, (time, 1, height, width)."""
    return torch.where(train.mask, train.values, 0.0).sum(0)


def _num_visible(train: bo.Trajectories) -> Tensor:
    """In how many sequences a pixel of a frame is visible, (time, 1, height, width)."""
    return train.mask.sum(0)


# ---- records -------------------------------------------------------------------------------------
def baseline_records(frames: bo.datasets.RotatingFrames, seed: int = 0) -> list[Record]:
    """One flat record per baseline.

    Args:
        frames: One turn, from the same angle and at the same speed for all.
        seed: Of the hidden frames.
    """
    return [_record(name, seed, frames) for name in BASELINES]


def _record(name: str, seed: int, frames: bo.datasets.RotatingFrames) -> Record:
    baseline, begin, error = BASELINES[name], time.perf_counter(), None
    numbers = dict.fromkeys(NUMBERS, math.nan)
    try:
        turn = baseline.predict(frames)
        numbers |= {"seconds": time.perf_counter() - begin}
        numbers |= errors(Predictions(turn.test.repeat(1, 2, 1, 1, 1), turn[1]), frames)
    except Exception as failure:  # whatever it is, the other methods go on
        error = reason(failure)
    record = {"method": name, "likelihood": None, "seed": seed}
    return record | numbers | {"reads_hidden": baseline.reads_hidden, "error": error}


def published_records() -> list[Record]:
    """One flat record per published number: another file of images, training digits."""
    return [
        {"method": p.method, "likelihood": None, "seed": None}
        | dict.fromkeys(NUMBERS, math.nan)
        | {"mse_hidden_training_digits": p.mse_hidden, "source": p.source, "error": None}
        for p in PUBLISHED
    ]
