"""Videos: what was seen, what the model says, and how sure it is, frame by frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from bayesode import scores
from bayesode.diagnostics.plots.style import (
    FOLLOWED,
    STYLE,
    TEST,
    add_legend,
    array,
    horizon_of,
    series_title,
)
from bayesode.errors import DataError, ShapeError
from bayesode.inference.ensemble import Ensemble
from bayesode.trajectories import Trajectories

PAGE, SMALLEST, LARGEST = 7.2, 0.3, 0.6  # inches: width of a page, sides of a frame
LEFT, RIGHT, TOP, BOTTOM, TITLE, BETWEEN = 0.45, 0.8, 0.3, 0.4, 0.24, 0.03  # inches
TICKS = 0.16  # inches below every sequence where they have times of their own
LONGEST_BAR = 2.0  # inches
GAP = 0.1  # of a frame, between frames
MOST_LABELS = 16  # times that can be read side by side
SD_COLOURS = colormaps["magma"]


def frame_rows(
    ensemble: Ensemble,
    data: Trajectories,
    *,
    series: Sequence[str | int] | None = None,
    num_series: int = 4,
    every: int = 1,
    of: str = "values",
) -> Figure:
    """Three rows per sequence: the data, the predicted mean, and the standard deviation of a pixel.

    Frames that were hidden from the fit (masked in `data`) have an orange border in data and mean;
    frames that are missing are blank. The predicted frames after the last one that the fit saw,
    the forecast, lie in a green box. Failed draws are left out; titles tell their share.

    Args:
        ensemble: Predicted images, events (height, width) or (channels, height, width) with one
            channel (grey) or three (red, green, blue).
        data: The sequences as far as they are known, at any of the ensemble's times.
        series: Labels of the sequences to show, by default the first `num_series`.
        num_series: How many, if `series` is not given.
        every: Show every second, third, ... time.
        of: Whose sd is shown: "values", of a new frame with its noise, or "signal", without it.

    Raises:
        ShapeError: If the events are no such images, or those of `data` have another shape.
        DataError: For an unknown series, data without values, counts that are not positive, or an
            unknown `of`.

    Example:
        >>> from bayesode.models.contracts import Observe
        >>> from bayesode.units import Units
        >>> data = Trajectories([0.0, 1.0, 2.0], torch.rand(2, 3, 1, 8, 8), series=["a", "b"])
        >>> images = torch.rand(20, 2, 3, 1, 8, 8)
        >>> forecast = Ensemble(
        ...     trajectories=data,
        ...     path=torch.randn(20, 2, 3, 4),
        ...     observe=Observe(lambda path, mask: None, lambda path: images),
        ...     values=images,
        ...     failed=torch.zeros(20, 2, dtype=torch.bool),
        ...     units=Units(),
        ...     train=data,
        ...     solver_error=lambda: 0.0,
        ... )
        >>> figure = frame_rows(forecast, data)
        >>> [panel.get_ylabel() for panel in figure.axes[:3]]
        ['data', 'mean', 'sd']
    """
    if num_series < 1 or every < 1:
        raise DataError(f"num_series and every are positive, not {num_series} and {every}.")
    if of not in ("values", "signal"):
        raise DataError(f"of= must be 'values' or 'signal', not {of!r}.")
    asked = ensemble.trajectories
    labels = list(asked.series[:num_series] if series is None else series)
    if not labels:
        raise DataError("there is no sequence to show: series is empty.")
    videos = _videos(ensemble, data, labels, every, of)
    longest = max(videos, key=lambda video: len(video.times))
    is_shared = all(np.array_equal(video.times, longest.times) for video in videos)
    with rc_context(STYLE):
        figure, panels, bar_axes = _new_figure(longest, len(videos), 0.0 if is_shared else TICKS)
        low, high = _range(videos)
        top = max(np.nanmax(video.sd, initial=0.0) for video in videos) or 1.0
        for video, rows in zip(videos, panels, strict=True):
            _draw_video(video, rows, (low, high), top, len(longest.times))
            if video is videos[-1] or not is_shared:
                _label_times(rows[2], video)
        ticks = MaxNLocator(4, steps=[1, 2, 5, 10])  # short numbers: there is little room
        bar = figure.colorbar(panels[0, 2].images[0], cax=bar_axes, ticks=ticks)
        bar.set_label("sd of a pixel" + ("" if of == "values" else ", without noise"))
        bar.outline.set_linewidth(0.4)  # type: ignore[operator]
        panels[-1, 2].set_xlabel("time")
        add_legend(figure, panels, is_own=True)
    return figure


@dataclass(frozen=True)
class Video:
    """What is shown of one sequence; images are (time, height, width) or (..., 3), NaN is blank.

    Args:
        title: Above it.
        times: In the unit of the data, (time,).
        seen: Data.
        mean: Predicted.
        sd: Of a pixel, over all channels, (time, height, width).
        is_hidden: Known frames that were masked, (time,).
        is_ahead: Frames after the last one that the fit saw, (time,).
    """

    title: str
    times: np.ndarray
    seen: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    is_hidden: np.ndarray
    is_ahead: np.ndarray


def _videos(
    ensemble: Ensemble, data: Trajectories, labels: list[str | int], every: int, of: str
) -> list[Video]:
    _check_images(ensemble, data)
    asked, rows = ensemble.trajectories, ensemble.trajectories.positions(labels).tolist()
    means = _of_rows(ensemble, "signal", scores.mean, rows)
    sds = _of_rows(ensemble, of, scores.sd, rows)
    videos = []
    for label, row, mean, sd in zip(labels, rows, means, sds, strict=True):
        steps = slice(0, int(asked.num_times[row]), every)
        times = array(asked.grid[row])[steps]
        seen, is_hidden = _known(data, label, times)
        rms = sd[steps].square().mean(1).sqrt() if sd.dim() == 4 else sd[steps]
        videos.append(
            Video(
                title=series_title(label, ~ensemble.failed[:, row]),
                times=times,
                seen=_painted(seen),
                mean=_painted(mean[steps]),
                sd=array(rms),
                is_hidden=is_hidden,
                is_ahead=times > horizon_of(ensemble.train, label),
            )
        )
    return videos


def _check_images(ensemble: Ensemble, data: Trajectories) -> None:
    shape = tuple(ensemble.event_shape)
    if not (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
        raise ShapeError(
            "pictures need images (height, width) or (channels, height, width) with 1 or 3 "
            f"channels, not events of shape {shape}; for vectors take fan_chart."
        )
    if data.values is None:
        raise DataError("data to show need values; this is a question without values.")
    if tuple(data.event_shape) != shape:
        raise ShapeError(f"the predicted images are {shape}, those of data {data.event_shape}.")


def _of_rows(
    ensemble: Ensemble, of: str, summary: Callable[[Tensor, Tensor], Tensor], rows: list[int]
) -> Tensor:
    """A summary over draws of some series, (row, time, *event); others are not even decoded."""
    parts: dict[int, list[Tensor]] = {row: [] for row in rows}
    for block in ensemble.blocks:
        inside = [row for row in parts if block.rows.start <= row < block.rows.stop]
        if inside:
            draws, kept = ensemble.draws_in(block, of), ~ensemble.failed[:, block.rows]
            found = summary(draws, kept)
            for row in inside:
                parts[row].append(found[row - block.rows.start])
    return torch.stack([torch.cat(parts[row]) for row in rows])


def _known(data: Trajectories, label: str | int, times: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Frames of a sequence at these times, NaN where there are none, and which are masked."""
    values, mask = data.values, data.mask
    frames = values.new_full((len(times), *data.event_shape), torch.nan)  # type: ignore[union-attr]
    is_hidden = np.zeros(len(times), dtype=bool)
    if label in data.series:
        row = data.series.index(label)
        known = array(data.grid[row, : data.num_times[row]])
        gap = np.abs(known[:, None] - times)
        nearest, is_there = gap.argmin(0), gap.min(0) <= 1e-6 * max(1.0, np.abs(times).max())
        frames[is_there] = values[row, nearest[is_there]]  # type: ignore[index]
        is_seen = mask[row].flatten(1).any(-1).cpu().numpy()[nearest]  # type: ignore[index]
        is_hidden = is_there & ~is_seen & array(frames.isfinite().flatten(1).any(-1)).astype(bool)
    return frames, is_hidden


