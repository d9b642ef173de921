"""Several posteriors as one."""

import dataclasses

import pytest
import torch

import bayesode as bo
from bayesode import candidates
from bayesode.errors import DataError, FitError
from bayesode.inference.hold_out import HoldOut
from bayesode.inference.mixture import Mixture

WIDTHS = (2, 3)


@pytest.fixture(scope="module")
def train():
    return bo.datasets.van_der_pol(num_series=2, num_times=30).observed


@pytest.fixture(scope="module")
def members(train):
    fits = []
    for width in WIDTHS:
        model, _ = bo.neural_ode(train, hidden=[width], verbose=False)
        fit = bo.fit_laplace(model, train, seed=0, prior_scale="fixed", progress=False)
        fits.append(fit)
    return fits


# ---- draws and predictions -----------------------------------------------------------------------
def test_members_get_draws_in_the_shares_of_their_weights(members, train, monkeypatch):
    seen = []

    def spy(self, question, *, num_draws, seed=None, solver=None):
        seen.append(num_draws)
        return plain(self, question, num_draws=num_draws, seed=seed, solver=solver)

    plain = bo.Posterior.predict
    monkeypatch.setattr(bo.Posterior, "predict", spy)
    Mixture(members).predict(train, num_draws=10, seed=0)
    Mixture(members, weights=[3, 1]).predict(train, num_draws=20, seed=0)
    Mixture(members, weights=[1, 0]).predict(train, num_draws=7, seed=0)
    assert seen == [5, 5, 15, 5, 7]
    seen.clear()
    ensemble = Mixture(members).predict(train, num_draws=5, seed=0)
    assert sorted(seen) == [2, 3] and len(ensemble.values) == 5


def test_density_of_the_mixture_is_the_mean_of_the_members_densities(members, train):
    joint = Mixture(members).predict(train, num_draws=4000, seed=0)
    parts = [member.predict(train, num_draws=4000, seed=1) for member in members]
    density = [part.log_prob(train).exp().mean(0) for part in parts]
    expected = (density[0] + density[1]) / 2
    found = joint.log_prob(train).exp().mean(0)
    # 120 densities, each a mean of 4,000 draws with a relative sd near 1 / sqrt(4,000) = .016
    assert ((found / expected).log().abs() < 0.15).all()


def test_draws_are_those_of_the_sites_that_all_members_share(members, train):
    draws = Mixture(members).draws(8, seed=0)
    assert set(draws) == {"likelihood.noise_scale", "x0"}
    assert draws["x0"].shape == (8, 2, 2)
    alike = Mixture([members[0], members[0]]).draws(8, seed=0)
    assert set(alike) == set(members[0].draws(1, seed=0))


def test_draws_of_an_ensemble_belong_to_its_paths(members, train):
    ensemble = Mixture(members).predict(train.at([0.0, 1.0]), num_draws=40, seed=0)
    # predictions are pulled a little towards the climate
    assert torch.allclose(ensemble.draws["x0"], ensemble.states[:, :, 0], rtol=0.02, atol=0.02)
    mixed_up = ensemble.draws["x0"].roll(1, 0) - ensemble.states[:, :, 0]
    assert mixed_up.abs().mean() > 0.03


def test_same_seed_same_predictions_and_no_trace_in_the_global_generator(members, train):
    state = torch.get_rng_state()
    one, two = (Mixture(members).predict(train, num_draws=9, seed=3).values for _ in range(2))
    assert torch.equal(one, two) and torch.equal(state, torch.get_rng_state())
    other = Mixture(members).predict(train, num_draws=9, seed=4).values
    assert not torch.equal(one, other)


def test_field_and_arviz_have_all_draws(members, train):
    mixture = Mixture(members)
    assert mixture.field(torch.zeros(4, 2), num_draws=6, seed=0).shape == (6, 4, 2)
    data = mixture.to_arviz(num_draws=12)
    assert data["posterior"]["x0"].shape == (1, 12, 2, 2)
    assert data["posterior_predictive"]["values"].shape == (1, 12, 2, 30, 2)


def test_new_series_are_conditioned_on_by_every_member(members):
    new = bo.datasets.van_der_pol(num_series=1, num_times=8, seed=9).observed
    conditioned = Mixture(members, weights=[1, 3]).condition(new, seed=0)
    assert conditioned.train.series == new.series and conditioned.weights == (0.25, 0.75)
    ensemble = conditioned.predict(new.at([12.0]), num_draws=8, seed=0)
    assert ensemble.values.shape == (8, 1, 1, 2)


