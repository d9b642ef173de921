"""What a fitted ODE-VAE is worth on rotating MNIST: the numbers of a record."""

from typing import Any

import torch
from torch import Tensor

import bayesode as bo
from bayesode.diagnostics import latent_account
from bayesode.inference.calibration import calibrate_noise
from bayesode.models.solvers import FixedGridSolver, OnFrames
from benchmarks.rotating_mnist_baselines import HIDDEN_FRAME, Predictions, errors, mse

NUM_DRAWS, NUM_OWN_DRAWS, NUM_FINE_DRAWS, NUM_BAND_DRAWS = 16, 8, 4, 150
ACTIVE_SD, ACTIVE_VARIANCE = 0.05, 0.01
OWN_NUMBERS = (
    "name",
    "coverage_90_second_turn",
    "calibration_factor",
    "reliability_error",
    "rank_correlation",
    "mse_hidden_fine",
    "mse_second_turn_fine",
    "elbo",
    "kl_weights",
    "kl_x0_per_series",
    "active_dimensions",
    "weight_sd_median",
    "num_steps",
)


def scores(
    posterior: bo.Posterior, frames: bo.datasets.RotatingFrames, likelihood: str, *, seed: int
) -> dict[str, Any]:
    """All numbers of a fit; the test digits are looked at here and nowhere else."""
    angles = frames.test.values.shape[1]
    turns = [float(k) for k in range(2 * angles)]
    new = posterior.condition(frames.test.until(0.0))
    # decoded once: decoding is what takes the time
    draws = new.predict(frames.test.at(turns), num_draws=NUM_DRAWS, seed=seed).signal
    own = posterior.predict(frames.train.at(turns[:angles]), num_draws=NUM_OWN_DRAWS, seed=seed)
    predicted = Predictions(draws.mean(0), own.mean)
    numbers: dict[str, Any] = errors(predicted, frames, draws)
    hidden = draws[:, :, HIDDEN_FRAME]
    numbers |= of_draws(hidden, frames.test.values[:, HIDDEN_FRAME])
    numbers |= of_weights(posterior)
    numbers |= finer(new, frames, turns, seed)
    numbers["num_steps"] = len(posterior.history.elbo)
    if likelihood == "bernoulli":
        return numbers | {"reliability_error": reliability(hidden.mean(0), frames)}
    return numbers | bands(posterior, frames, seed)


def of_draws(draws: Tensor, truth: Tensor) -> dict[str, float]:
    """Spread of decoded draws (draws, series, ...) beside the error of their mean."""
    active = truth.var(0) > ACTIVE_VARIANCE
    variance, square = draws.var(0), (draws.mean(0) - truth).square()
    spread, error = variance[:, active].mean().sqrt(), square[:, active].mean().sqrt()
    return {
        "spread_ratio": (spread / error).item(),
        "rank_correlation": rank_correlation(variance.flatten(), square.flatten()),
    }


def rank_correlation(one: Tensor, two: Tensor) -> float:
    """Spearman's, of as many pairs as there are."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (one, two)])
    return torch.corrcoef(ranks)[0, 1].item()


def of_weights(posterior: bo.Posterior) -> dict[str, float]:
    """The ELBO in nats and what the weights cost."""
    account = latent_account(posterior, num_particles=2)
    weights = [kl for site, kl in account.kl_global.items() if site.startswith("field")]
    scales = torch.cat(
        [s.detach().flatten() for n, s in posterior.guide.sites.log_scale.items() if "field" in n]
    )
    return {
        "nats_per_frame": account.nats_per_frame,
        "elbo": account.elbo,
        "kl_weights": sum(kl.item() for kl in weights),
        "kl_x0_per_series": account.kl_local["x0"].mean().item(),
        "active_dimensions": account.num_active,
        "weight_sd_median": scales.exp().median().item(),
    }


def finer(
    new: bo.Posterior, frames: bo.datasets.RotatingFrames, turns: list[float], seed: int
) -> dict[str, float]:
    """Errors by a step four times as fine; those of an exact solver by RK4 with 8 steps a frame."""
    step = min(new.model.solver.step, 0.5) / 4
    solver = OnFrames(FixedGridSolver("rk4", step=step))
    fine = new.predict(
        frames.test.at(turns), num_draws=NUM_FINE_DRAWS, seed=seed, solver=solver
    ).mean
    truth = frames.test.values
    return {
        "mse_hidden_fine": mse(fine[:, HIDDEN_FRAME], truth[:, HIDDEN_FRAME]),
        "mse_second_turn_fine": mse(fine[:, truth.shape[1] :], truth),
    }


def reliability(probability: Tensor, frames: bo.datasets.RotatingFrames) -> float:
    """Mean distance of P(pixel on) from the share of such pixels that are on, over ten bins.

    Over the hidden frames of the test digits, binarised by a draw per pixel; bins of the same
    width, weighted by their pixels without the nearly sure ones (below .01, above .99).
    """
    truth = frames.test.values[:, HIDDEN_FRAME]
    generator = torch.Generator().manual_seed(0)
    is_on = torch.rand(truth.shape, generator=generator) < truth
    is_open = (probability > 0.01) & (probability < 0.99)
    probability, is_on = probability[is_open], is_on[is_open].to(probability)
    bins = (10 * probability).long().clamp_max(9)
    count = torch.zeros(10).to(probability).index_add(0, bins, torch.ones_like(probability))
    gap = torch.zeros(10).to(probability).index_add(0, bins, probability - is_on)
    return (gap.abs().sum() / count.sum()).item()


def bands(
    posterior: bo.Posterior, frames: bo.datasets.RotatingFrames, seed: int
) -> dict[str, float]:
    """Coverage of calibrated 90 % bands at the hidden frame, in the first and the second turn.

    The factor is found on the validation digits at the hidden frame, and kept for the second turn.
    """
    frame, angles = float(HIDDEN_FRAME), frames.test.values.shape[1]
    asked = [frame, frame + angles]
    calibrated = calibrate_noise(posterior, frames.validation, at=[frame], seed=seed)
    new = calibrated.condition(frames.test.until(0.0))
    ensemble = new.predict(frames.test.at(asked), num_draws=NUM_BAND_DRAWS, seed=seed)
    low, high = ensemble.interval(0.9)
    truth = frames.test.values[:, [HIDDEN_FRAME]]
    train = frames.train
    visible = torch.where(train.mask, train.values, torch.nan).flatten(0, 1)
    mean = visible.nanmean(0)
    active = (visible - mean).square().nanmean(0).sqrt() > ACTIVE_SD
    covered = ((low <= truth) & (truth <= high))[:, :, active].double().mean((0, 2))
    return {
        "coverage_90": covered[0].item(),
        "coverage_90_second_turn": covered[1].item(),
        "calibration_factor": calibrated.settings["calibrated_noise"]["factor"],
    }
