"""Pictures of forecasts and of fitted fields; the only door to matplotlib.

Figures are plain `matplotlib.figure.Figure`s that pyplot does not know: nothing global changes and
nothing has to be closed. `figure.savefig("fan.pdf")` writes one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from torch import Tensor

from bayesode import scores
from bayesode.data_checks import shape_of
from bayesode.errors import DataError, ShapeError
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.posterior import Posterior
from bayesode.trajectories import Trajectories

# For a column of a paper at full size. Axes of the user's own keep the user's style.
STYLE = dict.fromkeys(["font.size", "axes.titlesize", "axes.labelsize"], 8.0)
STYLE |= dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 7.0)
STYLE |= dict.fromkeys(["axes.linewidth", "xtick.major.width", "ytick.major.width"], 0.6)
COLUMN = 3.5  # inches
# Blue and vermilion differ for every kind of colour blindness (Okabe and Ito 2008).
SHADES = LinearSegmentedColormap.from_list("shades", ["#7fb3d9", "#d3e5f2"])
LINE, TRAIN, TEST = "#00456b", "black", "#d55e00"
# Perceptually uniform, light where the field is known; the dark end would hide what lies on it.
UNCERTAINTY = ListedColormap(colormaps["cividis_r"](np.linspace(0, 0.75, 256)))
MAX_SERIES = 4  # columns that fit on a page
REACH = {"inner": 1.5, "outer": 0.5}  # by how many ranges of the data a band may stretch an axis


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

    Bands are central intervals of the values (with noise), thin lines are draws of the signal
    (without). Failed draws are left out; the title of a series tells their share. The vertical
    axis is logarithmic under the transform "log", unless a shown datum is not positive. It follows
    the data: a band that explodes is cut off, rather than the data flattened.

    Args:
        ensemble: The forecast; ask on a fine grid, `train.at(torch.linspace(...))`, for smooth bands.
        train: Training data, by default those of the fit: dots, and a line where they end.
        test: Held-out data: hollow squares.
        series: Labels of the series to show, by default the first four.
        levels: Probabilities of the bands, each between 0 and 1.
        num_paths: Number of draws of the signal.
        axes: (component, series) many axes to draw in; a new figure by default.

    Returns:
        The figure, in the units of the data.

    Raises:
        DataError: For an unknown series, levels that are no probabilities, or data without values.
        ShapeError: If observations are no vectors, or data or axes do not match their number.

    Example:
        >>> import bayesode as bo
        >>> train, test = bo.datasets.van_der_pol(num_series=3, num_times=12).observed.split(time=8)
        >>> model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)
        >>> question = train.at(torch.linspace(0, 10, 50))
        >>> figure = fan_chart(posterior.predict(question, seed=0), train, test, series=[0, 2])
        >>> [panel.get_title() for panel in figure.axes if panel.get_title()]
        ['series 0', 'series 2']
    """
    asked = ensemble.trajectories
    labels = list(asked.series[:MAX_SERIES] if series is None else series)
    rows, widths = asked.positions(labels), sorted(levels)
    if not labels or not widths or not all(0 < width < 1 for width in widths):
        raise DataError(f"need series and levels between 0 and 1, not {labels} and {levels}.")
    kept, values, signal = ~ensemble.failed[:, rows], ensemble.values[:, rows], ensemble.signal
    if values.dim() != 4:
        raise ShapeError(f"a fan chart shows vectors, (draws, series, time, component), not {shape_of(values)}.")
    names = asked.names or ensemble.train.names
    train = ensemble.train if train is None else train
    sets = [_points(data, labels, names) for data in (train, test) if data is not None]
    quantiles = [(1 - w) / 2 for w in widths[::-1]] + [0.5] + [(1 + w) / 2 for w in widths]
    bands = _array(scores.quantile(values, quantiles, kept))
    with rc_context({} if axes is not None else STYLE):
        ...
    raise NotImplementedError
