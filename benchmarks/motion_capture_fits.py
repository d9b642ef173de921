"""Motion capture: the fits of a run, and its record."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import bayesode as bo
from benchmarks.motion_capture_baselines import (
    NUMBERS,
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
from benchmarks.records import Record, reason
from benchmarks.rotating_mnist import seconds_of_steps

OWN_NUMBERS = ("log_score_all_walks", "coverage_90_all_walks", "share_failed")
OWN_NUMBERS += ("num_weights", "num_steps", "num_fits", "num_members")
OWN_LISTS = ("coverage_by_horizon_all_walks",)
ALL_NUMBERS = (*NUMBERS, *OWN_NUMBERS)


# ---- settings ------------------------------------------------------------------------------------
class Run(NamedTuple):
    """What one record is about."""

    system: str
    method: str
    file: str
    protocol: str
    seed: int | None


class System(NamedTuple):
    """What is fitted.

    Args:
        arguments: Of `bo.ode2vae`.
        fit: Arguments of `bo.fit_svi`.
        methods: Which of the settings it runs with.
    """

    arguments: dict[str, Any]
    fit: dict[str, Any]
    methods: tuple[str, ...] = ("single", "bag")


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
            start, each = seconds_of_steps(model, guide, train)
            self.steps[key] = max(1, int((60 * self.minutes - start) / each))
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
