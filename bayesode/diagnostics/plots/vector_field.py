"""A fitted vector field in a plane of two components."""

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
from torch import Tensor

from bayesode.data_checks import shape_of
from bayesode.diagnostics.plots.style import (
    STYLE,
    TRAIN,
    UNDETERMINED,
    add_legend,
    array,
    new_panels,
    set_limits,
)
from bayesode.errors import DataError, ShapeError
from bayesode.inference.posterior import Posterior

# Perceptually uniform; light where the field is known, never so dark that it hides what lies on it.
UNCERTAINTY = ListedColormap(colormaps["magma_r"](np.linspace(0, 0.55, 256)))
MAX_VISITED = 200  # training points at which the speed of the data is taken


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

    Args:
        posterior: The fit.
        components: Indices of the components on the horizontal and the vertical axis.
        num_draws: Draws of the field, at least 2.
        resolution: Points along each axis at which it is evaluated, at least 2.
        seed: Of the draws.
        truth: From states (points, state) to dx/dt of this shape, in users' units; simulated data
            know it, `data.field`.
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
    points = torch.cat([states, _visited(observed, states[0, len(names) :])])
    unit = ((high - low) * (points[:, pair] if is_log else 1.0)).expand(len(points), 2)
    drawn = posterior.field(points, num_draws=num_draws, seed=seed).to(states)[..., pair] / unit
    draws, at_data = drawn.split([len(states), len(points) - len(states)], 1)  # ranges of the axes
    mean, length = draws.mean(0), draws.norm(dim=-1).mean(0).clamp_min(1e-300)
    sd, speed_of_data = draws.var(0).sum(-1).sqrt(), at_data.mean(0).square().sum(-1).mean().sqrt()
    held = ", ".join(f"{n} = {states[0, k]:.3g}" for k, n in enumerate(names) if k not in pair)
    fields = {"posterior mean": (mean, sd / length)}
    if truth is not None:
        true = _true_rates(truth, states)[:, pair] / unit[: len(states)]
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


def _visited(observed: Tensor, hidden: Tensor) -> Tensor:
    """At most MAX_VISITED training points as states, means for what was not seen."""
    filled = torch.where(observed.isnan(), observed.nanmean(0), observed)
    some = filled[:: math.ceil(len(filled) / MAX_VISITED)]
    return torch.cat([some, hidden.expand(len(some), -1)], -1)


def _true_rates(truth: Callable[[Tensor], Any], states: Tensor) -> Tensor:
    true = torch.as_tensor(truth(states.clone()), dtype=states.dtype)
    if true.shape != states.shape:
        raise ShapeError(f"truth must return {shape_of(states)}, not {shape_of(true)}.")
    return true


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
