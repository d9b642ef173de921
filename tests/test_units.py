"""Users' units outside, dimensionless numbers inside."""

import json
import math

import pytest
import torch

import bayesode as bo
from bayesode.errors import DataError, ShapeError
from bayesode.trajectories import Trajectories
from bayesode.units import Units

NAN = float("nan")
BUFFERS = ("location", "scale", "time_origin", "time_unit")


def positive_data(**changes) -> Trajectories:
    """Three series of two positive components at own times, a quarter missing, float64."""
    generator = torch.Generator().manual_seed(1)
    times = torch.rand(3, 30, generator=generator, dtype=torch.float64).add(0.05).cumsum(-1)
    path = torch.stack([torch.sin(times), torch.cos(times / 2)], -1)
    noise = torch.randn(path.shape, generator=generator, dtype=torch.float64)
    arguments = {
        "times": times,
        "values": (path + 0.1 * noise + torch.tensor([0.0, 2.0])).exp(),
        "mask": torch.rand(path.shape, generator=generator) > 0.25,
        "names": ["prey", "predator"],
        "series": ["a", "b", "c"],
        "start": 0.0,
    }
    return Trajectories(**arguments | changes)


def sine(num_times: int = 400, **changes) -> Trajectories:
    times = torch.linspace(0, 10, num_times, dtype=torch.float64)
    values = torch.stack([torch.sin(3 * times), torch.cos(3 * times)], -1)[None]
    return Trajectories(times, **{"values": values} | changes)


# ---- units of data -------------------------------------------------------------------------------
@pytest.mark.parametrize("transform", ["identity", "log"])
def test_observed_data_have_mean_0_and_sd_1(transform):
    data = positive_data()
    units = Units.from_data(data, transform=transform)
    state = units.to_state(data.values)
    for j in range(2):
        seen = state[..., j][data.mask[..., j]]
        assert abs(seen.mean()) < 1e-12 and abs(seen.std(correction=0) - 1) < 1e-12
        raw = data.values[..., j][data.mask[..., j]]
        raw = raw.log() if transform == "log" else raw
        assert units.location[j].item() == pytest.approx(raw.mean().item(), rel=1e-12)
        assert units.scale[j].item() == pytest.approx(raw.std(correction=0).item(), rel=1e-12)
    assert units.time_origin.item() == 0.0
    assert units.names == data.names and units.transform == transform


def test_unit_of_time_is_that_in_which_the_data_move_by_one_sd():
    # sqrt(2) sin(3 t) has sd 1 and a root mean square speed of 3.
    assert Units.from_data(sine()).time_unit.item() == pytest.approx(1 / 3, rel=0.01)
    slower = Trajectories(60 * sine().times, sine().values)
    assert Units.from_data(slower).time_unit.item() == pytest.approx(20.0, rel=0.01)


