"""The data: several series of observations over time, checked once and never changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from bayesode import tabular
from bayesode.data_checks import (
    as_floating,
    as_list,
    as_number,
    check_labels,
    check_mask,
    check_names,
    check_rows,
    check_start,
    check_times,
    count_series,
)
from bayesode.errors import DataError
from bayesode.inputs import Inputs, check_inputs


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Observed series, or, where `values` is None, a question about series at given times.

    Args:
        times: In the unit of the data, shape (time,) if all series share them, else (series, time)
            padded; strictly increasing; kept as float64.
        values: Shape (series, time, *event); NaN means missing. None asks for predictions. float32
            and float64 are kept, all else gets torch's default dtype.
        mask: True where a value was observed, shaped like values or (series, time). Masked values
            are kept (hidden data can be scored), but no fit reads them.
        series: Unique labels, numbers or strings; 0, 1, ... by default.
        names: Names of the components (event shapes of one dimension).
        start: Time at which the initial state holds, a number or shape (series,); the first time
            of each series by default. Every method keeps it.
        inputs: What the model conditions on.
        num_times: How many leading times of each series are real, shape (series,); the rest is
            padding, whatever it holds, and repeats the last real time.

    Raises:
        ShapeError: If shapes disagree.
        DataError: For NaN, unsorted or repeated times, times before the start, repeated labels,
            infinite values or no data at all.

    Example:
        >>> import torch
        >>> data = Trajectories([0.0, 1.0, 2.0], torch.rand(4, 3, 2), names=["prey", "predator"])
        >>> data.num_series, data.names, data.at([3.0, 4.0]).start.tolist()
        (4, ('prey', 'predator'), [0.0, 0.0, 0.0, 0.0])
    """

    times: Tensor
    values: Tensor | None
    _: KW_ONLY
    mask: Tensor | None = None
    series: tuple[str | int, ...] = None  # type: ignore[assignment]
    names: tuple[str, ...] = ()
    start: Tensor = None  # type: ignore[assignment]
    inputs: Inputs | None = None
    num_times: Tensor = None  # type: ignore[assignment]
    index: Tensor = field(init=False)
    num_total: int = field(init=False)

    def __post_init__(self) -> None:
        values = None if self.values is None else as_floating("values", self.values)
        device = values.device if values is not None else torch.device("cpu")
        times = as_floating("times", self.times).to(device)
        num_series = count_series(times, values, self.series, self.start)
        series = check_labels(self.series, num_series)
        times, num_times = check_times(times, self.num_times, series)
        start = check_start(self.start, times, series)
        if values is None and self.mask is not None:
            raise DataError("a question has no values and so no mask; leave mask= out.")
        mask = None if values is None else check_mask(values, self.mask, num_times)
        check_inputs(self.inputs, num_series)
        self._set(
            values=values,
            times=times,
            series=series,
            num_times=num_times,
            start=start,
            mask=mask,
            names=check_names(self.names, values),
            index=torch.arange(num_series, device=device),
            num_total=num_series,
        )

    def _set(self, **fields: Any) -> Trajectories:
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        return self

    # ---- what is there ---------------------------------------------------------------------------
    @property
    def num_series(self) -> int:
        """Number of series (of this batch, if it is one)."""
        return len(self.series)

    @property
    def grid(self) -> Tensor:
        """Times of every series, shape (series, time)."""
        return self.times.expand(self.num_series, self.times.shape[-1])

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one observation."""
        return torch.Size([len(self.names)]) if self.values is None else self.values.shape[2:]

    @property
    def num_observed(self) -> int:
        """Number of observed numbers."""
        return 0 if self.mask is None else int(self.mask.sum())

    def __repr__(self) -> str:
        kind = "question" if self.values is None else f"{self.num_observed} observed numbers"
        first, last = self.grid.min().item(), self.grid.max().item()
        return (
            f"Trajectories({self.num_series} series x {self.times.shape[-1]} times in "
            f"[{first:g}, {last:g}], {kind}, names={list(self.names)})"
        )

    def positions(self, series: Sequence[str | int]) -> Tensor:
        """Rows of these labels, shape (len(series),).

        Raises:
            DataError: If a label is unknown.
        """
        rows, labels = {label: row for row, label in enumerate(self.series)}, as_list(series)
        unknown = [x for x in labels if not (isinstance(x, Hashable) and x in rows)]
        if unknown:
            known = ", ".join(map(repr, self.series[:8])) + (", ..." if self.num_series > 8 else "")
            raise DataError(f"unknown series {unknown[0]!r}; the known ones are {known}.")
        found = [rows[label] for label in labels]
        return torch.tensor(found, dtype=torch.long, device=self.start.device)

    # ---- other times, other rows -----------------------------------------------------------------
    def at(self, times: Any, num_times: Any = None) -> Trajectories:
        """A question about the same series, from the same starts, at other times.

        Args:
            times: Shape (time,) or (series, time); or other trajectories, whose times and series
                are taken (their labels must be known here).
            num_times: As in the constructor.
        """
        if isinstance(times, Trajectories):
            rows = self.rows(self.positions(times.series))
            return rows.at(times.times, times.num_times)
        question = Trajectories(
            times,
            None,
            series=self.series,
            names=self.names,
            start=self.start,
            inputs=self.inputs,
            num_times=num_times,
        )
        return question.to(self.start.device)._set(index=self.index, num_total=self.num_total)

    def rows(self, index: Any) -> Trajectories:
        """Some of the series, as a data set of its own.

        Args:
            index: Their positions in the order that you want, or a mask, shape (series,).
        """
        chosen = self.batch(index)
        fresh = torch.arange(chosen.num_series, device=chosen.start.device)
        return chosen._set(index=fresh, num_total=chosen.num_series)

    def batch(self, index: Any) -> Trajectories:
        """A minibatch of series: the rows `index` of `num_total`, so that likelihoods scale.

        Args:
            index: Positions of the series, none twice, or a mask, shape (series,).
        """
        index = check_rows(index, self.num_series, self.start.device)
        fields = {
            name: None if value is None else value[index]
            for name, value in (("values", self.values), ("mask", self.mask))
        }
        return copy.copy(self)._set(
            **fields,
            times=self.times if self.times.dim() == 1 else self.times[index],
            num_times=self.num_times[index],
            start=self.start[index],
            series=tuple(self.series[row] for row in index.tolist()),
            inputs=None if self.inputs is None else self.inputs.rows(index),
            index=self.index[index],
        )

    def plate(self) -> pyro.plate:
        """The plate over series, with the rows and the scale of this batch."""
        return pyro.plate("trajectories", self.num_total, subsample=self.index, dim=-1)

    def until(self, duration: float) -> Trajectories:
        """The same series up to `duration` after each one's start.

        Raises:
            DataError: If no series has a point so early.
        """
        last = self.start[:, None] + as_number("duration", duration)
        count = (self.grid <= last).sum(-1).minimum(self.num_times)
        if not count.any():
            raise DataError(f"until({duration:g}) leaves no point of {self!r}.")
        kept = self._window(torch.zeros_like(count), count.clamp_min(1))
        if kept.mask is not None:  # a series without a point so early keeps one that is masked
            seen = (count > 0).view(-1, *[1] * (kept.mask.dim() - 1))
            kept._set(mask=kept.mask & seen)
        return kept

    def split(
        self,
        *,
        time: float | None = None,
        series: float | Sequence[str | int] | None = None,
        seed: int = 0,
    ) -> tuple[Trajectories, Trajectories]:
        """Two parts: by time (up to and including `time`, and after it) or by series.

        Args:
            time: Times <= `time` are the first part. Both parts keep the starts. A series without
                a point in a part is left out of that part; a warning lists those that the first
                part, the training data, lacks.
            series: Labels of the second part, or the fraction of series that go there, in (0, 1).
            seed: Decides which series a fraction takes.

        Raises:
            DataError: If a part would be empty.
        """
        if (time is None) == (series is None):
            raise DataError("split by either time= or series=, for example split(time=1914).")
        if time is not None:
            return self._split_time(as_number("time", time))
        if isinstance(series, float):
            chosen = self._fraction(series, seed)
        else:
            chosen = self.positions(series)  # type: ignore[arg-type]
        is_chosen = torch.zeros(self.num_series, dtype=torch.bool, device=self.start.device)
        is_chosen[chosen] = True
        if is_chosen.all() or not is_chosen.any():
            raise DataError(f"split(series={series!r}) leaves one part without a series: {self!r}.")
        return self.rows(~is_chosen), self.rows(is_chosen)

    def _split_time(self, time: float) -> tuple[Trajectories, Trajectories]:
        count = (self.grid <= time).sum(-1).minimum(self.num_times)
        before, after = count > 0, count < self.num_times
        if not before.any() or not after.any():
            raise DataError(f"split(time={time}) leaves one part without a point: {self!r}.")
        if not before.all():
            late = [label for label, known in zip(self.series, before, strict=True) if not known]
            warnings.warn(
                f"series without a point up to {time} are not in the first part: {late}.",
                stacklevel=3,
            )
        first = self._window(torch.zeros_like(count), count, before)
        return first, self._window(count, self.num_times, after)

    def _fraction(self, fraction: float, seed: int) -> Tensor:
        if not 0 < fraction < 1:
            raise DataError(f"a fraction of the series lies between 0 and 1, not {fraction}.")
        order = torch.randperm(self.num_series, generator=torch.Generator().manual_seed(seed))
        return order[: min(max(1, round(fraction * self.num_series)), self.num_series - 1)]

    def _window(self, first: Tensor, last: Tensor, is_kept: Tensor | None = None) -> Trajectories:
        """Times first <= k < last of each series, for the series that are kept."""
        rows = torch.arange(self.num_series, device=first.device)
        rows = rows if is_kept is None else rows[is_kept]
        first, last = first[rows], last[rows]
        count = last - first
        steps = torch.arange(int(count.max()), device=first.device)
        index = (first[:, None] + steps).minimum(last[:, None] - 1)
        is_shared = self.times.dim() == 1 and bool(
            (first == first[0]).all() & (last == last[0]).all()
        )
        mask = None
        if self.mask is not None:
            real = (steps < count[:, None]).view(*index.shape, *[1] * len(self.event_shape))
            mask = self.mask[rows[:, None], index] & real
        chosen = copy.copy(self) if is_kept is None else self.rows(rows)
        return chosen._set(
            times=self.times[index[0]] if is_shared else self.grid[rows[:, None], index],
            values=None if self.values is None else self.values[rows[:, None], index],
            mask=mask,
            num_times=count,
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Trajectories:
        """The same data on another device or with values of another dtype (times stay float64)."""
        if isinstance(device, torch.dtype) or not (dtype is None or dtype.is_floating_point):
            raise DataError(f"to({device}, dtype={dtype}): the dtype is named, and a floating one.")
        moved = {
            name: None if value is None else value.to(device)
            for name, value in (("times", self.times), ("mask", self.mask), ("start", self.start))
        }
        return copy.copy(self)._set(
            **moved,
            values=None if self.values is None else self.values.to(device=device, dtype=dtype),
            num_times=self.num_times.to(device),
            index=self.index.to(device),
            inputs=None if self.inputs is None else self.inputs.to(device=device, dtype=dtype),
        )

    # ---- tables ----------------------------------------------------------------------------------
    @classmethod
    def from_dataframe(
        cls,
        table: Any,
        *,
        time: str,
        values: Sequence[str],
        series: str | None = None,
        start: Any = None,
    ) -> Trajectories:
        """Trajectories from a tidy table with one row per series and time.

        Args:
            table: A pandas DataFrame; empty cells are missing values; rows in any order.
            time: Name of the column of times.
            values: Names of the columns that become the components, values in the default dtype.
            series: Name of the column of labels; None if the table holds one series.
            start: As in the constructor.

        Raises:
            DataError: For an unknown column, text where numbers belong, or repeated times.
        """
        columns = tabular.series_arrays(table, time=time, values=as_list(values), series=series)
        times, observed = columns.pop("times"), columns.pop("values")
        if (times == times[0]).all():
            times = times[0]
        values_tensor = torch.from_numpy(observed).to(torch.get_default_dtype())
        return cls(times, values_tensor, start=start, **columns)

    @classmethod
    def from_csv(
        cls, path: str | Path, *, comment: str | None = "#", **columns: Any
    ) -> Trajectories:
        """`from_dataframe` of a CSV file; lines that begin with `comment` are skipped."""
        return cls.from_dataframe(tabular.read_csv(path, comment), **columns)

    def to_xarray(self) -> Any:
        """An xarray data set; missing values are NaN and `observed` is the mask."""
        if self.values is None or self.mask is None:
            raise DataError("a question has no values to export; export the observed data.")
        return tabular.to_dataset(
            values=torch.where(self.mask, self.values, torch.nan).cpu().numpy(),
            observed=self.mask.cpu().numpy(),
            times=self.times.cpu().numpy(),
            start=self.start.cpu().numpy(),
            num_times=self.num_times.cpu().numpy(),
            series=self.series,
            names=self.names,
            static=None if self.inputs is None else self.inputs.static.cpu().numpy(),
            features=None if self.inputs is None else self.inputs.names,
        )

    @classmethod
    def from_xarray(cls, data: Any) -> Trajectories:
        """Trajectories from what `to_xarray` writes.

        Raises:
            DataError: If a variable is missing.
        """
        arrays = tabular.from_dataset(data)
        static, features = arrays.pop("static"), arrays.pop("features")
        return cls(**arrays, inputs=None if static is None else Inputs(static, features))
