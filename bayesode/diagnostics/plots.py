"""Pictures of forecasts and fitted fields, in users' units; the only door to matplotlib.

Figures are unknown to pyplot: nothing global changes, nothing is to be closed, `savefig` writes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from torch import Tensor

from bayesode import scores
from bayesode.data_checks import shape_of
from bayesode.errors import DataError, ShapeError
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.posterior import Posterior
from bayesode.trajectories import Trajectories

# For a paper's column at full size; axes of the user's own keep the user's style.
STYLE: dict[Any, Any] = {"font.size": 8, "axes.titlesize": 8, "axes.linewidth": 0.6}
STYLE |= dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 7)
# Blue and vermilion differ for every kind of colour blindness (Okabe and Ito 2008).
LINE, SHADES = "#00456b", ListedColormap(colormaps["Blues"](np.linspace(0.2, 0.5, 256)))
TRAIN: dict[str, Any] = dict(label="training data", marker="o", c="black", ms=1.8)
TEST: dict[str, Any] = dict(label="held-out data", marker="s", c="#d55e00", mfc="w", ms=2.6)
# Perceptually uniform; light where the field is known, never so dark that it hides what lies on it.
UNCERTAINTY = ListedColormap(colormaps["magma_r"](np.linspace(0, 0.55, 256)))
MAX_SERIES = 4  # columns that fit on a page
OUTER_REACH, INNER_REACH = 0.5, 1.5  # ranges of the data by which bands may stretch an axis


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
    noise). Failed draws are left out; titles tell their share. Under the transform "log" the
    vertical axis is logarithmic, unless a shown datum is not positive. It follows the data: a band
    that explodes is cut off, so that it does not flatten them.

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
    values, kept = ensemble.values[:, rows], ~ensemble.failed[:, rows]
    if values.dim() != 4:
        raise ShapeError(f"needs values (draws, series, time, component), not {shape_of(values)}.")
    size, tails = values.shape[-1], [(1 - width) / 2 for width in widths]
    bands = _array(scores.quantile(values, [*tails, 0.5, *(1 - t for t in tails[::-1])], kept))
    data = [_points(some, size) for some in (train, test) if some is not None]
    with rc_context(STYLE if axes is None else {}):
        inches = 1.25 * len(labels) + 2.25, 1.4 * size + 1.0
        figure, panels = _panels(axes, size, len(labels), inches)
        for (component, column), panel in np.ndenumerate(panels):
            row, valid, count = rows[column], kept[:, column], asked.num_times[rows[column]]
            paths = _array(ensemble.signal[valid, row][:num_paths, :count, component])
            shown = bands[:, column, :count, component]
            _draw_fan(panel, _array(asked.grid[row, :count]), shown, paths, widths)
            _draw_points(panel, [points.get(labels[column]) for points in data], component)
        for component, name in enumerate(asked.names or ensemble.train.names):
            panels[component, 0].set_ylabel(name)
            found = [points[k][1][:, component] for points in data for k in labels if k in points]
            _follow_data(panels[component], found, bands[..., component], ensemble.transform)
        for column, label in enumerate(labels):
            share = 100 * (1 - kept[:, column].double().mean().item())
            title = label if isinstance(label, str) else f"series {label}"
            note = f"\n{share:.3g} % of draws failed" if share else ""
            panels[0, column].set_title(title + note)
            panels[-1, column].set_xlabel("time")
        _add_legend(figure, panels, is_own=axes is None)
    return figure


def vector_field(
    posterior: Posterior,
    *,
    components: tuple[int, int] = (0, 1),
    num_draws: int = 100,
    resolution: int = 21,
    seed: int | None = 0,
    truth: Callable[[Tensor], Any] | None = None,
    axes: Any = None,
) -> Figure:
    """The fitted field over the range of the training data, and where it can be trusted.

    Streamlines, thicker where faster, follow the posterior mean of dx/dt; the shade is its sd over
    its mean length, both in ranges of the axes. A `truth` gets a panel whose shade is the error of
    the mean over the same length: an honest posterior has both alike. Axes are logarithmic under
    the transform "log". Components not shown are held at the mean of the data (on that scale),
    unobserved ones at the origin of the units, and time at the first start.

    Args:
        posterior: The fit.
        components: Indices of the components on the horizontal and the vertical axis.
        num_draws: Draws of the field, at least 2.
        resolution: Points along each axis at which it is evaluated, at least 2.
        seed: Of the draws.
        truth: From states (points, state) to dx/dt of this shape, in users' units.
        axes: Axes to draw in, two if there is a truth; a new figure by default.

    Raises:
        DataError: For a model with one component, components that it does not have, too few draws
            or points, or no training data.
        ShapeError: If the truth has another shape than the states, or the number of axes is wrong.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=12).observed
        >>> model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)
        >>> panel, colour_bar = vector_field(posterior, num_draws=10).axes
        >>> panel.get_xlabel(), panel.get_ylabel()
        ('x1', 'x2')
    """
    names, observed = _observed_plane(posterior, components)
    if num_draws < 2 or resolution < 2:
        raise DataError(f"needs 2 draws and points or more, not {num_draws=}, {resolution=}.")
    pair, is_log = list(components), posterior.model.units.transform == "log"
    low, high, states = _grid(posterior, observed, pair, resolution)
    unit = (high - low) * (states[:, pair] if is_log else 1.0)  # ranges of the axes, users' units
    draws = posterior.field(states, num_draws=num_draws, seed=seed).to(states)[..., pair] / unit
    mean, length = draws.mean(0), draws.norm(dim=-1).mean(0).clamp_min(1e-300)
    held = ", ".join(f"{n} = {states[0, k]:.3g}" for k, n in enumerate(names) if k not in pair)
    fields = {"posterior mean": (mean, draws.var(0).sum(-1).sqrt() / length)}
    if truth is not None:
        true = torch.as_tensor(truth(states.clone()), dtype=states.dtype)
        if true.shape != states.shape:
            raise ShapeError(f"truth must return {shape_of(states)}, not {shape_of(true)}.")
        true = true[:, pair] / unit
        fields["truth"] = true, (mean - true).norm(dim=-1) / length
    with rc_context(STYLE if axes is None else {}):
        figure, panels = _panels(axes, 1, len(fields), (2.6 * len(fields) + 0.9, 3.2))
        for panel, (title, (speed, shade)) in zip(panels[0], fields.items(), strict=True):
            panel.set(title="\n".join([title, *textwrap.wrap(held, 40)]), xlabel=names[pair[0]])
            for letter, ends in zip("xy", torch.stack([low, high], -1), strict=True):
                _set_limits(panel, letter, ends.tolist(), is_log)
            image = _draw_field(panel, _array(speed.T), _array(shade), resolution)
            panel.plot(*_array(observed[:, pair].T), ls="", mec="w", mew=0.3, **TRAIN | {"ms": 3})
        panels[0, 0].set_ylabel(names[pair[1]])
        label = ("sd" if truth is None else "sd (left), error (right)") + " / mean length"
        bar = figure.colorbar(image, ax=panels[0].tolist(), extend="both", format="{x:g}")
        bar.set_label(label)
        _add_legend(figure, panels, is_own=axes is None)
    return figure


def _observed_plane(posterior: Posterior, pair: Sequence[int]) -> tuple[tuple[str, ...], Tensor]:
    """Names and training points (points, component), NaN where unseen, if `pair` is among them."""
    train = getattr(posterior, "train", None)
    if train is None or train.values is None or train.values.dim() != 3:
        raise DataError("a picture of the field needs training data (series, time, component).")
    if len(train.names) == 1:
        raise DataError("one component spans no plane: take fan_chart(posterior.predict(...)).")
    if not (len(pair) == len(set(pair)) == 2 and set(pair) <= set(range(len(train.names)))):
        raise DataError(f"components must be two of 0 to {len(train.names) - 1}, not {pair}.")
    seen = torch.where(train.mask, train.values, torch.nan)
    return train.names, seen.flatten(0, 1).double().cpu()


def _grid(
    posterior: Posterior, observed: Tensor, pair: list[int], resolution: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of the axes (2,), logarithms for logarithmic ones, and states (points, state)."""
    units = posterior.model.units
    is_log = units.transform == "log"
    scaled, unscaled = (torch.log, torch.exp) if is_log else (torch.clone, torch.clone)
    seen = scaled(observed)
    low, high = seen[:, pair].nanquantile(seen.new_tensor([0.0, 1.0]), 0)
    low, high = 1.1 * low - 0.1 * high, 1.1 * high - 0.1 * low
    dim = posterior.draws(1, seed=0)["x0"].shape[-1]
    states = units.to_users(units.location.new_zeros(dim)).to(seen).repeat(resolution**2, 1)
    states[:, : seen.shape[-1]] = unscaled(seen.nanmean(0))
    side = torch.linspace(0, 1, resolution, dtype=seen.dtype)
    states[:, pair] = unscaled(low + (high - low) * torch.cartesian_prod(side, side).flip(-1))
    return low, high, states


