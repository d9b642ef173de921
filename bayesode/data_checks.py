"""The checks at the border of `Trajectories`: one clear error for whatever cannot be right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesode.errors import DataError, ShapeError

EXACT = ("times", "start")  # float64 always: float32 cannot hold seconds since 1970


def shape_of(tensor: Tensor) -> str:
    """The shape as a message shows it."""
    return str(tuple(tensor.shape))


# ---- numbers, masks, lists -----------------------------------------------------------------------
def as_numbers(name: str, value: Any) -> Tensor:
    """A copy of real numbers as a dense tensor, which nobody else can change later."""
    if torch.is_tensor(value):
        if value.layout != torch.strided or value.is_meta:
            raise DataError(f"{name} must be a dense tensor; take .to_dense() of a sparse one.")
        if value.is_complex() or value.dtype == torch.bool:
            raise DataError(f"{name} must be real numbers, not {value.dtype}.")
        return value.detach().clone()
    if isinstance(value, np.ma.MaskedArray):  # numpy drops its mask without a word
        value = np.ma.filled(value.astype(np.result_type(value, np.float32)), np.nan)
    array = as_array(name, value)
    if array.dtype.kind not in "fiu":
        raise DataError(
            f"{name} must be real numbers, not {array.dtype}; convert text, dates and other "
            f"objects first{', with NaN where one is missing' if name == 'values' else ''}."
        )
    dtype = np.int64 if array.dtype.kind in "iu" else f"f{min(array.dtype.itemsize, 8)}"
    return torch.from_numpy(array.astype(dtype))


def as_array(name: str, value: Any) -> np.ndarray:
    """A copy as a numpy array of any type."""
    try:
        return np.array(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} cannot be read as an array of numbers: {error}") from error


def is_boolean(array: Tensor | np.ndarray) -> bool:
    """Whether the entries are truth values."""
    return array.dtype in (torch.bool, np.dtype(bool))


def as_floating(name: str, value: Any) -> Tensor:
    """Times in float64; else float32 and float64 stay and all others get the default dtype."""
    numbers = as_numbers(name, value)
    if name in EXACT:
        return numbers.to(torch.float64)
    first = value[0] if isinstance(value, list | tuple) and value else value
    is_wide = numbers.dtype in (torch.float32, torch.float64) and hasattr(first, "dtype")
    return numbers if is_wide else numbers.to(torch.get_default_dtype())


def as_whole(name: str, value: Any) -> Tensor:
    """Whole numbers, int64."""
    numbers = as_numbers(name, value)
    if numbers.is_floating_point() and not (numbers == numbers.round()).all():
        raise DataError(f"{name} must be whole numbers, not {numbers.tolist()}.")
    return numbers.to(torch.long)


def as_number(name: str, value: Any) -> float:
    """One number; infinity is one."""
    numbers = as_numbers(name, value)
    if numbers.numel() != 1 or torch.isnan(numbers).any():
        raise DataError(f"{name} must be one number, not {value!r}.")
    return float(numbers)


def check_positive(**numbers: Any) -> None:
    """Refuse settings that are no positive, finite numbers."""
    for name, number in numbers.items():
        if not isinstance(number, Real) or not 0 < float(number) < math.inf:
            raise DataError(f"{name} must be a positive number, not {number!r}.")


def check_from_zero(**numbers: Any) -> None:
    """Refuse settings that are negative, infinite or no numbers."""
    for name, number in numbers.items():
        if not isinstance(number, Real) or not 0 <= float(number) < math.inf:
            raise DataError(f"{name} must be a number from 0 on, not {number!r}.")


def check_size(**numbers: Any) -> None:
    """Refuse sizes that are no positive whole numbers."""
    for name, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
            raise DataError(f"{name} must be a positive whole number, not {number!r}.")


def as_list(value: Any) -> list[Any]:
    """The items of a list, array or tensor of labels; a string or number alone is one item."""
    plain: Any = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, str) or not isinstance(plain, Iterable):
        plain = [plain]
    return [item.item() if hasattr(item, "item") else item for item in plain]


# ---- the fields of `Trajectories` ----------------------------------------------------------------
def count_series(times: Tensor, values: Tensor | None, series: Any, start: Any) -> int:
    """Number of series, once the shapes of times and values are right."""
    if times.dim() not in (1, 2) or 0 in times.shape:
        raise ShapeError(
            f"times need the shape (time,) or (series, time) with at least one time, not "
            f"{shape_of(times)}."
        )
    if values is not None and (values.dim() < 3 or 0 in values.shape):
        raise ShapeError(
            f"values need the shape (series, time, component) with no empty axis, not "
            f"{shape_of(values)}. One series alone is values.unsqueeze(0); one component alone is "
            "values.unsqueeze(-1)."
        )
    if values is not None:
        num_series = times.shape[0] if times.dim() == 2 else values.shape[0]
        if values.shape[:2] != (num_series, times.shape[-1]):
            raise ShapeError(
                f"values need the shape (series, time, ...) = ({num_series}, {times.shape[-1]}, "
                f"...) to go with times {shape_of(times)}, not {shape_of(values)}. One series "
                "alone is values.unsqueeze(0); one component alone is values.unsqueeze(-1)."
            )
        return num_series
    if times.dim() == 2:
        return times.shape[0]
    if series is not None:
        return len(as_list(series))
    return 1 if start is None else as_floating("start", start).numel()


def check_labels(series: Any, num_series: int) -> tuple[str | int, ...]:
    """Unique labels; 0, 1, ... by default."""
    labels = list(range(num_series)) if series is None else as_list(series)
    if len(labels) != num_series:
        raise ShapeError(f"{len(labels)} labels for {num_series} series; each series needs one.")
    for label in labels:
        is_number = isinstance(label, int | float) and not isinstance(label, bool)
        if not isinstance(label, str) and not (is_number and math.isfinite(label)):
            raise DataError(f"series labels must be strings or numbers, not {label!r}; take str().")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        raise DataError(f"series label {repeated[0]!r} is repeated; labels must be unique.")
    return tuple(labels)


def check_times(
    times: Tensor, num_times: Any, series: Sequence[str | int]
) -> tuple[Tensor, Tensor]:
    """Increasing times whose padding repeats the last one, and how many of each series are real."""
    length, num_series = times.shape[-1], len(series)
    count = torch.tensor(length) if num_times is None else as_whole("num_times", num_times)
    if count.dim() > 1 or count.numel() not in (1, num_series):
        raise ShapeError(
            f"num_times needs one number or one per series ({num_series}), not {shape_of(count)}."
        )
    if count.min() < 1 or count.max() > length:
        raise ShapeError(f"num_times must lie between 1 and {length}, the number of times.")
    count = count.to(times.device).reshape(-1).expand(num_series).clone()
    grid, steps = times.expand(num_series, length), torch.arange(length, device=times.device)
    is_real = steps < count[:, None]
    if not torch.isfinite(grid[is_real]).all():
        raise DataError(
            "times hold NaN or infinity; drop those rows (a missing *value* may be NaN, a time may "
            "not; series of different lengths are padded with num_times=)."
        )
    is_wrong = (grid.diff(dim=-1) <= 0) & is_real[:, 1:]
    if is_wrong.any():
        row, step = (int(i) for i in is_wrong.nonzero()[0])
        before, after = grid[row, step].item(), grid[row, step + 1].item()
        how = "repeated" if before == after else "not sorted"
        raise DataError(
            f"times of series {series[row]!r} are {how}: {before} is followed by {after}"
            ". Sort them, merge repeated times, and give num_times= if the end is padding."
        )
    if is_real.all():
        return times, count
    return torch.where(is_real, grid, grid.gather(1, count[:, None] - 1)), count


def check_start(start: Any, times: Tensor, series: Sequence[str | int]) -> Tensor:
    """Starts (series,), none after the series' first time."""
    first = times.expand(len(series), times.shape[-1])[:, 0]
    if start is None:
        return first.clone()
    given = as_floating("start", start).to(times.device)
    if given.dim() > 1 or given.numel() not in (1, len(series)):
        raise ShapeError(
            f"start needs one number or one per series ({len(series)}), not {shape_of(given)}."
        )
    if not torch.isfinite(given).all():
        raise DataError("start holds NaN or infinity; leave it out to begin at the first times.")
    given = given.reshape(-1).expand(len(series)).clone()
    is_wrong = given > first
    if is_wrong.any():
        row = int(is_wrong.nonzero()[0])
        raise DataError(
            f"series {series[row]!r} is asked at {first[row].item()}, before its start "
            f"{given[row].item()}; the model says nothing about earlier times. Drop those "
            "times or build the data with an earlier start=."
        )
    return given


