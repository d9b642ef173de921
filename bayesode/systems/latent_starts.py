"""Where fits of latent systems begin."""

from __future__ import annotations

from typing import Any

import torch

from bayesode.inference.amortized import Start
from bayesode.inference.latent_start import closed_components, start_latent
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

SCALE, SMALL_SCALE = 0.02, 0.002  # posterior scales of a network's weights, of its last layer's


def start_of(dim_latent: int) -> Start:
    """The start of a latent system with `dim_latent` dynamic components.

    Components, generator and scales come from the visible frames (`start_latent`); a network in the
    field begins silent, with a random first layer, so that the linear part alone is at work.
    """

    def start(model: DynamicalModel, guide: Any, train: Trajectories) -> None:
        values: Any = train.values
        components = closed_components(values, train.mask, dim_latent)  # type: ignore[arg-type]
        start_latent(components)(model, guide, train)
        _set_prior_scale(model, guide)
        silent = getattr(model.field, "silent", dict)()  # of a linear field: no networks
        for site, value in silent.items():
            scale = torch.where(value == 0, SMALL_SCALE, SCALE)
            guide.set_site(f"field.{site}", value, scale, torch.full_like(value, SCALE))

    return start


@torch.no_grad()
def _set_prior_scale(model: DynamicalModel, guide: Any) -> None:
    """The prior sd of the linear field's entries becomes their size at the start (type-II).

    Their posterior scales count too, so that frames that stand still leave a prior.
    """
    field: Any = model.field
    site = field.linear_site()
    prior_sd = field.get_buffer(field.tunable()[site].buffer)
    location, scale = guide.sites.moments(f"field.{site}")
    prior_sd.fill_((location.square() + scale.square()).mean().sqrt())
