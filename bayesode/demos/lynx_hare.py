"""A short record of two species: fit, forecast, score against honest baselines, leave files."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from bayesode import datasets
from bayesode.candidates import fit_candidates
from bayesode.demos.results import made_folder, write_scores
from bayesode.diagnostics.plots import fan_chart, vector_field
from bayesode.diagnostics.score_table import score_table
from bayesode.inference.arviz import save_netcdf
from bayesode.inference.mixture import Mixture
from bayesode.plan import SMALL_WIDTHS
from bayesode.systems import neural_ode, neural_sde
from bayesode.trajectories import Trajectories

LAST_TRAINING_YEAR, LAST_YEAR = 1914, 1920
WIDTHS = SMALL_WIDTHS[::2]  # two systems, each held out too: all four would take two minutes
QUICK_WIDTHS = (2,)
SYSTEMS = {"with process noise": neural_sde, "without process noise": neural_ode}
NAMES = {"climatology": "climatology", "random_walk": "a random walk", "ar2": "AR(2)"}
SCALES = {  # sites of noise scales, what they are and their unit
    "likelihood.noise_scale": ("measurement noise", "sd of the logarithm"),
    "field.diffusion.scale": ("process noise", "sd of the logarithm after one year"),
}
# Kass and Raftery (1995), "Bayes factors", JASA 90: their table, in nats.
STRENGTHS = {1: "not worth more than a bare mention", 3: "positive", 5: "strong"}
STRONGEST = "very strong"


def run_lynx_hare(out: str | Path, *, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Fit the Hudson Bay lynx and hare record to 1914 and forecast 1915-1920.

    One short series: an equal mixture of widths fitted by Laplace, tried on held-out years before
    1915, once with process noise and once without. The larger evidence of 1900-1914 decides which
    one forecasts; the other stands beside it.

    Args:
        out: Folder for `scores.json`, `forecast.png`, the forecast of the other one
            (`forecast-without-process-noise.png`, say), `field.png`, `posterior.nc` and the saved
            run `run/`; it is made if it does not exist.
        seed: Of fits and predictions.
        quick: One width, few draws, no hold-out: shows that everything runs, not how good it is.

    Returns:
        What `scores.json` holds.

    Raises:
        DataError: If the folder cannot be written.
    """
    begin, folder = time.perf_counter(), made_folder(out)
    train, test = datasets.lynx_hare().split(time=LAST_TRAINING_YEAR)
    print(f"Hudson Bay record: train {train!r}\n                   test  {test!r}\n")
    num_draws = 100 if quick else 2000
    fits = {name: _fit(name, train, num_draws, seed, quick) for name in SYSTEMS}
    chosen = max(fits, key=lambda name: fits[name].log_evidence)
    print(_choice({name: fit.log_evidence for name, fit in fits.items()}))
    table = _score(fits, chosen, test, num_draws, seed)
    _draw(fits, chosen, test, num_draws, seed, folder)
    scores = _scores(table, fits, chosen) | {
        "seed": seed,
        "quick": quick,
        "seconds": time.perf_counter() - begin,
    }
    write_scores(folder, scores)
    print(f"\n{_verdict(scores)}\n{scores['seconds']:.0f} s; everything is in {folder}/")
    return scores


def _fit(name: str, train: Trajectories, num_draws: int, seed: int, quick: bool) -> Mixture:
    """The mixture of widths of a system, printed with its noise."""
    posterior = fit_candidates(
        train,
        likelihood="lognormal",
        system=SYSTEMS[name],
        widths=QUICK_WIDTHS if quick else WIDTHS,
        held_out=not quick,
        seed=seed,
    )
    print(f"{name[0].upper()}{name[1:]}: {posterior}")
    draws = posterior.draws(num_draws, seed=seed)
    levels = torch.tensor([0.05, 0.5, 0.95])
    for site in filter(draws.__contains__, SCALES):
        what, unit = SCALES[site]
        for animal, scales in zip(train.names, draws[site].T, strict=True):
            low, middle, high = scales.quantile(levels.to(scales)).tolist()
            band = f"90 % {low:.3f} to {high:.3f}"
            print(f"  {what} of {animal} {middle:.3f} ({band}), {unit}")
    print()
    return posterior


