"""The printed tables of `benchmarks.process_noise`, and what is accepted."""

import math
from collections.abc import Callable
from typing import Any

from bayesode.tabular import frame
from benchmarks.gates import Gate
from benchmarks.records import Record
from benchmarks.tables import NO, cell

JUDGED, PLAIN, REFERENCE = "neural-sde", "neural-ode", "ar2"
COLUMNS = {
    "rmse_in": "rmse in",
    "rmse_forecast": "rmse fc",
    "coverage_latent_in": "lat in",
    "coverage_latent_forecast": "lat fc",
    "coverage_observed_forecast": "obs fc",
    "log_score_in": "ls in",
    "log_score_forecast": "ls fc",
    "field_rmse": "field",
    "noise_ratio": "noise",
    "process_ratio": "process",
    "process_per_gap": "per gap",
    "zero_left": "zero -1",
    "zero_middle": "zero 0",
    "zero_right": "zero 1",
    "both_wells": "wells",
    "evidence": "evidence",
    "seconds": "sec",
}
TITLE = (
    "Mean ± standard error over seeds. rmse of the path in true noise sds; lat, obs = coverage of "
    "path and of\nnew observations by 90 % bands; ls = log score per number minus the oracle's; "
    "field = rmse of the drift over\nits size; noise, process = learned scale / truth; per gap = "
    "what process noise moves a path between two\nobservations, in measurement noise sds"
)
# rmse in sample over the ODE's (at most), coverage in sample and forecast, share of seeds won
STOCHASTIC = {
    "10 x 50": (0.5, (0.83, 0.95), (0.85, 0.96), 18 / 20),
    "3 x 40": (0.62, NO, (0.74, 0.96), 14 / 20),
}
MOST_LOST, CLEAN_BAND = 0.02, (0.85, 0.97)
WELL_RATIO, WELL_BAND = (0.85, 1.15), (0.85, 0.95)
MOST_SECONDS, LINEAR = 15.0, 1.2  # of 10 series x 50 times; exponent of the number of times


# ---- what is accepted ----------------------------------------------------------------------------
def mean(fits: Any, method: str, name: str) -> float:
    """Mean over seeds; NaN where one of them is, and where there is none."""
    return fits.loc[fits["method"] == method, name].mean(skipna=False)


def paired(fits: Any, other: str, name: str) -> Any:
    """The judged method's number minus another's, by seed; only seeds that both have."""
    own, rival = (fits[fits["method"] == m].set_index("seed")[name] for m in (JUDGED, other))
    seeds = own.index.intersection(rival.index)
    return own[seeds] - rival[seeds]


def has(fits: Any, *methods: str) -> bool:
    """Whether all of these methods were run."""
    return set(methods) <= set(fits["method"])


def stochastic(case: str, fits: Any) -> list[Gate]:
    """Path and bands of the SDE, and in how many data sets its forecast wins."""
    ratio, band, band_forecast, share = STOCHASTIC[case]
    gates = []
    if band != NO:
        covers = mean(fits, JUDGED, "coverage_latent_in")
        gates.append(Gate("covers the path in sample", covers, *band))
    covers = mean(fits, JUDGED, "coverage_latent_forecast")
    gates.append(Gate("covers the path in forecast", covers, *band_forecast))
    if has(fits, PLAIN):
        own, other = (mean(fits, method, "rmse_in") for method in (JUDGED, PLAIN))
        text = f"rmse of the smoothed path {own:.3f} over the ODE's {other:.3f}"
        gates.append(Gate(text, own / other, high=ratio))
    for rival in (PLAIN, REFERENCE):
        if has(fits, rival):
            gained = paired(fits, rival, "log_score_forecast")
            text = (
                f"forecasts that beat {rival}'s, of {len(gained)} (mean gain {gained.mean():+.2f})"
            )
            gates.append(Gate(text, int((gained > 0).sum()), low=math.ceil(share * len(gained))))
    return gates