def check_mask(values: Tensor, mask: Any, num_times: Tensor) -> Tensor:
    """What is observed, shaped like values: neither masked, nor NaN, nor padding."""
    steps = torch.arange(values.shape[1], device=values.device)
    real = (steps < num_times[:, None].to(values.device)).view(
        *values.shape[:2], *[1] * (values.dim() - 2)
    )
    observed = ~torch.isnan(values) & real
    if mask is not None:
        plain = mask if torch.is_tensor(mask) else as_array("mask", mask)
        if not is_boolean(plain):
            raise DataError(f"mask must be boolean (True = observed), not {plain.dtype}.")
        given = torch.as_tensor(plain)
        if given.shape == values.shape[:2]:
            given = given.view(*given.shape, *[1] * (values.dim() - 2))
        elif given.shape != values.shape:
            raise ShapeError(
                f"mask needs the shape {shape_of(values)} or {tuple(values.shape[:2])}, not "
                f"{shape_of(given)}."
            )
        observed = observed & given.to(values.device)
    if torch.isinf(values[observed]).any():
        raise DataError("values hold infinity; mark missing values by NaN or mask=.")
    return observed


def check_names(names: Any, values: Tensor | None) -> tuple[str, ...]:
    """Unique names of the components; x1, x2, ... by default."""
    names = () if names is None else tuple(str(name) for name in as_list(names))
    if len(set(names)) < len(names):
        raise DataError(f"names must be unique, not {list(names)}.")
    if values is None:
        return names
    size = values.shape[2] if values.dim() == 3 else 0
    if names and len(names) != size:
        raise ShapeError(
            f"{len(names)} names for values of shape {shape_of(values)}; values (series, time, "
            "component) take one per component, others none."
        )
    return names or tuple(f"x{i + 1}" for i in range(size))


def check_rows(index: Any, num_series: int, device: torch.device) -> Tensor:
    """Positions of series, int64: a list, array or tensor of them, or a mask over all series."""
    plain = index if torch.is_tensor(index) else as_array("index", index)
    if is_boolean(plain) and tuple(plain.shape) == (num_series,):
        rows = torch.as_tensor(plain).nonzero().flatten()
    else:
        rows = as_whole("index", index)
    if rows.dim() != 1 or len(rows) == 0:
        raise ShapeError(f"index needs the shape (series,) and an entry, not {shape_of(rows)}.")
    if rows.min() < -num_series or rows.max() >= num_series:
        raise DataError(f"index must lie between 0 and {num_series - 1}, not {rows.tolist()}.")
    rows = torch.where(rows < 0, rows + num_series, rows).to(device)
    if len(rows.unique()) < len(rows):
        raise DataError("index names a series twice; labels must be unique.")
    return rows