def _points(data: Trajectories, size: int) -> dict[str | int, Any]:
    """Times (time,) and values (time, component), NaN where unseen, by label."""
    if data.values is None or data.mask is None:
        raise DataError("data to show need values; this is a question without values.")
    if data.values.dim() != 3 or data.values.shape[-1] != size:
        raise ShapeError(f"the forecast has {size} components, the data {shape_of(data.values)}.")
    seen = _array(torch.where(data.mask, data.values, torch.nan))
    return dict(zip(data.series, zip(_array(data.grid), seen, strict=True), strict=True))


def _panels(axes: Any, num_rows: int, num_columns: int, inches: tuple[float, float]) -> Any:
    """A figure and its axes (row, column), new ones or the user's."""
    if axes is None:
        shared: dict[str, Any] = {"sharex": "col", "sharey": "row", "squeeze": False}
        figure = Figure(figsize=inches, layout="constrained")
        return figure, figure.subplots(num_rows, num_columns, **shared)
    panels = np.asarray(axes, dtype=object)
    if panels.size != num_rows * num_columns:
        raise ShapeError(f"needs {num_rows} x {num_columns} axes, not {panels.size}.")
    return panels.flat[0].figure, panels.reshape(num_rows, num_columns)


def _draw_fan(panel: Axes, times: Any, bands: Any, paths: Any, widths: Sequence[float]) -> None:
    """Bands from wide to narrow, draws and median; bars where there is a single time."""
    is_single = len(times) == 1
    draw = panel.vlines if is_single else panel.fill_between
    for k, shade in enumerate(SHADES(np.linspace(0, 1, len(widths)))):
        look: dict[str, Any] = {"color": shade, "label": f"{100 * widths[k]:g} % interval"}
        draw(times, bands[k], bands[-1 - k], lw=6 * is_single, zorder=1, **look)
    look = {"color": LINE, "marker": "_" if is_single else None}
    for k, path in enumerate(paths):
        label = "draws of the signal" if k == 0 else None
        panel.plot(times, path, lw=0.4, alpha=0.4, label=label, **look)
    panel.plot(times, bands[len(widths)], lw=1, label="median", **look)


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


