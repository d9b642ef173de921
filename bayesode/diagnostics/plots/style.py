"""What the pictures share: look, panels, limits, legend.

Figures are unknown to pyplot: nothing global changes, nothing is to be closed, `savefig` writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from torch import Tensor

from bayesode.errors import ShapeError
from bayesode.trajectories import Trajectories

# For a paper's column at full size; axes of the user's own keep the user's style.
STYLE: dict[Any, Any] = {"font.size": 8, "axes.titlesize": 8, "axes.linewidth": 0.6}
STYLE |= dict.fromkeys(["xtick.labelsize", "ytick.labelsize", "legend.fontsize"], 7)
# Blue and vermilion differ for every kind of colour blindness (Okabe and Ito 2008).
TRAIN: dict[str, Any] = dict(label="training data", marker="o", c="black", ms=1.8)
TEST: dict[str, Any] = dict(label="held-out data", marker="s", c="#d55e00", mfc="w", ms=2.6)
LINE, SHADES = "#00456b", ListedColormap(colormaps["Blues"](np.linspace(0.2, 0.5, 256)))
FOLLOWED = "#009e73"  # green, tells itself from blue and vermilion
OUTER_REACH, INNER_REACH = 0.5, 1.5  # ranges of the data by which bands may stretch an axis
UNDETERMINED: dict[str, Any] = {"fc": "#d4d4d4", "ec": "none", "lw": 0}


def new_panels(axes: Any, num_rows: int, num_columns: int, inches: tuple[float, float]) -> Any:
    """A figure and its axes (row, column), new ones or the user's."""
    if axes is None:
        shared: dict[str, Any] = {"sharex": "col", "sharey": "row", "squeeze": False}
        figure = Figure(figsize=inches, layout="constrained")
        return figure, figure.subplots(num_rows, num_columns, **shared)
    panels = np.asarray(axes, dtype=object)
    if panels.size != num_rows * num_columns:
        raise ShapeError(f"needs {num_rows} x {num_columns} axes, not {panels.size}.")
    return panels.flat[0].figure, panels.reshape(num_rows, num_columns)


def set_limits(panel: Axes, letter: str, ends: Sequence[float], is_log: bool) -> None:
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


def add_legend(figure: Figure, panels: np.ndarray, is_own: bool) -> None:
    """One legend for all panels: above a figure of ours, else inside the user's last panel."""
    pairs = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels.flat]
    found = {label: handle for panel in pairs for handle, label in panel}
    if not is_own:
        panels[0, -1].legend(found.values(), found)
        return
    look: dict[str, Any] = {"frameon": False, "handlelength": 1.5, "columnspacing": 1.2}
    look |= {"loc": "outside upper center"}
    for num_rows in range(1, len(found) + 1):
        columns = math.ceil(len(found) / num_rows)
        legend = figure.legend(found.values(), found, ncols=columns, **look)
        if columns == 1 or legend.get_window_extent().width < 0.98 * figure.bbox.width:
            return
        legend.remove()


def draw_bands(panel: Axes, times: Any, bands: Any, widths: Sequence[float]) -> None:
    """Central intervals, the wide ones below; bars where there is a single time.

    Args:
        panel: To draw in.
        times: Shape (time,).
        bands: Lower ends, then whatever, then upper ends in the opposite order, (any, time).
        widths: Their probabilities, falling.
    """
    is_single = len(times) == 1
    draw = panel.vlines if is_single else panel.fill_between
    for k, shade in enumerate(SHADES(np.linspace(0, 1, len(widths)))):
        look: dict[str, Any] = {"color": shade, "label": f"{100 * widths[k]:g} % interval"}
        draw(times, bands[k], bands[-1 - k], lw=6 * is_single, zorder=1, **look)


def follow_data(panels: Any, found: list[np.ndarray], bands: np.ndarray, transform: str) -> None:
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
            set_limits(panel, "y", (1.05 * low - 0.05 * high, 1.05 * high - 0.05 * low), is_log)


def draw_undetermined(panel: Axes, places: Any, flags: Any) -> None:
    """A grey veil from half-way to the place before to half-way to the one behind."""
    middle = (places[1:] + places[:-1]) / 2
    left, right = np.concatenate([places[:1], middle]), np.concatenate([middle, places[-1:]])
    edges = np.flatnonzero(np.diff(flags.astype(int), prepend=0, append=0))
    for k, (first, last) in enumerate(edges.reshape(-1, 2)):
        label = "not determined by the data" if k == 0 else None
        span = float(left[first]), float(right[last - 1])
        # over the bands, which may fill the panel, and under the lines
        panel.axvspan(*span, zorder=1.05, alpha=0.75, label=label, **UNDETERMINED)


def series_title(label: str | int, kept: Tensor) -> str:
    """Name of a series, and the share of its draws that failed."""
    share = 100 * (1 - kept.double().mean().item())
    title = label if isinstance(label, str) else f"series {label}"
    return title + (f"\n{share:.3g} % of draws failed" if share else "")


def horizon_of(train: Trajectories, label: str | int) -> float:
    """Time of the last point of a series that the fit saw; of all series, if it is a new one."""
    if train.mask is None:
        return math.inf
    is_seen = train.mask.flatten(2).any(-1)
    if label in train.series:
        row = train.series.index(label)
        is_seen = is_seen & (torch.arange(len(is_seen), device=is_seen.device) == row)[:, None]
    return train.grid[is_seen].max().item() if is_seen.any() else math.inf


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as matplotlib takes it."""
    return tensor.detach().double().cpu().numpy()
