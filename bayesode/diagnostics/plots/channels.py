"""Many channels over time: what is predicted from a few frames, and what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bayesode.data_checks import as_list, check_size, shape_of
from bayesode.diagnostics.plots.style import (
    LINE,
    STYLE,
    TEST,
    TRAIN,
    add_legend,
    array,
    draw_bands,
    follow_data,
    new_panels,
    series_title,
)
from bayesode.errors import DataError, ShapeError
from bayesode.inference.ensemble import Ensemble
from bayesode.trajectories import Trajectories

MAX_CHANNELS, MAX_SERIES = 6, 3  # rows and columns that can be read on a page
INNER = 0.5  # probability of the narrow band
LEAST_SD = 1e-6  # of the channel's size or the largest sd: below is a constant and its rounding
WIDTH, LEFT, HEIGHT, TOP = 2.1, 0.7, 0.85, 0.9  # inches: panels, and what is beside them


def channel_panel(
    ensemble: Ensemble,
    truth: Trajectories,
    *,
    channels: Sequence[str | int] | None = None,
    series: Sequence[str | int] | None = None,
    given: int | None = None,
    level: float = 0.9,
) -> Figure:
    """A forecast of many channels beside the truth: one row per channel, one column per series.

    The mean, the bands of the values (with noise) and the truth, in raw units; the frames that were
    given are dots. Rows share their vertical axis, columns their times. Failed draws are left out;
    titles tell their share. For dots, draws and where training ends take `fan_chart`. There is no
    stick figure of a walk: files of `motion_capture` name no joints, so nobody can place its limbs.

    Args:
        ensemble: Predicted vectors, values (draws, series, time, channel).
        truth: What came, at any times; its masked numbers are not shown.
        channels: Names or positions (from 0) of the channels to show. By default the six at most
            that vary most in the truth of the shown series, in raw units, but no constant one.
        series: Labels of the series to show, by default the first three of the truth.
        given: How many of the truth's first frames the model read; None marks none.
        level: Probability of the wide band; the narrow one has a half.

    Raises:
        ShapeError: If values are no vectors, or the truth has other channels.
        DataError: For an unknown channel or series, no channel that varies, a truth without values
            or with fewer frames than are given, or a level that is no probability.

    Example:
        >>> import bayesode as bo
        >>> train, test = bo.datasets.lorenz(num_series=3, num_times=12).observed.split(series=[2])
        >>> model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)
        >>> forecast = posterior.condition(test.until(0.2)).predict(test, num_draws=20, seed=0)
        >>> figure = channel_panel(forecast, test, channels=["x", "z"], given=2)
        >>> [panel.get_ylabel() for panel in figure.axes]
        ['x', 'z']
    """
    _check(ensemble, truth, given, level)
    labels = list(truth.series[:MAX_SERIES] if series is None else as_list(series))
    if not labels:
        raise DataError("there is no series to show: series is empty.")
    rows, known = ensemble.trajectories.positions(labels), truth.rows(truth.positions(labels))
    chosen = _most_varied(known) if channels is None else _positions(known.names, channels)
    widths = sorted({level, INNER}, reverse=True)
    tails = [(1 - width) / 2 for width in widths]
    bands = ensemble.quantile([*tails, *(1 - tail for tail in tails[::-1])])[:, rows]
    parts = bands, ensemble.mean[rows], _seen(known)
    bands, mean, seen = (array(part[..., chosen]) for part in parts)
    with rc_context(STYLE):
        inches = WIDTH * len(labels) + LEFT, HEIGHT * len(chosen) + TOP
        figure, panels = new_panels(None, len(chosen), len(labels), inches)
        for (row, column), panel in np.ndenumerate(panels):
            count = ensemble.trajectories.num_times[rows[column]]
            times = array(ensemble.trajectories.grid[rows[column], :count])
            draw_bands(panel, times, bands[:, column, :count, row], widths)
            _draw_mean(panel, times, mean[column, :count, row])
            _draw_truth(panel, array(known.grid[column]), seen[column, :, row], given)
        for row, k in enumerate(chosen):
            panels[row, 0].set_ylabel(known.names[k])
            follow_data(panels[row], list(seen[..., row]), bands[..., row], ensemble.transform)
        for column, label in enumerate(labels):
            panels[0, column].set_title(series_title(label, ~ensemble.failed[:, rows[column]]))
            panels[-1, column].set_xlabel("time")
        figure.align_ylabels(panels[:, 0])
        add_legend(figure, panels, is_own=True)
    return figure


def _seen(data: Trajectories) -> Tensor:
    """Values, NaN where nothing was observed."""
    return torch.where(data.mask, data.values, torch.nan)  # type: ignore[arg-type]


def _draw_mean(panel: Axes, times: np.ndarray, mean: np.ndarray) -> None:
    look: dict[str, Any] = {"c": LINE, "marker": "_" if len(times) == 1 else None}
    panel.plot(times, mean, lw=1, label="mean", **look)


def _draw_truth(panel: Axes, times: np.ndarray, seen: np.ndarray, given: int | None) -> None:
    """A thin line that breaks where nothing was seen, and dots where the model read it."""
    panel.plot(times, seen, c=TEST["c"], lw=0.7, label="truth")
    is_seen = np.pad(np.isfinite(seen), 1)
    is_alone = is_seen[1:-1] & ~is_seen[:-2] & ~is_seen[2:]  # no line goes there
    panel.plot(times[is_alone], seen[is_alone], c=TEST["c"], ls="", marker="o", ms=1)
    if given is not None:
        look: dict[str, Any] = TRAIN | {"label": "given frames", "zorder": 3}
        panel.plot(times[:given], seen[:given], ls="", **look)


def _check(ensemble: Ensemble, truth: Trajectories, given: int | None, level: float) -> None:
    if len(ensemble.event_shape) != 1:
        raise ShapeError(
            "channels are of values (draws, series, time, channel); these have events of shape "
            f"{tuple(ensemble.event_shape)}: take frame_rows(ensemble, data) for images."
        )
    if truth.values is None:
        raise DataError("the truth to show needs values; this is a question without values.")
    if truth.event_shape != ensemble.event_shape:
        raise ShapeError(
            f"{ensemble.event_shape[0]} channels are predicted, the truth has "
            f"{shape_of(truth.values)}."
        )
    if not 0 < level < 1:
        raise DataError(f"level is a probability between 0 and 1, not {level!r}.")
    if given is not None:
        check_size(given=given)
        least = int(truth.num_times.min())
        if given > least:
            raise DataError(f"given={given} frames were read, and the truth has {least}.")


def _most_varied(known: Trajectories) -> list[int]:
    """Positions of the channels of the largest variance, in their order; no constant one."""
    flat = _seen(known).flatten(0, 1).double()
    mean = flat.nanmean(0)
    sd = (flat - mean).square().nanmean(0).sqrt().nan_to_num(0.0)
    size = mean.abs().nan_to_num(0.0).maximum(sd.max())
    varied = sd > LEAST_SD * size
    if not varied.any():
        raise DataError("no channel varies in these series; name those to show by channels=.")
    largest = sd.masked_fill(~varied, -1.0).topk(min(MAX_CHANNELS, int(varied.sum()))).indices
    return sorted(largest.tolist())


def _positions(names: tuple[str, ...], channels: Sequence[str | int]) -> list[int]:
    """Positions of the channels that were asked for, in that order."""
    known: dict[Any, int] = {name: k for k, name in enumerate(names)}
    known |= {k: k for k in range(len(names))}
    asked = as_list(channels)
    # of a list: what cannot be hashed is unknown too
    unknown = [channel for channel in asked if channel not in list(known)]
    if unknown or not asked:
        shown = ", ".join(map(repr, names[:4])) + (", ..." if len(names) > 4 else "")
        raise DataError(
            f"there is no channel {', '.join(map(repr, unknown)) or 'to show: channels is empty'}; "
            f"the {len(names)} channels are {shown}, or their positions from 0."
        )
    return [known[channel] for channel in asked]
