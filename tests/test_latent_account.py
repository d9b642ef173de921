"""The account of a latent model: sums, closed forms, and a collapse that is seen."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo
from bayesode.diagnostics import latent_account
from bayesode.inference import blocks
from bayesode.inference.elbo import elbo_terms
from bayesode.inference.svi import History

DOUBLE = torch.float64
NUM_SERIES, NUM_TIMES, STATE = 5, 4, 3
PRIOR_SD = 2.0  # of NormalInitial in dimensionless units


def make_data(num_series: int = NUM_SERIES, **settings) -> bo.Trajectories:
    torch.manual_seed(3)
    values = torch.randn(num_series, NUM_TIMES, STATE, dtype=DOUBLE)
    return bo.Trajectories(torch.arange(NUM_TIMES) * 0.5, values, **settings)


def make_model(initial: nn.Module | None = None) -> bo.DynamicalModel:
    torch.manual_seed(0)
    return bo.DynamicalModel(
        initial=initial or bo.NormalInitial(STATE),
        field=bo.BayesianMLP(STATE, [2], STATE, prior_scale=0.3),
        likelihood=bo.GaussianLikelihood(STATE),
        solver=bo.FixedGridSolver("rk4", step=0.25),
    ).double()


def make_posterior(data: bo.Trajectories, location=None, scale=0.5, **settings) -> bo.Posterior:
    """A mean-field posterior with a given table of initial states."""
    model = make_model()
    guide = bo.MeanFieldGuide(model, data)
    location = torch.randn(data.num_series, STATE) if location is None else location
    guide.set_site("x0", location, torch.as_tensor(scale).expand(location.shape))
    settings = {"engine": "svi"} | settings
    return bo.Posterior(model, guide, data, history=History(), settings=settings)


class Encoded(nn.Module):
    """A guide that reads x0 off the first frame of whatever sequences it is given."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide, self.log_scale = guide, nn.Parameter(torch.zeros(STATE, dtype=DOUBLE))

    def posteriors(self, trajectories):
        laws = {s: law for s, law in self.guide.shared.items()}
        x0 = dist.Normal(trajectories.values[:, 0], self.log_scale.exp()).to_event(1)
        return laws | {"x0": x0}


def amortised(train: bo.Trajectories) -> bo.Posterior:
    plain = make_posterior(train)
    laws = plain.guide.posteriors(train)
    shared = nn.Module()
    shared.shared = {site: law for site, law in laws.items() if site != "x0"}
    return bo.Posterior(
        plain.model, Encoded(shared), train, history=History(), settings={"engine": "svi"}
    )


# ---- sums ----------------------------------------------------------------------------------------
def test_the_account_of_the_training_data_adds_up_to_the_elbo():
    posterior = make_posterior(make_data())
    account, terms = (
        latent_account(posterior, num_particles=8),
        posterior.elbo_terms(num_particles=8),
    )
    assert account.elbo == pytest.approx(terms.elbo.item(), rel=1e-12)
    torch.testing.assert_close(account.log_likelihood.sum(), terms.log_likelihood)
    torch.testing.assert_close(account.kl_local["x0"].sum(), terms.kl["x0"])
    assert account.kl_global.keys() == terms.kl.keys() - {"x0"}
    shared = sum(account.kl_global.values()) / NUM_SERIES
    each = account.log_likelihood - account.kl_local["x0"] - shared
    torch.testing.assert_close(account.elbo_per_series, each)


def test_terms_of_a_minibatch_are_its_series_scaled_to_all():
    data = make_data()
    posterior = make_posterior(data)
    terms = elbo_terms(posterior.model, posterior.guide, data.batch([3, 1]), num_particles=4)
    factor = NUM_SERIES / 2
    assert terms.log_likelihood_per_series.shape == terms.kl_per_series["x0"].shape == (2,)
    torch.testing.assert_close(terms.log_likelihood, factor * terms.log_likelihood_per_series.sum())
    torch.testing.assert_close(terms.kl["x0"], factor * terms.kl_per_series["x0"].sum())