def _painted(images: Tensor) -> np.ndarray:
    """(time, channels, height, width) or (time, height, width) as matplotlib paints them."""
    if images.dim() == 4:
        images = images[:, 0] if images.shape[1] == 1 else images.movedim(1, -1)
    return array(images)


# ---- drawing -------------------------------------------------------------------------------------
def _new_figure(video: Video, num_videos: int, ticks: float) -> tuple[Figure, Any, Axes]:
    """Axes (video, row), of a size that suits the number of frames, and those of the colour bar.

    Every strip has the shape of its frames: no automatic layout leaves such axes their size.
    """
    num_columns, height, width = video.sd.shape
    side = min(LARGEST, max(SMALLEST, PAGE / num_columns))
    across, tall = side * num_columns, side * height / width + BETWEEN
    group = TITLE + 3 * tall + ticks
    size = LEFT + across + RIGHT, TOP + num_videos * group + BOTTOM
    figure = Figure(figsize=size)

    def place(left: float, below: float, *extent: float) -> Axes:
        """Axes whose upper left corner is so far, in inches, from that of the figure."""
        corner = left / size[0], 1 - (below + extent[1]) / size[1]
        return figure.add_axes((*corner, extent[0] / size[0], extent[1] / size[1]))

    panels = [
        [
            place(LEFT, TOP + k * group + TITLE + row * tall, across, tall - BETWEEN)
            for row in range(3)
        ]
        for k in range(num_videos)
    ]
    reach = min(num_videos * group - TITLE, LONGEST_BAR)
    bar = place(LEFT + across + 0.12, TOP + num_videos * group - reach, 0.09, reach - BETWEEN)
    return figure, np.array(panels), bar


