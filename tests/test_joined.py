"""Mixtures of posteriors with decoders or units of their own: each draw by its own member."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_latent import DOUBLE, EVENT, by_hand, linear_posterior, owners, series

import bayesode as bo
from bayesode.inference.hold_out import HoldOut
from bayesode.inference.joined import JoinedLaw, in_units
from bayesode.inference.mixture import Mixture
from bayesode.inference.svi import History

NUM_DRAWS = 10


@pytest.fixture(autouse=True)
def empty_store():
    with pyro.get_param_store().scope():
        yield


def latent_mixture(**settings) -> Mixture:
    data = series()
    return Mixture([linear_posterior(data, member) for member in (0, 1)], **settings)


# ---- the law ------------------------------------------------------------------------------------
def normals() -> tuple[JoinedLaw, dist.Normal]:
    """Laws of 2 and 3 draws, joined, and the same as one law."""
    location = torch.randn(5, 4, 3, dtype=DOUBLE)
    scale = torch.rand(5, 4, 3, dtype=DOUBLE) + 0.5
    order = torch.tensor([3, 0, 4, 2, 1])
    parts = [dist.Normal(location[:2], scale[:2]), dist.Normal(location[2:], scale[2:])]
    return JoinedLaw(parts, order), dist.Normal(location[order], scale[order])


def test_a_joined_law_is_that_of_its_draws_in_their_order():
    joint, plain = normals()
    assert joint.batch_shape == plain.batch_shape
    assert torch.equal(joint.mean, plain.mean) and torch.equal(joint.variance, plain.variance)
    for value in (torch.rand(4, 3), torch.rand(3), torch.rand(5, 4, 3), torch.rand(1, 4, 3)):
        for way in ("log_prob", "cdf", "icdf"):
            assert torch.equal(getattr(joint, way)(value), getattr(plain, way)(value))
    total = dist.Independent(joint, 2).log_prob(torch.zeros(4, 3))
    assert torch.equal(total, dist.Independent(plain, 2).log_prob(torch.zeros(4, 3)))


def test_values_of_a_joined_law_have_the_moments_of_their_own_draw():
    joint, plain = normals()
    torch.manual_seed(0)
    drawn = joint.sample((40_000,))
    assert drawn.shape == (40_000, 5, 4, 3) and joint.sample().shape == (5, 4, 3)
    # 60 means, each with a standard error of scale / 200
    assert (((drawn.mean(0) - plain.mean) / plain.stddev).abs() < 5 / 200).all()
    assert ((drawn.var(0) / plain.variance - 1).abs() < 5 * (2 / 40_000) ** 0.5).all()


# ---- decoders -----------------------------------------------------------------------------------
def test_each_draw_is_seen_through_the_decoder_of_its_own_member():
    ensemble = latent_mixture(weights=[2, 3]).predict(series(), num_draws=NUM_DRAWS, seed=0)
    owner = owners(ensemble)
    assert owner.sum() == 6
    expected = by_hand(ensemble.path, owner)
    torch.testing.assert_close(ensemble.signal, expected, rtol=1e-12, atol=1e-12)
    swapped = by_hand(ensemble.path, 1 - owner)
    assert (ensemble.signal - swapped).abs().min() > 1e-3
    torch.testing.assert_close(ensemble.mean, expected.mean(0), rtol=1e-12, atol=1e-12)


def test_densities_are_those_of_each_members_own_noise_and_decoder():
    data = series()
    ensemble = latent_mixture().predict(data, num_draws=NUM_DRAWS, seed=0)
    scale = ensemble.draws["likelihood.noise_scale"].view(-1, 1, 1, 1)
    law = dist.Normal(by_hand(ensemble.path, owners(ensemble)), scale)
    torch.testing.assert_close(ensemble.log_prob(data), law.log_prob(data.values))
    residual = (ensemble.values - law.loc) / law.scale
    assert residual.abs().max() < 6 and 0.8 < residual.std() < 1.2  # 900 standard normals


def test_variance_parts_of_several_decoders_add_up_to_the_variance_of_the_signal():
    ensemble = latent_mixture().predict(series(), num_draws=40, seed=0)
    parts = ensemble.variance_parts()
    signal = ensemble.signal.var(0)
    torch.testing.assert_close(parts.weights + parts.initial + parts.process, signal)
    # which member a draw is from is part of what the series share
    assert parts.shares["weights"].mean() > 0.9


def test_what_is_determined_is_not_judged_by_states_in_other_coordinates():
    ensemble = latent_mixture().predict(series(), num_draws=40, seed=0)
    assert ensemble.sd(of="path").min() > 5  # +10 and -10
    assert not ensemble.undetermined.any()


def test_members_that_share_a_likelihood_are_seen_as_by_one():
    data = bo.datasets.van_der_pol(num_series=2, num_times=20).observed
    model, _ = bo.neural_ode(data, hidden=[2], verbose=False)
    members = [plain_posterior(model, data, seed) for seed in (0, 1)]
    mixture = Mixture(members)
    assert mixture.is_seen_alike and not latent_mixture().is_seen_alike
    one = mixture.predict(data, num_draws=NUM_DRAWS, seed=0)
    mixture.is_seen_alike = False
    two = mixture.predict(data, num_draws=NUM_DRAWS, seed=0)
    assert torch.equal(one.path, two.path) and torch.equal(one.signal, two.signal)
    assert torch.equal(one.log_prob(data), two.log_prob(data))


# ---- units --------------------------------------------------------------------------------------
def plain_posterior(model: bo.DynamicalModel, data: bo.Trajectories, seed: int) -> bo.Posterior:
    torch.manual_seed(seed)
    guide = bo.MeanFieldGuide(model, data)
    settings = {"engine": "svi"}
    return bo.Posterior(model, guide, data, history=History(), settings=settings)


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_members_with_other_units_have_their_states_and_signals(transform: str):
    times = torch.arange(8.0)
    data = bo.Trajectories(times, 2 + torch.rand(3, 8, 2, dtype=DOUBLE))
    members = []
    for part in (data, bo.Trajectories(times, 3 * data.values)):
        units = bo.Units.from_data(part, transform=transform)
        model = bo.DynamicalModel(
            initial=bo.NormalInitial(2),
            field=bo.LinearField(2, prior_scale=0.1),
            likelihood=bo.GaussianLikelihood(2),
            solver=bo.FixedGridSolver("rk4", step=0.5),
            units=units,
        ).double()
        members.append(plain_posterior(model, data, 0))
    mixture = Mixture(members)
    ensemble = mixture.predict(data, num_draws=NUM_DRAWS, seed=0)
    # without a decoder what is seen without noise is the state
    torch.testing.assert_close(ensemble.signal, ensemble.states, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ensemble.states[:, :, 0], ensemble.draws["x0"])
    with pytest.raises(bo.DataError, match="have decoders or units of their own"):
        Mixture(members, hold_out=HoldOut(1.5, 6, -3.0, {}))


def test_a_path_in_other_units_is_the_same_path_of_users_units():
    own = bo.Units([1.0, -2.0], [3.0, 0.5])
    to = bo.Units([0.5, 4.0], [2.0, 7.0])
    path = torch.randn(4, 3, 5, 2, dtype=DOUBLE)
    moved = in_units(path, own, to)
    torch.testing.assert_close(to.to_users(moved), own.to_users(path))
    torch.testing.assert_close(in_units(moved, to, own), path)
    assert in_units(path, own, own) is path


# ---- what is refused ----------------------------------------------------------------------------
def test_states_of_other_sizes_have_no_place_in_one_path():
    data = series()
    mixture = Mixture([linear_posterior(data), linear_posterior(data, dim=3)])
    with pytest.raises(bo.DataError, match=r"states of \[2, 3\] components"):
        mixture.predict(data, num_draws=4, seed=0)


def test_members_of_other_series_are_told_to_be_conditioned_first():
    data = series()
    members = [linear_posterior(data.rows([0, 1])), linear_posterior(data.rows([2, 3]), 1)]
    with pytest.raises(bo.DataError, match=r"after condition\(new\) of each"):
        Mixture(members)
    joint = Mixture([member.condition(data.until(0)) for member in members])
    ensemble = joint.predict(data, num_draws=6, seed=0)
    assert ensemble.signal.shape == (6, 5, 6, EVENT)
    expected = by_hand(ensemble.path, owners(ensemble))
    torch.testing.assert_close(ensemble.signal, expected, rtol=1e-12, atol=1e-12)