# ---- what it says and leaves ---------------------------------------------------------------------
def test_evidence_of_the_mixture_is_the_mean_of_evidences(members):
    each = torch.tensor([member.log_evidence for member in members]).double()
    expected = (each.exp() @ torch.tensor([0.5, 0.5]).double()).log().item()
    assert Mixture(members).log_evidence == pytest.approx(expected, rel=1e-6)
    assert Mixture(members, weights=[0, 1]).log_evidence == pytest.approx(each[1].item())


def test_best_is_the_heaviest_member_or_the_most_probable_of_equals(members):
    evidence = [member.log_evidence for member in members]
    likely = max(range(2), key=evidence.__getitem__)
    assert Mixture(members).best is members[likely]
    weights = [0.3, 0.3]
    weights[1 - likely] = 0.4
    assert Mixture(members, weights=weights).best is members[1 - likely]


def test_words_name_members_and_what_was_held_out(members):
    said = str(Mixture(members))
    assert "hidden 2, weight 0.5" in said and "Nothing was held out" in said
    found = HoldOut(1.5, 6, -3.0, {"ar2": -2.0})
    assert str(found) in str(Mixture(members, hold_out=found))


def test_a_saved_mixture_loads_in_full(members, train, tmp_path):
    found = HoldOut(1.5, 6, -3.0, {"ar2": -2.0})
    mixture = Mixture(members, weights=[1, 3], hold_out=found, settings={"seed": 4})
    members[0].save(tmp_path / "run")  # a run of another kind gives way
    assert mixture.save(tmp_path / "run") == tmp_path / "run"
    loaded = bo.load(tmp_path / "run")
    assert loaded.hold_out == found and loaded.weights == mixture.weights
    assert loaded.settings == mixture.settings
    question = train.at([1.0, 12.0])
    one, two = (m.predict(question, num_draws=6, seed=0).values for m in (mixture, loaded))
    assert torch.equal(one, two)
    members[1].save(tmp_path / "run")
    assert not list((tmp_path / "run").glob("member-*"))


# ---- what is refused -----------------------------------------------------------------------------
def test_weights_must_be_usable(members):
    for weights in ([1.0], [-1, 2], [0, 0], [float("nan"), 1], [float("inf"), 1]):
        with pytest.raises(DataError, match="one weight >= 0 for each"):
            Mixture(members, weights=weights)
    with pytest.raises(DataError, match="needs a member or more"):
        Mixture([])
    with pytest.raises(DataError, match="num_draws must be positive"):
        Mixture(members).draws(0)


def test_members_must_share_data_and_units(members, train):
    other = train.rows([0])
    model, _ = bo.neural_ode(other, hidden=[2], verbose=False)
    stranger = dataclasses.make_dataclass("Stranger", ["train", "model"])(other, model)
    with pytest.raises(DataError, match="share series, starts and units"):
        Mixture([members[0], stranger])
    model.units = members[0].model.units
    model.likelihood = bo.LogNormalLikelihood(2)
    stranger = dataclasses.make_dataclass("Stranger", ["train", "model"])(train, model)
    with pytest.raises(DataError, match="different likelihoods"):
        Mixture([members[0], stranger])


# ---- candidates ----------------------------------------------------------------------------------
def test_one_series_is_mixed_and_several_get_the_most_probable_width(train, members, monkeypatch):
    fits = {width: member for width, member in zip(WIDTHS, members, strict=True)}

    def fit(model, data, **settings):
        return fits[model.field.config["hidden"][0]]

    monkeypatch.setattr(candidates, "fit_laplace", fit)
    several = bo.fit_candidates(train, widths=WIDTHS, seed=0)
    best = max(members, key=lambda member: member.log_evidence)
    assert several.members == (best,) and several.hold_out is None  # 120 numbers
    assert "largest evidence" in several.settings["reason"]
    alone = bo.fit_candidates(train.rows([0]), widths=WIDTHS, held_out=False, seed=0)
    assert alone.members == tuple(members) and alone.weights == (0.5, 0.5)
    assert "equal mixture" in alone.settings["reason"]


