"""How well fits with default settings find known systems, and whether their bands hold.

    python -m benchmarks.dynamics [--systems a,b] [--seeds 1,2|1-3] [--methods a,b] [--smoke]
        [--json FILE]

Each data set is a system over twice its usual horizon: the first half is fitted, the second is
forecast from the same initial states. Everything is scored against the true path, and against new
observations: that path with fresh noise.

Methods: `bayesode` (Laplace, width 16, or 32 for three and more components), `bayesode-laplace`
(Laplace, the plan's width), `bayesode-svi` (mean field, the plan's width), `persistence` (the last
value of each series as a random walk; a forecast only) and `mean` (mean and sd of all training
values). Seeds 3100-3119 are set aside for the closing report of a change: do not tune on them.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import bayesode as bo
from bayesode import scores
from bayesode.baselines import baselines
from bayesode.datasets import Simulated
from bayesode.tabular import frame

LEVEL = 0.9
NUM_DRAWS = 400
NEW_NOISE_SEED = 1_000_000  # added to the seed of the data, whose own noise it must not repeat


class Size(NamedTuple):
    """How much is done; None is the usual size."""

    num_draws: int = NUM_DRAWS
    num_series: int = 10
    num_times: int | None = None
    num_steps: int | None = None


SMOKE = Size(num_draws=20, num_series=4, num_times=20, num_steps=5)


class System(NamedTuple):
    """A data set and its usual grid."""

    simulate: Callable[..., Simulated]
    horizon: float
    num_times: int


SYSTEMS = {
    "van_der_pol": System(bo.datasets.van_der_pol, 10.0, 50),
    "fitzhugh_nagumo": System(bo.datasets.fitzhugh_nagumo, 10.0, 50),
    "lotka_volterra": System(bo.datasets.lotka_volterra, 6.0, 50),
    "damped_pendulum": System(bo.datasets.damped_pendulum, 10.0, 50),
    "glycolysis": System(bo.datasets.glycolysis, 20.0, 60),
    "cubic_spiral": System(bo.datasets.cubic_spiral, 10.0, 100),
    "lorenz": System(bo.datasets.lorenz, 2.0, 80),
}


# ---- data ----------------------------------------------------------------------------------------
class Task(NamedTuple):
    """One data set.

    `train` is the first half. `truth` (series, time, state) and `new`, fresh observations, span
    both; the first `num_train` times are those of `train`.
    """

    seed: int
    train: bo.Trajectories
    truth: Tensor
    new: bo.Trajectories
    noise_scale: Tensor
    num_train: int


def make_task(system: str, seed: int, size: Size) -> Task:
    simulate, horizon, usual = SYSTEMS[system]
    num_train = size.num_times or usual
    data = simulate(
        num_series=size.num_series, num_times=2 * num_train - 1, seed=seed, horizon=2 * horizon
    )
    train, _ = data.observed.split(time=horizon * (1 + 1e-9))  # times are rounded
    path = data.truth.values
    generator = torch.Generator().manual_seed(NEW_NOISE_SEED + seed)
    noise = torch.randn(path.shape, generator=generator, dtype=path.dtype) * data.noise_scale
    new = bo.Trajectories(
        data.truth.times,
        path + noise,
        series=data.truth.series,
        names=data.truth.names,
        start=data.truth.start,
    )
    return Task(seed, train, path, new, data.noise_scale, num_train)


# ---- methods -------------------------------------------------------------------------------------
class Prediction(NamedTuple):
    """Scores of every number (series, time, state), and what is known of the whole fit."""

    mean: Tensor
    covers_latent: Tensor
    covers_observed: Tensor
    crps: Tensor
    log_score: Tensor
    noise_ratio: float = math.nan
    evidence: float = math.nan
    elbo: float = math.nan


Method = Callable[[Task, Size], tuple[float, Prediction]]  # with the seconds of the fit


def laplace(hidden: Callable[[bo.Trajectories], list[int] | None]) -> Method:
    def method(task: Task, size: Size) -> tuple[float, Prediction]:
        begin = time.perf_counter()
        model, _ = bo.neural_ode(task.train, hidden=hidden(task.train), verbose=False)
        posterior = bo.fit_laplace(model, task.train, seed=task.seed, progress=False)
        seconds = time.perf_counter() - begin
        prediction = judge(posterior, task, size)
        return seconds, prediction._replace(evidence=posterior.log_evidence)

    return method


def svi(task: Task, size: Size) -> tuple[float, Prediction]:
    begin = time.perf_counter()
    model, guide = bo.neural_ode(task.train, verbose=False)
    posterior = bo.fit_svi(
        model, guide, task.train, seed=task.seed, num_steps=size.num_steps, progress=False
    )
    seconds = time.perf_counter() - begin
    if posterior.history.is_interrupted:  # half a fit is no record
        raise KeyboardInterrupt
    return seconds, judge(posterior, task, size)._replace(elbo=float(posterior.elbo_terms().elbo))


def baseline(name: str, has_past: bool) -> Method:
    """A law of values. It has no path of its own: its CRPS is that of the law, noise included."""

    def method(task: Task, size: Size) -> tuple[float, Prediction]:
        begin = time.perf_counter()
        shown = slice(None) if has_past else slice(task.num_train, None)
        question = task.train.at(task.new.times[shown])
        law = baselines(task.train, question)[name]
        seconds = time.perf_counter() - begin

        def whole(part: Tensor) -> Tensor:
            out = torch.full_like(task.truth, torch.nan)
            out[:, shown] = part.to(out)
            return out

        mean, sd = whole(law.loc), whole(law.scale)
        values = task.new.values
        half_width = sd * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor((1 + LEVEL) / 2))
        is_covered = ((values - mean).abs() <= half_width).to(mean)
        return seconds, Prediction(
            mean=mean,
            covers_latent=torch.full_like(mean, torch.nan),
            covers_observed=is_covered.where(~mean.isnan(), torch.nan),
            crps=scores.gaussian_crps(mean, sd, task.truth),
            log_score=torch.distributions.Normal(mean, sd, validate_args=False).log_prob(values),
            noise_ratio=math.nan,
        )

    return method


METHODS: dict[str, Method] = {
    "bayesode": laplace(lambda train: [16] if len(train.names) < 3 else [32]),
    "bayesode-svi": svi,
    "bayesode-laplace": laplace(lambda train: None),
    "persistence": baseline("random_walk", has_past=False),
    "mean": baseline("climatology", has_past=True),
}


def judge(posterior: bo.Posterior, task: Task, size: Size) -> Prediction:
    """The predictive draws of a fit against truth and new data."""
    question = task.train.at(task.new.times)
    ensemble = posterior.predict(question, num_draws=size.num_draws, seed=task.seed)
    signal, valid = ensemble.signal.double(), ~ensemble.failed
    # A series of which every draw failed is covered nowhere, and its other scores are NaN.
    covers = [
        scores.interval_covers(draws, values, LEVEL, valid).double()
        for draws, values in ((signal, task.truth), (ensemble.values.double(), task.new.values))
    ]
    noise = posterior.draws(size.num_draws, seed=task.seed)["likelihood.noise_scale"]
    return Prediction(
        mean=ensemble.mean.double(),
        covers_latent=covers[0],
        covers_observed=covers[1],
        crps=scores.crps(signal, task.truth, valid),
        log_score=scores.log_score(ensemble.log_prob(task.new).double(), valid),
        noise_ratio=(noise.double().median(0).values / task.noise_scale).mean().item(),
    )


# ---- records -------------------------------------------------------------------------------------
PARTS = ("in", "forecast")
SCORES = ("rmse", "coverage_latent", "coverage_observed", "crps", "log_score")
NUMBERS = [f"{score}_{part}" for score in SCORES for part in PARTS]
NUMBERS += ["noise_ratio", "evidence", "elbo", "seconds"]


def measure(task: Task, method: str, size: Size) -> dict[str, float]:
    """The numbers of one fit: paths and CRPS in true noise sds, log scores minus the oracle's."""
    seconds, prediction = METHODS[method](task, size)
    oracle = torch.distributions.Normal(task.truth, task.noise_scale).log_prob(task.new.values)
    error = (prediction.mean - task.truth) / task.noise_scale
    numbers: dict[str, float] = {}
    for part, window in zip(
        PARTS, (slice(task.num_train), slice(task.num_train, None)), strict=True
    ):
        means = {
            "rmse": error[:, window].square().mean((1, 2)).sqrt(),  # per trajectory
            "coverage_latent": prediction.covers_latent[:, window],
            "coverage_observed": prediction.covers_observed[:, window],
            "crps": (prediction.crps / task.noise_scale)[:, window],
            "log_score": (prediction.log_score - oracle)[:, window],
        }
        numbers |= {f"{name}_{part}": value.mean().item() for name, value in means.items()}
    return numbers | {
        "noise_ratio": prediction.noise_ratio,
        "evidence": prediction.evidence,
        "elbo": prediction.elbo,
        "seconds": seconds,
    }


