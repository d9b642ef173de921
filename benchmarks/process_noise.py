"""Neural SDEs beside neural ODEs: where paths are random, where they are not, and large data.

    python -m benchmarks.process_noise [--parts a,b] [--seeds 1,2|1-3] [--methods a,b]
        [--json FILE] [--smoke]

Parts:

- `stochastic`: Lotka-Volterra with 10 % process noise, 10 series x 50 and 3 x 40 times over 6 units
  of time; the next 6, on which the same Brownian paths go on, are forecast.
- `clean`: six systems without process noise, at their usual data: what the safety costs.
- `double-well`: 20 series x 100 times of a particle that noise kicks from well to well.
- `large`: Lorenz over 80 and 400 times, van der Pol over 50 to 1,000: seconds.

Everything is scored as in `benchmarks.dynamics`: against the true path, in true noise sds, and
against new observations of it. Beside that: the learned scale of the process noise over the true
one (of multiplicative noise: over .1 times the mean |x|), what it moves the path from one
observation to the next in noise sds, and for the double well the zeros of the mean drift.

Methods: `neural-sde` and `neural-ode` (`bo.neural_sde`, `bo.neural_ode`, both by Laplace), `svi`
(the neural SDE by SVI with its `SDEGuide`: minutes, so only when asked for), `ar2` (a forecast
only). With a --json FILE, what the file already holds is kept and not run again, so methods can be
added to it. Seeds 3200-3219 and 4000-4019 are set aside for the closing report of a change: do not
tune on them.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import bayesode as bo
from benchmarks import rivals
from benchmarks.methods import of_own_series
from benchmarks.process_noise_cases import PARTS, SMOKE_PARTS, Case
from benchmarks.process_noise_tables import show
from benchmarks.records import Record, add_common, read, reason, run_all, seeds, some_of
from benchmarks.scoring import NUMBERS, Outcome, Size, numbers_of
from benchmarks.tasks import Task, in_sample, task_of

DRIFT_DRAWS = 400
WELLS = (-1.0, 0.0, 1.0)  # zeros of the double well's drift
NEAR_ZERO = 0.3  # largest distance of a zero that counts as found
GRID = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
OWN_NUMBERS = ("process_scale", "process_ratio", "process_per_gap", "num_times", "both_wells")
ZEROS = ("zero_left", "zero_middle", "zero_right")
ALL_NUMBERS = (*NUMBERS, *OWN_NUMBERS, *ZEROS)


# ---- methods -------------------------------------------------------------------------------------
class Found(NamedTuple):
    """What a method makes of a task; the posterior is that of a fit, if there is one."""

    outcome: Outcome
    posterior: bo.Posterior | None = None


def fitted(system: str, engine: str) -> Callable[[Task, Size], Found]:
    """A system of the package, "neural_sde" or "neural_ode", by an engine."""

    def method(task: Task, size: Size) -> Found:
        begin = time.perf_counter()
        compose: Any = getattr(bo, system)
        model, guide = compose(task.train, engine=engine, verbose=False)
        if engine == "svi":
            posterior = bo.fit_svi(
                model, guide, task.train, seed=task.seed, num_steps=size.num_steps, progress=False
            )
            if posterior.history.is_interrupted:  # half a fit is no record
                raise KeyboardInterrupt
        else:
            posterior = bo.fit_laplace(model, task.train, seed=task.seed, progress=False)
        seconds = time.perf_counter() - begin
        outcome = of_own_series(posterior, task, size)._replace(seconds=seconds)
        return Found(outcome, posterior)

    return method


METHODS: dict[str, Callable[[Task, Size], Found]] = {
    "neural-sde": fitted("neural_sde", "laplace"),
    "neural-ode": fitted("neural_ode", "laplace"),
    "svi": fitted("neural_sde", "svi"),
    "ar2": lambda task, size: Found(rivals.ar2(task, size)),
}


# ---- numbers -------------------------------------------------------------------------------------
def process_numbers(scale: Tensor, truth: Tensor, task: Task) -> dict[str, float]:
    """The learned scale of the process noise (state,), beside the truth and beside the data.

    `process_scale` is its mean over the components, in users' units per square root of time,
    `process_per_gap` what it moves the path between two observations, in measurement noise sds.
    """
    gap = task.train.grid.diff(dim=1).mean().sqrt()
    numbers = {
        "process_scale": scale.mean().item(),
        "process_per_gap": (scale * gap / task.noise_scale).mean().item(),
    }
    if (truth > 0).all():
        numbers["process_ratio"] = (scale / truth).mean().item()
    return numbers


def zeros_of(drift: Tensor, grid: Tensor) -> list[tuple[float, bool]]:
    """Where a drift (points,) on a grid changes its sign, and whether it is stable there."""
    is_up, out = drift >= 0, []
    for k in (is_up[:-1] != is_up[1:]).nonzero().flatten().tolist():
        share = drift[k] / (drift[k] - drift[k + 1])
        out.append(((grid[k] + share * (grid[k + 1] - grid[k])).item(), bool(is_up[k])))
    return out


def well_numbers(drift: Tensor, grid: Tensor) -> dict[str, float]:
    """The zeros nearest to the true ones, stable and not as these are, and whether all are there.

    Both wells are found if the drift has a stable zero within .3 of -1 and of 1 and an unstable one
    within .3 of 0.
    """
    found, numbers = zeros_of(drift, grid), {}
    for name, truth in zip(ZEROS, WELLS, strict=True):
        own = [x for x, is_stable in found if is_stable == (truth != 0)]
        nearest = min(own, key=lambda x: abs(x - truth), default=math.nan)
        numbers[name] = nearest if abs(nearest - truth) <= NEAR_ZERO else math.nan
    is_complete = not any(math.isnan(numbers[name]) for name in ZEROS)
    return numbers | {"both_wells": float(is_complete)}


def numbers_of_fit(posterior: bo.Posterior, case: Case, task: Task) -> dict[str, float]:
    """What the posterior says of its process noise and of its drift."""
    numbers: dict[str, float] = {}
    draws = posterior.draws(case.size.num_draws, seed=task.seed)
    if "field.diffusion.scale" in draws:
        scale = draws["field.diffusion.scale"].double().median(0).values
        numbers |= process_numbers(scale, case.process_scale(task), task)
    if case.has_wells:
        rates = posterior.field(GRID[:, None], num_draws=DRIFT_DRAWS, seed=task.seed)
        numbers |= well_numbers(rates.double().mean(0)[:, 0], GRID)
    return numbers


# ---- records -------------------------------------------------------------------------------------
class Run(NamedTuple):
    """What one record is about."""

    part: str
    case: str
    seed: int
    method: str


def records_of(run: Run, parts: dict[str, dict[str, Case]] = PARTS) -> list[Record]:
    """One flat record; a fit that fails has `error` and NaN for every number."""
    case, numbers = parts[run.part][run.case], dict.fromkeys(ALL_NUMBERS, math.nan)
    try:
        task = task_of(case.system, case.variant, run.seed)
        task = task if case.is_forecast else in_sample(task)
        outcome, posterior = METHODS[run.method](task, case.size)
        numbers |= numbers_of(outcome, task) | {"num_times": task.num_train}
        if posterior is not None:
            numbers |= numbers_of_fit(posterior, case, task)
        error = outcome.problem
    except Exception as failure:  # whatever it is, the other fits go on
        error = reason(failure)
    return [run._asdict() | numbers | {"error": error}]


def line(records: list[Record]) -> str:
    record = records[0]
    outcome = record["error"] or (
        f"rmse {record['rmse_in']:.3f}, covers {record['coverage_latent_in']:.2f} / "
        f"{record['coverage_latent_forecast']:.2f}, log score {record['log_score_forecast']:.3f}, "
        f"{record['seconds']:.1f} s"
    )
    name = f"{record['part']}, {record['case']}"
    return f"{name:<26} seed {record['seed']:<5} {record['method']:<11} {outcome}"


# ---- command line --------------------------------------------------------------------------------
def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=some_of(PARTS), help="names with commas; default: all")
    parser.add_argument("--seeds", type=seeds, help='of data and fit, "1,2" or "1-3" (default)')
    parser.add_argument("--methods", type=some_of(METHODS), help="in place of a part's own")
    add_common(parser)
    return parser.parse_args(arguments)


def runs(options: argparse.Namespace) -> Iterator[Run]:
    parts = SMOKE_PARTS if options.smoke else PARTS
    for part in options.parts or parts:
        for name, case in parts.get(part, {}).items():
            for seed in options.seeds or ([1] if options.smoke else [1, 2, 3]):
                for method in options.methods or case.methods:
                    yield Run(part, name, seed, method)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    parts = SMOKE_PARTS if options.smoke else PARTS
    known = read(options.json, Run, ALL_NUMBERS)
    show(run_all(runs(options), lambda run: records_of(run, parts), known, options.json, line))


if __name__ == "__main__":
    main()
