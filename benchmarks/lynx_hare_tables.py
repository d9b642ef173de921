"""The printed tables of `benchmarks.lynx_hare`, and what is accepted."""

import math
from typing import Any

from bayesode.tabular import frame
from benchmarks.records import Record

REFERENCE = "ar2"  # what a model must beat before it deserves the name
SCORES = {"log_score_per_point": "log score", "crps": "crps", "coverage_90": "cover 90"}
ACCEPTED = {"log_score_per_point": -3.95, "coverage_90": 0.80}  # of `black-box`, at least
JUDGED = "black-box"


def mean(values: Any) -> float:
    """NaN where one of the values is: to leave it out would flatter what fails."""
    return values.mean(skipna=False)


def by_model(records: list[Record]) -> Any:
    """Mean scores over all numbers, and what the fits say, one row per model."""
    table = frame(records)
    columns = [*SCORES, "noise_scale", "process_scale"]
    shown = table.groupby("model", sort=False)[columns].agg(mean)
    counts = {name: _count(group) for name, group in table.groupby("model", sort=False)}
    shown.insert(0, "numbers", [counts[name] for name in shown.index])
    once = table[table["horizon"] == 1].groupby("model", sort=False)["seconds"].mean()
    return shown.assign(seconds=once).rename(columns=SCORES)


def _count(group: Any) -> int:
    """Numbers that a seed of a model forecasts."""
    return int(group["num_points"].sum() / group["seed"].nunique())


def by_horizon(records: list[Record]) -> Any:
    """Log score per number, one row per model, one column per horizon."""
    table = frame(records)
    order = list(dict.fromkeys(table["model"]))
    shown = table.pivot_table("log_score_per_point", "model", "horizon", aggfunc=mean, dropna=False)
    return shown.reindex(order)


def by_origin(records: list[Record]) -> Any:
    """Log score per number, one row per model, one column per origin."""
    table = frame(records)
    order = list(dict.fromkeys(table["model"]))
    shown = table.pivot_table("log_score_per_point", "model", "origin", aggfunc=mean, dropna=False)
    return shown.reindex(order)


def differences(records: list[Record]) -> dict[str, tuple[float, float, int]]:
    """Log score per number minus the reference's: mean over origins, standard error, origins.

    An origin counts once, whatever its number of horizons: its forecasts share their fit.
    """
    table = by_origin(records)
    if REFERENCE not in table.index:
        return {}
    out = {}
    for name in table.index.drop(REFERENCE):
        own = (table.loc[name] - table.loc[REFERENCE]).dropna()
        error = own.std() / math.sqrt(len(own)) if len(own) > 1 else math.nan
        out[name] = (own.mean(), error, len(own))
    return out


def verdict(table: Any) -> str:
    """The judged model against what is accepted; empty if it was not run."""
    if JUDGED not in table.index:
        return ""
    parts = []
    for name, least in ACCEPTED.items():
        value = table.loc[JUDGED, SCORES[name]]
        word = "accepted" if value >= least else "NOT accepted"  # NaN is not
        parts.append(f"{SCORES[name]} {value:.3f} (at least {least:g}): {word}")
    return f"{JUDGED}: " + "; ".join(parts)


def show(records: list[Record]) -> None:
    """Print all tables and what failed."""
    if not records:
        return
    table, options = by_model(records), {"float_format": "{:.3f}".format, "na_rep": "-"}
    print("\nMean over all numbers; log score in raw units, crps and scales of the logs")
    print(table.to_string(**options))
    print("\nLog score per number, by horizon in years")
    print(by_horizon(records).to_string(**options))
    print("\nLog score per number, by origin")
    print(by_origin(records).to_string(**options))
    for name, (difference, error, count) in differences(records).items():
        print(f"{name} - {REFERENCE}: {difference:+.3f} ± {error:.3f} (mean over {count} origins)")
    print(verdict(table))
    for run in dict.fromkeys((r["origin"], r["model"], r["seed"], r["error"]) for r in records):
        if run[3]:
            print("failed: origin {}, {}, seed {}: {}".format(*run))
