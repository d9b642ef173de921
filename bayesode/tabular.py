"""The only door to pandas and xarray: tables in, tables out."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayesode.errors import DataError


def frame(records: Sequence[Mapping[str, Any]], index: str | None = None) -> pd.DataFrame:
    """A table with one row per record, indexed by the column `index` if that is given."""
    table = pd.DataFrame.from_records(list(records))
    return table if index is None else table.set_index(index)


def read_csv(path: str | Path, comment: str | None = "#") -> pd.DataFrame:
    """A CSV file with a header as a table; blanks around names are removed.

    Lines that begin with `comment` are skipped; pandas would cut any line there, and make one
    series of the labels "mouse #1" and "mouse #2".

    Raises:
        DataError: If the file is missing, empty or not a table.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
        kept = [line for line in lines if not (comment and line.lstrip().startswith(comment))]
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # Without index_col=False, rows longer than the header shift all columns by one.
            text = io.StringIO("\n".join(kept))
            table = pd.read_csv(text, skipinitialspace=True, index_col=False)
    except pd.errors.ParserWarning as error:
        raise DataError(f"{path}: some rows have more cells than the header has names.") from error
    except (OSError, TypeError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{path} cannot be read as a CSV table: {error}") from error
    return table.rename(columns=lambda name: str(name).strip())


def series_arrays(
    table: pd.DataFrame, *, time: str, values: Sequence[str], series: str | None
) -> dict[str, Any]:
    """Padded arrays of a tidy table that has one row per series and time.

    Args:
        table: Columns `time`, each of `values` and, if given, `series`; empty cells are missing.
        time: Name of the column of times.
        values: Names of the columns that become the components, in this order.
        series: Name of the column of labels; None if the table holds one series.

    Returns:
        Arguments of `Trajectories`: `times (series, time)`, `values (series, time, component)`,
        `num_times (series,)`, `series` and `names`.

    Raises:
        DataError: For an unknown column, a column that is not numeric, or an empty table.
    """
    _check_columns(table, time, values, series)
    groups = [("0", table)]
    if series is not None:
        groups = list(table.groupby(series, sort=False, observed=True))
    groups = [(label, rows.sort_values(time)) for label, rows in groups]
    num_times = np.array([len(rows) for _, rows in groups])
    longest = num_times.max()
    times = np.stack([np.pad(_numbers(r[time]), (0, longest - len(r)), "edge") for _, r in groups])
    padded = np.full((*times.shape, len(values)), np.nan)
    for row, (_, rows) in enumerate(groups):
        padded[row, : len(rows)] = np.stack([_numbers(rows[name]) for name in values], -1)
    return {
        "times": times,
        "values": padded,
        "num_times": num_times,
        "series": [label for label, _ in groups],
        "names": list(values),
    }


def _numbers(column: Any) -> np.ndarray:
    return column.to_numpy(float, na_value=np.nan)


def _check_columns(
    table: pd.DataFrame, time: str, values: Sequence[str], series: str | None
) -> None:
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"a pandas DataFrame is needed, not {type(table).__name__}.")
    names = list(table.columns)
    for name in [time, *values, *([] if series is None else [series])]:
        if names.count(name) != 1:
            found = "no column" if name not in names else "more than one column"
            raise DataError(f"the table has {found} {name!r}; its columns are {names}.")
    if not values or len(table) == 0:
        raise DataError("the table needs at least one row and one column of values.")
    for name in (time, *values):
        if table[name].dtype.kind not in "fiu":
            raise DataError(
                f"column {name!r} holds {table[name].dtype}, not numbers; convert it first "
                "(missing values are empty cells, dates are best given as days or years since a "
                "start)."
            )
    is_unlabelled = np.zeros(len(table), bool) if series is None else pd.isna(table[series])
    if np.any(is_unlabelled):
        row = int(np.argmax(is_unlabelled)) + 1
        raise DataError(f"column {series!r} has no label in row {row}; fill or drop such rows.")


def dataset(
    variables: Mapping[str, tuple[Sequence[str], Any]],
    coordinates: Mapping[str, Any],
    attributes: Mapping[str, str | int | float | list[Any]] | None = None,
) -> xr.Dataset:
    """An xarray data set from `{name: (dims, array)}`, which shares no memory with the arrays."""
    arrays = {name: (list(dims), np.array(array)) for name, (dims, array) in variables.items()}
    return xr.Dataset(arrays, coords=dict(coordinates), attrs=dict(attributes or {}))


def event_dims(num: int) -> list[str]:
    """Names of the axes of one observation: of vectors, of images, and of all else."""
    known = {1: ["component"], 2: ["row", "column"], 3: ["channel", "row", "column"]}
    return known.get(num, [f"event{i}" for i in range(num)])


def to_dataset(
    *,
    values: np.ndarray,
    observed: np.ndarray,
    times: np.ndarray,
    start: np.ndarray,
    num_times: np.ndarray,
    series: Sequence[str | int],
    names: Sequence[str],
    static: np.ndarray | None,
    features: Sequence[str] | None,
) -> xr.Dataset:
    """The fields of trajectories as an xarray data set; shared times are the coordinate `time`."""
    event = event_dims(values.ndim - 2)
    variables: dict[str, tuple[Sequence[str], Any]] = {
        "values": (["series", "time", *event], values),
        "observed": (["series", "time", *event], observed),
        "times": (["series", "time"], np.broadcast_to(times, values.shape[:2])),
        "start": (["series"], start),
        "num_times": (["series"], num_times),
    }
    is_mixed = len({isinstance(label, str) for label in series}) > 1
    coordinates: dict[str, Any] = {"series": np.array(series, object if is_mixed else None)}
    if names:
        coordinates["component"] = list(names)
    if times.ndim == 1:
        coordinates["time"] = times.copy()
    if static is not None:
        variables["static"] = (["series", "feature"], static)
        coordinates["feature"] = list(features or ())
    return dataset(variables, coordinates)


def from_dataset(data: Any) -> dict[str, Any]:
    """The fields that `to_dataset` wrote; the mask is in the NaN of the values.

    Raises:
        DataError: If it is no data set or a variable is missing.
    """
    if not isinstance(data, xr.Dataset):
        raise DataError(f"an xarray Dataset is needed, not {type(data).__name__}.")
    for name in ("values", "times", "start", "num_times", "series"):
        if name not in data:
            raise DataError(f"the data set has no variable {name!r} (see to_xarray).")
    arrays = {str(name): variable.values for name, variable in data.variables.items()}
    return {
        "times": arrays["times"][0] if "time" in data.coords else arrays["times"],
        "values": arrays["values"],
        "start": arrays["start"],
        "num_times": arrays["num_times"],
        "series": arrays["series"],
        "names": arrays.get("component"),
        "static": arrays.get("static"),
        "features": arrays.get("feature"),
    }
