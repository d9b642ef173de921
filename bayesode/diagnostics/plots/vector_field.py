"""A fitted vector field in a plane of two components, or along a single one."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from bayesode.diagnostics.plots.field_grid import (
    check_counts,
    grid,
    observed_points,
    true_rates,
    visited,
)
from bayesode.diagnostics.plots.rate_curve import rate_curve
from bayesode.diagnostics.plots.style import (
    STYLE,
    TRAIN,
    UNDETERMINED,
    add_legend,
    array,
    new_panels,
    set_limits,
)
from bayesode.errors import DataError
from bayesode.inference.posterior import Posterior

# Perceptually uniform; light where the field is known, never so dark that it hides what lies on it.
UNCERTAINTY = ListedColormap(colormaps["magma_r"](np.linspace(0, 0.55, 256)))


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
    its mean length, both in ranges of the axes. Grey is where the sd exceeds the root mean square
    of dx/dt at the training data: there the data do not determine the field. A `truth` gets a panel
    whose shade is the error of the mean over the same length: an honest posterior has both alike.
    Axes are logarithmic under the transform "log". Components not shown are held at the mean of the
    data (on that scale), unobserved ones at the origin of the units, and time at the first start.
    Of an SDE this is the drift. A single component gets the curve of dx/dt over it, with the median
    and the 50 and 90 % bands of the draws.

    Args:
        posterior: The fit.
        components: Indices of the components on the horizontal and the vertical axis; without
            effect for a single component.
        num_draws: Draws of the field, at least 2.
        resolution: Points along each axis at which it is evaluated, at least 2.
        seed: Of the draws.
        truth: From states (points, state) to dx/dt of this shape, in users' units; simulated data
            know it, `data.field`.
        axes: Axes to draw in, two if there is a truth; a new figure by default.

    Raises:
        DataError: For components that the model does not have, too few draws or points, or no
            training data.
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
    names, observed = observed_points(posterior)
    check_counts(num_draws, resolution)
    if len(names) == 1:
        return rate_curve(posterior, num_draws=num_draws, seed=seed, truth=truth, axes=axes)
    _check_pair(components, len(names))
    pair, is_log = list(components), posterior.model.units.transform == "log"
    low, high, states = grid(posterior, observed, pair, resolution)
    points = torch.cat([states, visited(observed, states[0, len(names) :])])
    unit = ((high - low) * (points[:, pair] if is_log else 1.0)).expand(len(points), 2)
    drawn = posterior.field(points, num_draws=num_draws, seed=seed).to(states)[..., pair] / unit
    draws, at_data = drawn.split([len(states), len(points) - len(states)], 1)  # ranges of the axes
    mean, length = draws.mean(0), draws.norm(dim=-1).mean(0).clamp_min(1e-300)
    sd, speed_of_data = draws.var(0).sum(-1).sqrt(), at_data.mean(0).square().sum(-1).mean().sqrt()
    held = ", ".join(f"{n} = {states[0, k]:.3g}" for k, n in enumerate(names) if k not in pair)
    fields = {"posterior mean": (mean, sd / length)}
    if truth is not None:
        true = true_rates(truth, states)[:, pair] / unit[: len(states)]
        fields["truth"] = true, (mean - true).norm(dim=-1) / length
    with rc_context(STYLE if axes is None else {}):
        figure, panels = new_panels(axes, 1, len(fields), (2.6 * len(fields) + 0.9, 3.2))
        for panel, (title, (speed, shade)) in zip(panels[0], fields.items(), strict=True):
            panel.set(title="\n".join([title, *textwrap.wrap(held, 40)]), xlabel=names[pair[0]])
            for letter, ends in zip("xy", torch.stack([low, high], -1), strict=True):
                set_limits(panel, letter, ends.tolist(), is_log)
            image = _draw_field(panel, array(speed.T), array(shade), resolution)
            if title != "truth":
                _draw_undetermined(panel, array(sd / speed_of_data), resolution)
            panel.plot(*array(observed[:, pair].T), ls="", mec="w", mew=0.3, **TRAIN | {"ms": 3})
        panels[0, 0].set_ylabel(names[pair[1]])
        label = ("sd" if truth is None else "sd (left), error (right)") + " / mean length"
        bar = figure.colorbar(image, ax=panels[0].tolist(), extend="both", format="{x:g}")
        bar.set_label(label)
        add_legend(figure, panels, is_own=axes is None)
    return figure


def _check_pair(pair: Sequence[int], count: int) -> None:
    if not (len(pair) == len(set(pair)) == 2 and set(pair) <= set(range(count))):
        raise DataError(f"components must be two of 0 to {count - 1}, not {pair}.")


def _draw_undetermined(panel: Axes, ratio: np.ndarray, resolution: int) -> None:
    """Grey where a ratio exceeds one, under the streamlines."""
    if (ratio > 1).any():
        side, look = np.linspace(0, 1, resolution), {"transform": panel.transAxes, "zorder": 0.6}
        levels, colour = [1.0, np.inf], UNDETERMINED["fc"]
        panel.contourf(
            side, side, ratio.reshape(resolution, resolution), levels, colors=colour, **look
        )
        label = "not determined: sd above the speed of the data"
        panel.fill([], [], label=label, **UNDETERMINED)


def _draw_field(panel: Axes, speed: np.ndarray, shade: np.ndarray, resolution: int) -> Any:
    """Streamlines over a shade, in coordinates of the panel: the same on logarithmic axes."""
    side, half = np.linspace(0, 1, resolution), 0.5 / (resolution - 1)
    frame: dict[str, Any] = {"transform": panel.transAxes, "zorder": 0.5}
    look: dict[str, Any] = {"extent": (-half, 1 + half) * 2, "origin": "lower", "aspect": "auto"}
    look |= {"cmap": UNCERTAINTY, "norm": LogNorm(0.01, 1), "interpolation": "bilinear"}
    image = panel.imshow(shade.clip(1e-9).reshape(resolution, resolution), **look, **frame)
    u, v = speed.reshape(2, resolution, resolution)
    width = 0.3 + 0.9 * np.hypot(u, v) / max(np.hypot(u, v).max(), 1e-300)
    frame["zorder"] = 0.7  # above the grey
    panel.streamplot(side, side, u, v, color="#444444", linewidth=width, arrowsize=0.6, **frame)
    return image
