"""A forecast as bands, draws and data over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bayesode import scores
from bayesode.data_checks import shape_of
from bayesode.diagnostics.plots.style import (
    FOLLOWED,
    LINE,
    STYLE,
    TEST,
    TRAIN,
    add_legend,
    array,
    draw_bands,
    draw_undetermined,
    follow_data,
    new_panels,
    series_title,
)
from bayesode.errors import DataError, ShapeError
from bayesode.inference.ensemble import Ensemble
from bayesode.trajectories import Trajectories

MAX_SERIES = 4  # columns that fit on a page


def fan_chart(
    ensemble: Ensemble,
    train: Trajectories | None = None,
    test: Trajectories | None = None,
    *,
    series: Sequence[str | int] | None = None,
    levels: Sequence[float] = (0.5, 0.9),
    num_paths: int = 20,
    axes: Any = None,
) -> Figure:
    """A forecast, its uncertainty and the data: one row per component, one column per series.

    Bands are central intervals of the values (with noise), thin lines draws of the signal (without
    measurement noise), one of them in green; paths with process noise are smoothed up to the end of
    training and have fresh noise after it. Grey stretches are not determined by the data: the
    path's sd exceeds theirs (see `Ensemble.undetermined`). Failed draws are left out; titles tell
    their share. Under the transform "log" the vertical axis is logarithmic, unless a shown datum is
    not positive. It follows the data: a band that explodes is cut off, so that it does not flatten
    them.

    Args:
        ensemble: Forecast; a fine grid, `train.at(torch.linspace(...))`, gives smooth bands.
        train: Training data, by default those of the fit: dots, and a line where they end.
        test: Held-out data: hollow squares.
        series: Labels of the series to show, by default the first four.
        levels: Probabilities of the bands, each between 0 and 1.
        num_paths: Number of draws of the signal.
        axes: (component, series) many axes to draw in; a new figure by default.

    Raises:
        DataError: For an unknown series, levels that are no probabilities, or data without values.
        ShapeError: If values are no vectors, or data or axes do not match them.

    Example:
        >>> import bayesode as bo
        >>> train, test = bo.datasets.van_der_pol(num_series=3, num_times=12).observed.split(time=8)
        >>> model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)
        >>> ensemble = posterior.predict(train.at(torch.linspace(0, 10, 50)), seed=0)
        >>> figure = fan_chart(ensemble, train, test, series=[0, 2])
        >>> [panel.get_title() for panel in figure.axes if panel.get_title()]
        ['series 0', 'series 2']
    """
    asked, train = ensemble.trajectories, ensemble.train if train is None else train
    labels = list(asked.series[:MAX_SERIES] if series is None else series)
    rows, widths = asked.positions(labels), sorted(levels, reverse=True)
    if not (labels and widths and num_paths >= 0 and all(0 < width < 1 for width in widths)):
        raise DataError(
            "needs one series or more, levels between 0 and 1 and num_paths >= 0, not "
            f"{labels}, {levels} and {num_paths}."
        )
    if len(ensemble.event_shape) != 1:
        raise ShapeError(
            "needs values (draws, series, time, component); these have events of shape "
            f"{tuple(ensemble.event_shape)}: take frame_rows(ensemble, data) for images."
        )
    values, kept = ensemble.values[:, rows], ~ensemble.failed[:, rows]
    size, tails = values.shape[-1], [(1 - width) / 2 for width in widths]
    bands = array(scores.quantile(values, [*tails, 0.5, *(1 - t for t in tails[::-1])], kept))
    data = [_points(some, size) for some in (train, test) if some is not None]
    is_open = _undetermined(ensemble, size)[rows]
    with rc_context(STYLE if axes is None else {}):
        inches = 1.25 * len(labels) + 2.25, 1.4 * size + 1.0
        figure, panels = new_panels(axes, size, len(labels), inches)
        for (component, column), panel in np.ndenumerate(panels):
            row, valid, count = rows[column], kept[:, column], asked.num_times[rows[column]]
            paths = array(ensemble.signal[valid, row][:num_paths, :count, component])
            shown, times = bands[:, column, :count, component], array(asked.grid[row, :count])
            _draw_fan(panel, times, shown, paths, widths)
            draw_undetermined(panel, times, is_open[column, :count, component].cpu().numpy())
            _draw_points(panel, [points.get(labels[column]) for points in data], component)
        for component, name in enumerate(asked.names or ensemble.train.names):
            panels[component, 0].set_ylabel(name)
            found = [points[k][1][:, component] for points in data for k in labels if k in points]
            follow_data(panels[component], found, bands[..., component], ensemble.transform)
        for column, label in enumerate(labels):
            panels[0, column].set_title(series_title(label, kept[:, column]))
            panels[-1, column].set_xlabel("time")
        add_legend(figure, panels, is_own=axes is None)
    return figure


def _undetermined(ensemble: Ensemble, size: int) -> Tensor:
    """Which numbers are not determined, (series, time, component).

    Components that are observed are the leading ones of the state; where values have more
    components than the state, each depends on all of it.
    """
    flags = ensemble.undetermined
    if flags.shape[-1] < size:
        return flags.any(-1, keepdim=True).expand(*flags.shape[:2], size)
    return flags[..., :size]


def _points(data: Trajectories, size: int) -> dict[str | int, Any]:
    """Times (time,) and values (time, component), NaN where unseen, by label."""
    if data.values is None or data.mask is None:
        raise DataError("data to show need values; this is a question without values.")
    if data.values.dim() != 3 or data.values.shape[-1] != size:
        raise ShapeError(f"the forecast has {size} components, the data {shape_of(data.values)}.")
    seen = array(torch.where(data.mask, data.values, torch.nan))
    return dict(zip(data.series, zip(array(data.grid), seen, strict=True), strict=True))


def _draw_fan(panel: Axes, times: Any, bands: Any, paths: Any, widths: Sequence[float]) -> None:
    """Bands from wide to narrow, draws and median; bars where there is a single time."""
    draw_bands(panel, times, bands, widths)
    look: dict[str, Any] = {"color": LINE, "marker": "_" if len(times) == 1 else None}
    followed: dict[str, Any] = look | {"color": FOLLOWED}
    for k, path in enumerate(paths[1:]):
        label = "draws of the signal" if k == 0 else None
        panel.plot(times, path, lw=0.4, alpha=0.3, label=label, **look)
    panel.plot(times, bands[len(widths)], lw=1, label="median", **look)
    for path in paths[:1]:  # one to follow by eye: rough paths of many draws are a thicket
        panel.plot(times, path, lw=0.7, label="one draw", **followed)


def _draw_points(panel: Axes, data: Sequence[Any], component: int) -> None:
    """Data of one series, and a line where the training data end before the picture does."""
    for points, mark in zip(data, (TRAIN, TEST), strict=False):
        if points is not None:
            times, values = points
            panel.plot(times, values[:, component], ls="", mew=0.6, **mark)
    if data[0] is not None:
        end = data[0][0][np.isfinite(data[0][1]).any(-1)].max(initial=-np.inf)
        if -np.inf < end < panel.dataLim.x1:
            look: dict[str, Any] = {"color": "#777777", "lw": 0.7, "ls": "--", "zorder": 1.1}
            panel.axvline(end, label="end of training", **look)
