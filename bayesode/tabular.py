"""The only door to pandas and xarray: tables in, tables out."""

from __future__ import annotations

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

    Raises:
        DataError: If the file is missing, empty or not a table.
    """
    try:
        table = pd.read_csv(path, comment=comment, skipinitialspace=True)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
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
    wanted = [time, *values, *([] if series is None else [series])]
    unknown = [name for name in wanted if name not in table.columns]
    if unknown:
        raise DataError(
            f"the table has no column {unknown[0]!r}; its columns are {list(table.columns)}."
        )
    if not values or len(table) == 0:
        raise DataError("the table needs at least one row and one column of values.")
    for name in (time, *values):
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise DataError(
                f"column {name!r} holds text or dates; convert it to numbers first (missing "
                "values are empty cells, dates are best given as days or years since a start)."
            )
    groups = [("0", table)] if series is None else list(table.groupby(series, sort=False))
    groups = [(label, rows.sort_values(time)) for label, rows in groups]
    num_times = np.array([len(rows) for _, rows in groups])
    times = np.stack(
        [np.pad(r[time].to_numpy(float), (0, num_times.max() - len(r)), "edge") for _, r in groups]
    )
    padded = np.full((*times.shape, len(values)), np.nan)
    for row, (_, rows) in enumerate(groups):
        padded[row, : len(rows)] = rows[list(values)].to_numpy(float)
    labels = [label.item() if isinstance(label, np.generic) else label for label, _ in groups]
    return {
        "times": times,
        "values": padded,
        "num_times": num_times,
        "series": labels,
        "names": list(values),
    }


def dataset(
    variables: Mapping[str, tuple[Sequence[str], Any]],
    coordinates: Mapping[str, Any],
    attributes: Mapping[str, str | int | float | list[Any]] | None = None,
) -> xr.Dataset:
    """An xarray data set from `{name: (dims, array)}`."""
    arrays = {name: (list(dims), np.asarray(array)) for name, (dims, array) in variables.items()}
    return xr.Dataset(arrays, coords=dict(coordinates), attrs=dict(attributes or {}))
