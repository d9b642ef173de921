"""ODE-VAEs on rotating MNIST: reconstruction, hidden frames, a second turn, and their bands.

    python -m benchmarks.rotating_mnist --root ../shared/data [--methods a,b] [--likelihood a,b]
        [--seeds 1,2|1-3] [--minutes M] [--json FILE] [--smoke]

The protocol: threes over a full turn of 16 frames from a fixed angle; in training the frame with
index 4 and 3 random frames of each of 360 sequences are hidden; the encoder sees frame 0 alone;
scores are on 360 sequences of other digits, choices were made on 36 validation sequences. The
published code scores hidden frames of *training* digits: that column stands beside. The published
file of images is gone, so ours are other pixels of the same digits.

Methods:

- `compact`: 32 latent dimensions, convolutions, linear field plus a network (the tutorial's kind).
- `linear`, `linear-64`: linear maps and field, 256 and 64 dimensions. Rotating an image is a linear
  map of it: this class of models contains the answer.
- `deterministic`: `compact` with the field's weights fixed at their means, fitted without a KL.
- `halved`: `linear-64` from half its posterior scales: does the KL of the weights forget its start?
- `baselines`: what needs no model, and the published numbers.

Columns: `mse_*` of the mean of 16 draws but for `single_draw`; `nats_per_frame` the ELBO per
visible training frame (not comparable between likelihoods); `spread_ratio` the sd of decoded draws
over the error at the hidden frame; `coverage_90` of calibrated noise (a factor from the validation
set) over pixels whose training sd exceeds .05; for Bernoulli on binarised images
`reliability_error`, the mean distance of P(pixel on) from the share that is on; `rank_correlation`
of squared error and predicted variance over pixels; `mse_hidden_fine` with a solver step four times
as fine. With a --json FILE, what it holds is kept and not run again.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import bayesode as bo
from benchmarks.records import Record, add_common, read, reason, run_all, seeds, some_of
from benchmarks.rotating_mnist_baselines import (
    NUMBERS,
    baseline_records,
    published_records,
)
from benchmarks.rotating_mnist_scores import OWN_NUMBERS, scores
from benchmarks.rotating_mnist_tables import show

ALL_NUMBERS = (*NUMBERS, *OWN_NUMBERS)
# by their names in the records; intensities of Gaussian pixels are cut off to [0, 1]
LIKELIHOODS = {
    "bernoulli": "bernoulli",
    "gaussian": "clipped_gaussian",
    "continuous_bernoulli": "continuous_bernoulli",
}
ROOT = os.environ.get("BAYESODE_DATA", "../shared/data")
TIMED_STEPS = 20  # by which a number of steps for the asked minutes is found
LINEAR = {"hidden": (), "network": "none"}


class Method(NamedTuple):
    """One way to fit.

    Args:
        system: Arguments of `bo.ode_vae`.
        fit: Arguments of `bo.fit_svi`.
        likelihoods: Which it runs with by default.
        prepare: What is changed in the guide after its start.
    """

    system: dict[str, Any]
    fit: dict[str, Any]
    likelihoods: tuple[str, ...]
    prepare: Callable[[Any], None] | None = None


def freeze_field(guide: Any) -> None:
    """Weights without a posterior: scales of (nearly) 0 that nothing moves."""
    with torch.no_grad():
        for name, log_scale in guide.sites.log_scale.items():
            if name.startswith("field"):
                log_scale.fill_(math.log(1e-6))
                log_scale.requires_grad_(False)


def halve_scales(guide: Any) -> None:
    """Half the posterior scales of the field's weights; the unit of their steps stays."""
    with torch.no_grad():
        for name, log_scale in guide.sites.log_scale.items():
            if name.startswith("field"):
                log_scale.sub_(math.log(2))


COMPACT_STEPS, LINEAR_STEPS, LINEAR_64_STEPS = 600, 1000, 2000
COMPACT = Method({"dim_latent": 32}, {"num_steps": COMPACT_STEPS}, tuple(LIKELIHOODS))
LINEAR_64 = Method({"dim_latent": 64, **LINEAR}, {"num_steps": LINEAR_64_STEPS}, ("gaussian",))
METHODS = {
    "compact": COMPACT,
    "linear": Method(
        {"dim_latent": 256, **LINEAR}, {"num_steps": LINEAR_STEPS}, ("gaussian", "bernoulli")
    ),
    "linear-64": LINEAR_64,
    "deterministic": COMPACT._replace(likelihoods=("bernoulli",), prepare=freeze_field),
    "halved": LINEAR_64._replace(prepare=halve_scales),
    "baselines": Method({}, {}, ("none",)),
}
SMOKE = {
    "compact": Method({"dim_latent": 4, "network": "mlp"}, {"num_steps": 5}, ("bernoulli",)),
    "linear": Method({"dim_latent": 8, **LINEAR}, {"num_steps": 5}, ("gaussian",)),
    "baselines": METHODS["baselines"],
}


class Run(NamedTuple):
    """What one record is about."""

    method: str
    likelihood: str | None
    seed: int