def test_log_likelihood_of_a_series_is_that_of_its_own_path():
    """With posteriors that are points, each series' term is the exact density of its values."""
    data = make_data(mask=torch.rand(NUM_SERIES, NUM_TIMES) > 0.4)
    posterior = make_posterior(data, scale=1e-9)
    for log_scale in posterior.guide.sites.log_scale.values():
        nn.init.constant_(log_scale, math.log(1e-9))
    account = latent_account(posterior, num_particles=2)
    draws = posterior.draws(1, seed=0)
    path = posterior.predict(data, num_draws=1, seed=0).path[0]
    law = dist.Normal(path, draws["likelihood.noise_scale"][0])
    exact = (law.log_prob(data.values) * data.mask).sum((1, 2))
    torch.testing.assert_close(account.log_likelihood, exact, rtol=1e-6, atol=1e-6)


def test_batches_give_the_account_of_the_whole(monkeypatch):
    data = make_data()
    posterior = make_posterior(data, scale=1e-9)
    for log_scale in posterior.guide.sites.log_scale.values():  # points: all draws agree
        nn.init.constant_(log_scale, math.log(1e-9))
    whole = latent_account(posterior, num_particles=2)
    monkeypatch.setattr(blocks, "MAX_NUMBERS", 2 * 2 * NUM_TIMES * STATE)  # two series at once
    asked = []
    posteriors = posterior.guide.posteriors
    monkeypatch.setattr(
        posterior.guide, "posteriors", lambda batch: asked.append(batch) or posteriors(batch)
    )
    cut = latent_account(posterior, num_particles=2)
    assert {batch.num_series for batch in asked} == {1, 2}
    torch.testing.assert_close(cut.log_likelihood, whole.log_likelihood, rtol=1e-6, atol=1e-6)
    for name in ("kl_per_dimension", "num_frames"):
        torch.testing.assert_close(getattr(cut, name), getattr(whole, name))
    torch.testing.assert_close(cut.use.activity, whole.use.activity)
    torch.testing.assert_close(cut.use.information, whole.use.information)
    torch.testing.assert_close(cut.kl_local, whole.kl_local)
    torch.testing.assert_close(cut.kl_global, whole.kl_global)


def test_frames_count_where_any_number_is_visible():
    mask = torch.zeros(NUM_SERIES, NUM_TIMES, STATE, dtype=torch.bool)
    mask[:, 0] = mask[0, 1, 2] = mask[4, 1:3] = True
    account = latent_account(make_posterior(make_data(mask=mask)), num_particles=2)
    assert account.num_frames.tolist() == [2, 1, 1, 1, 3]
    assert account.nats_per_frame == pytest.approx(account.elbo / 8)


# ---- latent dimensions ---------------------------------------------------------------------------
def test_kl_per_dimension_is_the_closed_form():
    data, location = make_data(), torch.randn(NUM_SERIES, STATE, dtype=DOUBLE)
    scale = torch.tensor([0.1, 0.5, 2.0], dtype=DOUBLE)
    account = latent_account(make_posterior(data, location, scale), num_particles=2)
    ratio = (scale / PRIOR_SD).square()
    exact = (ratio + (location / PRIOR_SD).square() - 1 - ratio.log()) / 2
    torch.testing.assert_close(account.kl_per_dimension, exact)
    torch.testing.assert_close(account.kl_per_dimension.sum(-1), account.kl_local["x0"])


def test_a_dimension_is_active_where_its_means_vary_by_a_hundredth_of_the_prior_variance():
    unit = torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.0], dtype=DOUBLE)  # variance 1
    sds = PRIOR_SD * torch.tensor([0.099, 0.101, 0.0], dtype=DOUBLE)
    account = latent_account(make_posterior(make_data(), unit[:, None] * sds), num_particles=2)
    torch.testing.assert_close(account.use.activity, (sds / PRIOR_SD).square())
    assert account.is_active.tolist() == [False, True, False] and account.num_active == 1


def test_information_is_that_of_normal_laws_with_the_same_moments():
    location = torch.zeros(NUM_SERIES, STATE, dtype=DOUBLE)
    location[:, 0] = torch.linspace(-1, 1, NUM_SERIES)
    account = latent_account(make_posterior(make_data(), location, 0.5), num_particles=2)
    exact = math.log((location[:, 0].var() + 0.25) / 0.25) / 2
    torch.testing.assert_close(account.use.information, torch.tensor([exact, 0.0, 0.0]).double())


