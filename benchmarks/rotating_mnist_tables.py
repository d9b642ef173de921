"""The printed table of `benchmarks.rotating_mnist`, and what is accepted."""

import math
from typing import Any

from bayesode.tabular import frame
from benchmarks.gates import Gate
from benchmarks.records import Record

COLUMNS = {
    "mse_hidden": "hidden",
    "mse_hidden_training_digits": "training",
    "mse_hidden_single_draw": "one draw",
    "mse_all": "all",
    "mse_second_turn": "turn 2",
    "mse_hidden_fine": "fine",
    "nats_per_frame": "nats/frame",
    "kl_weights": "KL weights",
    "active_dimensions": "active",
    "spread_ratio": "spread",
    "rank_correlation": "rank",
    "coverage_90": "covers",
    "coverage_90_second_turn": "turn 2 ",
    "calibration_factor": "factor",
    "reliability_error": "reliab.",
    "seconds": "sec",
}
TITLE = (
    "Mean ± standard error over seeds. hidden = squared error per pixel at the hidden frame, of "
    "new digits;\ntraining = of training digits, which the published numbers are of; fine = hidden "
    "by a finer step"
)
LINEAR = "rotating an image is a linear map of it: the linear models contain the answer"
# (name, likelihood): column -> limits
LIMITS: dict[tuple[str, str], dict[str, tuple[float, float]]] = {
    ("linear", "gaussian"): {
        "mse_hidden": (0, 0.0035),
        "mse_second_turn": (0, 0.0025),
        "coverage_90": (0.85, 0.95),
        "coverage_90_second_turn": (0.85, 0.95),
        "rank_correlation": (0.3, 1),
    },
    ("linear-64", "gaussian"): {
        "mse_hidden": (0, 0.0100),
        "mse_second_turn": (0, 0.0070),
        "coverage_90": (0.85, 0.95),
        "coverage_90_second_turn": (0.85, 0.95),
    },
    ("compact", "bernoulli"): {"mse_hidden": (0, 0.0184), "mse_second_turn": (0, 0.0500)},
}
MOST_FORGOTTEN = 0.1  # of the weights' KL, by which it may depend on the initial scales


def show(records: list[Record]) -> None:
    """The table, the gates, and what went wrong."""
    for record in records:
        if record["error"]:
            print(f"failed: {record['name']} {record['likelihood']}: {record['error']}")
    good = [record for record in records if not record["error"]]
    if not good:
        return
    table = frame(good)
    table["likelihood"] = table["likelihood"].fillna("")
    groups = dict(iter(table.groupby(["name", "likelihood"], sort=False)))
    rows = [
        {"method": " ".join(key)}
        | {title: shown(fits[column].astype(float)) for column, title in COLUMNS.items()}
        | {"fits": len(fits)}
        for key, fits in groups.items()
    ]
    print(f"\n{TITLE}\n\n{frame(rows, index='method').to_string()}\n\n{LINEAR}\n")
    for gate in gates(groups):
        print(gate)


def shown(values: Any) -> str:
    """Mean ± standard error over seeds, to four significant digits."""
    mean, count = values.mean(skipna=False), len(values)
    if math.isnan(mean):
        return "-"
    error = values.std() / math.sqrt(count) if count > 1 else math.nan
    text = f"{mean:.0f}" if abs(mean) >= 1000 else f"{mean:.4g}"
    return text if math.isnan(error) else f"{text}±{error:.1g}"


def gates(groups: dict[Any, Any]) -> list[Gate]:
    """Means over seeds beside what they have to be."""
    found = [
        Gate(f"{name}, {law}: {column}", groups[name, law][column].mean(skipna=False), *limits)
        for (name, law), columns in LIMITS.items()
        if (name, law) in groups
        for column, limits in columns.items()
    ]
    pair = [("linear-64", "gaussian"), ("halved", "gaussian")]
    if all(key in groups for key in pair):
        whole, half = (groups[key]["kl_weights"].mean(skipna=False) for key in pair)
        text = "share of the weights' KL that half the initial scales change"
        found.append(Gate(text, abs(half / whole - 1), high=MOST_FORGOTTEN))
    return found
