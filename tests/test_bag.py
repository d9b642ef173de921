"""Bags: fits to random subsets of the series, as one prediction, and as files."""

from __future__ import annotations

import itertools
import json
import warnings

import pyro
import pytest
import torch
from linear_latent import (
    DOUBLE,
    EVENT,
    by_hand,
    linear_model,
    linear_posterior,
    owners,
    series,
)

import bayesode as bo
from bayesode.errors import DataError, FitError

SYSTEM = {"dim_latent": 2, "likelihood": "gaussian", "hidden": (), "network": "none"}


@pytest.fixture(autouse=True)
def empty_store():
    with pyro.get_param_store().scope():
        yield


def fit_linear(part: bo.Trajectories, seed: int) -> bo.Posterior:
    model, guide = bo.ode_vae(part, **SYSTEM, verbose=False)
    return bo.fit_svi(model, guide, part, seed=seed, num_steps=3, progress=False)


class Recorder:
    """A fit that is none: members alternate, and what it was asked is kept."""

    def __init__(self, scale: float = 0.2) -> None:
        self.parts, self.seeds, self.scale = [], [], scale

    def __call__(self, part: bo.Trajectories, seed: int) -> bo.Posterior:
        self.parts.append(part)
        self.seeds.append(seed)
        return linear_posterior(part, (len(self.parts) - 1) % 2, scale=self.scale)


# ---- subsets ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("num_series", "fraction", "size"),
    [(16, 0.75, 12), (7, 0.5, 4), (5, 0.2, 3), (2, 0.5, 2), (4, 1.0, 4)],
)
def test_each_member_sees_a_share_of_the_series_once_and_at_least_three(num_series, fraction, size):
    data, fit = series(num_series), Recorder()
    bag = bo.fit_bag(fit, data, fraction=fraction, progress=False)
    assert len(bag.members) == 4 and len(set(fit.seeds)) == 4
    for part, labels in zip(fit.parts, bag.subsets, strict=True):
        assert part.series == labels and len(set(labels)) == size
        rows = data.positions(labels)
        assert (rows.diff() > 0).all()
        assert torch.equal(part.values, data.values[rows])


def test_every_series_has_the_same_chance_to_be_in_a_subset():
    data, fit = series(8), Recorder()
    bo.fit_bag(fit, data, num_members=300, fraction=0.5, progress=False)
    counts = torch.zeros(8)
    for part in fit.parts:
        counts[list(part.series)] += 1
    # binomial(300, 1/2): 8 counts around 150 with an sd of 8.7
    assert ((counts - 150).abs() < 5 * 8.7).all() and counts.sum() == 1200


def test_same_seed_same_subsets_and_fits_and_no_trace_in_the_global_generator():
    data, state = series(8), torch.get_rng_state()
    fits = [Recorder(), Recorder(), Recorder()]
    bags = [
        bo.fit_bag(f, data, seed=s, progress=False) for f, s in zip(fits, (1, 1, 2), strict=True)
    ]
    assert bags[0].subsets == bags[1].subsets != bags[2].subsets
    assert fits[0].seeds == fits[1].seeds != fits[2].seeds
    assert torch.equal(state, torch.get_rng_state())


# ---- predictions --------------------------------------------------------------------------------
def test_members_predict_new_series_by_their_own_decoders_with_equal_weights():
    bag = bo.fit_bag(Recorder(), series(6), num_members=2, progress=False)
    new = bo.Trajectories([0.0, 1.0], torch.randn(3, 2, EVENT, dtype=DOUBLE), series=list("abc"))
    mixture = bag.condition(new.until(0), seed=0)
    assert mixture.train.series == ("a", "b", "c") and mixture.weights == (0.5, 0.5)
    assert mixture.settings["engine"] == "mixture" and mixture.settings["fraction"] == 0.75
    ensemble = mixture.predict(new, num_draws=8, seed=0)
    owner = owners(ensemble)
    assert owner.sum() == 4
    torch.testing.assert_close(ensemble.signal, by_hand(ensemble.path, owner))


def test_the_mean_of_a_bag_is_the_mean_of_its_members_means():
    bag = bo.fit_bag(Recorder(scale=1e-9), series(6), num_members=2, progress=False)
    new = series(3, seed=1)
    given = new.until(0)
    first = new.at([0.0])  # where the field has not moved anything
    joint = bag.condition(given).predict(first, num_draws=4, seed=0).mean
    each = [m.condition(given).predict(first, num_draws=2, seed=0).mean for m in bag.members]
    torch.testing.assert_close(joint, (each[0] + each[1]) / 2, rtol=1e-6, atol=1e-6)
    assert (each[0] - each[1]).abs().max() > 1


def test_a_bag_of_data_space_models_predicts_though_each_has_units_of_its_own():
    data = bo.datasets.van_der_pol(num_series=6, num_times=15).observed

    def fit(part: bo.Trajectories, seed: int) -> bo.Posterior:
        model, guide = bo.neural_ode(part, hidden=[2], verbose=False)
        settings = {"num_steps": 2, "warm_start": False, "progress": False}
        return bo.fit_svi(model, guide, part, seed=seed, **settings)

    bag = bo.fit_bag(fit, data, num_members=2, fraction=0.5, progress=False)
    scales = [member.model.units.scale for member in bag.members]
    assert not torch.equal(*scales)
    ensemble = bag.condition(data.rows([0]), num_draws=4, seed=0).predict(data.rows([0]), seed=0)
    torch.testing.assert_close(ensemble.signal, ensemble.states)


