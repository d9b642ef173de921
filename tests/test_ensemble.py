"""The predictive ensemble: summaries over draws, and which data it can be scored on."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

import bayesode as bo
from bayesode.distributions import observed_law
from bayesode.models.contracts import Observe

DOUBLE = torch.float64
NUM_DRAWS, NOISE = 21, 0.3


def make_ensemble(*, transform: str = "identity", failed=None, times=None) -> bo.Ensemble:
    """Random paths, seen with a known noise in other units."""
    torch.manual_seed(0)
    units = bo.Units([1.0, 2.0], [0.5, 3.0], transform=transform)
    times = torch.tensor([1.0, 2.0, 4.0], dtype=DOUBLE) if times is None else times
    train = bo.Trajectories([0.0, 0.5], torch.randn(2, 2, 2, dtype=DOUBLE), series=["a", "b"])
    path = torch.randn(NUM_DRAWS, 2, 3, 2, dtype=DOUBLE)

    def law(path, mask):
        return observed_law(dist.Normal(units.to_users(path), NOISE), mask, event_dim=2, fill=0.0)

    observe = Observe(law, units.to_users)
    return bo.Ensemble(
        trajectories=train.at(times),
        path=path,
        observe=observe,
        failed=torch.zeros(NUM_DRAWS, 2, dtype=torch.bool) if failed is None else failed,
        values=observe(path).sample(),
        units=units,
        train=train,
        solver_error=lambda: 0.25,
    )


def some_failed() -> torch.Tensor:
    failed = torch.zeros(NUM_DRAWS, 2, dtype=torch.bool)
    failed[3:9, 0] = failed[0, 1] = True
    return failed


def data(ensemble: bo.Ensemble, **changes) -> bo.Trajectories:
    values = torch.randn(2, 3, 2, dtype=DOUBLE)
    values[0, 1, 0] = values[1, 2] = math.nan
    settings = {"series": ["a", "b"], "start": 0.0, **changes}
    return bo.Trajectories(ensemble.times, values, **settings)


def test_states_and_signal_are_in_users_units():
    location, scale = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.5, 3.0]).double()
    plain, logged = make_ensemble(), make_ensemble(transform="log")
    torch.testing.assert_close(plain.states, location + scale * plain.path)
    torch.testing.assert_close(logged.states, (location + scale * logged.path).exp())
    assert torch.equal(plain.signal, plain.states)
    assert (plain.transform, logged.transform) == ("identity", "log")


@pytest.mark.parametrize("of", ["values", "signal", "states"])
def test_quantiles_are_torchs_over_the_draws_that_did_not_fail(of: str):
    ensemble = make_ensemble(failed=some_failed())
    levels = [0.05, 0.5, 0.77]
    found = ensemble.quantile(levels, of=of)
    assert found.shape == (3, 2, 3, 2)
    for row in range(2):
        kept = getattr(ensemble, of)[~ensemble.failed[:, row], row]
        exact = torch.quantile(kept, torch.tensor(levels, dtype=DOUBLE), dim=0)
        torch.testing.assert_close(found[:, row], exact)
    low, high = ensemble.interval(0.9, of=of)
    torch.testing.assert_close(torch.stack([low, high]), ensemble.quantile([0.05, 0.95], of=of))
    torch.testing.assert_close(ensemble.quantile(0.5, of=of)[0], found[1])


def test_mean_and_median_leave_failed_draws_out():
    ensemble = make_ensemble(failed=some_failed())
    for row in range(2):
        kept = ~ensemble.failed[:, row]
        torch.testing.assert_close(ensemble.mean[row], ensemble.signal[kept, row].mean(0))
    torch.testing.assert_close(ensemble.median, ensemble.quantile(0.5)[0])
    assert ensemble.share_failed == pytest.approx(7 / (2 * NUM_DRAWS))
    assert f"{7 / (2 * NUM_DRAWS):.1%} failed" in repr(ensemble)


def test_failed_draws_may_hold_anything():
    ensemble, clean = make_ensemble(failed=some_failed()), make_ensemble(failed=some_failed())
    for tensor in (ensemble.path, ensemble.values):
        tensor[some_failed()] = math.nan
    torch.testing.assert_close(ensemble.mean, clean.mean)
    torch.testing.assert_close(ensemble.median, clean.median)


@pytest.mark.parametrize("levels", [-0.1, [0.5, 1.1], math.nan])
def test_a_level_outside_0_1_is_one_clear_error(levels):
    with pytest.raises(bo.DataError, match="between 0 and 1"):
        make_ensemble().quantile(levels)


def test_an_unknown_quantity_is_one_clear_error():
    with pytest.raises(bo.DataError, match="of= must be"):
        make_ensemble().interval(0.9, of="velocity")


def test_log_density_is_that_of_each_point_given_each_draw():
    ensemble = make_ensemble()
    test = data(ensemble)
    found = ensemble.log_prob(test)
    assert found.shape == (NUM_DRAWS, 2, 3, 2)
    error = (test.values - ensemble.states) / NOISE
    exact = -0.5 * error.square() - math.log(NOISE * math.sqrt(2 * math.pi))
    exact = torch.where(test.mask, exact, 0.0)
    torch.testing.assert_close(found, exact)
    assert (found[:, ~test.mask] == 0).all()


def test_single_precision_data_are_scored_in_the_models_precision():
    ensemble = make_ensemble()
    test = data(ensemble).to(dtype=torch.float32)
    assert ensemble.log_prob(test).dtype == DOUBLE


WRONG = {
    "other times": {"times": torch.tensor([1.0, 2.0, 4.001], dtype=DOUBLE)},
    "fewer times": {"times": torch.tensor([1.0, 2.0], dtype=DOUBLE)},
    "other series": {"series": ["a", "c"]},
    "series in another order": {"series": ["b", "a"]},
}


@pytest.mark.parametrize("what", WRONG)
def test_data_that_were_not_asked_for_cannot_be_scored(what: str):
    ensemble = make_ensemble()
    change = {"times": ensemble.times, "series": ["a", "b"]} | WRONG[what]
    values = torch.randn(2, len(change["times"]), 2, dtype=DOUBLE)
    other = bo.Trajectories(change["times"], values, series=change["series"], start=0.0)
    with pytest.raises((bo.DataError, bo.ShapeError), match=r"predict\(train\.at\(test\)\)"):
        ensemble.log_prob(other)


@pytest.mark.parametrize("names", [["x1"], ["x2", "x1"], ["x1", "x2", "x3"]])
def test_other_components_cannot_be_scored(names: list[str]):
    """One would broadcast, two in another order would be mistaken for each other."""
    ensemble = make_ensemble()
    values = torch.randn(2, 3, len(names), dtype=DOUBLE)
    other = bo.Trajectories(ensemble.times, values, series=["a", "b"], names=names, start=0.0)
    with pytest.raises(bo.ShapeError, match="components of the fit"):
        ensemble.log_prob(other)


def test_shared_times_and_the_same_times_per_series_are_the_same():
    ensemble = make_ensemble(times=torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]).double())
    test = data(make_ensemble())
    assert test.times.dim() == 1
    assert ensemble.log_prob(test).shape == (NUM_DRAWS, 2, 3, 2)


def test_a_question_cannot_be_scored():
    ensemble = make_ensemble()
    with pytest.raises(bo.DataError, match="question without values"):
        ensemble.log_prob(ensemble.trajectories)


def test_solver_error_is_computed_once_when_asked_for():
    ensemble, calls = make_ensemble(), []
    ensemble._solver_error = lambda: calls.append(1) or 0.25
    assert not calls
    assert (ensemble.solver_error, ensemble.solver_error, len(calls)) == (0.25, 0.25, 1)


def test_undetermined_is_where_the_sd_of_the_valid_draws_exceeds_one_data_sd():
    ensemble = make_ensemble(failed=some_failed())
    ensemble.path[:, 1, 2, 0] *= 3
    ensemble.path[3, 0] = 1e6  # failed: it must not count
    ensemble.path[:, 0, :, 1] *= 0.1
    for row in range(2):
        kept = ensemble.path[~ensemble.failed[:, row], row]
        assert torch.equal(ensemble.undetermined[row], kept.std(0) > 1)
    assert ensemble.undetermined[1, 2, 0] and not ensemble.undetermined[0, :, 1].any()
    assert ensemble.share_undetermined == ensemble.undetermined.double().mean().item()


def test_undetermined_series_without_a_valid_draw_and_padding_does_not_count():
    failed = torch.zeros(NUM_DRAWS, 2, dtype=torch.bool)
    failed[:, 1] = True
    ensemble = make_ensemble(failed=failed)
    ensemble.path *= 0.01
    assert ensemble.undetermined.tolist() == [[[False] * 2] * 3, [[True] * 2] * 3]
    own = torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]], dtype=DOUBLE)
    ensemble.trajectories = ensemble.train.at(own, num_times=[3, 1])
    assert ensemble.share_undetermined == 2 / 8


def test_sd_of_the_engine_goes_before_that_of_the_draws_and_is_not_computed_unasked():
    plain, calls = make_ensemble(), []

    def path_sd():
        calls.append(1)
        return torch.tensor([0.5, 1.0, torch.inf]).view(1, 3, 1).expand(2, 3, 2)

    names = ("trajectories", "path", "observe", "failed", "values", "units", "train")
    parts = {name: getattr(plain, name) for name in names}
    ensemble = bo.Ensemble(**parts, solver_error=lambda: 0.0, path_sd=path_sd)
    assert calls == []
    assert ensemble.undetermined.tolist() == [[[False] * 2, [False] * 2, [True] * 2]] * 2
    assert ensemble.share_undetermined == pytest.approx(1 / 3) and calls == [1]


def test_laplace_forecast_is_undetermined_where_its_uncapped_sd_exceeds_the_data():
    data = bo.datasets.lotka_volterra(num_series=4, num_times=30).observed
    model, _ = bo.neural_ode(data, hidden=[4], verbose=False)
    posterior = bo.fit_laplace(model, data, seed=0, progress=False)
    question = data.at(torch.linspace(0, 60, 121))
    ensemble = posterior.predict(question, num_draws=50, seed=0)
    sd = posterior.predictive.uncapped_sd(question)
    assert torch.equal(ensemble.undetermined, sd > 1)
    assert not ensemble.undetermined[:, :8].any()
    assert 0 < ensemble.share_undetermined < 1
    # the cap keeps the draws' own sd below twice the data's, so that it cannot tell
    assert ensemble.path.std(0).max() < sd.max()
