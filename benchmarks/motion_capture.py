"""ODE²VAE and ODE-VAE on motion capture: walks forecast from three frames, with their bands.

    python -m benchmarks.motion_capture --root ../shared/data [--system ode2vae,ode-vae]
        [--method single,bag] [--protocol cross-validation,split,split-19] [--file npz,mat]
        [--seeds 1,2|1-3] [--minutes M] [--json FILE] [--smoke]

Given are 3 frames of a walk, predicted are frames 4 to 300, all 50 channels. Protocols:

- `cross-validation`: 5-fold leave-walk-out over the 19 training and validation walks, the same
  folds for every method. Settings are chosen by this and by nothing else.
- `split`: the 16 training walks are fitted, the validation walks say where fits stop, the noise is
  that of leave-walk-out residuals of the training walks.
- `split-19`: training and validation walks are fitted, the noise is that of cross-validation.

Systems: `ode2vae` (positions and velocities) and `ode-vae` (first order, the same recipe) with as
many weights in the field. Methods: `single`, one fit, and `bag`, fits to random 3/4 of the walks.
Beside them what needs no model (`baseline`) and what is published (on the `.mat`).

`mse` is the mean over 50 draws of each draw's error with its t-interval over draws, `mse_mean` that
of the mean of the draws. In cross-validation both are over the 16 training walks, `*_all_walks`
over all 19. Bands and log scores count channels that move; `seconds` are those of one fit, a bag
being one. --minutes is a limit per fit, of a bag per member: it becomes a number of ELBO steps, the
same in all fits of a system. With a --json FILE, what it holds is kept and not run again.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import bayesode as bo
from benchmarks.motion_capture_baselines import (
    BASELINES,
    NUMBERS,
    PUBLISHED,
    baseline_record,
    blank,
    published_records,
    scored_walks,
)
from benchmarks.motion_capture_protocol import NUM_FOLDS
from benchmarks.motion_capture_scores import (
    CrossValidated,
    Fit,
    cross_validated,
    split,
    split_all,
)
from benchmarks.motion_capture_simulated import simulated_walks
from benchmarks.motion_capture_tables import show
from benchmarks.records import Record, add_common, read, reason, run_all, seeds, some_of
from benchmarks.rotating_mnist import steps_in

FILES = ("npz", "mat")
ORDER = ("cross-validation", "split", "split-19")
ROOT = os.environ.get("BAYESODE_DATA", "../shared/data")
OWN_NUMBERS = ("log_score_all_walks", "coverage_90_all_walks", "share_failed")
OWN_NUMBERS += ("num_weights", "num_steps", "num_fits", "num_members")
OWN_LISTS = ("coverage_by_horizon_all_walks",)
ALL_NUMBERS = (*NUMBERS, *OWN_NUMBERS)


# ---- settings ------------------------------------------------------------------------------------
class System(NamedTuple):
    """Arguments of `bo.ode2vae` and of `bo.fit_svi`."""

    arguments: dict[str, Any]
    fit: dict[str, Any]


def single(fit: Fit, walks: bo.Trajectories, seed: int) -> Any:
    """One fit to all walks."""
    return fit(walks, seed)


def bag(fit: Fit, walks: bo.Trajectories, seed: int, *, num_members: int, fraction: float) -> Any:
    """Fits to random parts of the walks, as a mixture."""
    return bo.fit_bag(
        fit, walks, num_members=num_members, fraction=fraction, seed=seed, progress=False
    )


class Settings(NamedTuple):
    """What is compared."""

    systems: dict[str, System]
    methods: dict[str, Callable[[Fit, bo.Trajectories, int], Any]]
    num_folds: int = NUM_FOLDS


# Widths such that both fields have about as many weights: `num_weights` of the records.
SETTINGS = Settings(
    {
        "ode2vae": System({"order": 2, "dim_latent": 6, "dim_style": 2, "hidden": (32,)}, {}),
        "ode-vae": System({"order": 1, "dim_latent": 6, "dim_style": 2, "hidden": (46,)}, {}),
    },
    {"single": single, "bag": partial(bag, num_members=8, fraction=0.75)},
)
SMOKE = Settings(
    {
        "ode2vae": System({"order": 2, "dim_latent": 2, "hidden": (4,)}, {"num_steps": 3}),
        "ode-vae": System({"order": 1, "dim_latent": 2, "hidden": (5,)}, {"num_steps": 3}),
    },
    {"single": single, "bag": partial(bag, num_members=2, fraction=0.75)},
    num_folds=2,
)


class Run(NamedTuple):
    """What one record is about."""

    system: str
    method: str
    file: str
    protocol: str
    seed: int | None


# ---- fits ----------------------------------------------------------------------------------------
class Bench:
    """Makes the records of runs; keeps what several runs use.

    Args:
        data: The walks of each file.
        settings: What is compared.
        minutes: Of a fit; None for the steps of the settings.
    """

    def __init__(
        self,
        data: dict[str, bo.datasets.MotionCapture],
        settings: Settings,
        minutes: float | None = None,
    ) -> None:
        self.data, self.settings, self.minutes = data, settings, minutes
        self.steps: dict[tuple[str, str], int] = {}  # by system and file
        self.known: dict[tuple[str, str, str, int | None], CrossValidated] = {}

    def records_of(self, run: Run) -> list[Record]:
        """One flat record; a run that fails has `error` and NaN for every number."""
        if run.system == "baseline":
            record = baseline_record(run.method, self.data[run.file], run.file, run.protocol)
        elif run.system == "published":
            record = next(r for r in published_records() if r["method"] == run.method)
        else:
            record = self._record(run)
        empty = dict.fromkeys(OWN_NUMBERS, math.nan) | dict.fromkeys(OWN_LISTS)
        return [empty | record]

    def _record(self, run: Run) -> Record:
        record = blank(*run)
        try:
            record |= self.numbers(run)
        except Exception as failure:  # whatever it is, the other runs go on
            record["error"] = reason(failure)
        return record

    def numbers(self, run: Run) -> dict[str, Any]:
        """What is measured of a system."""
        data = self.data[run.file]
        model, guide = self._model_and_guide(run, data.train, 0)
        options = dict(self._system(run).fit)
        if self.minutes is not None:
            options["num_steps"] = self._steps(run, model, guide)
        log = FitLog([], [])
        validation = data.validation if run.protocol == "split" else None
        fit = self.fit_of(run, options | {"validation": validation})
        return self._scores(run, log.noting(fit)) | {
            "walks": list(scored_walks(data, run.protocol).series),
            "seconds": statistics.fmean(log.seconds),
            "num_fits": len(log.seconds),
            "num_members": min(log.num_members),
            "num_steps": options.get("num_steps", math.nan),
            "num_weights": num_weights(model),
        }

    def _scores(self, run: Run, fit: Fit) -> dict[str, Any]:
        data, seed, num_folds = self.data[run.file], run.seed or 0, self.settings.num_folds
        if run.protocol == "split":
            return split(fit, data, seed, num_folds)
        key = (run.system, run.method, run.file, run.seed)
        if key not in self.known or run.protocol == "cross-validation":
            self.known[key] = cross_validated(fit, data, seed, num_folds)
        if run.protocol == "cross-validation":
            return self.known[key].numbers
        return split_all(fit, data, seed, self.known[key].noise)

    def fit_of(self, run: Run, options: dict[str, Any]) -> Fit:
        """How a run fits walks: by its method, each fit by the recipe of its system.

        Ctrl-C ends the run: what is cut short, a fit or a bag, must not stand for a whole one.
        """
        stopped: list[bool] = []

        def one(walks: bo.Trajectories, seed: int) -> Any:
            try:
                model, guide = self._model_and_guide(run, walks, seed)
                posterior = bo.fit_svi(model, guide, walks, seed=seed, progress=False, **options)
                if posterior.history.is_interrupted:
                    raise KeyboardInterrupt
                return posterior
            except KeyboardInterrupt:
                stopped.append(True)  # a bag keeps the members that it has
                raise

        def whole(walks: bo.Trajectories, seed: int) -> Any:
            posterior = self.settings.methods[run.method](one, walks, seed)
            if stopped:
                raise KeyboardInterrupt
            return posterior

        return whole

    def _system(self, run: Run) -> System:
        return self.settings.systems[run.system]

    def _model_and_guide(self, run: Run, walks: bo.Trajectories, seed: int) -> tuple[Any, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return bo.ode2vae(walks, verbose=False, **self._system(run).arguments)

    def _steps(self, run: Run, model: Any, guide: Any) -> int:
        key = (run.system, run.file)
        if key not in self.steps:
            assert self.minutes is not None
            train = self.data[run.file].train
            self.steps[key] = steps_in(60 * self.minutes, model, guide, train)
        return self.steps[key]


class FitLog(NamedTuple):
    """Of each fit its seconds, and how many members it has: fits that fail are left out of bags."""

    seconds: list[float]
    num_members: list[int]

    def noting(self, fit: Fit) -> Fit:
        """The same fit, which is noted."""

        def noted(walks: bo.Trajectories, seed: int) -> Any:
            begin = time.perf_counter()
            posterior = fit(walks, seed)
            self.seconds.append(time.perf_counter() - begin)
            self.num_members.append(len(getattr(posterior, "members", (posterior,))))
            return posterior

        return noted


def num_weights(model: Any) -> int:
    """Random numbers in the field of a model."""
    return sum(prior.event_shape.numel() for prior in model.field.priors().values())


# ---- command line --------------------------------------------------------------------------------
def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(ROOT), help="folder with mocap/")
    for name, known in (
        ("system", SETTINGS.systems),
        ("method", SETTINGS.methods),
        ("protocol", ORDER),
        ("file", FILES),
    ):
        parser.add_argument(
            f"--{name}",
            type=some_of(known),
            default=list(known),
            help=f"some of {','.join(known)} (default: all)",
        )
    parser.add_argument("--seeds", type=seeds, default=[1], help='"1,2" or "1-3" (default: 1)')
    parser.add_argument("--minutes", type=float, help="per fit, in place of a number of steps")
    add_common(parser)
    return parser.parse_args(arguments)


def runs(options: argparse.Namespace, files: list[str]) -> Iterator[Run]:
    """Cross-validation first; of each protocol and file what needs no model first."""
    for protocol in (p for p in ORDER if p in options.protocol):
        for file in files:
            for name in BASELINES:
                yield Run("baseline", name, file, protocol, None)
            for seed in options.seeds:
                for system in options.system:
                    for method in options.method:
                        yield Run(system, method, file, protocol, seed)
    for published in PUBLISHED:
        yield Run("published", published.method, "mat", "split", None)


def walks_of(options: argparse.Namespace) -> dict[str, bo.datasets.MotionCapture]:
    """The walks by the names of the files; a file that is missing ends it before any fit."""
    if options.smoke:
        return {"simulated": simulated_walks()}
    return {file: bo.datasets.motion_capture(options.root, file=file) for file in options.file}


def line(records: list[Record]) -> str:
    r = records[0]
    outcome = r["error"] or f"mse {r['mse']:.2f}, mse_mean {r['mse_mean']:.2f}"
    if not math.isnan(r["coverage_90"]):
        outcome += f", covers {r['coverage_90']:.3f}, {r['num_fits']} x {r['seconds']:.0f} s"
    seed = "" if r["seed"] is None else f"seed {r['seed']}"
    return (
        f"{r['protocol']:<16} {r['file']:<4} {r['system']:<9} {r['method']:<29} {seed:<7} {outcome}"
    )


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    data = walks_of(options)
    bench = Bench(data, SMOKE if options.smoke else SETTINGS, options.minutes)
    records = run_all(
        runs(options, list(data)),
        bench.records_of,
        read(options.json, Run, ALL_NUMBERS),
        options.json,
        line,
    )
    show(records)
    if options.smoke and any(record["error"] for record in records):
        sys.exit("a smoke run is there to see that everything runs, and it does not.")


if __name__ == "__main__":
    main()
