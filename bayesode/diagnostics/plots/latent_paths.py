"""Latent trajectories in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bayesode.diagnostics.plots.style import (
    STYLE,
    add_legend,
    array,
    horizon_of,
    series_title,
)
from bayesode.errors import DataError, ShapeError
from bayesode.inference.ensemble import Ensemble

# Told apart by every kind of colour blindness (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def latent_paths(
    ensemble: Ensemble,
    *,
    series: Sequence[str | int] | None = None,
    num_series: int = 4,
    num_paths: int = 30,
    axes: Any = None,
) -> Figure:
    """Latent trajectories in the plane in which they vary most.

    The plane is that of the two leading principal components of the dimensionless states of all
    series, times and draws. Thin lines are draws, the thick one with dots at the asked times is
    their mean, dashed after the last frame that the fit saw; a ring marks where a sequence begins.

    Args:
        ensemble: With two latent dimensions or more.
        series: Labels of the sequences to show, by default the first `num_series`.
        num_series: How many, if `series` is not given; seven have colours of their own.
        num_paths: Draws per sequence.
        axes: One axes to draw in; a new figure by default.

    Raises:
        ShapeError: If there is a single latent dimension.
        DataError: For an unknown series, no series, or if every draw failed.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=20).observed
        >>> model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> prior = bo.sample_prior(model, train.until(1.0), num_draws=20, seed=0)
        >>> latent_paths(prior).axes[0].get_xlabel().startswith("component 1 (")
        True
    """
    asked = ensemble.trajectories
    labels = list(asked.series[:num_series] if series is None else series)
    rows = asked.positions(labels).tolist()
    if not labels or num_paths < 0:
        raise DataError(f"needs a series or more and num_paths >= 0, not {labels}, {num_paths}.")
    if ensemble.path.shape[-1] < 2:
        raise ShapeError("a plane needs two latent dimensions, this model has one.")
    centre, basis, shares = _plane(ensemble)
    with rc_context(STYLE if axes is None else {}):
        figure, panel = _new_panel(axes)
        has_forecast = False
        for k, (label, row) in enumerate(zip(labels, rows, strict=True)):
            steps = slice(0, int(asked.num_times[row]))
            kept = ~ensemble.failed[:, row]
            draws = (ensemble.path[kept, row, steps].to(basis) - centre) @ basis
            is_ahead = array(asked.grid[row, steps]) > horizon_of(ensemble.train, label)
            if len(draws):
                title = series_title(label, kept).replace("\n", ", ")
                look = {"color": COLOURS[k % len(COLOURS)], "label": title}
                _draw_series(panel, draws, is_ahead, num_paths, look)
                has_forecast |= bool(is_ahead.any())
        panel.plot([], [], ls="", marker="o", ms=6, mfc="none", mec="black", label="begin")
        if has_forecast:
            panel.plot([], [], ls="--", c="black", lw=1.2, label="forecast")
        panel.set_xlabel(f"component 1 ({shares[0]:.0%} of the variance)")
        panel.set_ylabel(f"component 2 ({shares[1]:.0%})")
        panel.set_aspect("equal", adjustable="datalim")
        add_legend(figure, np.array([[panel]]), is_own=axes is None)
    return figure


def _new_panel(axes: Any) -> tuple[Any, Axes]:
    if axes is None:
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        return figure, figure.subplots()
    panel = np.asarray(axes, dtype=object).reshape(-1)[0]
    return panel.figure, panel


def _plane(ensemble: Ensemble) -> tuple[Tensor, Tensor, list[float]]:
    """Mean state, the two leading principal axes (state, 2), and their shares of the variance."""
    size = ensemble.path.shape[-1]
    count, total = 0, torch.zeros(size, dtype=torch.float64)
    squares = torch.zeros(size, size, dtype=torch.float64)
    for block in ensemble.blocks:  # one after another: all states twice would not fit
        states = ensemble.draws_in(block, "path").transpose(1, 2)
        kept = ~ensemble.failed[:, block.rows].unsqueeze(1).expand(states.shape[:3])
        flat = states[kept].double().cpu()
        count, total, squares = count + len(flat), total + flat.sum(0), squares + flat.T @ flat
    if not count:
        raise DataError("every draw failed: there is no path to show.")
    centre = total / count
    values, vectors = torch.linalg.eigh(squares / count - centre.outer(centre))
    leading = vectors[:, [-1, -2]]
    signs = leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
    shares = (values[[-1, -2]] / values.sum().clamp_min(1e-300)).clamp(0, 1).tolist()
    return centre, leading * signs, shares


def _draw_series(
    panel: Axes, draws: Tensor, is_ahead: np.ndarray, num_paths: int, look: dict[str, Any]
) -> None:
    """Thin draws, and their mean: full as far as the fit saw, then dashed."""
    for path in array(draws[:num_paths]):
        panel.plot(*path.T, lw=0.4, alpha=0.3, color=look["color"])
    mean = array(draws.mean(0))
    first = int(np.argmax(is_ahead)) if is_ahead.any() else len(mean)
    panel.plot(*mean[:first].T, lw=1.2, marker="o", ms=2, **look)
    if first < len(mean):
        ahead = mean[max(0, first - 1) :]
        name = None if first else look["label"]
        panel.plot(*ahead.T, lw=1.2, ls="--", marker="o", ms=2, color=look["color"], label=name)
    ring = {"marker": "o", "ms": 6, "mfc": "none", "mec": look["color"], "mew": 1.0, "ls": ""}
    panel.plot(*mean[0], zorder=3, **ring)  # over the lines of the series behind
