"""The data sets of `benchmarks.dynamics`: a system, a seed, and a variant of its usual data.

Every data set covers twice the usual horizon: the first half is fitted, the second is forecast from
the same initial states. Ten more series of the same system, of which the first five points are
given, ask what was learned of the dynamics.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import bayesode as bo
from bayesode.datasets import Simulated

NEW_NOISE_SEED = 1_000_000  # added to the seed of the data, whose own noise it must not repeat
NEW_SERIES_SEED = 500_000  # added to the seed of the data, whose initial states it must not repeat
NUM_NEW_SERIES, NUM_GIVEN = 10, 5
Labels = tuple[str | int, ...]


class System(NamedTuple):
    """A data set and its usual grid."""

    simulate: Callable[..., Simulated]
    horizon: float
    num_times: int


SYSTEMS = {
    "van_der_pol": System(bo.datasets.van_der_pol, 10.0, 50),
    "fitzhugh_nagumo": System(bo.datasets.fitzhugh_nagumo, 10.0, 50),
    "lotka_volterra": System(bo.datasets.lotka_volterra, 6.0, 50),
    "damped_pendulum": System(bo.datasets.damped_pendulum, 10.0, 50),
    "glycolysis": System(bo.datasets.glycolysis, 20.0, 60),
    "cubic_spiral": System(bo.datasets.cubic_spiral, 10.0, 100),
    "lorenz": System(bo.datasets.lorenz, 2.0, 80),
}


class Variant(NamedTuple):
    """How data differ from a system's usual ones; None is the usual."""

    noise_scale: float | None = None
    num_series: int = 10
    num_times: int | None = None
    is_irregular: bool = False
    missing: float = 0.0


VARIANTS = {
    "default": Variant(),
    "noise=0.02": Variant(noise_scale=0.02),
    "noise=0.05": Variant(noise_scale=0.05),
    "noise=0.2": Variant(noise_scale=0.2),
    "noise=0.3": Variant(noise_scale=0.3),
    "series=3": Variant(num_series=3),
    "series=30": Variant(num_series=30),
    "times=20": Variant(num_times=20),
    "times=200": Variant(num_times=200),
    "irregular": Variant(is_irregular=True),
    "missing": Variant(missing=0.3),
    "irregular+missing": Variant(is_irregular=True, missing=0.3),
    "smoke": Variant(num_series=4, num_times=20),
}
OWN_TIMES = ["irregular", "missing", "irregular+missing"]
STRESS = {  # which variants --stress takes of which system
    "van_der_pol": [name for name in VARIANTS if name not in ("default", "smoke")],
    "lotka_volterra": [name for name in VARIANTS if name not in ("default", "smoke")],
    "damped_pendulum": OWN_TIMES,
}


class Target(NamedTuple):
    """What a prediction is held against.

    Args:
        truth: The path without noise, (series, time, state).
        new: The path with fresh noise, complete: its times are the question.
    """

    truth: Tensor
    new: bo.Trajectories


class Task(NamedTuple):
    """One data set.

    Args:
        seed: Of the data, and of the fit.
        data: Simulated over both halves.
        train: The first half, `num_train` times.
        target: Both halves.
        num_train: Times of each series in the first half.
        given: The first points of series that were not in the fit.
        new_series: These series over the first half's horizon.
        substep: A tenth of the usual gap between times: RK4 is exact beside any noise.
    """

    seed: int
    data: Simulated
    train: bo.Trajectories
    target: Target
    num_train: int
    given: bo.Trajectories
    new_series: Target
    substep: float

    @property
    def noise_scale(self) -> Tensor:
        """True sd of the noise, (state,)."""
        return self.data.noise_scale

    @property
    def visited(self) -> Tensor:
        """True states behind the training data, (points, state)."""
        return self.target.truth[:, : self.num_train].flatten(0, 1)


def make_task(system: str, variant: str, seed: int) -> Task:
    """The data of a system, in a variant, by a seed; both by their names."""
    return task_of(SYSTEMS[system], VARIANTS[variant], seed)


def task_of(system: System, chosen: Variant, seed: int) -> Task:
    """The data of a system, in a variant, by a seed."""
    simulate, horizon, usual = system
    num_train = chosen.num_times or usual
    about = {"noise_scale": chosen.noise_scale, "missing": chosen.missing}

    def data_of(num_series: int, own_seed: int) -> Simulated:
        times = _times(chosen.is_irregular, num_series, num_train, horizon, own_seed)
        return simulate(num_series=num_series, times=times, seed=own_seed, **about)

    data = data_of(chosen.num_series, seed)
    train, _ = data.observed.split(time=horizon * (1 + 1e-9))  # times are rounded
    fresh = data_of(NUM_NEW_SERIES, NEW_SERIES_SEED + seed)
    labels = tuple(f"new {row}" for row in range(NUM_NEW_SERIES))  # which the fit does not know
    seen = torch.where(fresh.observed.mask, fresh.observed.values, torch.nan)
    noise_seed = NEW_NOISE_SEED + seed
    return Task(
        seed=seed,
        data=data,
        train=train,
        target=_target(data, slice(None), data.truth.series, noise_seed),
        num_train=num_train,
        given=_part(fresh.observed, seen, slice(NUM_GIVEN), labels),
        new_series=_target(fresh, slice(num_train), labels, NEW_SERIES_SEED + noise_seed),
        substep=horizon / (usual - 1) / 10,
    )


def in_sample(task: Task) -> Task:
    """The same task without its forecast: nothing is asked or scored beyond the training data."""
    new, _ = task.target.new.split(time=task.train.times.max().item())
    return task._replace(target=Target(task.target.truth[:, : task.num_train], new))


def _times(
    is_irregular: bool, num_series: int, num_train: int, horizon: float, seed: int
) -> Tensor:
    """As many times in the first half as in the second and one more, also irregular ones."""
    if not is_irregular:
        return torch.linspace(0, 2 * horizon, 2 * num_train - 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(num_series, 2, num_train - 2, generator=generator, dtype=torch.float64)
    early, late = (horizon * unit.sort(-1).values).unbind(1)
    ends = [torch.full((num_series, 1), k * horizon, dtype=torch.float64) for k in range(3)]
    return torch.cat([ends[0], early, ends[1], horizon + late, ends[2]], -1)


def _target(data: Simulated, window: slice, labels: Labels, seed: int) -> Target:
    path = data.truth.values
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(path.shape, generator=generator, dtype=path.dtype) * data.noise_scale
    return Target(path[:, window], _part(data.truth, path + noise, window, labels))


def _part(data: bo.Trajectories, values: Tensor, window: slice, labels: Labels) -> bo.Trajectories:
    times = data.times[..., window]
    return bo.Trajectories(
        times, values[:, window], series=labels, names=data.names, start=data.start
    )
