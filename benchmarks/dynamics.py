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
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.methods import OWN
from benchmarks.rivals import RIVALS
from benchmarks.scoring import NUMBERS, SMOKE, USUAL, numbers_of
from benchmarks.tables import Record, show
from benchmarks.tasks import STRESS, SYSTEMS, VARIANTS, make_task

METHODS = OWN | RIVALS
NOT_STRESSED = ("plain-pyro", "bayesode-laplace")  # slow, needs shared times; the default


class Run(NamedTuple):
    """What one record is about."""

    system: str
    variant: str
    seed: int
    method: str


# ---- records -------------------------------------------------------------------------------------
def record_of(run: Run) -> Record:
    """One flat record; a fit that fails has `error` and NaN for every number."""
    size = SMOKE if run.variant == "smoke" else USUAL
    key: Record = run._asdict()
    try:
        task = make_task(run.system, run.variant, run.seed)
        outcome = METHODS[run.method](task, size)
        return key | numbers_of(outcome, task) | {"error": outcome.problem}
    except Exception as error:  # whatever it is, the other fits go on
        reason = f"{type(error).__name__}: {error}"
        return key | dict.fromkeys(NUMBERS, math.nan) | {"error": reason}


def write(records: list[Record], path: Path) -> None:
    """All records so far, as strict JSON (NaN is null); the file is complete at any moment."""
    plain = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()}
        for r in records
    ]
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(plain, indent=1, allow_nan=False))
    os.replace(part, path)


def read(path: Path) -> dict[Run, Record]:
    """The records of a file that an earlier call wrote; none if there is no file."""
    if not path.exists():
        return {}
    empty: Record = dict.fromkeys(NUMBERS, math.nan)
    records = {}
    for plain in json.loads(path.read_text()):
        known = {k: math.nan if v is None and k in empty else v for k, v in plain.items()}
        records[Run(**{name: known[name] for name in Run._fields})] = empty | known
    return records


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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", type=some_of(SYSTEMS), help="names with commas; default: all")
    parser.add_argument("--seeds", type=numbers, help='of data and fit, "1,2" or "1-3" (default)')
    parser.add_argument("--methods", type=some_of(METHODS), help="names with commas; default: all")
    parser.add_argument("--variants", type=some_of(VARIANTS), help="of the data")
    parser.add_argument("--stress", action="store_true", help="variants of three systems")
    parser.add_argument("--smoke", action="store_true", help="tiny: only to see that it runs")
    parser.add_argument("--json", type=Path, help="file of the records, read and kept up to date")
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
    records = read(options.json) if options.json else {}
    try:
        for run in runs(options):
            if run in records and not records[run]["error"]:
                continue
            record = records[run] = record_of(run)
            if options.json:
                write(list(records.values()), options.json)
            outcome = record["error"] or (
                f"rmse {record['rmse_in']:.3f} / {record['rmse_forecast']:.3f}, "
                f"{record['seconds']:.1f} s"
            )
            name = f"{run.system} ({run.variant})"
            print(f"{name:<34} seed {run.seed:<5} {run.method:<17} {outcome}", flush=True)
    except KeyboardInterrupt:
        print("stopped by the user; this is what there is:")
    show(list(records.values()))


if __name__ == "__main__":
    main()