# ---- fits ----------------------------------------------------------------------------------------
def fitted(
    method: Method, likelihood: str, frames: bo.datasets.RotatingFrames, options: Any, seed: int
) -> tuple[bo.Posterior, float]:
    """The posterior, and the seconds from the data to it."""
    begin = time.perf_counter()
    torch.manual_seed(seed)
    model, guide = bo.ode_vae(
        frames.train, likelihood=LIKELIHOODS[likelihood], verbose=False, **method.system
    )
    if method.prepare is not None:
        own, prepare = guide.start, method.prepare

        def start(model: Any, guide: Any, train: bo.Trajectories) -> None:
            own(model, guide, train)
            prepare(guide)

        guide.start = start
    settings = dict(method.fit)
    if options.minutes is not None:
        settings["num_steps"] = steps_in(60 * options.minutes, model, guide, frames.train)
    posterior = bo.fit_svi(model, guide, frames.train, seed=seed, progress=False, **settings)
    return posterior, time.perf_counter() - begin


def steps_in(seconds: float, model: Any, guide: Any, train: bo.Trajectories) -> int:
    """How many steps fit into a time, by timing a few; the start is a part of it."""
    start, each = seconds_of_steps(model, guide, train)
    return max(1, int((seconds - 2 * start) / each) - TIMED_STEPS)


def seconds_of_steps(model: Any, guide: Any, train: bo.Trajectories) -> tuple[float, float]:
    """Seconds of the start of a fit, and of each of its steps after that."""
    marks = [time.perf_counter()]

    def note(step: int, history: Any) -> None:
        marks.append(time.perf_counter())

    bo.fit_svi(model, guide, train, seed=0, num_steps=TIMED_STEPS, callback=note, progress=False)
    return marks[1] - marks[0], (marks[-1] - marks[1]) / (TIMED_STEPS - 1)


def records_of(run: Run, methods: dict[str, Method], options: Any) -> list[Record]:
    """One flat record; a fit that fails has `error` and NaN for every number."""
    numbers: Record = dict.fromkeys(ALL_NUMBERS, math.nan)
    try:
        frames = frames_for(run.seed, options)
        if run.method == "baselines":
            found = [*baseline_records(frames, run.seed), *published_records()]
            return [
                numbers | record | {"method": "baselines", "name": record["method"]} | _own(run)
                for record in found
            ]
        assert run.likelihood is not None
        posterior, seconds = fitted(methods[run.method], run.likelihood, frames, options, run.seed)
        numbers |= scores(posterior, frames, run.likelihood, seed=run.seed)
        numbers["seconds"], error = seconds, None
    except Exception as failure:  # whatever it is, the other fits go on
        error = reason(failure)
    return [run._asdict() | numbers | {"name": run.method, "error": error}]


def _own(run: Run) -> Record:
    return {"likelihood": run.likelihood, "seed": run.seed}


def frames_for(seed: int, options: Any) -> bo.datasets.RotatingFrames:
    """The sequences of a seed: it decides which frames are hidden, never which digits there are."""
    if options.smoke:
        return bo.datasets.rotating_digits(num_series=12, num_validation=4, num_test=4, seed=seed)
    return bo.datasets.rotating_mnist(options.root, seed=seed)


def line(records: list[Record]) -> str:
    record = records[0]
    outcome = record["error"] or (
        f"hidden {record['mse_hidden']:.5f}, training digits "
        f"{record['mse_hidden_training_digits']:.5f}, all {record['mse_all']:.5f}, second turn "
        f"{record['mse_second_turn']:.5f}, {record['seconds']:.0f} s"
    )
    return f"{record['name']:<14} {record['likelihood'] or '':<21} seed {record['seed']} {outcome}"


# ---- command line --------------------------------------------------------------------------------
def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(ROOT), help="folder with MNIST/raw")
    parser.add_argument("--methods", type=some_of(METHODS), help="names with commas; default: all")
    parser.add_argument("--likelihood", type=some_of(LIKELIHOODS), help="in place of their own")
    parser.add_argument("--seeds", type=seeds, help='"1,2" or "1-3" (default)')
    parser.add_argument("--minutes", type=float, help="per fit, in place of a number of steps")
    add_common(parser)
    return parser.parse_args(arguments)


def runs(options: argparse.Namespace, methods: dict[str, Method]) -> Iterator[Run]:
    for seed in options.seeds or ([1] if options.smoke else [1, 2, 3]):
        for name in options.methods or methods:
            if name not in methods:
                continue
            own = methods[name].likelihoods
            asked = own if own == ("none",) else options.likelihood or own
            for likelihood in asked:
                yield Run(name, None if likelihood == "none" else likelihood, seed)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    methods = SMOKE if options.smoke else METHODS
    known = read(options.json, Run, ALL_NUMBERS)
    records = run_all(
        runs(options, methods),
        lambda run: records_of(run, methods, options),
        known,
        options.json,
        line,
    )
    show(records)


if __name__ == "__main__":
    main()
