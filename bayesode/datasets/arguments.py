"""What a simulation is asked for, checked: times, noise and missing entries."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Generator, Tensor

from bayesode.data_checks import as_floating, shape_of
from bayesode.errors import DataError, ShapeError


def choose_times(
    times: Any, num_series: int, num_times: int, horizon: float, generator: Generator
) -> Tensor:
    """Times of observation, float64, shape (time,) if all series share them, else (series, time).

    Args:
        times: None, "regular", "irregular" or times of the user's own.
        num_series: Number of series.
        num_times: Number of times of each series, unless the times are the user's own.
        horizon: Last time, likewise.
        generator: Draws irregular times.

    Raises:
        DataError: For arguments out of range. Times of one's own are left to `Trajectories`.
        ShapeError: If times of one's own have a row for another number of series.

    Example:
        >>> choose_times("regular", 1, 3, 10.0, Generator()).tolist()
        [0.0, 5.0, 10.0]
    """
    if times is not None and not isinstance(times, str):
        own = as_floating("times", times).detach().to("cpu", torch.float64)
        if own.dim() == 2 and len(own) != num_series:
            raise ShapeError(
                f"times {shape_of(own)} are for {len(own)} series, but num_series={num_series}; "
                f"pass num_series={len(own)} or times of shape (time,)."
            )
        return own
    if not isinstance(horizon, Real) or not 0 < horizon < float("inf"):
        raise DataError(f"horizon is the last time, a positive finite number, not {horizon!r}.")
    check_whole("num_times", num_times, least=2)
    if times in (None, "regular"):
        return torch.linspace(0.0, horizon, num_times, dtype=torch.float64)
    if times != "irregular":
        raise DataError(
            f"times must be 'regular', 'irregular' or numbers of shape (time,) or (series, time), "
            f"not {times!r}."
        )
    inner = torch.rand(num_series, num_times - 2, generator=generator, dtype=torch.float64)
    first = torch.zeros(num_series, 1, dtype=torch.float64)
    return torch.cat([first, horizon * inner.sort(-1).values, first + horizon], -1)


def noise_scales(noise_scale: Any, dim: int) -> Tensor:
    """Standard deviation of the noise of each component, float64, shape (dim,).

    Raises:
        DataError: If it is negative, not finite or no number.
        ShapeError: If it is neither one number nor one per component.

    Example:
        >>> noise_scales(0.5, 2).tolist()
        [0.5, 0.5]
    """
    try:
        scale = torch.as_tensor(noise_scale, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"noise_scale must be one number or one per component: {error}") from error
    if scale.shape not in (torch.Size([]), torch.Size([dim])):
        raise ShapeError(f"noise_scale needs one number or {dim}, not {shape_of(scale)}.")
    if not (torch.isfinite(scale) & (scale >= 0)).all():
        raise DataError(f"noise_scale is a standard deviation, at least 0, not {scale.tolist()}.")
    return scale.expand(dim).clone()


def choose_missing(shape: torch.Size, fraction: float, generator: Generator) -> Tensor:
    """Which entries are missing, completely at random; a larger fraction only adds to them.

    Args:
        shape: (series, ...).
        fraction: Of all entries, in [0, 1), rounded to a whole number of them.
        generator: Draws which.

    Returns:
        True where missing, of the given shape; every series keeps at least one entry.

    Raises:
        DataError: If the fraction lies outside [0, 1).

    Example:
        >>> choose_missing(torch.Size([2, 10]), 0.3, Generator()).sum().item()
        6
    """
    if not isinstance(fraction, Real) or not 0 <= fraction < 1:
        raise DataError(f"missing is a fraction, at least 0 and below 1, not {fraction!r}.")
    rank = torch.rand(shape, generator=generator, dtype=torch.float64).flatten(1)
    rank.scatter_(1, rank.argmax(1, keepdim=True), torch.inf)  # the one that every series keeps
    num_missing = min(round(fraction * rank.numel()), rank.numel() - len(rank))
    chosen = torch.zeros(rank.numel(), dtype=torch.bool)
    chosen[rank.flatten().argsort()[:num_missing]] = True
    return chosen.view(shape)


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """Refuse what is not a whole number or is below the least.

    Raises:
        DataError: Then.

    Example:
        >>> check_whole("num_times", 50, least=2)
    """
    if not isinstance(value, Integral) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise DataError(f"{name} must be a whole number{bound}, not {value!r}.")