def record_of(system: str, seed: int, method: str, size: Size) -> dict[str, Any]:
    """One flat record; a fit that fails has `error` and NaN for every number."""
    key: dict[str, Any] = {"system": system, "seed": seed, "method": method}
    try:
        numbers = measure(make_task(system, seed, size), method, size)
        return key | {name: numbers[name] for name in NUMBERS} | {"error": None}
    except Exception as error:  # whatever it is, the other fits go on
        reason = f"{type(error).__name__}: {error}"
        return key | dict.fromkeys(NUMBERS, math.nan) | {"error": reason}


def write(records: list[dict[str, Any]], path: Path) -> None:
    """All records so far, as strict JSON (NaN is null); the file is complete at any moment."""
    plain = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()}
        for r in records
    ]
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(plain, indent=1, allow_nan=False))
    os.replace(part, path)


# ---- table ---------------------------------------------------------------------------------------
COLUMNS = {
    "rmse_in": "rmse in",
    "rmse_forecast": "rmse fc",
    "coverage_latent_in": "lat in",
    "coverage_latent_forecast": "lat fc",
    "coverage_observed_in": "obs in",
    "coverage_observed_forecast": "obs fc",
    "crps_in": "crps in",
    "crps_forecast": "crps fc",
    "log_score_in": "ls in",
    "log_score_forecast": "ls fc",
    "noise_ratio": "noise",
    "seconds": "sec",
}
NO, BAND = (-math.inf, math.inf), (0.87, 0.96)


