"""A start for models with process noise: gradients matched, no path solved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.warm_start.flat import FlatField
from bayesode.inference.warm_start.matching import match_gradients
from bayesode.inference.warm_start.start import smooth_knots
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

# Dimensionless, per square root of time: more than most data have. From above the noise shrinks as
# the drift improves; from below every deviation of the path would be charged to the drift.
FIRST_NOISE = 0.3
FIRST_SCALE = 0.02  # posterior sd of a site of which nothing is known but its value
SLOW, FAST = 0.2, 1.0  # units in which numbers of the drift and scales of noise move


@dataclass(frozen=True, eq=False)
class SiteStart:
    """Where the posterior of a site begins.

    Args:
        value: Shape of the site, x0 (series, state).
        scale: Posterior sd of the unconstrained site.
        unit: In which its location is optimised.
    """

    value: Tensor
    scale: Tensor
    unit: Tensor


def match_drift(model: DynamicalModel, train: Trajectories) -> dict[str, SiteStart]:
    """Starts of the sites of a model with process noise.

    The drift has the derivative of the smoothed data, x0 lies on them, measurement noise is that of
    the smoother, and the process noise is generous.

    Args:
        model: With an `SDEField`.
        train: Training data.

    Raises:
        DataError: If components of the state are not observed.
    """
    grid, smoothed = smooth_knots(model, train)
    drift = FlatField.of(model.field.drift)  # type: ignore[arg-type]
    (dim,) = model.build(model.prototype(), train)[0].event_shape
    if smoothed.path.shape[-1] != dim:
        raise DataError(
            f"{smoothed.path.shape[-1]} of the state's {dim} components are observed: the drift "
            "has no derivative to match; fit_svi(..., warm_start=False)."
        )
    vector = match_gradients(drift, grid, smoothed)
    starts = {
        f"field.drift.{site}": _start(value, FIRST_SCALE, SLOW)
        for site, value in drift.unpack(vector).items()
    }
    noise, process = smoothed.noise_scale, torch.full_like(smoothed.noise_scale, FIRST_NOISE)
    for part, scale in (("likelihood", noise), ("field.diffusion", process)):
        known = getattr(model.get_submodule(part), "starting_values", None)
        values = {} if known is None else known(scale)
        starts |= {f"{part}.{s}": _start(value, 0.1, FAST) for s, value in values.items()}
    scale = noise.expand_as(smoothed.path[:, 0])
    return starts | {"x0": SiteStart(smoothed.path[:, 0], scale, torch.full_like(scale, SLOW))}


def _start(value: Tensor, scale: float, unit: float) -> SiteStart:
    return SiteStart(value, torch.full_like(value, scale), torch.full_like(value, unit))
