"""The checks at the border of `Trajectories`: one clear error for whatever cannot be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from bayesode.errors import DataError, ShapeError
from torch import Tensor


def shape_of(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def as_floating(name: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} cannot be read as an array of numbers: {error}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise DataError(f"{name} must be real numbers, not {tensor.dtype}.")
    if name == "times":
        # a list of Python floats would be rounded to the default dtype
        return tensor if torch.is_tensor(value) else torch.from_numpy(np.asarray(value, float))
    wide = tensor.dtype in (torch.float32, torch.float64)
    return tensor if wide else tensor.to(torch.get_default_dtype())


def count_series(times: Tensor, values: Tensor | None, series: Any, start: Any) -> int:
    if times.dim() not in (1, 2) or times.shape[-1] == 0:
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
    if times.dim() == 2:
        return times.shape[0]
    if values is not None:
        return values.shape[0]
    return (
        len(series)
        if series is not None
        else torch.as_tensor(start if start is not None else 0).numel()
    )


def check_labels(series: Any, num_series: int) -> tuple[str | int, ...]:
    if series is None:
        return tuple(range(num_series))
    plain = series.tolist() if hasattr(series, "tolist") else list(series)
    if len(plain) != num_series:
        raise ShapeError(f"{len(plain)} labels for {num_series} series.")
    repeated = (
        {label for label in plain if plain.count(label) > 1}
        if len(set(plain)) < len(plain)
        else set()
    )
    if repeated:
        raise DataError(
            f"series label {sorted(map(str, repeated))[0]!r} is repeated; labels must be unique."
        )
    return tuple(plain)


def check_times(
    times: Tensor, num_times: Any, series: Sequence[str | int]
) -> tuple[Tensor, Tensor]:
    length = times.shape[-1]
    if not torch.isfinite(times).all():
        raise DataError(
            "times hold NaN or infinity; drop those rows (a missing *value* may be NaN, a time may "
            "not; series of different lengths are padded with num_times=)."
        )
    grid = times.expand(len(series), length)
    if num_times is None:
        count = torch.full((len(series),), length, device=times.device)
    else:
        count = (
            torch.as_tensor(num_times, device=times.device)
            .to(torch.long)
            .expand(len(series))
            .clone()
        )
        if count.min() < 1 or count.max() > length:
            raise ShapeError(f"num_times must lie between 1 and {length}, the number of times.")
    steps = torch.arange(1, length, device=times.device)
    is_wrong = (grid.diff(dim=-1) <= 0) & (steps < count[:, None])
    if is_wrong.any():
        row, step = (int(i) for i in is_wrong.nonzero()[0])
        before, after = grid[row, step].item(), grid[row, step + 1].item()
        how = "repeated" if before == after else "not sorted"
        raise DataError(
            f"times of series {series[row]!r} are {how}: {before:.10g} is followed by {after:.10g}"
            ". Sort them, merge repeated times, and give num_times= if the end is padding."
        )
    if bool((count == length).all()):
        return times, count
    last = grid.gather(1, count[:, None] - 1)
    return torch.where(
        torch.arange(length, device=times.device) < count[:, None], grid, last
    ), count


def check_start(start: Any, times: Tensor, series: Sequence[str | int]) -> Tensor:
    first = times.expand(len(series), times.shape[-1])[:, 0]
    if start is None:
        return first.clone()
    given = as_floating("start", start).to(times.device, torch.float64)
    if given.dim() > 1 or given.numel() not in (1, len(series)):
        raise ShapeError(
            f"start needs one number or one per series ({len(series)}), not {shape_of(given)}."
        )
    given = given.reshape(-1).expand(len(series)).clone()
    is_wrong = ~(given <= first)
    if is_wrong.any():
        row = int(is_wrong.nonzero()[0])
        raise DataError(
            f"series {series[row]!r} is asked at {first[row].item():.10g}, before its start "
            f"{given[row].item():.10g}; the model says nothing about earlier times. Drop those "
            "times or build the data with an earlier start=."
        )
    return given


def check_mask(values: Tensor, mask: Any, num_times: Tensor) -> Tensor:
    if torch.isinf(values).any():
        raise DataError("values hold infinity; mark missing values by NaN or mask=.")
    steps = torch.arange(values.shape[1], device=values.device)
    real = (steps < num_times[:, None].to(values.device)).view(
        *values.shape[:2], *[1] * (values.dim() - 2)
    )
    observed = ~torch.isnan(values) & real
    if mask is None:
        return observed
    given = torch.as_tensor(mask, device=values.device)
    if given.dtype != torch.bool:
        raise DataError(f"mask must be boolean (True = observed), not {given.dtype}.")
    if given.shape == values.shape[:2]:
        given = given.view(*given.shape, *[1] * (values.dim() - 2))
    elif given.shape != values.shape:
        raise ShapeError(
            f"mask needs the shape {shape_of(values)} or {tuple(values.shape[:2])}, not "
            f"{shape_of(given)}."
        )
    return observed & given


def check_names(names: Any, values: Tensor | None) -> tuple[str, ...]:
    names = tuple(names or ())
    if values is None:
        return names
    size = values.shape[2] if values.dim() == 3 else 0
    if names and len(names) != size:
        raise ShapeError(f"{len(names)} names for values of shape {shape_of(values)}.")
    if len(set(names)) < len(names):
        raise DataError(f"names must be unique, not {list(names)}.")
    return names or tuple(f"x{i + 1}" for i in range(size))
