"""What the benchmarks share: records in a file, runs one after the other, lists on command lines.

A run is a NamedTuple of plain values; it makes one or more flat records that begin with its fields
and have an `error`, which is None where all went well. A file of records is kept up to date after
every run, and what it holds is not run again.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Run = Any  # some NamedTuple, each benchmark has its own
Records = dict[Run, list[Record]]


# ---- files ---------------------------------------------------------------------------------------
def write(records: Iterable[Record], path: Path) -> None:
    """All records so far, as strict JSON (NaN is null); the file is complete at any moment."""
    plain = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()}
        for r in records
    ]
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(plain, indent=1, allow_nan=False))
    os.replace(part, path)


def read(path: Path | None, run_type: Any, numbers: Iterable[str]) -> Records:
    """The records of a file that an earlier call wrote, by their runs; none if there is no file.

    Args:
        path: Of the file, or None.
        run_type: NamedTuple of the fields that name a run.
        numbers: Fields whose null is NaN, also where the file lacks them.
    """
    records: Records = {}
    if path is None or not path.exists():
        return records
    empty: Record = dict.fromkeys(numbers, math.nan)
    for plain in json.loads(path.read_text()):
        known = {k: math.nan if v is None and k in empty else v for k, v in plain.items()}
        run = run_type(**{name: known[name] for name in run_type._fields})
        records.setdefault(run, []).append(empty | known)
    return records


def flat(records: Records) -> list[Record]:
    """The records of all runs."""
    return [record for some in records.values() for record in some]


# ---- runs ----------------------------------------------------------------------------------------
def run_all(
    runs: Iterable[Run],
    records_of: Callable[[Run], list[Record]],
    records: Records,
    path: Path | None,
    line: Callable[[list[Record]], str],
) -> list[Record]:
    """Run what is not in `records` without an error; Ctrl-C ends it and loses nothing.

    Args:
        runs: In their order.
        records_of: What a run is worth.
        records: What is known; new records are added to it.
        path: A file that is up to date after every run.
        line: What is printed of a run.

    Returns:
        The records of all runs, known and new.
    """
    try:
        for run in runs:
            if run in records and not any(record["error"] for record in records[run]):
                continue
            records[run] = records_of(run)
            if path is not None:
                write(flat(records), path)
            print(line(records[run]), flush=True)
    except KeyboardInterrupt:
        print("stopped by the user; this is what there is:")
    return flat(records)


def reason(error: Exception) -> str:
    """What a record says of a run that failed."""
    return f"{type(error).__name__}: {error}"


# ---- command line --------------------------------------------------------------------------------
def seeds(text: str) -> list[int]:
    """ "1,2", "1-3" or both, "1-3,7"."""
    out: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """The type of an argument that takes some of these names, with commas."""

    def names(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {name!r}; known are {','.join(known)}")
        return chosen

    return names


def add_common(parser: argparse.ArgumentParser) -> None:
    """The arguments that every benchmark with records takes."""
    parser.add_argument("--smoke", action="store_true", help="tiny: only to see that it runs")
    parser.add_argument("--json", type=Path, help="file of the records, read and kept up to date")