# ---- what goes wrong ----------------------------------------------------------------------------
def failing(error: BaseException, *numbers: int):
    """A fit whose calls of these numbers, from 0, raise an error."""
    calls = itertools.count()

    def fit(part: bo.Trajectories, seed: int) -> bo.Posterior:
        if next(calls) in numbers:
            raise error
        return linear_posterior(part)

    return fit


def test_an_interrupt_keeps_the_members_that_were_reached():
    with pytest.warns(UserWarning, match="2 of 4 members were reached and are kept"):
        bag = bo.fit_bag(failing(KeyboardInterrupt(), 2), series(6), progress=False)
    assert len(bag.members) == 2
    with pytest.raises(KeyboardInterrupt):
        bo.fit_bag(failing(KeyboardInterrupt(), 0), series(6), progress=False)


def test_a_fit_that_the_user_stopped_half_way_is_no_member_and_ends_the_bag():
    calls = itertools.count()

    def fit(part: bo.Trajectories, seed: int) -> bo.Posterior:
        posterior = linear_posterior(part)
        posterior.history.is_interrupted = next(calls) == 1
        return posterior

    with pytest.warns(UserWarning, match="1 of 4 members were reached"):
        bag = bo.fit_bag(fit, series(6), progress=False)
    assert len(bag.members) == 1


def test_a_member_that_cannot_be_fitted_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="number 2 of 4 members cannot be fitted.*: explosion"):
        bag = bo.fit_bag(failing(FitError("explosion"), 1), series(6), progress=False)
    assert len(bag.members) == 3
    with pytest.warns(UserWarning), pytest.raises(FitError, match="none of the 2 members"):
        bo.fit_bag(failing(FitError("explosion"), 0, 1), series(6), num_members=2, progress=False)


def test_settings_that_make_no_bag_are_refused():
    data, fit = series(4), Recorder()
    for settings, said in (
        ({"num_members": 0}, "num_members must be a positive whole number"),
        ({"num_members": 2.5}, "num_members must be a positive whole number"),
        ({"fraction": 0.0}, r"fraction must lie in \(0, 1\]"),
        ({"fraction": 1.5}, r"fraction must lie in \(0, 1\]"),
        ({"fraction": "half"}, r"fraction must lie in \(0, 1\]"),
    ):
        with pytest.raises(DataError, match=said):
            bo.fit_bag(fit, data, progress=False, **settings)
    with pytest.raises(DataError, match="fits need observed series"):
        bo.fit_bag(fit, data.at([0.0]), progress=False)
    with pytest.raises(DataError, match="has to return a posterior, not NoneType"):
        bo.fit_bag(lambda part, seed: None, data, progress=False)
    with pytest.raises(DataError, match="a bag needs a member"):
        bo.Bag([], data)
    assert not fit.parts


# ---- files --------------------------------------------------------------------------------------
def test_a_saved_bag_loads_in_full(tmp_path):
    data = series(6).to("cpu", torch.float32)
    bag = bo.fit_bag(fit_linear, data, num_members=2, progress=False)
    assert bag.save(tmp_path / "run") == tmp_path / "run"
    loaded = bo.load(tmp_path / "run")
    assert isinstance(loaded, bo.Bag) and loaded.settings == bag.settings
    assert loaded.subsets == bag.subsets and torch.equal(loaded.train.values, data.values)
    new = series(2, seed=5).to("cpu", torch.float32)
    question = new.at([2.0, 4.0])
    one, two = (
        b.condition(new.until(0), seed=0).predict(question, num_draws=6, seed=0)
        for b in (bag, loaded)
    )
    assert torch.equal(one.values, two.values) and len(one.signal.unique()) == one.signal.numel()


def test_a_conditioned_bag_is_a_mixture_in_files_too(tmp_path):
    data = series(6).to("cpu", torch.float32)
    bag = bo.fit_bag(fit_linear, data, num_members=2, progress=False)
    bag.save(tmp_path / "run")
    mixture = bag.condition(data.until(0), seed=0)
    mixture.save(tmp_path / "run")  # a run of another kind gives way
    loaded = bo.load(tmp_path / "run")
    assert isinstance(loaded, bo.Mixture) and not (tmp_path / "run" / "train.npz").exists()
    one, two = (m.predict(data, num_draws=6, seed=0).values for m in (mixture, loaded))
    assert torch.equal(one, two)


def test_a_bag_of_hand_made_models_loads_into_copies_of_the_users_objects(tmp_path):
    data = series(6)
    bag = bo.fit_bag(Recorder(), data, num_members=2, progress=False)
    bag.save(tmp_path / "run")
    with pytest.raises(DataError, match="hand-made model"):
        bo.load(tmp_path / "run")
    model = linear_model()
    guide = bo.AmortizedGuide(model, bo.LinearEncoder((EVENT,), 2)).double()
    before = guide.encoder.weight.clone()
    loaded = bo.load(tmp_path / "run", model=model, guide=guide)
    assert torch.equal(guide.encoder.weight, before)
    one, two = (
        b.condition(data.until(0)).predict(data, num_draws=6, seed=0).values for b in (bag, loaded)
    )
    assert torch.equal(one, two)


def test_a_damaged_bag_is_told(tmp_path):
    bag = bo.fit_bag(Recorder(), series(6), num_members=2, progress=False)
    bag.save(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["bag"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="the bag of another version"):
        bo.load(tmp_path / "run")


def test_a_bag_warns_of_nothing_and_shows_a_bar_if_asked(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bag = bo.fit_bag(Recorder(), series(6), num_members=2)
    assert "members" in capsys.readouterr().err and "2 members" in repr(bag)
