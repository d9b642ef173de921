"""Videos of turning digits: fit an ODE-VAE, forecast a second turn, score it, leave pictures."""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesode import datasets
from bayesode.demos.results import made_folder, write_scores
from bayesode.diagnostics.latent import LatentAccount, latent_account
from bayesode.diagnostics.plots import frame_rows, latent_paths
from bayesode.inference.arviz import save_netcdf
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.posterior import Posterior
from bayesode.inference.randomness import seeded
from bayesode.inference.svi import fit_svi
from bayesode.systems import ode_vae
from bayesode.tabular import frame
from bayesode.trajectories import Trajectories

HIDDEN_FRAME, NUM_TURNS = 4, 2
ACTIVE_VARIANCE = 0.0025  # of a pixel over the digits, to count in the spread of draws
NUM_KEPT = 4  # sequences in the ArviZ file


@dataclass(frozen=True)
class Size:
    """How large the demo is."""

    num_series: int
    num_validation: int
    num_test: int
    dim_latent: int
    num_steps: int
    num_draws: int


# Of all 183 threes, in what two minutes allow: more steps still gain a little in validation.
USUAL = Size(120, 20, 40, dim_latent=32, num_steps=300, num_draws=64)
QUICK = Size(24, 4, 6, dim_latent=8, num_steps=20, num_draws=16)


