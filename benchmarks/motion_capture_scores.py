"""Motion capture, systems with draws: one way to fit, three protocols.

A fit is a function of walks and a seed; what it returns is conditioned on the given frames of other
walks and predicts all of their frames. No walk's residuals make its own bands.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import bayesode as bo
from bayesode.datasets.motion_capture import NUM_GIVEN, given_frames
from benchmarks.motion_capture_protocol import (
    NUM_DRAWS,
    SquaredErrors,
    cross_validation_scores,
    development,
    parted,
    predictive_scores,
    scores,
    squared_errors,
)

Fit = Callable[[bo.Trajectories, int], Any]  # (walks, seed) -> a posterior or a bag of them

# Of bands: between the 5 % and 95 % quantiles of n draws lie .9 (n - 1) / (n + 1) of new ones, .865
# for 50 draws and .891 for 200.
NUM_BAND_DRAWS = 200
LEVEL = 0.9


# ---- what is predicted ---------------------------------------------------------------------------
class Held(NamedTuple):
    """Walks that a fit has not seen, and what it predicted of them; `bo.HeldOut` with errors.

    Args:
        truth: The walks, given frames masked: they are no residuals.
        ensemble: NUM_BAND_DRAWS draws, for bands.
        errors: Of NUM_DRAWS other draws.
    """

    truth: bo.Trajectories
    ensemble: Any
    errors: SquaredErrors


class Bands(NamedTuple):
    """Lower and upper ends, log densities: each (walk, frame, channel)."""

    low: Tensor
    high: Tensor
    log_score: Tensor


def predicted(posterior: Any, walks: bo.Trajectories, seed: int) -> Held:
    """What a posterior says of walks; it is shown their given frames and asked for their times."""
    new = posterior.condition(given_frames(walks), seed=seed)
    asked = walks.at(walks.times)  # without values
    draws = new.predict(asked, num_draws=NUM_DRAWS, seed=seed).signal
    ensemble = new.predict(asked, num_draws=NUM_BAND_DRAWS, seed=seed)
    mask = walks.mask.clone()
    mask[:, :NUM_GIVEN] = False
    return Held(replace(walks, mask=mask), ensemble, squared_errors(draws, walks))


def held_out(fit: Fit, walks: bo.Trajectories, seed: int, num_folds: int) -> list[Held]:
    """Each walk predicted by a fit to other folds; the folds are the same for every fit."""
    return [predicted(fit(train, seed), out, seed) for train, out in parted(walks, num_folds)]


def bands(noise: Any, held: Held) -> Bands:
    """Bands of new observations under noise that was learned from other walks."""
    noisy = noise.applied(held.ensemble)
    return Bands(*noisy.interval(LEVEL), noisy.log_score(held.truth))


# ---- protocols -----------------------------------------------------------------------------------
class CrossValidated(NamedTuple):
    """The numbers of a record, and noise from what all held-out walks miss by."""

    numbers: dict[str, Any]
    noise: Any


def cross_validated(
    fit: Fit, data: bo.datasets.MotionCapture, seed: int, num_folds: int
) -> CrossValidated:
    """Leave-walk-out over training and validation walks; test walks are not touched.

    The noise of a walk's bands is learned from the residuals of the other folds.
    """
    walks = development(data)
    held = held_out(fit, walks, seed, num_folds)
    numbers = cross_validation_scores([(h.truth, h.errors) for h in held], data)
    own = [bands(bo.HorizonNoise.of(held[:k] + held[k + 1 :]), h) for k, h in enumerate(held)]
    labels = [label for h in held for label in h.truth.series]
    rows = [labels.index(label) for label in walks.series]
    everything = Bands(*(torch.cat(part)[rows] for part in zip(*own, strict=True)))
    num_train = data.train.num_series
    inside = [part[:num_train] for part in everything]
    numbers |= predictive_scores(*inside, walks.rows(range(num_train)))
    of_all = predictive_scores(*everything, walks)
    numbers |= {f"{name}_all_walks": value for name, value in of_all.items()}
    numbers |= {"share_failed": sum(h.ensemble.share_failed for h in held) / num_folds}
    return CrossValidated(numbers, bo.HorizonNoise.of(held))


def split(fit: Fit, data: bo.datasets.MotionCapture, seed: int, num_folds: int) -> dict[str, Any]:
    """The training walks are fitted; their leave-walk-out residuals tell the noise."""
    noise = bo.HorizonNoise.of(held_out(fit, data.train, seed, num_folds))
    posterior = fit(data.train, seed)
    validation = predicted(posterior, data.validation, seed).errors
    return {"mse_validation": validation.of_draws.mean().item()} | _of_test_walks(
        posterior, noise, data, seed
    )


def split_all(fit: Fit, data: bo.datasets.MotionCapture, seed: int, noise: Any) -> dict[str, Any]:
    """Training and validation walks are fitted; `noise` is that of `cross_validated`."""
    return _of_test_walks(fit(development(data), seed), noise, data, seed)


def _of_test_walks(
    posterior: Any, noise: Any, data: bo.datasets.MotionCapture, seed: int
) -> dict[str, Any]:
    """The only place where systems meet the test walks."""
    held = predicted(posterior, data.test, seed)
    numbers = scores(held.errors) | predictive_scores(*bands(noise, held), data.test)
    return numbers | {"share_failed": held.ensemble.share_failed}
