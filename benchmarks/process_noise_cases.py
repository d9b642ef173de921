"""The data of `benchmarks.process_noise`: random paths, clean ones, wells, and many times."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import bayesode as bo
from benchmarks.scoring import SMOKE, Size
from benchmarks.tasks import SYSTEMS, System, Task, Variant

# Forecasts of random paths are many noise sds wide: few draws would come near a new observation.
USUAL = Size(num_draws=2000)


class Case(NamedTuple):
    """One kind of data.

    Args:
        system: What is simulated.
        variant: How its data differ from the usual ones.
        process_scale: The true scale of the process noise (state,), as additive noise.
        methods: Which run by default.
        is_forecast: Whether there is a second half to forecast.
        has_wells: Whether the zeros of the drift are looked for.
        size: How many draws are scored.
    """

    system: System
    variant: Variant
    process_scale: Callable[[Task], Tensor]
    methods: tuple[str, ...] = ("neural-sde",)
    is_forecast: bool = True
    has_wells: bool = False
    size: Size = USUAL


def relative(task: Task) -> Tensor:
    """Scale of multiplicative noise where it acts on average."""
    return task.data.parameters["sigma"] * task.visited.abs().mean(0)


def constant(task: Task) -> Tensor:
    return torch.full_like(task.noise_scale, task.data.parameters["sigma"])


def absent(task: Task) -> Tensor:
    return torch.zeros_like(task.noise_scale)


def longer(name: str, num_times: int) -> Case:
    """A clean system at its usual distance of times, over more of them."""
    simulate, horizon, usual = SYSTEMS[name]
    system = System(simulate, horizon * (num_times - 1) / (usual - 1), num_times)
    return Case(system, Variant(), absent, is_forecast=False, size=Size(num_draws=100))


PREDATORS = System(bo.datasets.stochastic_lotka_volterra, 6.0, 50)
DOUBLE_WELL = System(bo.datasets.double_well, 10.0, 100)
BOTH = ("neural-sde", "neural-ode")
CLEAN = [name for name in SYSTEMS if name != "lorenz"]
LARGE = {"lorenz": (80, 400), "van_der_pol": (50, 200, 1000)}
PARTS = {
    "stochastic": {
        "10 x 50": Case(PREDATORS, Variant(), relative, (*BOTH, "ar2")),
        "3 x 40": Case(PREDATORS, Variant(num_series=3, num_times=40), relative, (*BOTH, "ar2")),
    },
    "clean": {name: Case(SYSTEMS[name], Variant(), absent, BOTH) for name in CLEAN},
    "double-well": {
        "20 x 100": Case(DOUBLE_WELL, Variant(num_series=20), constant, has_wells=True)
    },
    "large": {f"{name} {count}": longer(name, count) for name in LARGE for count in LARGE[name]},
}
SMOKE_PARTS = {
    "stochastic": {
        "smoke": Case(
            PREDATORS,
            Variant(num_series=3, num_times=15),
            relative,
            ("neural-sde", "ar2"),
            size=SMOKE,
        )
    },
    "double-well": {
        "smoke": Case(
            DOUBLE_WELL,
            Variant(num_series=4, num_times=25),
            constant,
            has_wells=True,
            size=SMOKE,
        )
    },
}