def _draw_field(panel: Axes, speed: np.ndarray, shade: np.ndarray, resolution: int) -> Any:
    """Streamlines over a shade, in coordinates of the panel: the same on logarithmic axes."""
    side, half = np.linspace(0, 1, resolution), 0.5 / (resolution - 1)
    frame: dict[str, Any] = {"transform": panel.transAxes, "zorder": 0.5}
    look: dict[str, Any] = {"extent": (-half, 1 + half) * 2, "origin": "lower", "aspect": "auto"}
    look |= {"cmap": UNCERTAINTY, "norm": LogNorm(0.01, 1), "interpolation": "bilinear"}
    image = panel.imshow(shade.clip(1e-9).reshape(resolution, resolution), **look, **frame)
    u, v = speed.reshape(2, resolution, resolution)
    width = 0.3 + 0.9 * np.hypot(u, v) / max(np.hypot(u, v).max(), 1e-300)
    panel.streamplot(side, side, u, v, color="#444444", linewidth=width, arrowsize=0.6, **frame)
    return image


def _follow_data(panels: Any, found: list[np.ndarray], bands: np.ndarray, transform: str) -> None:
    """Vertical limits of a row of panels: all data, and bands as far as they do not explode."""
    is_log = transform == "log" and not any((line <= 0).any() for line in found)
    scaled = (lambda line: np.log(np.maximum(line, 1e-300))) if is_log else np.asarray
    seen, *edges = (
        scaled(line[np.isfinite(line)]) for line in (np.concatenate([*found, []]), *bands)
    )
    middle = len(edges) // 2
    core = seen if len(seen) else edges[middle]
    if len(core):
        low, high, span = core.min(), core.max(), np.ptp(core) or 1.0
        for k, reach in ((0, OUTER_REACH), (middle - 1, INNER_REACH)):
            near = core.min() - reach * span, core.max() + reach * span
            low = edges[k].clip(*near).min(initial=low)
            high = edges[-1 - k].clip(*near).max(initial=high)
        for panel in panels:
            _set_limits(panel, "y", (1.05 * low - 0.05 * high, 1.05 * high - 0.05 * low), is_log)


def _set_limits(panel: Axes, letter: str, ends: Sequence[float], is_log: bool) -> None:
    """Limits of an axis, logarithms for a logarithmic one, and ticks to count by."""
    if not is_log:
        panel.set(**{f"{letter}lim": ends})
        return
    panel.set(**{f"{letter}scale": "log", f"{letter}lim": np.exp(ends)})
    axis, factor = getattr(panel, f"{letter}axis"), np.exp(np.ptp(ends))
    if factor < 300:  # else powers of ten are close enough
        axis.set_major_locator(MaxNLocator(4) if factor < 5 else LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")


def _add_legend(figure: Figure, panels: np.ndarray, is_own: bool) -> None:
    """One legend for all panels: above a figure of ours, else inside the user's last panel."""
    pairs = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels.flat]
    found = {label: handle for panel in pairs for handle, label in panel}
    if not is_own:
        panels[0, -1].legend(found.values(), found)
        return
    num_rows = math.ceil(1.02 * len(found) / figure.get_figwidth())  # inches of an entry
    look: dict[str, Any] = {"frameon": False, "handlelength": 1.5, "columnspacing": 1.2}
    look |= {"loc": "outside upper center", "ncols": math.ceil(len(found) / num_rows)}
    figure.legend(found.values(), found, **look)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