def test_pure_noise_has_no_faster_unit_of_time_than_the_whole_span():
    noise = torch.randn(5, 40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = Units.from_data(Trajectories(torch.linspace(0, 8, 40), noise, start=-2.0))
    assert 1.0 < units.time_unit.item() <= 10.0
    pair = Trajectories([0.0, 4.0], torch.tensor([[[0.0], [1.0]], [[1.0], [0.0]]]))
    assert 0.0 < Units.from_data(pair).time_unit.item() <= 4.0


def test_masked_values_and_series_without_data_do_not_matter():
    data = positive_data()
    for hidden in (NAN, 1e9, -1.0):
        values = torch.where(data.mask, data.values, hidden)
        changed = positive_data(values=values)
        for transform in ("identity", "log"):
            first, second = (Units.from_data(d, transform=transform) for d in (data, changed))
            assert first.config == second.config
    empty = torch.full((1, 30, 2), NAN, dtype=torch.float64)
    more = Trajectories(
        torch.cat([data.times, data.times[:1]]),
        torch.cat([torch.where(data.mask, data.values, NAN), empty]),
        start=0.0,
    )
    with_empty, without = Units.from_data(more), Units.from_data(data)
    for name in BUFFERS:
        assert getattr(with_empty, name).tolist() == pytest.approx(
            getattr(without, name).tolist(), rel=1e-10
        )


def test_times_after_the_last_observation_do_not_slow_the_data_down():
    long = sine(num_times=800, values=None).times
    data = Trajectories(torch.cat([long, long[1:] + 10]), torch.zeros(1, 1599, 2).double())
    values = torch.stack([torch.sin(3 * data.times), torch.cos(3 * data.times)], -1)[None]
    mask = (data.times <= 10).expand(1, -1)
    hidden = Trajectories(data.times, values, mask=mask)
    assert Units.from_data(hidden).time_unit.item() == pytest.approx(1 / 3, rel=0.01)


def test_shared_times_and_own_times_give_the_same_units():
    data = sine(num_times=50)
    own = Trajectories(data.grid, data.values)
    assert Units.from_data(data).config == Units.from_data(own).config


@pytest.mark.parametrize("transform", ["identity", "log"])
@pytest.mark.parametrize(
    ("factor", "time_factor", "origin"),
    [(1e-12, 1.0, 0.0), (1e12, 1e6, 0.0), (7.0, 1e-6, 0.0), (1.0, 86400.0, -5e4), (1.0, 1.0, 64.0)],
    ids=str,
)
def test_units_of_users_do_not_change_the_dimensionless_data(
    transform, factor, time_factor, origin
):
    data = positive_data()
    other = positive_data(
        times=time_factor * data.times + origin,
        values=factor * data.values,
        start=time_factor * data.start + origin,
    )
    first, second = (Units.from_data(d, transform=transform) for d in (data, other))
    state, changed = first.to_state(data.values), second.to_state(other.values)
    torch.testing.assert_close(state[data.mask], changed[data.mask], rtol=1e-10, atol=1e-10)
    for mine, its in zip(
        first.dimensionless_times(data), second.dimensionless_times(other), strict=True
    ):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-10)


def test_times_since_1970_lose_no_more_than_their_own_rounding():
    data = positive_data()
    late = positive_data(times=data.times + 1.6e9, start=data.start + 1.6e9)
    units = Units.from_data(late)
    start, times = units.dimensionless_times(late)
    # One double in 1.6e9 is 2.4e-7.
    expected = data.times / Units.from_data(data).time_unit
    torch.testing.assert_close(times, expected, rtol=1e-6, atol=1e-6)
    assert start.tolist() == [0.0] * 3 and units.time_origin.item() == 1.6e9
    shared = Trajectories([1.6e9, 1.6e9 + 0.001, 1.6e9 + 0.002, 1.6e9 + 0.005], torch.rand(1, 4, 1))
    start, times = Units.from_data(shared).dimensionless_times(shared)
    gaps = times.diff() * Units.from_data(shared).time_unit
    assert gaps[0].tolist() == pytest.approx([0.001, 0.001, 0.003], abs=5e-7)


def test_values_in_single_precision_are_counted_in_double():
    data = positive_data(values=(1e6 + positive_data().values).float())
    exact = positive_data(values=data.values.double())
    assert Units.from_data(data).config == Units.from_data(exact).config
    assert Units.from_data(data).scale.dtype == torch.float64


def test_origin_is_the_earliest_start_and_starts_need_not_agree():
    data = positive_data(start=[-3.0, 0.0, -1.0])
    units = Units.from_data(data)
    start, times = units.dimensionless_times(data)
    assert units.time_origin.item() == -3.0
    assert (start * units.time_unit).tolist() == pytest.approx([0.0, 3.0, 2.0], abs=1e-12)
    torch.testing.assert_close(times * units.time_unit - 3.0, data.times, rtol=0, atol=1e-12)


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_hidden_components_follow_the_observed_ones_with_the_size_given(transform):
    data = positive_data()
    units = Units.from_data(data, transform=transform, hidden={"depot": 300.0, "gut": 2.0})
    plain = Units.from_data(data, transform=transform)
    assert units.names == ("prey", "predator", "depot", "gut")
    assert units.location[:2].tolist() == plain.location.tolist()
    state = torch.zeros(5, 4, dtype=torch.float64)
    state[1:] = 1.0
    users = units.to_users(state)[..., 2:]
    if transform == "identity":
        assert users[0].tolist() == [0.0, 0.0] and users[1].tolist() == [300.0, 2.0]
    else:  # their typical size, and one sd of the logarithm is a factor e
        assert users[0].tolist() == pytest.approx([300.0, 2.0], rel=1e-12)
        assert users[1].tolist() == pytest.approx([300 * math.e, 2 * math.e], rel=1e-12)
    assert torch.equal(units.to_state(data.values), plain.to_state(data.values))


