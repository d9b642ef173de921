"""The main job on real data: fit, forecast, score against honest baselines, leave files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from bayesode import datasets
from bayesode.candidates import fit_candidates
from bayesode.diagnostics.plots import fan_chart, vector_field
from bayesode.diagnostics.score_table import score_table
from bayesode.errors import DataError
from bayesode.inference.arviz import save_netcdf
from bayesode.inference.mixture import Mixture
from bayesode.inference.posterior import Posterior
from bayesode.inference.svi import fit_svi
from bayesode.plan import SMALL_WIDTHS
from bayesode.systems import neural_ode
from bayesode.trajectories import Trajectories

LAST_TRAINING_YEAR, LAST_YEAR = 1914, 1920
QUICK_WIDTHS = (2,)
NAMES = {"climatology": "climatology", "random_walk": "a random walk", "ar2": "AR(2)"}


def run_demo(out: str | Path, *, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Fit the Hudson Bay lynx and hare record to 1914 and forecast 1915-1920.

    One short series: an equal mixture of widths fitted by Laplace, tried on held-out years before
    1915. Mean-field SVI stands beside it.

    Args:
        out: Folder for `scores.json`, `forecast.png`, `field.png`, `posterior.nc` and the saved
            run `run/`; it is made if it does not exist.
        seed: Of fit and predictions.
        quick: One width, few steps and draws, no hold-out: shows that everything runs, not how good
            it is.

    Returns:
        What `scores.json` holds.

    Raises:
        DataError: If the folder cannot be written.
    """
    begin, folder = time.perf_counter(), Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be made: {error}") from error
    train, test = datasets.lynx_hare().split(time=LAST_TRAINING_YEAR)
    print(f"Hudson Bay record: train {train!r}\n                   test  {test!r}\n")
    num_steps, num_draws = (20, 100) if quick else (None, 2000)
    posterior = fit_candidates(
        train,
        likelihood="lognormal",
        widths=QUICK_WIDTHS if quick else SMALL_WIDTHS,
        held_out=not quick,
        seed=seed,
    )
    print(f"{posterior}\n\nMean-field SVI beside it:")
    model, guide = neural_ode(train, likelihood="lognormal", engine="svi")
    variational = fit_svi(model, guide, train, seed=seed, num_steps=num_steps)
    terms = variational.elbo_terms()
    print(f"\nELBO of SVI, in nats\n{terms}\n")
    _print_noise("SVI", variational, num_draws, seed)
    _print_noise("mixture", posterior, num_draws, seed)
    table = _score(posterior, variational, test, num_draws, seed)
    _draw(posterior, test, num_draws, seed, folder)
    scores = _scores(table) | {
        "elbo": terms.elbo.item(),
        "log_evidence": posterior.log_evidence,
        "inflation": posterior.inflation,
        "seed": seed,
        "quick": quick,
        "seconds": time.perf_counter() - begin,
    }
    (folder / "scores.json").write_text(json.dumps(scores, indent=1))
    print(f"\n{_verdict(scores)}\n{scores['seconds']:.0f} s; everything is in {folder}/")
    return scores


def _score(
    posterior: Mixture, variational: Posterior, test: Trajectories, num_draws: int, seed: int
) -> Any:
    """The table of scores, printed."""
    question = posterior.train.at(test)
    ensemble = posterior.predict(question, num_draws=num_draws, seed=seed)
    table = score_table(ensemble, test)
    beside = score_table(variational.predict(question, num_draws=num_draws, seed=seed), test)
    table.loc["svi"] = beside.loc["ensemble"]
    print(f"\nForecast of {LAST_TRAINING_YEAR + 1}-{LAST_YEAR} (CRPS of logs)")
    print(table.rename(index={"ensemble": "mixture"}).round(3).to_string())
    print(
        f"failed draws {ensemble.share_failed:.1%}, solver error {ensemble.solver_error:.1e} sd, "
        f"not determined by the data {ensemble.share_undetermined:.0%} of the forecast"
    )
    return table


def _print_noise(engine: str, posterior: Posterior | Mixture, num_draws: int, seed: int) -> None:
    noise = posterior.draws(num_draws, seed=seed)["likelihood.noise_scale"]
    for name, scales in zip(posterior.train.names, noise.T, strict=True):
        low, middle, high = scales.quantile(torch.tensor([0.05, 0.5, 0.95]).to(scales)).tolist()
        band = f"90 % {low:.3f} to {high:.3f}"
        print(f"{engine}: noise of {name} {middle:.3f} ({band}), sd of the logarithm")


def _draw(posterior: Mixture, test: Trajectories, num_draws: int, seed: int, folder: Path) -> None:
    """Leave pictures, the ArviZ file and the run."""
    train = posterior.train
    fine = train.at(torch.linspace(train.times[0].item(), LAST_YEAR, 201, dtype=torch.float64))
    curves = posterior.predict(fine, num_draws=num_draws, seed=seed)
    fan_chart(curves, train, test).savefig(folder / "forecast.png", dpi=150)
    vector_field(posterior.best, seed=seed).savefig(folder / "field.png", dpi=150)
    idata = posterior.to_arviz(num_draws=min(num_draws, 500), seed=seed)
    save_netcdf(idata, folder / "posterior.nc")
    posterior.save(folder / "run")


def _scores(table: Any) -> dict[str, Any]:
    columns = ["log_score_per_point", "crps", "coverage_90"]
    rows = {
        name: {column: float(table.loc[name, column]) for column in columns} for name in table.index
    }
    return {"holdout": rows.pop("ensemble"), "svi": rows.pop("svi"), "baselines": rows}


def _verdict(scores: dict[str, Any]) -> str:
    """One plain sentence on whether the forecast is worth its name."""
    baselines = scores["baselines"]
    best = max(baselines, key=lambda name: baselines[name]["log_score_per_point"])
    gain = scores["holdout"]["log_score_per_point"] - baselines[best]["log_score_per_point"]
    what = "beats" if gain > 0 else "does NOT beat"
    return (
        f"The forecast {what} the best baseline, {NAMES[best]}: {gain:+.2f} nats per point over 12 "
        f"points, {scores['holdout']['coverage_90']:.0%} of which lie in the 90 % band. Fifteen "
        "years are little for a black box, and one forecast of twelve numbers proves little."
    )
