"""Simulated systems and the lynx-hare record."""

import csv
import importlib
import itertools
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bayesode import datasets
from bayesode.errors import DataError, ShapeError

glycolysis_module, lorenz_module = (
    importlib.import_module(f"bayesode.datasets.{name}") for name in ("glycolysis", "lorenz")
)  # `datasets.lorenz` is the function

SHARED = Path(
    os.environ.get("BAYESODE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)

# The equations, written once more and by hand: derivative, center and half width of the law of
# x(0), horizon, number of times, noise. All laws are uniform but that of Lorenz, which is normal.
EQUATIONS = {
    datasets.van_der_pol: (lambda x, y: (y, (1 - x * x) * y - x), 0, 3, 10, 50, 0.1),
    datasets.lotka_volterra: (lambda x, y: (x * (1.5 - y), y * (x - 3)), 3, 2, 6, 50, 0.1),
    datasets.fitzhugh_nagumo: (
        lambda v, w: (3 * (v - v * v * v / 3 + w), -(v - 0.2 + 0.2 * w) / 3),
        *(0, 2, 10, 50, 0.1),
    ),
    datasets.cubic_spiral: (
        lambda x, y: (-0.1 * x * x * x - 2 * y * y * y, 2 * x * x * x - 0.1 * y * y * y),
        *(0, 2, 10, 100, 0.1),
    ),
    datasets.damped_pendulum: (
        lambda q, p: (p, -2 * torch.sin(q) - 0.1 * p),
        *(0, 1.5, 10, 50, 0.05),
    ),
    datasets.lorenz: (
        lambda x, y, z: (10 * (y - x), x * (28 - z) - y, x * y - 8 * z / 3),
        *((0, 0, 25), 8, 2, 80, 0.5),
    ),
    datasets.glycolysis: (
        lambda x, y: (-x + 0.08 * y + x * x * y, 0.6 - 0.08 * y - x * x * y),
        *(1.3, 1, 20, 60, 0.05),
    ),
}
systems = pytest.mark.parametrize("system", EQUATIONS, ids=lambda system: system.__name__)


@systems
def test_true_field_is_the_equations(system):
    data = system(num_series=4, num_times=7, seed=3)
    states = data.truth.values
    rates = torch.stack(EQUATIONS[system][0](*states.unbind(-1)), -1)
    torch.testing.assert_close(data.field(states), rates, rtol=1e-12, atol=1e-12)


def test_true_field_refuses_states_of_another_size():
    with pytest.raises(ShapeError, match=r"\['x1', 'x2'\] as last axis, not \(5, 3\)"):
        datasets.van_der_pol().field(torch.zeros(5, 3))


@systems
def test_truth_solves_the_equations(system):
    step, (equations, _, _, horizon, *_) = 1e-3, EQUATIONS[system]
    times = torch.arange(0, horizon + step / 2, step, dtype=torch.float64)
    path = system(num_series=4, times=times, seed=3).truth.values
    ahead, behind = path[:, 3:-1] - path[:, 1:-3], path[:, 4:] - path[:, :-4]
    slope = (8 * ahead - behind) / (12 * step)  # error: step^4 / 30 of the fifth derivative
    expected = torch.stack(equations(*path[:, 2:-2].unbind(-1)), -1)
    # Fifth derivatives stay below 1e8 here, so 4e-6; else the integration's 1e-9 per step weighs
    # more, in proportion to the state.
    tolerance = 1e-5 * max(1.0, path.abs().max().item())
    torch.testing.assert_close(slope, expected, rtol=0, atol=tolerance)


def test_limit_cycle_of_van_der_pol_has_the_known_amplitudes():
    times = torch.linspace(40, 60, 20_001, dtype=torch.float64)
    largest = datasets.van_der_pol(num_series=3, times=times).truth.values.abs().amax(1)
    expected = torch.tensor([2.00862, 2.67844], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(largest, expected, rtol=0, atol=1e-5)


def test_lotka_volterra_conserves_its_invariant():
    data = datasets.lotka_volterra(num_series=20, num_times=200, horizon=30.0)
    prey, predator = data.truth.values.unbind(-1)
    p = data.parameters
    invariant = p["delta"] * prey - p["gamma"] * prey.log()
    invariant += p["beta"] * predator - p["alpha"] * predator.log()
    drift = (invariant - invariant[:, :1]).abs().max()
    assert drift < 1e-6  # populations fall to 1e-3, where the tolerance weighs a thousandfold


def derivative(module, *state):
    """The derivative of a data set's own system at a state of tensors."""
    system = module.SYSTEM
    return system.derivative(*state, **system.parameters)


def test_cubic_spiral_loses_amplitude_at_the_known_rate():
    step = 1e-3
    times = torch.arange(0, 1 + step / 2, step, dtype=torch.float64)
    x1, x2 = datasets.cubic_spiral(num_series=5, times=times).truth.values.unbind(-1)
    lost = (x1**4 + x2**4)[:, ::1000].diff() / 4
    rate = -0.1 * (x1**6 + x2**6)
    simpson = rate[:, ::2].sum(1) * 2 + rate[:, 1::2].sum(1) * 4 - rate[:, 0] - rate[:, -1]
    torch.testing.assert_close(lost[:, 0], simpson * step / 3, rtol=0, atol=1e-6)


def test_pendulum_loses_energy_at_the_known_rate():
    step = 1e-2
    times = torch.arange(0, 10 + step / 2, step, dtype=torch.float64)
    q, p = datasets.damped_pendulum(num_series=5, times=times).truth.values.unbind(-1)
    energy, rate = p**2 / 2 - 2 * q.cos(), -0.1 * p**2
    simpson = (rate[:, :-2:2] + 4 * rate[:, 1:-1:2] + rate[:, 2::2]) * step / 3
    torch.testing.assert_close(energy[:, ::2].diff(), simpson, rtol=0, atol=1e-8)
    assert (energy.diff() < 0).all()


def test_lorenz_has_its_three_fixed_points():
    far = math.sqrt(8 / 3 * 27)
    points = torch.tensor([[0, 0, 0], [far, far, 27], [-far, -far, 27]], dtype=torch.float64)
    rates = torch.stack(derivative(lorenz_module, *points.unbind(-1)))
    torch.testing.assert_close(rates, torch.zeros_like(rates), rtol=0, atol=1e-12)


def test_lorenz_contracts_volumes_at_the_known_rate():
    point = torch.tensor([1.0, -2.0, 20.0], dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: torch.stack(derivative(lorenz_module, *x)))(point)
    assert jacobian.trace().item() == pytest.approx(-(10 + 1 + 8 / 3), rel=1e-12)


def test_glycolysis_has_an_unstable_equilibrium_inside_its_cycle():
    point = torch.tensor([0.6, 0.6 / (0.08 + 0.36)], dtype=torch.float64)
    rates = torch.stack(derivative(glycolysis_module, *point))
    torch.testing.assert_close(rates, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-14)
    jacobian = torch.func.jacrev(lambda x: torch.stack(derivative(glycolysis_module, *x)))(point)
    assert jacobian.trace() > 0 and jacobian.det() > 0
    assert jacobian.det().item() == pytest.approx(0.08 + 0.36, rel=1e-12)  # a + b^2


@systems
def test_own_times_see_the_same_path_as_shared_times(system):
    shared = system(num_series=3, num_times=9, seed=5)
    rows = shared.truth.times.expand(3, 9).clone()
    own = system(num_series=3, times=rows, seed=5)
    torch.testing.assert_close(own.truth.values, shared.truth.values, rtol=1e-7, atol=1e-7)
    irregular = system(num_series=3, num_times=9, seed=5, times="irregular").truth
    again = system(num_series=3, times=irregular.times, seed=5).truth
    assert torch.equal(irregular.values, again.values)


@systems
def test_initial_states_follow_the_stated_law(system):
    (_, center, width, *_), num_series = EQUATIONS[system], 4000
    data = system(num_series=num_series, times=[0.0], noise_scale=0.0)
    x0 = data.truth.values[:, 0]
    unit = (x0 - torch.tensor(center, dtype=torch.float64)) / width
    if system is datasets.lorenz:
        second, fourth = 1, 3
    else:
        second, fourth = 1 / 3, 1 / 5
        assert unit.abs().max() <= 1 + 1e-7  # states are drawn in float32
    # Five comparisons (nine of three components) at 5 standard errors in each of 7 systems: a
    # false alarm in 4e4 seeds.
    assert unit.mean(0).abs().max() < 5 * math.sqrt(second / num_series)
    error = (unit.square().mean(0) - second).abs().max()
    assert error < 5 * math.sqrt((fourth - second**2) / num_series)
    for first, other in itertools.combinations(unit.unbind(-1), 2):  # independent
        assert (first * other).mean().abs() < 5 * second / math.sqrt(num_series)


@systems
def test_initial_states_of_a_seed_depend_on_nothing_else(system):
    def initial(**settings):
        data = system(seed=7, **{"num_times": 6, "num_series": 4} | settings)
        assert data.truth.start.tolist() == [0.0] * 4 == data.observed.start.tolist()
        return data.truth.values[:, 0]

    reference = initial()
    for settings in (
        {"num_times": 11},
        {"noise_scale": 0.0},
        {"noise_scale": [1.0, 2.0, 3.0][: len(system(num_series=1).truth.names)]},
        {"missing": 0.5},
        {"times": "irregular"},
        {"horizon": 2.0},
        {"times": [0.0, 0.5]},
    ):
        torch.testing.assert_close(initial(**settings), reference, rtol=0, atol=0)
    assert not torch.equal(system(num_series=4, seed=8).truth.values[:, 0], reference)


def test_initial_state_holds_at_zero_when_the_first_time_is_later():
    early = datasets.van_der_pol(num_series=2, times=[0.0, 1.0, 2.0])
    late = datasets.van_der_pol(num_series=2, times=[1.0, 2.0])
    torch.testing.assert_close(late.truth.values, early.truth.values[:, 1:], rtol=1e-7, atol=1e-7)
    assert late.observed.start.tolist() == [0.0, 0.0]


@systems
def test_noise_has_the_stated_scale(system):
    default = system(num_series=50, num_times=40, seed=1)
    *_, noise_scale = EQUATIONS[system]
    dim = len(default.truth.names)
    assert default.noise_scale.tolist() == [noise_scale] * dim
    scaled = system(num_series=50, num_times=40, seed=2, noise_scale=[0.02, 0.7, 0.3][:dim])
    for data in (default, scaled):
        noise = (data.observed.values - data.truth.values) / data.noise_scale
        count = noise[..., 0].numel()
        # 14 comparisons (24 of three components) at 5 standard errors in each of 7 systems: a
        # false alarm in 1e4 seeds
        assert noise.mean((0, 1)).abs().max() < 5 / math.sqrt(count)
        assert (noise.std((0, 1)) - 1).abs().max() < 5 / math.sqrt(2 * count)
        for first, other in itertools.combinations(noise.unbind(-1), 2):
            assert (first * other).mean().abs() < 5 / math.sqrt(count)
        lagged = (noise[:, 1:] * noise[:, :-1]).mean((0, 1))
        assert lagged.abs().max() < 5 / math.sqrt(count - 50)


def test_without_noise_the_truth_is_observed():
    data = datasets.fitzhugh_nagumo(noise_scale=0.0, num_series=3)
    assert torch.equal(data.observed.values, data.truth.values.to(torch.float32))
    assert data.truth.values.dtype == torch.float64


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.9])
def test_the_stated_fraction_is_missing_at_random(fraction):
    data = datasets.van_der_pol(num_series=40, num_times=50, missing=fraction, seed=4)
    mask = data.observed.mask
    assert (~mask).sum() == round(fraction * mask.numel())
    assert torch.equal(mask, ~data.observed.values.isnan())
    assert data.truth.mask.all()
    assert data.truth.series == data.observed.series and data.truth.names == data.observed.names
    # Share by component and by half: hypergeometric, so below binomial. 4 comparisons at 5
    # standard errors in each of 2 cases: a false alarm in 2e5 seeds.
    error = math.sqrt(fraction * (1 - fraction) / (mask.numel() / 2))
    halves = [mask[..., 0], mask[..., 1], mask[:, :25], mask[:20]]
    assert all(abs((~half).double().mean() - fraction) <= 5 * error for half in halves)


def test_every_series_keeps_a_value_and_more_missing_only_adds():
    few, many = (
        datasets.van_der_pol(num_series=30, num_times=4, missing=share).observed
        for share in (0.4, 0.99)
    )
    assert (many.mask.flatten(1).sum(1) == 1).all()
    assert (many.mask <= few.mask).all()
    assert torch.equal(few.values[many.mask], many.values[many.mask])


@systems
def test_irregular_times_begin_at_zero_and_end_at_the_horizon(system):
    times = system(num_series=5, num_times=30, times="irregular").observed.times
    *_, horizon, usual_num_times, _ = EQUATIONS[system]
    assert times.shape == (5, 30) and times.dtype == torch.float64
    assert (times[:, 0] == 0).all() and (times[:, -1] == horizon).all()
    assert len(set(times[:, 1].tolist())) == 5
    regular = system(num_series=5, num_times=30).observed.times
    assert torch.equal(regular, torch.linspace(0, horizon, 30, dtype=torch.float64))
    usual = system(num_series=5, horizon=1.5).observed.times
    assert usual[-1] == 1.5 and len(usual) == usual_num_times


@systems
def test_data_are_reproducible_and_global_random_states_untouched(system):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    first, second, other = (
        system(num_series=3, seed=seed, missing=0.2, times="irregular").observed
        for seed in (11, 11, 12)
    )
    assert states() == before
    torch.manual_seed(99)
    third = system(num_series=3, seed=11, missing=0.2, times="irregular").observed
    for copy in (second, third):
        assert torch.equal(first.times, copy.times)
        assert torch.equal(first.values.nan_to_num(7.0), copy.values.nan_to_num(7.0))
    assert not torch.equal(first.times, other.times)


def test_default_dtype_does_not_change_the_data():
    reference = datasets.van_der_pol(num_series=2)
    torch.set_default_dtype(torch.float64)
    try:
        again, pelts = datasets.van_der_pol(num_series=2), datasets.lynx_hare()
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.observed.values.dtype == pelts.values.dtype == torch.float32
    assert torch.equal(again.observed.values, reference.observed.values)


@pytest.mark.parametrize(
    ("settings", "error", "mend"),
    [
        ({"num_series": 0}, DataError, "num_series must be a whole number of at least 1"),
        ({"num_times": 1}, DataError, "num_times must be a whole number of at least 2"),
        ({"num_times": 2.5}, DataError, "not 2.5"),
        ({"seed": 0.5}, DataError, "seed must be a whole number"),
        ({"noise_scale": -0.1}, DataError, "at least 0"),
        ({"noise_scale": math.nan}, DataError, "standard deviation"),
        ({"noise_scale": "loud"}, DataError, "one number or one per component"),
        ({"noise_scale": [0.1] * 4}, ShapeError, "one number or [23], not"),
        ({"missing": 1.0}, DataError, "below 1"),
        ({"missing": -0.1}, DataError, "at least 0"),
        ({"horizon": 0.0}, DataError, "positive finite"),
        ({"horizon": math.inf}, DataError, "positive finite"),
        ({"horizon": 3.0, "times": [0.0, 1.0]}, DataError, "not both"),
        ({"times": "daily"}, DataError, "'regular', 'irregular'"),
        ({"times": [-1.0, 1.0]}, DataError, "before its start"),
        ({"times": [0.0, 2.0, 1.0]}, DataError, "not sorted"),
        ({"times": torch.zeros(3, 2, 1)}, ShapeError, r"\(time,\) or \(series, time\)"),
        ({"times": torch.arange(12.0).view(2, 6)}, ShapeError, "pass num_series=2"),
    ],
)
@systems
def test_arguments_that_cannot_be_used_are_refused(system, settings, error, mend):
    with pytest.raises(error, match=mend):
        system(**settings)


def test_lynx_hare_is_the_record_of_the_hudson_bay_company():
    path = SHARED / "lynx_hare" / "hudson-bay-lynx-hare.csv"
    if not path.exists():
        pytest.skip(f"the record is not there: {path} (set BAYESODE_DATA to the data folder)")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    table = list(csv.DictReader(lines, skipinitialspace=True))
    data = datasets.lynx_hare()
    assert data.times.tolist() == [float(row["Year"]) for row in table]
    for component, name in enumerate(("Hare", "Lynx")):
        expected = torch.tensor([float(row[name]) for row in table])
        assert torch.equal(data.values[0, :, component], expected)


def test_lynx_hare_is_one_complete_labelled_series():
    data = datasets.lynx_hare()
    assert data.series == ("hudson-bay",) and data.names == ("hare", "lynx")
    assert data.values.shape == (1, 21, 2) and data.mask.all()
    assert data.start.tolist() == [1900.0]
    assert data.values.double().sum((0, 1)).round(decimals=3).tolist() == [715.7, 423.5]


def test_angles_of_a_pendulum_are_seen_and_its_velocities_are_not():
    whole = datasets.damped_pendulum(num_series=5, seed=4)
    data = datasets.damped_pendulum_angles(num_series=5, seed=4, missing=0.2)
    assert torch.equal(data.truth.values, whole.truth.values)
    assert data.truth.names == ("q", "p") and data.observed.names == ("q",)
    assert data.observed.values.shape == (5, 50, 1) and data.noise_scale.tolist() == [0.05]
    assert data.observed.num_observed == 200
    error = (data.observed.values - data.truth.values[..., :1])[data.observed.mask]
    # mean square of 200 normal numbers: 5 standard errors, 1 seed in 2e6
    assert abs(error.square().mean() / 0.05**2 - 1) < 5 * (2 / 200) ** 0.5
    assert torch.equal(data.field(data.truth.values), whole.field(data.truth.values))


def test_noise_of_angles_is_one_number():
    with pytest.raises(ShapeError, match="one number or 1"):
        datasets.damped_pendulum_angles(noise_scale=[0.1, 0.2])