def limits(
    rmse: tuple[float, float],
    latent: tuple[float, float] = BAND,
    log_score: float = -math.inf,
    noise: tuple[float, float] = (0.97, 1.06),
    observed: tuple[float, float] = (0.87, 0.95),
) -> dict[str, tuple[float, float]]:
    """What each column's mean over seeds must lie between."""
    latents = {f"coverage_latent_{part}": latent for part in PARTS}
    return {
        "rmse_in": (-math.inf, rmse[0]),
        "rmse_forecast": (-math.inf, rmse[1]),
        **latents,
        **{f"coverage_observed_{part}": observed for part in PARTS},
        "log_score_forecast": (log_score, math.inf),
        "noise_ratio": noise,
    }


# Laplace, mean over 20 seeds. Source: the acceptance table of the recipe, section 12.
ACCEPTED = {
    "van_der_pol": limits((0.34, 0.32), log_score=-0.06),
    "fitzhugh_nagumo": limits((0.30, 0.32), log_score=-0.05),
    "lotka_volterra": limits((0.32, 0.62), log_score=-0.16),
    "damped_pendulum": limits((0.30, 0.40), log_score=-0.08),
    "glycolysis": limits((0.40, 0.30), (0.84, 0.96), -0.06, (0.97, 1.10)),
    "cubic_spiral": limits((0.26, 0.85), (0.85, 0.97), -0.33),
    "lorenz": limits((0.60, math.inf), NO, noise=(0.97, 1.30), observed=NO),
}
GATED = ("bayesode", "bayesode-laplace")