# ---- what is refused -----------------------------------------------------------------------------
def with_values(change) -> Trajectories:
    values = positive_data().values.clone()
    change(values)
    return positive_data(values=values)


def set_to(component, value):
    return lambda values: values[..., component].fill_(value)


@pytest.mark.parametrize(
    ("data", "arguments", "error", "words"),
    [
        (with_values(set_to(1, 3.7)), {}, DataError, "'predator' is constant .* Drop it"),
        (with_values(set_to(1, 0.1)), {"transform": "log"}, DataError, "'predator' is constant"),
        (with_values(set_to(0, 0.0)), {}, DataError, "'prey' is constant"),
        (with_values(set_to(1, NAN)), {}, DataError, "'predator' has no observed value; drop it"),
        (
            Trajectories([0.0, 1.0], torch.rand(1, 2, 1)),
            {},
            DataError,
            "'x1' has 2 observed point.* at least 3 points per component",
        ),
        (
            Trajectories([[0.0], [1.0], [2.0]], torch.rand(3, 1, 1)),
            {},
            DataError,
            "no series has more than 1 observed time",
        ),
        (
            Trajectories([0.0, 1.0, 2.0], torch.tensor([[[1.0], [0.0], [2.0]]]), series=["a"]),
            {"transform": "log"},
            DataError,
            "'x1' of series 'a' is 0 at time 1.0: .* Mark zeros as missing, .*'gaussian'",
        ),
        (positive_data().at([3.0]), {}, DataError, "this is a question without values"),
        (Trajectories([0.0, 1.0, 2.0], torch.rand(2, 3, 4, 4)), {}, ShapeError, "for images"),
        (positive_data(), {"transform": "sqrt"}, DataError, r"one of \('identity', 'log'\)"),
        (positive_data(), {"hidden": {"depot": 0.0}}, DataError, "scale .* must be positive"),
        (positive_data(), {"hidden": {"depot": NAN}}, DataError, "scale .* must be finite"),
        (positive_data(), {"hidden": {"depot": "big"}}, DataError, "scale must be real numbers"),
        (positive_data(), {"hidden": {"prey": 1.0}}, DataError, "names .* must be unique"),
        (bo.datasets.van_der_pol(num_series=1, num_times=3), {}, DataError, "Simulated .*observed"),
    ],
)
def test_data_without_units_are_refused(data, arguments, error, words):
    with pytest.raises(error, match=words):
        Units.from_data(data, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"scale": [0.0]}, DataError, r"scale of the units must be positive, not \[0.0\]"),
        ({"scale": [1.0, -1.0]}, DataError, "scale of the units must be positive"),
        ({"location": [NAN]}, DataError, "location of the units must be finite"),
        ({"location": ["a"]}, DataError, "location must be real numbers"),
        ({"location": [0.0, 1.0], "scale": [1.0] * 3}, ShapeError, "2 locations for 3 scales"),
        ({"time_unit": 0.0}, DataError, "time_unit of the units must be positive"),
        ({"time_unit": math.inf}, DataError, "time_unit of the units must be finite"),
        ({"time_origin": NAN}, DataError, "time_origin of the units must be finite"),
        ({"time_origin": [0.0, 1.0]}, ShapeError, "time_origin is one number"),
        ({"time_origin": None}, DataError, "time_origin must be real numbers"),
        ({"transform": "exp"}, DataError, "transform must be one of"),
        ({"names": ["a", "b"]}, ShapeError, "2 names for 1 components"),
        ({"location": [0.0, 0.0], "names": ["a", "a"]}, DataError, "must be unique"),
    ],
    ids=str,
)
def test_units_that_cannot_be_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        Units(**arguments)


# ---- the map -------------------------------------------------------------------------------------
UNITS = [
    Units([10.0, -4.0], [2.0, 1e-3], time_unit=60.0, time_origin=5.0),
    Units([1.0, -2.0], [0.5, 2.0], time_unit=0.1, transform="log"),
    Units([0.0, 30.0], [1e12, 1e-12], time_unit=1e-9),
    Units(),
]


