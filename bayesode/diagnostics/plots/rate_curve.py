"""A fitted field of a single component: dx/dt over x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from bayesode.diagnostics.plots.field_grid import grid, observed_points, true_rates, visited
from bayesode.diagnostics.plots.style import (
    LINE,
    SHADES,
    STYLE,
    TEST,
    TRAIN,
    add_legend,
    array,
    draw_undetermined,
    new_panels,
    set_limits,
)
from bayesode.inference.posterior import Posterior

RESOLUTION = 101  # points of a curve
LEVELS = (0.9, 0.5)  # of the bands


def rate_curve(
    posterior: Posterior,
    *,
    num_draws: int = 100,
    seed: int | None = 0,
    truth: Callable[[Tensor], Any] | None = None,
    axes: Any = None,
) -> Figure:
    """The median of dx/dt over x with bands of the draws; ticks are training data.

    Grey is where the sd exceeds the root mean square of dx/dt at the training data, as in
    `vector_field`, which calls this.

    Args:
        posterior: The fit of a model whose data have one component.
        num_draws: Draws of the field, at least 2.
        seed: Of the draws.
        truth: As in `vector_field`: a broken line.
        axes: One to draw in; a new figure by default.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.double_well(num_series=2, num_times=20).observed
        >>> model, guide = bo.neural_sde(train, hidden=[3], verbose=False)
        >>> posterior = bo.fit_laplace(model, train, seed=0, progress=False)
        >>> (panel,) = rate_curve(posterior, num_draws=10).axes
        >>> panel.get_xlabel(), panel.get_ylabel()
        ('x', 'dx / dt')
    """
    (name,), observed = observed_points(posterior)
    is_log = posterior.model.units.transform == "log"
    low, high, states = grid(posterior, observed, [0], RESOLUTION)
    points = torch.cat([states, visited(observed, states[0, 1:])])
    drawn = posterior.field(points, num_draws=num_draws, seed=seed).to(states)[..., 0]
    draws, at_data = drawn.split([len(states), len(points) - len(states)], 1)
    is_open = draws.std(0) > at_data.mean(0).square().mean().sqrt()
    tails = [(1 - level) / 2 for level in LEVELS]
    bands = array(draws.quantile(draws.new_tensor([*tails, 0.5, *(1 - t for t in tails[::-1])]), 0))
    place = array(states[:, 0])
    with rc_context(STYLE if axes is None else {}):
        figure, ((panel,),) = new_panels(axes, 1, 1, (3.5, 2.8))
        panel.set(xlabel=name, ylabel=f"d{name} / dt", title="posterior of the field")
        for k, shade in enumerate(SHADES(np.linspace(0, 1, len(LEVELS)))):
            look: dict[str, Any] = {"color": shade, "label": f"{100 * LEVELS[k]:g} % interval"}
            panel.fill_between(place, bands[k], bands[-1 - k], lw=0, zorder=1, **look)
        panel.plot(place, bands[len(LEVELS)], lw=1, color=LINE, label="median")
        panel.axhline(0.0, color="#777777", lw=0.6, zorder=1.1)
        if truth is not None:
            true = array(true_rates(truth, states)[:, 0])
            panel.plot(place, true, lw=1, ls="--", color=TEST["c"], label="truth")
        draw_undetermined(panel, place, is_open.numpy())
        seen = array(observed[:, 0])
        bottom: Any = panel.get_xaxis_transform()  # across in data, up in shares of the panel
        ticks: dict[str, Any] = TRAIN | {"marker": "|", "ms": 5, "mew": 0.5, "alpha": 0.5}
        panel.plot(seen, np.full_like(seen, 0.02), ls="", transform=bottom, **ticks)
        set_limits(panel, "x", (low.item(), high.item()), is_log)
        add_legend(figure, np.array([[panel]]), is_own=axes is None)
    return figure