@pytest.mark.parametrize("scale", [PRIOR_SD, 0.01])
def test_an_encoder_that_tells_nothing_is_named_with_the_mend(scale: float):
    """Collapsed to the prior, or to one point for all: in both cases frames are an average."""
    location = torch.full((NUM_SERIES, STATE), 0.3, dtype=DOUBLE)
    account = latent_account(make_posterior(make_data(), location, scale), num_particles=2)
    assert account.is_encoder_ignored and account.num_active == 0
    for word in ("encoder is ignored", "0 of 3", "kl_weight", "start_latent"):
        assert word in str(account)


def test_an_encoder_that_tells_series_apart_is_not_called_ignored():
    account = latent_account(make_posterior(make_data()), num_particles=2)
    assert not account.is_encoder_ignored and account.warning is None
    assert "Warning" not in str(account)
    # close together for a wide prior, and yet far apart for their own widths
    narrow = 0.01 * torch.randn(NUM_SERIES, STATE, dtype=DOUBLE)
    account = latent_account(make_posterior(make_data(), narrow, 1e-4), num_particles=2)
    assert account.num_active == 0 and not account.is_encoder_ignored


def test_a_single_sequence_is_no_collapse():
    account = latent_account(make_posterior(make_data(1)), num_particles=2)
    assert account.num_active == 0 and not account.is_encoder_ignored


class WidePrior(nn.Module):
    """Initial states with heavy tails: no closed form per dimension."""

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return dist.StudentT(torch.tensor(5.0).double(), torch.zeros(STATE).double()).to_event(1)


def test_other_priors_of_x0_are_accounted_for_in_total():
    data, model = make_data(), make_model(WidePrior())
    guide = bo.MeanFieldGuide(model, data)
    settings = {"engine": "svi"}
    posterior = bo.Posterior(model, guide, data, history=History(), settings=settings)
    account = latent_account(posterior, num_particles=4)
    assert account.kl_per_dimension is None and account.kl_local["x0"].shape == (NUM_SERIES,)
    assert account.elbo == pytest.approx(posterior.elbo_terms(num_particles=4).elbo.item())
    assert "Active dimensions of x0: " in str(account)


# ---- other sequences, other guides ---------------------------------------------------------------
def test_an_amortised_guide_accounts_for_new_sequences():
    train, new = make_data(), make_data(2, series=["new", "newer"])
    posterior = amortised(train)
    account = latent_account(posterior, new, num_particles=4)
    assert account.series == ("new", "newer") and account.num_train == NUM_SERIES
    shared = sum(account.kl_global.values())
    exact = account.log_likelihood.sum() - account.kl_local["x0"].sum() - shared * 2 / NUM_SERIES
    assert account.elbo == pytest.approx(exact.item())
    ratio = (1 / PRIOR_SD) ** 2
    kl = (ratio + (new.values[:, 0] / PRIOR_SD).square() - 1 - math.log(ratio)) / 2
    torch.testing.assert_close(account.kl_per_dimension, kl)


def test_the_table_names_every_term():
    account = latent_account(make_posterior(make_data()), num_particles=2)
    text = str(account)
    for word in ("5 sequences, 20 visible frames", "log likelihood", "- KL x0", "ELBO"):
        assert word in text
    assert "ELBO (type-II)" not in text
    tuned = make_posterior(make_data(), prior_scale="empirical")
    assert "ELBO (type-II)" in str(latent_account(tuned, num_particles=2))


def test_sequences_that_a_table_does_not_know_are_one_clear_error():
    posterior = make_posterior(make_data())
    with pytest.raises(bo.DataError, match=r"posterior\.condition"):
        latent_account(posterior, make_data(2, series=["new", "newer"]))


def test_nothing_observed_and_guides_without_posteriors_are_clear_errors():
    data = make_data()
    posterior = make_posterior(data)
    with pytest.raises(bo.DataError, match="observed frames"):
        latent_account(posterior, data.at([0.0, 1.0]))
    other = bo.Posterior(
        posterior.model, lambda data: {}, data, history=History(), settings={"engine": "svi"}
    )
    with pytest.raises(bo.DataError, match="does not declare its posteriors"):
        latent_account(other)
