"""Cross-validation over series: who is held out, what may be read, what is scored."""

from __future__ import annotations

import itertools

import pyro
import pytest
import torch
from linear_latent import DOUBLE, EVENT, linear_posterior, series

import bayesode as bo
from bayesode.errors import DataError, FitError

SYSTEM = {"dim_latent": 2, "likelihood": "gaussian", "hidden": (), "network": "none"}


@pytest.fixture(autouse=True)
def empty_store():
    with pyro.get_param_store().scope():
        yield


def first_time(held: bo.Trajectories) -> bo.Trajectories:
    return held.until(0)


def fit_linear(part: bo.Trajectories, seed: int) -> bo.Posterior:
    model, guide = bo.ode_vae(part, **SYSTEM, verbose=False)
    return bo.fit_svi(model, guide, part, seed=seed, num_steps=3, progress=False)


class Recorder:
    def __init__(self) -> None:
        self.parts, self.seeds = [], []

    def __call__(self, part: bo.Trajectories, seed: int) -> bo.Posterior:
        self.parts.append(part)
        self.seeds.append(seed)
        return linear_posterior(part)


def leave_out(fit, data: bo.Trajectories, **settings) -> list[bo.HeldOut]:
    settings = {"given": first_time, "num_draws": 4, "progress": False} | settings
    return bo.leave_series_out(fit, data, **settings)


# ---- folds --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("num_series", "num_folds"), [(7, 3), (5, 5), (6, 2)])
def test_each_series_is_held_out_once_and_its_fit_sees_all_others(num_series, num_folds):
    data, fit = series(num_series), Recorder()
    held = leave_out(fit, data, num_folds=num_folds)
    out = [label for fold in held for label in fold.truth.series]
    assert sorted(out) == list(data.series) and len(held) == num_folds
    sizes = [fold.truth.num_series for fold in held]
    assert max(sizes) - min(sizes) <= 1
    for fold, part in zip(held, fit.parts, strict=True):
        assert set(part.series) == set(data.series) - set(fold.truth.series)
        assert torch.equal(part.values, data.values[data.positions(part.series)])
        assert fold.ensemble.trajectories.series == fold.truth.series
        assert fold.ensemble.signal.shape == (4, *fold.truth.values.shape)


def test_values_of_held_out_series_reach_neither_their_fit_nor_their_prediction():
    data = series(6).to("cpu", torch.float32)
    held = leave_out(fit_linear, data, num_folds=3)
    label = held[1].truth.series[0]
    values = data.values.clone()
    values[data.positions([label]), 1:] = 3.0  # the first time is given
    changed = leave_out(fit_linear, bo.Trajectories(data.times, values), num_folds=3)
    assert torch.equal(held[1].ensemble.values, changed[1].ensemble.values)
    assert not torch.equal(held[0].ensemble.values, changed[0].ensemble.values)
    assert (changed[1].truth.values == 3.0).any()


def test_what_is_given_reaches_the_prediction():
    data = series(6).to("cpu", torch.float32)
    held = leave_out(fit_linear, data, num_folds=3)
    values = data.values.clone()
    values[data.positions([held[1].truth.series[0]]), 0] += 10.0
    changed = leave_out(fit_linear, bo.Trajectories(data.times, values), num_folds=3)
    assert not torch.equal(held[1].ensemble.values, changed[1].ensemble.values)


def test_given_values_do_not_count_and_stay_in_the_truth():
    times = torch.arange(5.0) + torch.tensor([[0.0], [3.0], [7.0], [1.0]])
    values = torch.randn(4, 5, EVENT, dtype=DOUBLE)
    mask = torch.ones(4, 5, EVENT, dtype=torch.bool)
    mask[:, 3, 1] = False
    data = bo.Trajectories(times, values, mask=mask, series=list("abcd"))

    def given(held: bo.Trajectories) -> bo.Trajectories:
        seen = held.mask.clone()
        seen[:, 1, 0] = False  # of the second time, the first entry may not be read
        part = bo.Trajectories(held.times, held.values, mask=seen, series=held.series)
        return part.until(1.0).rows(list(reversed(range(held.num_series))))

    for fold in leave_out(Recorder(), data, num_folds=2, given=given):
        rows = data.positions(fold.truth.series)
        expected = mask[rows].clone()
        expected[:, 0] = expected[:, 1, 1:] = False
        assert torch.equal(fold.truth.mask, expected)
        assert torch.equal(fold.truth.values, values[rows])
        assert fold.ensemble.train.series == fold.truth.series


def test_same_seed_same_folds_fits_and_draws_and_no_trace_in_the_global_generator():
    data, state = series(6), torch.get_rng_state()
    fits = [Recorder(), Recorder(), Recorder()]
    runs = [leave_out(fit, data, seed=s) for fit, s in zip(fits, (1, 1, 2), strict=True)]
    assert fits[0].seeds == fits[1].seeds != fits[2].seeds
    assert torch.equal(runs[0][0].ensemble.values, runs[1][0].ensemble.values)
    assert [f.truth.series for f in runs[0]] != [f.truth.series for f in runs[2]]
    assert torch.equal(state, torch.get_rng_state())


def test_a_bag_can_be_held_out():
    def fit(part: bo.Trajectories, seed: int) -> bo.Bag:
        return bo.fit_bag(Recorder(), part, num_members=2, seed=seed, progress=False)

    held = leave_out(fit, series(6), num_folds=2)
    assert held[0].ensemble.values.shape == (4, 3, 6, EVENT)


# ---- what goes wrong ----------------------------------------------------------------------------
def failing(error: BaseException, number: int):
    calls = itertools.count()

    def fit(part: bo.Trajectories, seed: int) -> bo.Posterior:
        if next(calls) == number:
            raise error
        return linear_posterior(part)

    return fit


def test_an_interrupt_or_a_failed_fit_keeps_the_other_folds():
    with pytest.warns(UserWarning, match="2 of 3 folds were reached and are kept"):
        assert len(leave_out(failing(KeyboardInterrupt(), 2), series(6), num_folds=3)) == 2
    with pytest.warns(UserWarning, match="number 1 of 3 folds cannot be fitted"):
        assert len(leave_out(failing(FitError("explosion"), 0), series(6), num_folds=3)) == 2


@pytest.mark.parametrize("num_folds", [0, 1, 2.5, 7])
def test_folds_that_leave_nothing_are_refused(num_folds):
    with pytest.raises(DataError, match=r"num_folds must be|at least 7 series are needed"):
        leave_out(Recorder(), series(6), num_folds=num_folds)


def test_what_is_given_must_be_of_the_held_out_series():
    data = series(6)
    wrong = {
        "has to return what may be read": [
            lambda held: None,
            lambda held: held.rows([0]),
            lambda held: data.until(0),
        ],
        "leaves nothing that is observed": [
            lambda held: held.at([0.0]),
            lambda held: bo.Trajectories(
                held.times, held.values, mask=0 * held.mask == 1, series=held.series
            ),
        ],
    }
    for said, cases in wrong.items():
        for given in cases:
            fit = Recorder()
            with pytest.raises(DataError, match=said):
                leave_out(fit, data, given=given)
            assert not fit.parts  # before anything is fitted
