"""Laws of the initial state."""

import math

import pytest
import torch

from bayesode.errors import DataError, ShapeError
from bayesode.models import NormalInitial
from bayesode.units import Units

LINEAR = Units([10.0, -5.0], [2.0, 4.0])
LOG = Units([1.0, 3.0], [0.5, 0.25], transform="log")


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def moments(initial):
    law = initial.build({})
    assert law.event_shape == (2,)
    assert law.batch_shape == ()
    return law.mean.tolist(), law.stddev.tolist()


def test_nothing_is_random_in_the_law():
    assert NormalInitial(2).priors() == {}


@pytest.mark.parametrize("units", [Units(), LINEAR, LOG])
def test_by_default_x0_lies_at_the_datas_mean_with_twice_their_sd(units):
    initial = NormalInitial(2)
    initial.with_units(units)
    assert moments(initial) == ([0.0, 0.0], [2.0, 2.0])


def test_a_given_law_is_in_users_units():
    initial = NormalInitial(2, location=[14.0, -5.0], scale=[1.0, 2.0])
    assert moments(initial) == ([14.0, -5.0], [1.0, 2.0])
    initial.with_units(LINEAR)
    assert moments(initial) == ([2.0, 0.0], [0.5, 0.5])


def test_draws_of_a_given_law_have_its_moments_in_users_units():
    initial = NormalInitial(2, location=[14.0, -5.0], scale=[1.0, 2.0])
    initial.with_units(LINEAR)
    draws = LINEAR.to_users(initial.build({}).sample((40_000,)))
    # 5 standard errors, a false alarm in 4e5 seeds for the two of them
    error = (draws.mean(0) - torch.tensor([14.0, -5.0])).abs()
    assert (error < 5 * torch.tensor([1.0, 2.0]) / 200).all()
    # sd of a sample sd is sd / sqrt(2 n)
    assert ((draws.std(0) / torch.tensor([1.0, 2.0]) - 1).abs() < 5 / math.sqrt(80_000)).all()


def test_under_logarithms_the_location_is_a_median_and_the_scale_that_of_the_logarithm():
    initial = NormalInitial(2, location=[math.e, math.e**4], scale=[0.5, 0.5])
    initial.with_units(LOG)
    mean, sd = moments(initial)
    assert mean == pytest.approx([0.0, 4.0], abs=1e-14)
    assert sd == pytest.approx([1.0, 2.0], abs=1e-15)


def test_location_and_scale_may_be_given_alone():
    initial = NormalInitial(2, location=[14.0, -1.0])
    initial.with_units(LINEAR)
    assert moments(initial) == ([2.0, 1.0], [2.0, 2.0])
    initial = NormalInitial(2, scale=[1.0, 1.0])
    initial.with_units(LINEAR)
    assert moments(initial) == ([0.0, 0.0], [0.5, 0.25])


def test_units_of_one_component_hold_for_all():
    initial = NormalInitial(2, location=[14.0, 12.0])
    initial.with_units(Units([10.0], [2.0]))
    assert moments(initial)[0] == [2.0, 1.0]


def test_a_law_out_of_place_is_refused():
    with pytest.raises(ShapeError, match=r"2 numbers are needed, not \(3,\)"):
        NormalInitial(2, location=[1.0, 2.0, 3.0])
    with pytest.raises(ShapeError, match=r"not \(\)"):
        NormalInitial(2, scale=1.0)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(DataError, match="scale must be positive"):
            NormalInitial(2, scale=[1.0, scale])
    with pytest.raises(DataError, match="finite numbers"):
        NormalInitial(2, location=[math.nan, 0.0])


@pytest.mark.parametrize("location", [0.0, -1.0])
def test_a_location_without_a_logarithm_is_refused_under_logarithms(location):
    initial = NormalInitial(2, location=[1.0, location])
    with pytest.raises(DataError, match="'log' of the units, which needs positive numbers"):
        initial.with_units(LOG)
