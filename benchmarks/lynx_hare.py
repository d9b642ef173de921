"""The lynx and hare record by rolling origins: black boxes beside time-series baselines.

    python -m benchmarks.lynx_hare [--models a,b] [--seeds 0|1-3] [--json FILE] [--smoke]

From each origin 1908 to 1917 the years up to it are fitted, and the next six years (those in the
record) are forecast: 108 numbers. Scores are per number: log score in raw units of a log-normal
predictive, CRPS of the logs, and whether the 90 % band covers. The joint density of a whole
forecast is no score here: its log of a mean over draws is biased by tens of nats.

Models: `black-box` (a network of 3 units with process noise, by Laplace), `black-box-ode` (the same
without process noise), `black-box-svi` (with process noise, by SVI), and `ar2`, `climatology`,
`random-walk` (per species, on logs, parameters plugged in). With several seeds a model's numbers
are means over them; the data stay the same. With a --json FILE, what the file already holds is kept
and not run again.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

import bayesode as bo
from bayesode import scores
from bayesode.baselines import baselines
from benchmarks.lynx_hare_tables import REFERENCE, show
from benchmarks.records import Record, add_common, read, reason, run_all, seeds, some_of

ORIGINS, NUM_HORIZONS = range(1908, 1918), 6
SMOKE_ORIGINS = (1914,)
NUM_DRAWS, NUM_DRAWS_SMOKE, STEPS_SMOKE = 10_000, 100, 5
LEVEL = 0.9
SCORES = ("log_score_per_point", "crps", "coverage_90")
FACTS = ("seconds", "log_evidence", "noise_scale", "process_scale")  # of the whole fit
NUMBERS = (*SCORES, *FACTS)
HIDDEN = [3]


class Run(NamedTuple):
    """What the records of one origin are about."""

    model: str
    seed: int
    origin: int


class Points(NamedTuple):
    """Scores of every number of a forecast, (time, species), and facts of its fit."""

    log_score: Tensor
    crps: Tensor
    covers: Tensor
    facts: dict[str, float]


class Model(NamedTuple):
    """A forecaster: its engine, whether its paths have noise of their own, what it does.

    `forecast(train, test, seed, is_smoke)` gives the scores of all numbers of `test`.
    """

    engine: str
    process_noise: bool | None
    forecast: Callable[[bo.Trajectories, bo.Trajectories, int, bool], Points]


# ---- data ----------------------------------------------------------------------------------------
def halves(origin: int) -> tuple[bo.Trajectories, bo.Trajectories]:
    """The years up to an origin, and at most six after it."""
    train, later = bo.datasets.lynx_hare().split(time=origin)
    test = later.until(origin + NUM_HORIZONS - int(later.start))
    return train, test


# ---- forecasts -----------------------------------------------------------------------------------
def black_box(system: str, engine: str) -> Callable[..., Points]:
    """The forecast of a system of the package, "neural_sde" or "neural_ode", by an engine."""

    def forecast(
        train: bo.Trajectories, test: bo.Trajectories, seed: int, is_smoke: bool
    ) -> Points:
        begin = time.perf_counter()
        compose: Any = getattr(bo, system)
        model, guide = compose(
            train, likelihood="lognormal", hidden=HIDDEN, engine=engine, verbose=False
        )
        if engine == "svi":
            steps = STEPS_SMOKE if is_smoke else None
            posterior = bo.fit_svi(model, guide, train, seed=seed, num_steps=steps, progress=False)
            if posterior.history.is_interrupted:  # half a fit is no record
                raise KeyboardInterrupt
        else:
            posterior = bo.fit_laplace(model, train, seed=seed, progress=False)
        seconds = time.perf_counter() - begin
        num_draws = NUM_DRAWS_SMOKE if is_smoke else NUM_DRAWS
        return of_posterior(posterior, test, num_draws, seed, seconds)

    return forecast


def of_posterior(
    posterior: bo.Posterior, test: bo.Trajectories, num_draws: int, seed: int, seconds: float
) -> Points:
    """Scores of predictive draws, and what the fit says of its scales (of the logs)."""
    ensemble = posterior.predict(posterior.train.at(test), num_draws=num_draws, seed=seed)
    valid, values = ~ensemble.failed, test.values
    draws = posterior.draws(num_draws, seed=seed)
    facts = {"seconds": seconds}
    facts |= {
        name: draws[site].median(0).values.mean().item()
        for name, site in (
            ("noise_scale", "likelihood.noise_scale"),
            ("process_scale", "field.diffusion.scale"),
        )
        if site in draws
    }
    if posterior.settings["engine"] == "laplace":
        facts["log_evidence"] = posterior.log_evidence
    return Points(
        scores.log_score(ensemble.log_prob(test), valid)[0],
        scores.crps(ensemble.values.log(), values.log(), valid)[0],
        scores.interval_covers(ensemble.values, values, LEVEL, valid)[0],
        facts,
    )


def baseline(name: str) -> Callable[..., Points]:
    """The forecast of a baseline, fitted to logs."""

    def forecast(
        train: bo.Trajectories, test: bo.Trajectories, seed: int, is_smoke: bool
    ) -> Points:
        law = baselines(train, test, transform="log")[name]
        values = test.values
        return Points(
            law.log_prob(values)[0],
            scores.gaussian_crps(law.loc, law.scale, values.log())[0],
            ((law.cdf(values) - 0.5).abs() <= LEVEL / 2)[0],
            {},
        )

    return forecast


MODELS = {
    "black-box": Model("laplace", True, black_box("neural_sde", "laplace")),
    "black-box-ode": Model("laplace", False, black_box("neural_ode", "laplace")),
    "black-box-svi": Model("svi", True, black_box("neural_sde", "svi")),
    REFERENCE: Model("baseline", None, baseline("ar2")),
    "climatology": Model("baseline", None, baseline("climatology")),
    "random-walk": Model("baseline", None, baseline("random_walk")),
}
USUAL = [name for name, model in MODELS.items() if model.engine != "svi"]  # which takes minutes
SMOKE = [name for name in USUAL if name != "black-box-ode"]  # many restarts for a bad fit


# ---- records -------------------------------------------------------------------------------------
def records_of(run: Run, *, is_smoke: bool = False) -> list[Record]:
    """One record per horizon, the mean over the species; after an error every score is NaN."""
    model, (train, test) = MODELS[run.model], halves(run.origin)
    error, facts, found = None, dict.fromkeys(FACTS, math.nan), None
    try:
        found = model.forecast(train, test, run.seed, is_smoke)
        facts |= found.facts
    except Exception as failure:  # whatever it is, the other forecasts go on
        error = reason(failure)
    out = []
    for row in range(test.times.shape[-1]):
        own = [math.nan] * len(SCORES)
        if found is not None:
            own = [part[row].double().mean().item() for part in found[: len(SCORES)]]
        record = run._asdict() | {"engine": model.engine, "process_noise": model.process_noise}
        record |= {"horizon": row + 1, "num_points": len(test.names)}
        out.append(record | dict(zip(SCORES, own, strict=True)) | facts | {"error": error})
    return out


def line(records: list[Record]) -> str:
    first = records[0]
    mean = sum(record["log_score_per_point"] for record in records) / len(records)
    outcome = first["error"] or f"log score {mean:.2f}"
    if not first["error"] and not math.isnan(first["seconds"]):
        outcome += f", {first['seconds']:.1f} s"
    return f"origin {first['origin']} {first['model']:<14} seed {first['seed']:<4} {outcome}"


# ---- command line --------------------------------------------------------------------------------
def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=some_of(MODELS), help="names with commas")
    parser.add_argument("--seeds", type=seeds, default=[0], help='of the fits, "0" or "1-3"')
    add_common(parser)
    return parser.parse_args(arguments)


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """Baselines have no seed of their own: they run once."""
    for origin in SMOKE_ORIGINS if options.smoke else ORIGINS:
        for name in options.models or (SMOKE if options.smoke else USUAL):
            own = options.seeds if MODELS[name].process_noise is not None else [0]
            for seed in own:
                yield Run(name, seed, origin)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    known = read(options.json, Run, NUMBERS)
    show(
        run_all(
            runs(options),
            lambda run: records_of(run, is_smoke=options.smoke),
            known,
            options.json,
            line,
        )
    )


if __name__ == "__main__":
    main()
