"""Where pictures of a field ask for it: a grid over the training data, and the data themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bayesode.data_checks import shape_of
from bayesode.errors import DataError, ShapeError
from bayesode.inference.posterior import Posterior

MAX_VISITED = 200  # training points at which the speed of the data is taken


def observed_points(posterior: Posterior) -> tuple[tuple[str, ...], Tensor]:
    """Names of the components and training points (points, component), NaN where unseen.

    Raises:
        DataError: If there are no training data.
    """
    train = getattr(posterior, "train", None)
    if train is None or train.values is None or train.values.dim() != 3:
        raise DataError("a picture of the field needs training data (series, time, component).")
    seen = torch.where(train.mask, train.values, torch.nan)
    return train.names, seen.flatten(0, 1).double().cpu()


def check_counts(num_draws: int, resolution: int) -> None:
    """Refuse fewer than two draws or points along an axis.

    Raises:
        DataError: If one of them is below 2.
    """
    if num_draws < 2 or resolution < 2:
        raise DataError(f"needs 2 draws and points or more, not {num_draws=}, {resolution=}.")


def grid(
    posterior: Posterior, observed: Tensor, shown: list[int], resolution: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of the axes and states on a grid over the range of the data.

    Args:
        posterior: The fit.
        observed: Training points, from `observed_points`.
        shown: Indices of the components on the axes, one or two.
        resolution: Points along each axis.

    Returns:
        Lower and upper ends (axis,), logarithms for logarithmic axes, and states (points, state),
        the first axis fastest.
    """
    units = posterior.model.units
    is_log = units.transform == "log"
    scaled, unscaled = (torch.log, torch.exp) if is_log else (torch.clone, torch.clone)
    seen = scaled(observed)
    low, high = seen[:, shown].nanquantile(seen.new_tensor([0.0, 1.0]), 0)
    low, high = 1.1 * low - 0.1 * high, 1.1 * high - 0.1 * low
    dim = posterior.draws(1, seed=0)["x0"].shape[-1]
    origin = units.to_users(units.location.new_zeros(dim)).to(seen)
    states = origin.repeat(resolution ** len(shown), 1)
    states[:, : seen.shape[-1]] = unscaled(seen.nanmean(0))
    side = torch.linspace(0, 1, resolution, dtype=seen.dtype)
    places = torch.cartesian_prod(*[side] * len(shown)).reshape(-1, len(shown)).flip(-1)
    states[:, shown] = unscaled(low + (high - low) * places)
    return low, high, states


def visited(observed: Tensor, hidden: Tensor) -> Tensor:
    """At most MAX_VISITED training points as states, means for what was not seen."""
    filled = torch.where(observed.isnan(), observed.nanmean(0), observed)
    some = filled[:: math.ceil(len(filled) / MAX_VISITED)]
    return torch.cat([some, hidden.expand(len(some), -1)], -1)


def true_rates(truth: Callable[[Tensor], Any], states: Tensor) -> Tensor:
    """The true dx/dt at states, shape (points, state).

    Raises:
        ShapeError: If it has another shape.
    """
    true = torch.as_tensor(truth(states.clone()), dtype=states.dtype)
    if true.shape != states.shape:
        raise ShapeError(f"truth must return {shape_of(states)}, not {shape_of(true)}.")
    return true