def cell(values: Any, limit: tuple[float, float]) -> str:
    """Mean ± standard error over seeds, with "!" where the mean is not within the limit.

    A NaN of a single seed makes the mean NaN: to leave it out would flatter what fails.
    """
    mean, count = values.mean(skipna=False), len(values)
    if math.isnan(mean):
        return "-" if limit == NO else "- !"
    text = f"{mean:.3g}" if abs(mean) >= 1 else f"{mean:.3f}"
    error = values.std() / math.sqrt(count) if count > 1 else math.nan
    shown = text if math.isnan(error) else f"{text}±{error:.2g}"
    return shown if limit[0] <= mean <= limit[1] else shown + " !"


def words(limit: tuple[float, float]) -> str:
    low, high = limit
    if limit == NO:
        return ""
    if low == -math.inf:
        return f"<{high:g}"
    return f">{low:g}" if high == math.inf else f"{low:g}..{high:g}"


def summary(records: list[dict[str, Any]]) -> Any:
    """Mean and standard error over seeds, and below each system what is accepted."""
    table, rows = frame(records), []
    for system, fits in table.groupby("system", sort=False):
        accepted = ACCEPTED[str(system)]
        for method, group in fits.groupby("method", sort=False):
            gate = accepted if method in GATED else {}
            row = {"system": system, "method": method}
            row |= {short: cell(group[name], gate.get(name, NO)) for name, short in COLUMNS.items()}
            rows.append(row | {"fits": f"{group['error'].isna().sum()}/{len(group)}"})
        row = {"system": system, "method": "accepted", "fits": ""}
        row |= {short: words(accepted.get(name, NO)) for name, short in COLUMNS.items()}
        rows.append(row)
    return frame(rows).set_index(["system", "method"])


def show(records: list[dict[str, Any]]) -> None:
    if not records:
        return
    print("\nMean ± standard error over seeds; '!' where a mean of Laplace is not accepted.")
    print("rmse and crps in noise sds, ls = log score per number minus the oracle's.\n")
    print(summary(records).to_string())
    for r in records:
        if r["error"]:
            print(f"failed: {r['system']}, seed {r['seed']}, {r['method']}: {r['error']}")


# ---- command line --------------------------------------------------------------------------------
def numbers(text: str) -> list[int]:
    """Seeds: "1,2", "1-3" or both, "1-3,7"."""
    out: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def some_of(known: dict[str, Any]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {name!r}; known are {','.join(known)}")
        return chosen

    return names


def runs(options: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    for system in options.systems:
        for seed in options.seeds:
            for method in options.methods:
                yield system, seed, method


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", type=some_of(SYSTEMS), help="names with commas; default: all")
    parser.add_argument("--seeds", type=numbers, help='of data and fit, "1,2" or "1-3" (default)')
    parser.add_argument("--methods", type=some_of(METHODS), default=list(METHODS))
    parser.add_argument("--smoke", action="store_true", help="tiny: only to see that it runs")
    parser.add_argument("--json", type=Path, help="file for the records, written as they come")
    options = parser.parse_args()
    size = SMOKE if options.smoke else Size()
    options.systems = options.systems or (["van_der_pol"] if options.smoke else list(SYSTEMS))
    options.seeds = options.seeds or ([1] if options.smoke else [1, 2, 3])
    records: list[dict[str, Any]] = []
    try:
        for system, seed, method in runs(options):
            record = record_of(system, seed, method, size)
            records.append(record)
            if options.json:
                write(records, options.json)
            outcome = record["error"] or (
                f"rmse {record['rmse_in']:.3f} / {record['rmse_forecast']:.3f}, "
                f"{record['seconds']:.1f} s"
            )
            print(f"{system:<16} seed {seed:<5} {method:<17} {outcome}", flush=True)
    except KeyboardInterrupt:
        print("stopped by the user; this is what there is:")
    show(records)


if __name__ == "__main__":
    main()