def _range(videos: Sequence[Video]) -> tuple[float, float]:
    """Of the grey scale: [0, 1] for intensities, else that of the data and means."""
    shown = np.concatenate([part.ravel() for v in videos for part in (v.seen, v.mean)])
    shown = shown[np.isfinite(shown)]
    low, high = shown.min(initial=0.0), shown.max(initial=1.0)
    return (0.0, 1.0) if -0.5 < low and high < 1.5 else (float(low), float(high))


def _draw_video(
    video: Video, panels: Any, limits: tuple[float, float], top: float, num_columns: int
) -> None:
    grey = {"cmap": "gray", "vmin": limits[0], "vmax": limits[1]}
    heat = {"cmap": SD_COLOURS, "vmin": 0.0, "vmax": top}
    rows = (("data", video.seen, grey), ("mean", video.mean, grey), ("sd", video.sd, heat))
    for panel, (name, images, colours) in zip(panels, rows, strict=True):
        _draw_strip(panel, images, colours, limits, num_columns)
        panel.set_ylabel(name, rotation=0, ha="right", va="center")
    panels[0].set_title(video.title, loc="left", pad=3)
    height, width = video.sd.shape[1:]
    pitch = width + _gap(width)
    for k in np.flatnonzero(video.is_hidden):
        for panel in panels[:2]:
            _draw_box(panel, k * pitch, width, height, TEST["c"], "hidden from the fit")
    if video.is_ahead.any():
        first = int(np.argmax(video.is_ahead))
        span = (len(video.times) - first) * pitch - _gap(width)
        _draw_box(panels[1], first * pitch, span, height, FOLLOWED, "forecast")


def _draw_strip(
    panel: Axes,
    images: np.ndarray,
    colours: dict[str, Any],
    limits: tuple[float, float],
    num_columns: int,
) -> None:
    """Frames side by side in one picture; gaps and what is NaN are left blank."""
    if images.ndim == 4:  # colours, with opacity 0 where there is nothing
        is_there = np.isfinite(images).all(-1, keepdims=True)
        scaled = ((images - limits[0]) / (limits[1] - limits[0])).clip(0, 1)
        images, empty = np.concatenate([np.where(is_there, scaled, 0), is_there], -1), 0.0
    else:
        empty = np.nan
    gap = _gap(images.shape[2])
    pad = [(0, 0), (0, 0), (0, gap), *[(0, 0)] * (images.ndim - 3)]
    strip = np.concatenate(list(np.pad(images, pad, constant_values=empty)), axis=1)
    panel.imshow(strip, interpolation="nearest", **colours)
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    edge = 0.6 * gap  # room for the borders
    right = num_columns * (images.shape[2] + gap) - gap - 0.5
    panel.set(xlim=(-0.5 - edge, right + edge), ylim=(len(strip) - 0.5 + edge, -0.5 - edge))


def _draw_box(
    panel: Axes, left: float, width: float, height: float, colour: str, name: str
) -> None:
    look: dict[str, Any] = {"fill": False, "ec": colour, "lw": 1.2, "label": name}
    edge = 0.3 * _gap(width if width < 2 * height else height)
    corner = left - 0.5 - edge, -0.5 - edge
    panel.add_patch(Rectangle(corner, width + 2 * edge, height + 2 * edge, clip_on=False, **look))


def _gap(width: float) -> int:
    return max(1, round(GAP * width))


def _label_times(panel: Axes, video: Video) -> None:
    """Times below the last row, as many as can be read."""
    width = video.sd.shape[2]
    step = math.ceil(len(video.times) / MOST_LABELS)
    places = np.arange(0, len(video.times), step)
    ticks = places * (width + _gap(width)) + (width - 1) / 2
    panel.set_xticks(ticks, [f"{video.times[k]:.4g}" for k in places])
    panel.tick_params(length=0, pad=2)