def test_a_width_that_cannot_be_fitted_is_left_out(train, members, monkeypatch):
    def fit(model, data, **settings):
        if model.field.config["hidden"] != [3]:
            raise FitError("explosion")
        return members[1]

    monkeypatch.setattr(candidates, "fit_laplace", fit)
    found = bo.fit_candidates(train.rows([0]), widths=WIDTHS, held_out=False)
    assert found.members == (members[1],)
    with pytest.raises(FitError, match=r"none of the widths \[2, 4\] can be fitted: explosion"):
        bo.fit_candidates(train, widths=(2, 4))


def test_little_data_are_held_out_in_the_same_way(members, monkeypatch):
    data = members[0].train.rows([0])  # 60 numbers
    seen = []

    def fit(model, part, **settings):
        seen.append((model.field.config["hidden"][0], part.times.numel()))
        model.units = members[0].model.units
        return members[seen[-1][0] - 2]

    def score(part, refit, **settings):
        refit(part.until(6.0))
        return HoldOut(1.84, 20, -3.0, {"ar2": -2.0})

    monkeypatch.setattr(candidates, "fit_laplace", fit)
    monkeypatch.setattr(candidates, "hold_out", score)
    found = bo.fit_candidates(data, widths=WIDTHS, seed=0)
    assert seen == [(2, 30), (3, 30), (2, 18), (3, 18)]
    assert found.settings["inflation"] == "inflated x1.84 by hold-out"
    assert "does NOT beat AR(2)" in str(found) and found.inflation == 1.84


def test_what_cannot_be_held_out_is_said(members, monkeypatch):
    def fit(model, part, **settings):
        return members[0]

    def fail(*arguments, **settings):
        raise FitError("no start leads to a fit")

    monkeypatch.setattr(candidates, "fit_laplace", fit)
    monkeypatch.setattr(candidates, "hold_out", fail)
    found = bo.fit_candidates(members[0].train.rows([0]), widths=(2,), seed=0)
    assert "Nothing could be held out: no start" in str(found) and found.inflation == 1


def test_members_and_hold_out_are_composed_by_the_system_that_was_asked_for(members, monkeypatch):
    data, seen = members[0].train.rows([0]), []

    def fit(model, part, **settings):
        seen.append((set(model.field.priors()), part.times.numel()))
        return members[0]

    def score(part, refit, **settings):
        refit(part.until(6.0))
        return HoldOut(1.0, 20, -3.0, {})

    monkeypatch.setattr(candidates, "fit_laplace", fit)
    monkeypatch.setattr(candidates, "hold_out", score)
    found = bo.fit_candidates(data, system=bo.neural_sde, widths=(2,), seed=0)
    sites = {"drift.weights", "diffusion.scale"}
    assert seen == [(sites, 30), (sites, 18)] and found.settings["system"] == "neural_sde"

    def own(train, *, plan, verbose):
        return bo.neural_ode(train, plan=dataclasses.replace(plan, hidden=(5,)), verbose=verbose)

    seen.clear()
    found = bo.fit_candidates(data, system=own, widths=(2,), seed=0)
    assert seen == [({"weights"}, 30), ({"weights"}, 18)] and found.settings["system"] == "own"


@pytest.mark.slow
def test_candidates_with_process_noise_say_so_forecast_and_load_in_full(tmp_path):
    data = bo.datasets.stochastic_lotka_volterra(num_series=1, num_times=18).observed
    train, test = data.split(time=4.0)
    mixture = bo.fit_candidates(train, system=bo.neural_sde, widths=(2,), held_out=False, seed=0)
    assert mixture.settings["process_noise"] is True
    assert "hidden 2, with process noise, weight 1" in str(mixture)
    assert mixture.draws(6, seed=0)["field.diffusion.scale"].shape == (6, 2)
    mixture.save(tmp_path / "run")
    loaded = bo.load(tmp_path / "run")
    assert loaded.settings == mixture.settings and str(loaded) == str(mixture)
    one, two = (m.forecast(train.at(test), num_draws=6, seed=0) for m in (mixture, loaded))
    assert torch.equal(one.values, two.values)
    assert mixture.smooth(num_draws=6, seed=0).values.shape == (6, 1, *train.times.shape, 2)


def test_members_without_process_noise_do_not_claim_it(members):
    assert "process noise" not in str(Mixture(members))


@pytest.mark.parametrize("widths", [(), (0,), (2.5,), ("wide",)], ids=str)
def test_widths_that_are_no_counts_are_refused(train, widths):
    with pytest.raises(DataError, match="widths must be positive whole numbers"):
        bo.fit_candidates(train, widths=widths)
