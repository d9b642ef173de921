"""Simulated systems with process noise against their exact moments."""

import math

import pytest
import torch

from bayesode import datasets
from bayesode.datasets.simulated import System, random_paths, uniform_initial
from bayesode.errors import DataError, SolverError

FUNCTIONS = [
    datasets.double_well,
    datasets.geometric_brownian_motion,
    datasets.ornstein_uhlenbeck,
    datasets.stochastic_lotka_volterra,
]
each = pytest.mark.parametrize("simulate", FUNCTIONS, ids=lambda f: f.__name__)


def within(values, mean, sd, dim=0):
    """Sample mean within five standard errors: one false alarm in 1.7 million."""
    assert ((values.mean(dim) - mean).abs() < 5 * sd / math.sqrt(values.shape[dim])).all()


def test_ornstein_uhlenbeck_has_its_exact_moments():
    data = datasets.ornstein_uhlenbeck(num_series=2000, times=[0.0, 0.5, 2.0], seed=1)
    x = data.truth.values[..., 0]
    for k, t in ((1, 0.5), (2, 2.0)):
        decay = math.exp(-t)
        deviation = x[:, k] - 0.5 - decay * (x[:, 0] - 0.5)
        variance = 0.25 * (1 - decay**2) / 2
        within(deviation, 0.0, math.sqrt(variance))
        within(deviation.square(), variance, math.sqrt(2) * variance)


def test_geometric_brownian_motion_has_normal_logarithms():
    data = datasets.geometric_brownian_motion(num_series=4000, times=[0.0, 1.0, 3.0], seed=2)
    x = data.truth.values[..., 0]
    for k, t in ((1, 1.0), (2, 3.0)):
        growth = (x[:, k] / x[:, 0]).log() - (0.3 - 0.02) * t
        within(growth, 0.0, 0.2 * math.sqrt(t))
        within(growth.square(), 0.04 * t, math.sqrt(2) * 0.04 * t)


def test_double_well_has_its_stationary_density():
    """The share beyond the barrier's halves, by quadrature of the density."""
    data = datasets.double_well(num_series=2000, times=[0.0, 8.0], horizon=None, seed=3)
    x = data.truth.values[:, 1, 0]
    grid = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    density = (8 * (grid.square() / 2 - grid.pow(4) / 4)).exp()
    share = (density[grid.abs() < 0.5].sum() / density.sum()).item()
    within((x.abs() < 0.5).double(), share, math.sqrt(share * (1 - share)))
    within((x > 0).double(), 0.5, 0.5)


def test_stochastic_lotka_volterra_has_the_quadratic_variation_of_its_logarithm():
    times = torch.linspace(0, 6, 2001)
    data = datasets.stochastic_lotka_volterra(num_series=5, times=times, seed=4)
    path = data.truth.values
    growth = (data.field(path) / path - 0.005)[:, :-1] * 0.003  # Ito: less half of sigma squared
    squares = (path.log().diff(dim=1) - growth).square().sum(1)  # 2,000 steps, .06 in all
    within(squares.flatten(), 0.06, 0.06 * math.sqrt(2 / 2000))


def test_without_noise_the_path_is_that_of_the_ode():
    noisy = datasets.stochastic_lotka_volterra
    module = __import__("sys").modules[noisy.__module__]
    silent = {**module.SYSTEM.parameters, "sigma": 0.0}
    system = System(
        module.SYSTEM.derivative,
        module.SYSTEM.names,
        silent,
        module.SYSTEM.draw_initial,
        6.0,
        0.1,
        module.SYSTEM.diffusion,
    )
    exact = datasets.lotka_volterra(num_series=3, num_times=20, seed=5).truth
    path = random_paths(system, exact.values[:, 0], exact.grid, torch.Generator())
    torch.testing.assert_close(path, exact.values, rtol=0.02, atol=0.02)


@each
def test_seeds_decide_everything_and_the_global_state_stays(simulate):
    state = torch.random.get_rng_state()
    first, second, other = (simulate(num_series=2, num_times=6, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.observed.values, second.observed.values)
    assert not torch.equal(first.truth.values, other.truth.values)
    assert torch.equal(first.truth.values[:, 0], simulate(num_series=2, seed=1).truth.values[:, 0])


@each
def test_observations_are_the_path_plus_noise_on_any_times(simulate):
    data = simulate(num_series=40, num_times=30, seed=3, times="irregular", missing=0.2)
    seen = data.observed.mask
    assert 0.78 < seen.double().mean() < 0.82
    noise = ((data.observed.values - data.truth.values) / data.noise_scale)[seen]
    within(noise, 0.0, 1.0)
    within(noise.square(), 1.0, math.sqrt(2))
    states = data.truth.values[0]
    assert data.field(states).shape == states.shape


def test_paths_that_explode_and_bad_arguments_are_refused():
    system = System(
        lambda x: (x**3,),
        ("x",),
        {},
        uniform_initial(2.0, 3.0, 1),
        5.0,
        0.1,
        lambda x: (0 * x,),
    )
    with pytest.raises(SolverError, match="explodes"):
        random_paths(system, torch.full((2, 1), 3.0), torch.full((2, 1), 5.0), torch.Generator())
    with pytest.raises(DataError, match="num_series"):
        datasets.double_well(num_series=0)
