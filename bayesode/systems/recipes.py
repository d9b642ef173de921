"""Systems from the recipes of saved runs."""

from __future__ import annotations

from typing import Any

from bayesode.models.dynamical import DynamicalModel
from bayesode.plan import FitPlan
from bayesode.systems.data_space import neural_ode, neural_sde
from bayesode.systems.latent import ode_vae
from bayesode.systems.ode2vae_parts import rebuilt_ode2vae
from bayesode.trajectories import Trajectories

SYSTEMS = {
    "neural_ode": neural_ode,
    "neural_sde": neural_sde,
    "ode_vae": ode_vae,
    "ode2vae": rebuilt_ode2vae,
}


def rebuild(recipe: dict[str, Any], train: Trajectories) -> tuple[DynamicalModel, Any]:
    """The system that `recipe` (of a saved run) describes, untrained."""
    arguments = dict(recipe["arguments"])
    if "plan" in arguments:
        arguments["plan"] = FitPlan.from_config(arguments["plan"])
    return SYSTEMS[recipe["system"]](train, verbose=False, **arguments)