@pytest.mark.parametrize("units", UNITS, ids=lambda units: str(units.config))
def test_to_users_and_back_is_the_identity(units):
    state = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Rounding of a value is one part in 1e16 of its location: 1e-16 * 30 / 1e-12 here.
    torch.testing.assert_close(units.to_state(units.to_users(state)), state, rtol=1e-10, atol=0.01)
    if units.scale.min() > 1e-6:
        back = units.to_state(units.to_users(state))
        torch.testing.assert_close(back, state, rtol=1e-11, atol=1e-11)
    expected = units.location + units.scale * state
    torch.testing.assert_close(units.linear(state), expected, rtol=0, atol=0)
    users = expected.exp() if units.transform == "log" else expected
    torch.testing.assert_close(units.to_users(state), users, rtol=0, atol=0)
    first = units.to_users(state[..., :1])  # fewer components than the units have
    torch.testing.assert_close(first, users[..., :1], rtol=0, atol=0)


@pytest.mark.parametrize("units", UNITS, ids=lambda units: str(units.config))
def test_rate_in_users_units_is_the_derivative_along_the_path(units):
    generator = torch.Generator().manual_seed(0)
    state, rate = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64).unbind()
    state = state.clone()
    (slope,) = torch.autograd.grad(units.to_users(state.requires_grad_()).sum(), state)
    expected = slope * rate / units.time_unit
    found = units.to_users_rate(state.detach(), rate)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_logarithm_of_the_values_is_finite_also_where_a_state_is_negative():
    logarithmic, plain = Units([1.0], [2.0], transform="log"), Units([1.0], [2.0])
    state = torch.tensor([[0.5], [-3.0]], dtype=torch.float64)
    assert logarithmic.log_users(state).tolist() == [[2.0], [-5.0]]
    smallest = math.log(torch.finfo(torch.float64).tiny)
    assert plain.log_users(state).flatten().tolist() == pytest.approx([math.log(2.0), smallest])


def test_one_number_serves_all_components():
    units = Units(1.0, [2.0, 4.0])
    assert units.location.tolist() == [1.0, 1.0] and units.scale.tolist() == [2.0, 4.0]
    assert units.to_state(torch.tensor([[3.0]])).tolist() == [[1.0]]
    assert Units().to_users(torch.ones(3, 5)).tolist() == torch.ones(3, 5).tolist()


def test_dimensionless_times_of_the_default_are_the_times():
    data = positive_data()
    start, times = Units().dimensionless_times(data)
    assert torch.equal(start, data.start) and torch.equal(times, data.grid)


# ---- the module ----------------------------------------------------------------------------------
def test_units_stay_float64_whatever_the_model_is_cast_to():
    units = Units([1 / 3], [0.1], time_origin=1.6e9 + 0.001, time_unit=0.1)
    before = units.config
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(1),
        field=bo.BayesianMLP(1, [2], 1),
        likelihood=bo.GaussianLikelihood(1),
        solver=bo.FixedGridSolver(),
        units=units,
    )
    for cast in (model.float, model.half, model.bfloat16, model.double):
        cast()
        for name in BUFFERS:
            assert getattr(model.units, name).dtype == torch.float64, (cast, name)
        assert model.units.config == before
    model.to(torch.float32)
    assert model.units.config == before
    assert units.float().to_users(torch.zeros(1, 1)).dtype == torch.float32


def test_config_and_state_dict_rebuild_the_units():
    for units in (*UNITS, Units.from_data(positive_data(), hidden={"depot": 3.0})):
        again = Units(**json.loads(json.dumps(units.config)))
        assert again.config == units.config
        other = Units(0.0, torch.ones_like(units.scale))
        other.load_state_dict(units.state_dict())
        for name in BUFFERS:
            for copy in (again, other):
                assert torch.equal(getattr(copy, name), getattr(units, name))


def test_units_never_change():
    location = torch.tensor([1.0, 2.0], dtype=torch.float64)
    units = Units(location, torch.tensor([3.0], dtype=torch.float64))
    before = units.config
    location.zero_()
    state, data = torch.randn(4, 2), positive_data()
    kept, raw = state.clone(), data.values.clone()
    units.to_users(state).zero_()
    units.to_state(data.values).zero_()
    units.linear(state).zero_()
    units.log_users(state).zero_()
    units.to_users_rate(state, state).zero_()
    for found in units.dimensionless_times(data):
        found.zero_()
    Units.from_data(data, transform="log")
    assert units.config == before
    assert torch.equal(state, kept) and torch.equal(data.values, raw)
    assert torch.equal(data.times, positive_data().times)
