"""Laplace for fields with many numbers: the last layer is random, the rest stays at the fit."""

import pytest
import torch

import bayesode as bo
from bayesode.inference import linearised
from bayesode.inference.warm_start import attempts
from bayesode.inference.warm_start.flat import FlatField, LastLayer

DOUBLE = torch.float64


@pytest.fixture
def whole():
    return FlatField.of(bo.BayesianMLP(2, [5], 3))  # matrices of 10, 15 and biases of 5, 3


@pytest.mark.parametrize(("most", "size"), [(33, 23), (20, 18), (18, 18), (17, 3), (2, 2)])
def test_the_longest_end_of_whole_groups_is_random(whole, most, size):
    part = LastLayer.below(whole, torch.zeros(33, dtype=DOUBLE), most)
    assert len(part.mean) == len(part.sd) == len(part.groups) == size
    assert torch.equal(part.sd, whole.sd[-size:])


def test_values_of_a_part_are_those_of_the_whole_with_the_rest_held(whole):
    rest, last = torch.randn(33, dtype=DOUBLE), torch.randn(4, 18, dtype=DOUBLE)
    part = LastLayer.below(whole, rest, 18)
    values = part.unpack(last)
    assert values["weights"].shape == (4, 33)
    torch.testing.assert_close(values["weights"][:, :15], rest[:15].expand(4, -1))
    torch.testing.assert_close(part.pack(values), last)
    x, t = torch.randn(6, 2, dtype=DOUBLE), torch.tensor(0.0)
    both = torch.cat([rest[:15], last[0]])
    torch.testing.assert_close(part.build(last[0])(t, x), whole.build(both)(t, x))


def test_tuned_scales_of_a_part_leave_the_others(whole):
    part = LastLayer.below(whole, torch.zeros(33, dtype=DOUBLE), 18)
    part.sd[:] = 7.0
    field = bo.BayesianMLP(2, [5], 3)
    before = field.prior_sd.clone()
    part.write_prior(field)
    assert torch.equal(field.prior_sd[:15], before[:15])
    assert (field.prior_sd[15:] == 7).all()


def test_a_wide_field_is_fitted_saved_and_loaded(monkeypatch, tmp_path):
    for module in (attempts, linearised):
        monkeypatch.setattr(module, "MAX_WEIGHTS", 20)
    monkeypatch.setattr("bayesode.inference.warm_start.shooting.NUM_WINDOW_STEPS", 200)
    monkeypatch.setattr("bayesode.inference.warm_start.shooting.NUM_PATH_STEPS", 200)
    data = bo.datasets.damped_pendulum(num_series=3, num_times=25, horizon=5.0)
    train = data.observed
    model, _ = bo.neural_ode(train, hidden=[8], verbose=False)
    posterior = bo.fit_laplace(model, train, seed=0, progress=False)
    assert posterior.guide.weights.shape == (18,)
    ensemble = posterior.predict(train, num_draws=200, seed=0)
    error = (ensemble.mean - data.truth.values) / data.noise_scale
    assert error.square().mean().sqrt() < 1.5  # first-order steps, and few
    weights = posterior.draws(50, seed=0)["field.weights"]
    assert (weights[:, :24].std(0) == 0).all() and (weights[:, 24:].std(0) > 0).all()
    again = bo.load(posterior.save(tmp_path / "run")).predict(train, num_draws=200, seed=0)
    torch.testing.assert_close(again.values, ensemble.values)
