"""How well fits with default settings find known systems, and whether their bands hold.

    python -m benchmarks.dynamics [--systems a,b] [--seeds 1,2|1-3] [--methods a,b] [--stress]
        [--variants a,b] [--json FILE] [--smoke]

Each data set is a system over twice its usual horizon: the first half is fitted, the second is
forecast from the same initial states; ten more series are predicted from their first five points,
and scored behind these. Everything is scored against the true path, and against new observations:
that path with fresh noise. Of the field, dx/dt is compared along the true training paths.

Methods: `bayesode` (the plan's model, `bo.fit`), `bayesode-laplace`, `bayesode-svi`, and the rivals
`lm` (least squares of the same network), `lm-ensemble` (five of them from random starts, as a
mixture), `plain-pyro` (the script that people write), `gp-smoother` (no dynamics: in sample only),
`right-equations` (true equations, unknown constants: the floor), `persistence` (a random walk:
forecast only) and `mean` (of all training values).

--stress takes variants of three systems' data (noise, number of series and of times, irregular
times, missing numbers) without the plain script; --variants takes some of them by name. With a
--json FILE, what the file already holds is kept and not run again. Seeds 3100-3119 are set aside
for the closing report of a change: do not tune on them.
"""

import argparse
import math
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.methods import OWN
from benchmarks.records import Record, add_common, read, reason, run_all, seeds, some_of
from benchmarks.rivals import RIVALS
from benchmarks.scoring import NUMBERS, SMOKE, USUAL, numbers_of
from benchmarks.tables import show
from benchmarks.tasks import STRESS, SYSTEMS, VARIANTS, make_task

METHODS = OWN | RIVALS
NOT_STRESSED = ("plain-pyro", "bayesode-laplace")  # slow, needs shared times; the default


class Run(NamedTuple):
    """What one record is about."""

    system: str
    variant: str
    seed: int
    method: str


def records_of(run: Run) -> list[Record]:
    """One flat record; a fit that fails has `error` and NaN for every number."""
    size = SMOKE if run.variant == "smoke" else USUAL
    key: Record = run._asdict()
    try:
        task = make_task(run.system, run.variant, run.seed)
        outcome = METHODS[run.method](task, size)
        return [key | numbers_of(outcome, task) | {"error": outcome.problem}]
    except Exception as error:  # whatever it is, the other fits go on
        return [key | dict.fromkeys(NUMBERS, math.nan) | {"error": reason(error)}]


def line(records: list[Record]) -> str:
    record = records[0]
    outcome = record["error"] or (
        f"rmse {record['rmse_in']:.3f} / {record['rmse_forecast']:.3f}, {record['seconds']:.1f} s"
    )
    name = f"{record['system']} ({record['variant']})"
    return f"{name:<34} seed {record['seed']:<5} {record['method']:<17} {outcome}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", type=some_of(SYSTEMS), help="names with commas; default: all")
    parser.add_argument("--seeds", type=seeds, help='of data and fit, "1,2" or "1-3" (default)')
    parser.add_argument("--methods", type=some_of(METHODS), help="names with commas; default: all")
    parser.add_argument("--variants", type=some_of(VARIANTS), help="of the data")
    parser.add_argument("--stress", action="store_true", help="variants of three systems")
    add_common(parser)
    return parser.parse_args()


def runs(options: argparse.Namespace) -> Iterator[Run]:
    systems = options.systems or (
        ["van_der_pol"] if options.smoke else list(STRESS if options.stress else SYSTEMS)
    )
    methods = options.methods or [
        name for name in METHODS if not (options.stress and name in NOT_STRESSED)
    ]
    for system in systems:
        usual = STRESS.get(system, []) if options.stress else ["default"]
        variants = options.variants or (["smoke"] if options.smoke else usual)
        for variant in variants:
            for seed in options.seeds or ([1] if options.smoke else [1, 2, 3]):
                for method in methods:
                    yield Run(system, variant, seed, method)


def main() -> None:
    options = parse()
    known = read(options.json, Run, NUMBERS)
    show(run_all(runs(options), records_of, known, options.json, line))


if __name__ == "__main__":
    main()