def _choice(evidences: dict[str, float]) -> str:
    """The evidences of both, and what their difference says, in words."""
    better, worse = sorted(evidences, key=lambda name: -evidences[name])
    gain = evidences[better] - evidences[worse]
    strength = next((words for ends, words in STRENGTHS.items() if gain < ends), STRONGEST)
    each = ", ".join(f"{evidences[name]:.1f} {name}" for name in (better, worse))
    odds = f"{math.exp(min(gain, 50.0)):.3g} to 1"
    return (
        f"Log evidence of 1900-{LAST_TRAINING_YEAR}: {each}.\nThat is {gain:.1f} nats, or {odds}, "
        f"for the model {better}, which forecasts: {strength} (Kass and Raftery)."
    )


def _score(
    fits: dict[str, Mixture], chosen: str, test: Trajectories, num_draws: int, seed: int
) -> Any:
    """The table of scores, the chosen model first and the other one behind it, printed."""
    question = fits[chosen].train.at(test)
    names = sorted(fits, key=lambda name: name != chosen)
    ensembles = [fits[name].predict(question, num_draws=num_draws, seed=seed) for name in names]
    tables = [score_table(ensemble, test) for ensemble in ensembles]
    table = tables[0].drop(index="ensemble")
    for name, own in zip(names, tables, strict=True):
        table.loc[name] = own.loc["ensemble"]
    table = table.loc[[*names, *(name for name in table.index if name not in names)]]
    print(f"\nForecast of {LAST_TRAINING_YEAR + 1}-{LAST_YEAR} (CRPS of logs)")
    print(table.round(3).to_string())
    print(
        f"{chosen}: failed draws {ensembles[0].share_failed:.1%}, solver error "
        f"{ensembles[0].solver_error:.1e} sd, not determined by the data "
        f"{ensembles[0].share_undetermined:.0%} of the forecast"
    )
    return table


def _draw(
    fits: dict[str, Mixture],
    chosen: str,
    test: Trajectories,
    num_draws: int,
    seed: int,
    folder: Path,
) -> None:
    """Leave pictures, the ArviZ file and the run."""
    posterior, train = fits[chosen], fits[chosen].train
    fine = train.at(torch.linspace(train.times[0].item(), LAST_YEAR, 201, dtype=torch.float64))
    for name, fit in fits.items():
        figure = fan_chart(fit.predict(fine, num_draws=num_draws, seed=seed), train, test)
        figure.axes[0].title.set_text(f"{train.series[0]}, {name}")
        file = "forecast" if name == chosen else f"forecast {name}".replace(" ", "-")
        figure.savefig(folder / f"{file}.png", dpi=150)
    vector_field(posterior.best, seed=seed).savefig(folder / "field.png", dpi=150)
    idata = posterior.to_arviz(num_draws=min(num_draws, 500), seed=seed)
    save_netcdf(idata, folder / "posterior.nc")
    posterior.save(folder / "run")


def _scores(table: Any, fits: dict[str, Mixture], chosen: str) -> dict[str, Any]:
    columns = ["log_score_per_point", "crps", "coverage_90"]
    rows = {
        name: {column: float(table.loc[name, column]) for column in columns} for name in table.index
    }
    facts = {
        name: {"log_evidence": fit.log_evidence, "inflation": fit.inflation}
        for name, fit in fits.items()
    }
    return {
        "chosen": chosen,
        "holdout": rows[chosen],
        "models": {name: rows.pop(name) | facts[name] for name in fits},
        "baselines": rows,
        **facts[chosen],
    }


def _verdict(scores: dict[str, Any]) -> str:
    """One plain sentence on whether the forecast is worth its name, and one on the choice."""
    baselines, chosen = scores["baselines"], scores["chosen"]
    best = max(baselines, key=lambda name: baselines[name]["log_score_per_point"])
    own = scores["holdout"]["log_score_per_point"]
    gain = own - baselines[best]["log_score_per_point"]
    what = "beats" if gain > 0 else "does NOT beat"
    (other,) = (name for name in scores["models"] if name != chosen)
    lead = own - scores["models"][other]["log_score_per_point"]
    choice = "better" if lead > 0 else "worse"
    return (
        f"The forecast {chosen} {what} the best baseline, {NAMES[best]}: {gain:+.2f} nats per "
        f"point over 12 points, {scores['holdout']['coverage_90']:.0%} of which lie in the 90 % "
        f"band. The choice of the evidence was the {choice} one: {lead:+.2f} nats per point beside "
        f"the forecast {other}. Fifteen years are little for a black box, and one forecast of "
        "twelve numbers proves little."
    )
