"""A fit knows nothing of the units that its data came in."""

import pytest
import torch

import bayesode as bo
from bayesode.trajectories import Trajectories

FACTOR, OFFSET, DAY = 1000.0, 5000.0, 365.0


@pytest.fixture(scope="module")
def pair():
    """The same data twice, as they are and as 1000 y + 5000 at times 365 t, and both fits."""
    data = bo.datasets.van_der_pol(num_series=2, num_times=30, seed=0).observed.to(
        dtype=torch.float64
    )
    other = Trajectories(DAY * data.times, FACTOR * data.values + OFFSET, names=data.names)
    fits = []
    for train in (data, other):
        model, _ = bo.neural_ode(train, hidden=[3], verbose=False)
        fits.append(bo.fit_laplace(model, train, seed=0, progress=False))
    return fits


def test_plans_are_the_same_in_dimensionless_numbers():
    data = bo.datasets.van_der_pol(num_series=2, num_times=30, seed=0).observed
    other = Trajectories(DAY * data.times, FACTOR * data.values.double() + OFFSET, names=data.names)
    one, two = bo.plan(data.to(dtype=torch.float64)), bo.plan(other)
    assert two.step == pytest.approx(one.step, rel=1e-6)
    assert (two.hidden, two.engine, two.prior_scale) == (one.hidden, one.engine, one.prior_scale)


def test_laplace_gives_the_same_posterior_in_the_new_units(pair):
    one, two = pair
    for name in ("weights", "x0", "covariance_weights", "own", "freedom"):
        mine, its = getattr(one.guide, name), getattr(two.guide, name)
        assert ((mine - its).norm() / mine.norm()).item() < 1e-6, name
    noise = two.guide.noise - one.guide.noise
    assert torch.allclose(noise, torch.tensor(FACTOR).double().log(), rtol=0, atol=1e-6)


def test_predictions_follow_the_units(pair):
    one, two = pair
    times = torch.linspace(0.0, 15.0, 40, dtype=torch.float64)
    first = one.predict(one.train.at(times), num_draws=50, seed=1)
    second = two.predict(two.train.at(DAY * times), num_draws=50, seed=1)
    for name in ("states", "signal", "values"):
        mine, its = getattr(first, name), (getattr(second, name) - OFFSET) / FACTOR
        assert ((mine - its).norm() / mine.norm()).item() < 1e-6, name
    points = torch.tensor([[0.5, -1.0], [2.0, 1.0]], dtype=torch.float64)
    rate = one.field(points, num_draws=20, seed=2)
    other = two.field(FACTOR * points + OFFSET, num_draws=20, seed=2) * DAY / FACTOR
    assert ((rate - other).norm() / rate.norm()).item() < 1e-6


def test_evidence_changes_by_the_densitys_unit_alone(pair):
    one, two = pair
    change = -one.train.num_observed * torch.tensor(FACTOR).log().item()
    assert two.log_evidence - one.log_evidence == pytest.approx(change, abs=1e-3)