def run_rotating_digits(out: str | Path, *, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Fit an ODE-VAE to videos of turning threes and predict those of other threes.

    Handwritten threes of scikit-learn turn once in 16 frames. In training one frame is hidden from
    all sequences and three more from each. Digits that were in no training sequence are then
    predicted from their first frame alone: the hidden frame, and a second turn, which no sequence
    had. Pixels are grey, and taken as probabilities of being on (Bernoulli).

    Args:
        out: Folder for `scores.json`, `frames.png`, `latent.png`, `posterior.nc` (states and
            weights) and the saved run `run/`; it is made if it does not exist.
        seed: Of hidden frames, fit and predictions.
        quick: Few digits, dimensions and steps: shows that everything runs, not how good it is.

    Returns:
        What `scores.json` holds.

    Raises:
        DataError: If the folder cannot be written, or scikit-learn is absent.
    """
    begin, folder = time.perf_counter(), made_folder(out)
    size = QUICK if quick else USUAL
    frames = datasets.rotating_digits(
        num_series=size.num_series,
        num_validation=size.num_validation,
        num_test=size.num_test,
        hidden_frame=HIDDEN_FRAME,
        seed=seed,
    )
    print(f"Turning threes, other digits in each part\n  train {frames.train!r}")
    print(f"  validation {frames.validation!r}\n  test {frames.test!r}\n")
    start, posterior = _fit(frames, size, seed)
    account = latent_account(posterior)
    print(f"\n{account}\n")
    ensembles = {
        "ODE-VAE": _second_turn(posterior, frames.test, size, seed),
        "its start": _second_turn(start, frames.test, size, seed),
    }
    errors = _errors(ensembles, frames)
    spread = _spread(ensembles["ODE-VAE"], frames.test)
    print(_table(errors))
    _draw(posterior, ensembles["ODE-VAE"], frames.test, size, seed, folder)
    scores = _scores(errors, spread, account) | {
        "seed": seed,
        "quick": quick,
        "seconds": time.perf_counter() - begin,
    }
    write_scores(folder, scores)
    print(f"\n{_verdict(scores, size)}\n")
    print(f"{scores['seconds']:.0f} s; everything is in {folder}/")
    return scores


# ---- fit and predictions -------------------------------------------------------------------------
def _fit(frames: datasets.RotatingFrames, size: Size, seed: int) -> tuple[Posterior, Posterior]:
    """The posterior after a single step, and the one after all, which the validation data chose."""
    with seeded(seed):  # networks begin at random
        model, guide = ode_vae(frames.train, dim_latent=size.dim_latent)
    start = fit_svi(model, guide, frames.train, seed=seed, num_steps=1, progress=False)
    posterior = fit_svi(
        model,
        guide,
        frames.train,
        seed=seed,
        num_steps=size.num_steps,
        validation=frames.validation,
    )
    looks = posterior.history.validation
    step, bound = max(looks, key=lambda look: look[1])
    print(
        f"\n{size.num_steps} steps in {posterior.history.seconds:.0f} s. Bound of a validation "
        f"sequence: {looks[0][1]:.0f} nats after {looks[0][0]} steps,\n{bound:.0f} at its best, "
        f"after {step}: that state is kept."
    )
    return start, posterior


def _second_turn(posterior: Posterior, new: Trajectories, size: Size, seed: int) -> Ensemble:
    """Two turns of new digits; the encoder reads their first frame and nothing else."""
    asked = new.at(torch.arange(NUM_TURNS * _num_angles(new), dtype=torch.float64))
    conditioned = posterior.condition(new, seed=seed)
    return conditioned.predict(asked, num_draws=size.num_draws, seed=seed)


def _num_angles(data: Trajectories) -> int:
    return data.times.shape[-1]


def _images(data: Trajectories) -> Tensor:
    """Values (series, time, channel, height, width)."""
    return data.values  # pyright: ignore[reportReturnType]


# ---- scores --------------------------------------------------------------------------------------
def _errors(
    ensembles: dict[str, Ensemble], frames: datasets.RotatingFrames
) -> dict[str, dict[str, float]]:
    """Mean squared errors per pixel, by method.

    A baseline repeats its first turn in the second: it knows that the digit comes round.
    """
    truth = _images(frames.test)
    predicted = {name: ensemble.mean for name, ensemble in ensembles.items()}
    predicted["a single draw"] = ensembles["ODE-VAE"].signal[0]
    for name, turn in (
        ("mean of an angle", _angle_mean(frames.train).expand_as(truth)),
        ("nearest digit", _nearest(frames.train, truth)),
    ):
        predicted[name] = turn.repeat(1, NUM_TURNS, 1, 1, 1)
    angles = truth.shape[1]
    return {
        name: {
            "hidden_frame": _mse(video[:, HIDDEN_FRAME], truth[:, HIDDEN_FRAME]),
            "first_turn": _mse(video[:, 1:angles], truth[:, 1:]),
            "second_turn": _mse(video[:, angles:], truth),
        }
        for name, video in predicted.items()
    }


def _mse(predicted: Tensor, truth: Tensor) -> float:
    return (predicted - truth).square().mean().item()


def _angle_mean(train: Trajectories) -> Tensor:
    """Mean of what is visible of an angle, (time, ...); of a hidden one the neighbours' mean."""
    mask: Any = train.mask
    count = mask.sum(0)
    own = torch.where(mask, _images(train), 0.0).sum(0) / count.clamp_min(1)
    return torch.where(count > 0, own, (own.roll(1, 0) + own.roll(-1, 0)) / 2)


def _nearest(train: Trajectories, truth: Tensor) -> Tensor:
    """The whole sequence, hidden frames included, of the training digit with the nearest start."""
    first, known = truth[:, 0].flatten(1), _images(train)
    return known[torch.cdist(first, known[:, 0].flatten(1)).argmin(1)]


def _spread(ensemble: Ensemble, test: Trajectories) -> dict[str, float]:
    """Spread of draws and error of their mean at the hidden frame, over pixels that differ."""
    truth = _images(test)[:, HIDDEN_FRAME]
    is_active = truth.var(0) > ACTIVE_VARIANCE
    variance = ensemble.sd(of="signal")[:, HIDDEN_FRAME].square()
    square = (ensemble.mean[:, HIDDEN_FRAME] - truth).square()
    variance, square = variance[:, is_active], square[:, is_active]
    pairs = torch.stack([x.flatten().argsort().argsort().double() for x in (variance, square)])
    ratio = (variance.mean() / square.mean()).sqrt()
    return {"spread_ratio": ratio.item(), "rank_correlation": torch.corrcoef(pairs)[0, 1].item()}


def _scores(
    errors: dict[str, dict[str, float]], spread: dict[str, float], account: LatentAccount
) -> dict[str, Any]:
    return {
        "errors": errors,
        **spread,
        "elbo": account.elbo,
        "nats_per_frame": account.nats_per_frame,
        "active_dimensions": account.num_active,
        "latent_dimensions": len(account.is_active),
    }


def _table(errors: dict[str, dict[str, float]]) -> str:
    order = ("ODE-VAE", "a single draw", "its start", "mean of an angle", "nearest digit")
    rows = [{column.replace("_", " "): x for column, x in errors[name].items()} for name in order]
    table = frame(rows).set_axis(list(order)).to_string(float_format="{:.4f}".format)
    return (
        "Squared error per pixel, new digits, seen at one angle\n"
        f"{table}\n(its start: after one step from linear algebra on the visible frames; mean of "
        "an angle: of the\nvisible training frames; nearest digit: the sequence, hidden frames "
        "included, of the training digit\nwith the nearest first frame)"
    )


def _verdict(scores: dict[str, Any], size: Size) -> str:
    """Plain sentences on whether the predictions are worth their name."""
    own, nearest = (scores["errors"][name] for name in ("ODE-VAE", "nearest digit"))
    outcome = {
        column: "beats" if own[column] < nearest[column] else "does NOT beat"
        for column in ("hidden_frame", "second_turn")
    }
    told = [
        f"{what} the ODE-VAE {outcome[column]} the nearest training digit: {own[column]:.4f} "
        f"beside {nearest[column]:.4f}"
        for column, what in (
            ("hidden_frame", "At the angle that was hidden in all of training"),
            ("second_turn", "through a second turn, which no sequence had,"),
        )
    ]
    return textwrap.fill(
        f"{'; '.join(told)} (squared error per pixel, {size.num_test} new digits). At the hidden "
        f"angle the sd of its draws is {scores['spread_ratio']:.0%} of the error, and over pixels "
        f"the two have rank correlation {scores['rank_correlation']:.2f}. Turning an image is a "
        "linear map of it, so this is an easy film for a model with a linear part; and frames say "
        "nothing of what happens between them: the model answers at frames only.",
        width=100,
    )


# ---- files ---------------------------------------------------------------------------------------
def _draw(
    posterior: Posterior,
    ensemble: Ensemble,
    test: Trajectories,
    size: Size,
    seed: int,
    folder: Path,
) -> None:
    """Leave pictures, the ArviZ file and the run."""
    shown = _shown(ensemble, test)
    films = _second_turn(posterior, shown, size, seed)
    twice = shown.values.repeat(1, NUM_TURNS, 1, 1, 1)  # type: ignore[union-attr]
    is_seen = (films.trajectories.times != HIDDEN_FRAME).expand(shown.num_series, -1)
    data = Trajectories(films.trajectories.times, twice, mask=is_seen, series=shown.series)
    frame_rows(films, data, of="signal").savefig(folder / "frames.png", dpi=150)
    latent_paths(films, num_paths=10).savefig(folder / "latent.png", dpi=150)
    kept = posterior.train.rows(torch.arange(NUM_KEPT))
    idata = posterior.to_arviz(kept, num_draws=min(100, size.num_draws), seed=seed)
    for group in ("posterior_predictive", "observed_data", "log_likelihood"):
        del idata[group]  # a number for every pixel of every frame and draw
    save_netcdf(idata, folder / "posterior.nc")
    posterior.save(folder / "run")


def _shown(ensemble: Ensemble, test: Trajectories) -> Trajectories:
    """The digits with the smallest, the median and the largest error, labelled so."""
    angles, truth = _num_angles(test), _images(test)
    square = (ensemble.mean[:, :angles] - truth).square().flatten(1).mean(1)
    order = square.argsort()
    rows = order[[0, len(order) // 2, -1]]
    names = [
        f"{what} error, digit {test.series[row]}"
        for what, row in zip(("smallest", "median", "largest"), rows.tolist(), strict=True)
    ]
    return Trajectories(test.times, truth[rows], series=tuple(names))