def clean(case: str, fits: Any) -> list[Gate]:
    """What the safety costs where there is no process noise."""
    gates = [
        Gate(f"covers the path {words}", mean(fits, JUDGED, name), *CLEAN_BAND)
        for words, name in (
            ("in sample", "coverage_latent_in"),
            ("in forecast", "coverage_latent_forecast"),
        )
    ]
    if has(fits, PLAIN):
        lost = -paired(fits, PLAIN, "log_score_forecast").mean(skipna=False)
        gates.append(Gate("log score lost to the ODE", lost, high=MOST_LOST))
    return gates


def double_well(case: str, fits: Any) -> list[Gate]:
    """Diffusion, smoothed path, and both wells in every data set."""
    count = int((fits["method"] == JUDGED).sum())
    wells = fits.loc[fits["method"] == JUDGED, "both_wells"].sum()
    return [
        Gate("diffusion over the truth", mean(fits, JUDGED, "process_ratio"), *WELL_RATIO),
        Gate("covers the path in sample", mean(fits, JUDGED, "coverage_latent_in"), *WELL_BAND),
        Gate(f"data sets with both wells, of {count}", wells, low=count),
    ]


def large(table: Any) -> list[Gate]:
    """Seconds of the usual size, and how they grow with the number of times."""
    own = table[(table["part"] == "large") & (table["method"] == JUDGED)]
    gates = []
    for system, fits in own.groupby(own["case"].str.rsplit(n=1).str[0], sort=False):
        seconds = fits.groupby("num_times")["seconds"].mean()
        told = ", ".join(f"{s:.1f} s for {int(n)}" for n, s in seconds.items())
        if len(seconds) < 2:
            continue
        (first, last), times = seconds.iloc[[0, -1]], seconds.index[[0, -1]]
        power = math.log(last / first) / math.log(times[1] / times[0])
        gates.append(Gate(f"{system}: {told} times; power of their number", power, high=LINEAR))
        if 50 in seconds.index:
            gates.append(Gate(f"{system}: seconds of 50 times", seconds[50], high=MOST_SECONDS))
    return gates


BY_CASE: dict[str, Callable[[str, Any], list[Gate]]] = {
    "stochastic": stochastic,
    "clean": clean,
    "double-well": double_well,
}


def gates_of(records: list[Record]) -> list[Gate]:
    """Everything that is accepted or not, of what was run at its usual size."""
    table, gates = frame(records), []
    for (part, case), fits in table.groupby(["part", "case"], sort=False):
        if case != "smoke" and part in BY_CASE and has(fits, JUDGED):
            own = BY_CASE[part](case, fits)
            gates += [gate._replace(text=f"{part}, {case}: {gate.text}") for gate in own]
    return gates + large(table)


# ---- tables --------------------------------------------------------------------------------------
def summary(fits: Any) -> Any:
    """One row per case and method of a part; columns that say nothing are left out."""
    rows = []
    for (case, method), group in fits.groupby(["case", "method"], sort=False):
        row = {"case": case, "method": method}
        row |= {short: cell(group[name], NO) for name, short in COLUMNS.items()}
        rows.append(row | {"fits": f"{group['error'].isna().sum()}/{len(group)}"})
    shown = frame(rows).set_index(["case", "method"])
    return shown.loc[:, ~shown.isin(["-"]).all()]


def show(records: list[Record]) -> None:
    """Print a table per part, what is accepted, and what failed."""
    if not records:
        return
    print(f"\n{TITLE}")
    for part, fits in frame(records).groupby("part", sort=False):
        print(f"\n{part}\n{summary(fits).to_string()}")
    print()
    for gate in gates_of(records):
        print(gate)
    for r in records:
        if r["error"]:
            key = ", ".join(str(r[name]) for name in ("part", "case", "seed", "method"))
            print(f"failed: {key}: {r['error']}")
