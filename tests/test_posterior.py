"""Posteriors: draws, predictions and their borders, against systems whose paths are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn

import bayesode as bo
from bayesode.inference import predictive
from bayesode.inference.svi import History
from bayesode.models.contracts import VectorField, without_plate

DOUBLE = torch.float64
UNITS = {"location": [1.0, -2.0], "scale": [2.0, 0.5], "time_origin": 10.0, "time_unit": 4.0}


class Growth(nn.Module):
    """dz/ds = rate z, or z^3 to explode; rates are normal."""

    def __init__(self, power: int = 1, forcing: float = 0.0) -> None:
        super().__init__()
        self.power, self.forcing = power, forcing
        self.register_buffer("scale", torch.ones(2, dtype=DOUBLE))

    def priors(self):
        return {"rates": dist.Normal(torch.zeros_like(self.scale), self.scale).to_event(1)}

    def build(self, values, inputs=None):
        rates = without_plate(values["rates"]).unsqueeze(-2)
        return VectorField(lambda t, x: rates * x**self.power + self.forcing * t, (rates,))


@dataclass(frozen=True)
class Counting:
    """A solver that remembers what it was asked."""

    inner: Any = field(default_factory=lambda: bo.FixedGridSolver("rk4", step=0.05))
    calls: list = field(default_factory=list)

    def priors(self, start, times):
        return {}

    def solve(self, field, x0, start, times, **noise):
        self.calls.append(tuple(x0.shape))
        return self.inner.solve(field, x0, start, times, **noise)

    def __call__(self, field, x0, start, times, **noise):
        return self.solve(field, x0, start, times, **noise).path


def make_posterior(
    growth: nn.Module | None = None, *, solver=None, units=None, num_series: int = 3, spread=0.1
) -> bo.Posterior:
    """A mean-field posterior that is known without a fit: rates -.5 and .2, x0 about (1, -1)."""
    torch.manual_seed(0)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=growth or Growth(),
        likelihood=bo.GaussianLikelihood(2),
        solver=solver or bo.FixedGridSolver("rk4", step=0.05),
        units=None if units is None else bo.Units(**units),
    ).double()
    times = 10.0 + torch.linspace(0.0, 4.0, 5, dtype=DOUBLE)
    values = torch.randn(num_series, 5, 2, dtype=DOUBLE)
    train = bo.Trajectories(times, values, series=[f"s{i}" for i in range(num_series)])
    guide = bo.MeanFieldGuide(model, train)
    ones = torch.ones(2, dtype=DOUBLE)
    guide.set_site("field.rates", torch.tensor([-0.5, 0.2]), spread * ones)
    guide.set_site("likelihood.noise_scale", torch.tensor([0.2, 0.4]), 0.3 * ones)
    x0 = torch.tensor([1.0, -1.0]) + 0.1 * torch.arange(num_series)[:, None]
    guide.set_site("x0", x0, torch.full((num_series, 2), spread))
    settings = {"engine": "svi"}
    return bo.Posterior(model, guide, train, history=History(), settings=settings)


def exact_path(ensemble: bo.Ensemble, start: float = 10.0, unit: float = 1.0) -> torch.Tensor:
    """The dimensionless solution z0 exp(rate s) of the ensemble's own draws."""
    z0 = ensemble.units.to_state(ensemble.draws["x0"]).unsqueeze(2)
    elapsed = ((ensemble.trajectories.grid - start) / unit)[..., None]
    return z0 * (ensemble.draws["field.rates"][:, None, None] * elapsed).exp()


# ---- predictions are solutions of the drawn equations -----------------------------------------
QUESTIONS = {
    "one time": [11.0],
    "the start": [10.0],
    "later times alone": [14.5, 16.0],
    "own grids": [[10.0, 11.0, 12.0], [12.5, 13.0, 15.0], [10.5, 11.0, 11.5]],
}


@pytest.mark.parametrize("num_draws", [1, 40])
@pytest.mark.parametrize("question", QUESTIONS)
def test_each_draw_solves_its_own_equation_from_its_own_start(question: str, num_draws: int):
    posterior = make_posterior()
    asked = posterior.train.at(torch.tensor(QUESTIONS[question], dtype=DOUBLE))
    ensemble = posterior.predict(asked, num_draws=num_draws, seed=1)
    num_times = asked.times.shape[-1]
    assert ensemble.values.shape == ensemble.states.shape == (num_draws, 3, num_times, 2)
    assert ensemble.mean.shape == (3, num_times, 2)
    torch.testing.assert_close(ensemble.path, exact_path(ensemble), rtol=1e-5, atol=1e-7)
    assert ensemble.share_failed == 0


def test_predictions_are_in_users_units():
    posterior = make_posterior(units=UNITS)
    ensemble = posterior.predict(posterior.train.at([10.0, 14.0]), num_draws=20, seed=1)
    path = exact_path(ensemble, unit=4.0)
    torch.testing.assert_close(ensemble.path, path, rtol=1e-5, atol=1e-7)
    location, scale = (torch.tensor(UNITS[n], dtype=DOUBLE) for n in ("location", "scale"))
    torch.testing.assert_close(ensemble.states, location + scale * path, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ensemble.signal, ensemble.states)
    torch.testing.assert_close(ensemble.states[:, :, 0], ensemble.draws["x0"])


def test_padded_times_repeat_the_last_prediction():
    posterior = make_posterior()
    times = torch.tensor([[10.0, 11.0, 12.0], [10.0, 13.0, 13.0], [10.5, 10.5, 10.5]])
    asked = posterior.train.at(times, num_times=[3, 2, 1])
    path = posterior.predict(asked, num_draws=5, seed=1).path
    assert torch.equal(path[:, 1, 1], path[:, 1, 2])
    assert torch.equal(path[:, 2, 0], path[:, 2, 2])
    alone = posterior.predict(posterior.train.at(times[0]), num_draws=5, seed=1).path
    torch.testing.assert_close(path[:, 0], alone[:, 0])


def test_noise_has_the_drawn_scale_and_is_new_at_every_point():
    posterior = make_posterior()
    ensemble = posterior.predict(posterior.train, num_draws=2000, seed=2)
    noise = (ensemble.values - ensemble.signal) / ensemble.draws["likelihood.noise_scale"][
        :, None, None
    ]
    count = noise[..., 0].numel()
    assert (noise.mean((0, 1, 2)).abs() < 5 / math.sqrt(count)).all()
    assert ((noise.var((0, 1, 2)) - 1).abs() < 5 * math.sqrt(2 / count)).all()
    neighbours = (noise[:, :, 1:] * noise[:, :, :-1]).mean((0, 1, 2))
    assert (neighbours.abs() < 5 / math.sqrt(count * 4 / 5)).all()
    series = (noise[:, 1:] * noise[:, :-1]).mean((0, 1, 2))
    assert (series.abs() < 5 / math.sqrt(count * 2 / 3)).all()


def test_draws_follow_the_guide():
    draws = make_posterior().draws(4000, seed=3)
    assert {site: tuple(value.shape) for site, value in draws.items()} == {
        "field.rates": (4000, 2),
        "likelihood.noise_scale": (4000, 2),
        "x0": (4000, 3, 2),
    }
    tight = 5 / math.sqrt(4000)
    rates, noise = draws["field.rates"], draws["likelihood.noise_scale"].log()
    assert ((rates.mean(0) - torch.tensor([-0.5, 0.2])).abs() < tight * 0.1).all()
    assert ((noise.mean(0) - torch.tensor([0.2, 0.4]).log()).abs() < tight * 0.3).all()
    assert ((noise.std(0) / 0.3 - 1).abs() < tight).all()
    assert rates.mT.corrcoef()[0, 1].abs() < tight


def test_one_solve_serves_all_draws_and_series():
    solver = Counting()
    posterior = make_posterior(solver=solver)
    solver.calls.clear()
    posterior.model.solver.calls.clear()
    posterior.predict(posterior.train, num_draws=64, seed=0)
    assert posterior.model.solver.calls == [(64, 3, 2)]


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_solving_in_chunks_changes_nothing(at_once: int, monkeypatch):
    posterior = make_posterior(solver=Counting())
    whole = posterior.predict(posterior.train, num_draws=64, seed=4)
    posterior.model.solver.calls.clear()
    monkeypatch.setattr(predictive, "MAX_NUMBERS", at_once * 3 * 2 * 5)  # series, state, time
    parts = posterior.predict(posterior.train, num_draws=64, seed=4)
    assert len(posterior.model.solver.calls) == math.ceil(64 / at_once)
    for name in ("path", "values", "failed"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_chunks_count_the_steps_and_not_only_the_asked_times(monkeypatch):
    posterior = make_posterior(solver=Counting())
    few = bo.FixedGridSolver("rk4", step=0.05)
    sizes = []
    monkeypatch.setattr(predictive, "MAX_NUMBERS", 64 * 3 * 2 * 10)
    monkeypatch.setattr(
        bo.FixedGridSolver,
        "solve",
        lambda self, field, x0, *rest, _solve=bo.FixedGridSolver.solve, **noise: (
            sizes.append(len(x0)),
            _solve(self, field, x0, *rest, **noise),
        )[1],
    )
    posterior.predict(posterior.train.at([14.0]), num_draws=64, seed=4, solver=few)
    assert max(sizes) == 7 and sum(sizes) == 64  # 81 states each, in place of one


def test_another_solver_can_be_asked():
    posterior = make_posterior()
    rough = bo.FixedGridSolver("euler", step=0.5)
    asked = posterior.train.at([10.5, 11.0])
    ensemble = posterior.predict(asked, num_draws=5, seed=1, solver=rough)
    z0, rates = ensemble.draws["x0"], ensemble.draws["field.rates"].unsqueeze(1)
    torch.testing.assert_close(ensemble.path[:, :, 1], z0 * (1 + 0.5 * rates) ** 2)


# ---- what is not allowed ----------------------------------------------------------------------
def test_an_unknown_series_is_one_clear_error():
    posterior = make_posterior()
    with pytest.raises(bo.DataError, match="series 'z' was not in the fit"):
        posterior.predict(bo.Trajectories([11.0], None, series=["s0", "z"]))


def test_times_before_the_start_are_one_clear_error():
    posterior = make_posterior()
    with pytest.raises(bo.DataError, match="before its start"):
        posterior.predict(posterior.train.at([9.9, 11.0]))


def test_another_start_is_one_clear_error():
    posterior = make_posterior()
    other = bo.Trajectories([11.0, 12.0], None, series=["s1", "s0"], names=["x1", "x2"])
    with pytest.raises(bo.DataError, match=r"'s1' starts at 11 in the question and at 10"):
        posterior.predict(other)
    posterior.predict(bo.Trajectories([11.0], None, series=["s1"], names=["x1", "x2"], start=10.0))


@pytest.mark.parametrize("num_draws", [0, -3])
def test_no_draws_are_one_clear_error(num_draws: int):
    posterior = make_posterior()
    with pytest.raises(bo.DataError, match="num_draws must be positive"):
        posterior.predict(posterior.train, num_draws=num_draws)


# ---- inside the data window and after it ------------------------------------------------------
def windows():
    """A posterior whose series are last observed at 14, 12 (then masked) and 13 (then padded)."""
    posterior = make_posterior()
    train = posterior.train
    values = train.values.clone()
    values[1, 3:] = math.nan
    data = bo.Trajectories(train.times, values, series=train.series, num_times=[5, 5, 4])
    return bo.Posterior(
        posterior.model, posterior.guide, data, history=History(), settings={"engine": "svi"}
    )


def test_smoothed_paths_are_predictions_at_the_training_times():
    posterior = make_posterior()
    smoothed = posterior.smooth(num_draws=7, seed=3)
    assert torch.equal(smoothed.times, posterior.train.times)
    predicted = posterior.predict(posterior.train, num_draws=7, seed=3)
    assert torch.equal(smoothed.values, predicted.values)
    between = posterior.train.at([10.0, 12.3])
    assert torch.equal(
        posterior.smooth(between, num_draws=7, seed=3).values,
        posterior.predict(between, num_draws=7, seed=3).values,
    )


def test_the_window_of_a_series_ends_at_its_last_observed_time():
    posterior = windows()
    smoothed = posterior.smooth(num_draws=2, seed=0)
    assert smoothed.trajectories.num_times.tolist() == [5, 3, 4]
    assert smoothed.trajectories.grid[:, -1].tolist() == [14.0, 12.0, 13.0]
    times = torch.tensor([[14.1, 20.0], [12.1, 20.0], [13.1, 20.0]], dtype=DOUBLE)
    forecast = posterior.forecast(posterior.train.at(times), num_draws=2, seed=0)
    assert forecast.values.shape == (2, 3, 2, 2)


def test_series_without_observations_are_forecast_and_not_smoothed():
    posterior = make_posterior()
    values = posterior.train.values.clone()
    values[1] = math.nan
    train = bo.Trajectories(posterior.train.times, values, series=posterior.train.series)
    posterior.train = train
    assert posterior.smooth(num_draws=2, seed=0).trajectories.series == ("s0", "s2")
    with pytest.raises(bo.DataError, match="'s1' is never observed"):
        posterior.smooth(train)
    alone = train.rows([1])
    assert posterior.forecast(alone, num_draws=2, seed=0).values.shape == (2, 1, 5, 2)


def test_forecasts_are_predictions_after_the_data():
    posterior = make_posterior()
    asked = posterior.train.at([14.5, 20.0])
    assert torch.equal(
        posterior.forecast(asked, num_draws=7, seed=3).values,
        posterior.predict(asked, num_draws=7, seed=3).values,
    )


def test_a_time_on_the_wrong_side_names_the_right_method():
    posterior = windows()
    inside, later = posterior.train.at([10.0, 12.0]), posterior.train.at([14.5])
    with pytest.raises(bo.DataError, match=r"'s0' is last observed at 14, .* 14.5 .* forecast\("):
        posterior.smooth(later)
    with pytest.raises(bo.DataError, match=r"'s1' is last observed at 12, and the time 12.5"):
        posterior.smooth(posterior.train.at([10.0, 12.5]))
    with pytest.raises(bo.DataError, match=r"'s0' is last observed at 14, .* 10 .* smooth\("):
        posterior.forecast(inside)
    with pytest.raises(bo.DataError, match="predict"):
        posterior.forecast(posterior.train.at([14.0, 15.0]))  # the last observation itself
    for ask in (posterior.smooth, posterior.forecast):
        with pytest.raises(bo.DataError, match="unknown series 'z'"):
            ask(bo.Trajectories([11.0], None, series=["z"], start=10.0))


def test_mixtures_smooth_and_forecast_as_their_members():
    posterior = windows()
    mixture = bo.Mixture([posterior, posterior])
    assert mixture.smooth(num_draws=4, seed=0).trajectories.num_times.tolist() == [5, 3, 4]
    assert mixture.forecast(posterior.train.at([15.0]), num_draws=4, seed=0).values.shape[0] == 4
    with pytest.raises(bo.DataError, match="forecast"):
        mixture.smooth(posterior.train.at([15.0]))
    with pytest.raises(bo.DataError, match="smooth"):
        mixture.forecast(posterior.train)


# ---- randomness -------------------------------------------------------------------------------
def test_seeds_decide_everything_and_the_global_state_stays():
    posterior = make_posterior()
    asked = posterior.train.at([12.0])
    torch.manual_seed(9)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_num_threads()
    a, b, c = (posterior.predict(asked, num_draws=3, seed=s).values for s in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)
    posterior.draws(3, seed=1), posterior.field(torch.zeros(1, 2), seed=1)
    posterior.elbo_terms(seed=1)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_num_threads()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert not list(pyro.get_param_store().keys())
    assert not a.requires_grad


def test_without_a_seed_torchs_generator_decides():
    posterior, found = make_posterior(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append([posterior.predict(posterior.train, num_draws=2).values for _ in range(2)])
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[0][1])
    assert not torch.equal(found[0][0], found[2][0])


def test_draws_of_weights_do_not_depend_on_what_is_asked():
    posterior = make_posterior()
    whole = posterior.predict(posterior.train, num_draws=6, seed=7)
    part = posterior.predict(
        posterior.train.rows(torch.tensor([2])).at([19.0]), num_draws=6, seed=7
    )
    assert torch.equal(whole.draws["field.rates"], part.draws["field.rates"])
    draws = posterior.draws(6, seed=7)
    for site, value in draws.items():
        assert torch.equal(value, whole.draws[site]), site


# ---- Pyro's guides ----------------------------------------------------------------------------
@pytest.mark.parametrize("stock", [AutoNormal, AutoMultivariateNormal])
def test_stock_guides_predict_rows_of_the_series_that_are_asked(stock: type):
    model = make_posterior().model
    train = make_posterior().train
    posterior = bo.fit_svi(
        model, stock(model), train, seed=0, num_steps=2, warm_start=False, progress=False
    )
    whole = posterior.predict(train, num_draws=6, seed=8)
    part = posterior.predict(train.rows(torch.tensor([2, 0])), num_draws=6, seed=8)
    assert torch.equal(whole.draws["x0"][:, [2, 0]], part.draws["x0"])
    assert torch.equal(whole.path[:, [2, 0]], part.path)
    torch.testing.assert_close(whole.path, exact_path(whole), rtol=1e-5, atol=1e-7)
    assert whole.draws["x0"].std(0).min() > 0
    with pytest.raises(bo.DataError, match="does not declare its posteriors"):
        posterior.elbo_terms()
    with pytest.raises(bo.DataError, match="series 'z' was not in the fit"):
        posterior.predict(bo.Trajectories([11.0], None, series=["z"], start=10.0))


def test_log_evidence_belongs_to_laplace():
    with pytest.raises(bo.DataError, match="only fit_laplace"):
        _ = make_posterior().log_evidence


def test_elbo_terms_are_those_of_the_training_data():
    posterior = make_posterior()
    torch.manual_seed(3)
    expected = bo.elbo_terms(posterior.model, posterior.guide, posterior.train, num_particles=16)
    torch.testing.assert_close(
        posterior.elbo_terms(num_particles=16, seed=3).elbo, expected.elbo.detach()
    )


# ---- the field --------------------------------------------------------------------------------
def test_field_is_the_derivative_in_users_units():
    posterior = make_posterior(units=UNITS)
    states = torch.tensor([[1.0, -2.0], [3.0, -1.0], [-1.0, 0.0]], dtype=DOUBLE)
    found = posterior.field(states, num_draws=50, seed=1)
    rates = posterior.draws(50, seed=1)["field.rates"].unsqueeze(1)
    exact = rates * (states - torch.tensor(UNITS["location"], dtype=DOUBLE)) / 4.0
    torch.testing.assert_close(found, exact)


def test_field_that_depends_on_time_is_asked_at_a_time():
    posterior = make_posterior(Growth(forcing=1.5), units=UNITS)
    middle = torch.tensor([UNITS["location"]], dtype=DOUBLE)
    for time, dimensionless in ((None, 0.0), (18.0, 2.0)):
        found = posterior.field(middle, num_draws=3, seed=1, time=time)
        exact = 1.5 * dimensionless * torch.tensor(UNITS["scale"], dtype=DOUBLE) / 4.0
        torch.testing.assert_close(found, exact.expand(3, 1, 2))


# ---- draws that fail, solvers that are wrong --------------------------------------------------
def test_failed_draws_are_counted_and_left_out():
    """z' = rate z^3 explodes at 1 / (2 rate z0^2): known for every draw."""
    posterior = make_posterior(Growth(power=3), spread=0.5)
    ensemble = posterior.predict(posterior.train, num_draws=400, seed=5)
    rates, z0 = ensemble.draws["field.rates"], ensemble.draws["x0"]
    explodes = ((2 * rates.unsqueeze(1) * z0**2 * 4.0) > 1).any(-1)
    assert 0.2 < explodes.double().mean() < 0.8
    # near the pole a fixed step may still pass it
    assert (ensemble.failed == explodes).double().mean() > 0.98
    assert ensemble.share_failed == ensemble.failed.double().mean()
    for row in range(3):
        kept = ~ensemble.failed[:, row]
        expected = ensemble.signal[kept, row].mean(0)
        torch.testing.assert_close(ensemble.mean[row], expected)
        low, high = ensemble.interval(0.8)
        inner = torch.quantile(
            ensemble.values[kept, row], torch.tensor([0.1, 0.9], dtype=DOUBLE), 0
        )
        torch.testing.assert_close(torch.stack([low[row], high[row]]), inner)
    assert f"{ensemble.share_failed:.1%} failed" in repr(ensemble)


def test_a_series_without_a_single_valid_draw_is_announced():
    posterior = make_posterior(Growth(power=3), spread=1e-3)
    posterior.guide.set_site("x0", torch.tensor([[0.5, 0.5], [9.0, 9.0], [0.5, 0.5]]))
    posterior.guide.set_site("field.rates", torch.tensor([0.05, 0.05]))
    with pytest.warns(UserWarning, match="no draw of series 's1' stays within"):
        ensemble = posterior.predict(posterior.train, num_draws=10, seed=5)
    assert ensemble.mean[1].isnan().all()
    assert ensemble.mean[[0, 2]].isfinite().all()


def test_solver_error_shrinks_with_the_step_at_the_order_of_the_method():
    errors = []
    for step in (0.5, 0.25):
        posterior = make_posterior(solver=bo.FixedGridSolver("rk4", step=step))
        errors.append(posterior.predict(posterior.train, num_draws=20, seed=1).solver_error)
    assert 0 < errors[1] < errors[0] < 0.1
    assert 10 < errors[0] / errors[1] < 24  # 2^4


def test_solver_error_is_the_distance_in_units_of_the_noise():
    rough = bo.FixedGridSolver("euler", step=1.0)
    posterior = make_posterior(solver=rough, units=UNITS)
    ensemble = posterior.predict(posterior.train, num_draws=8, seed=1)
    scale = torch.tensor(UNITS["scale"], dtype=DOUBLE)
    noise = ensemble.draws["likelihood.noise_scale"][:, None, None]
    distance = (ensemble.path - exact_path(ensemble, unit=4.0)) * scale / noise
    exact = distance.square().mean().sqrt().item()
    with pytest.warns(UserWarning, match="of the noise; take a smaller step"):
        assert ensemble.solver_error == pytest.approx(exact, rel=1e-4)
    assert ensemble.solver_error > 0.1


def test_solver_error_leaves_failed_draws_out():
    posterior = make_posterior(Growth(power=3), spread=1e-3)
    posterior.guide.set_site("field.rates", torch.tensor([-0.5, 0.02]))
    posterior.guide.set_site("x0", torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 9.0]]))
    with pytest.warns(UserWarning, match="no draw of series 's2'"):
        ensemble = posterior.predict(posterior.train, num_draws=8, seed=1)
    assert ensemble.failed[:, 2].all() and not ensemble.failed[:, :2].any()
    assert ensemble.solver_error < 1e-3


def test_solver_error_is_infinite_where_every_draw_fails():
    posterior = make_posterior(Growth(power=3), spread=1e-3)
    posterior.guide.set_site("x0", torch.full((3, 2), 9.0))
    with pytest.warns(UserWarning, match="no draw of series 's0'"):
        ensemble = posterior.predict(posterior.train, num_draws=4, seed=1)
    assert ensemble.solver_error == math.inf


def test_without_its_information_a_likelihood_tells_the_solver_error_by_its_signal(monkeypatch):
    posterior = make_posterior()
    by_information, by_signal, untold = (
        posterior.predict(posterior.train, num_draws=4, seed=1) for _ in range(3)
    )
    exact = by_information.solver_error
    monkeypatch.delattr(bo.GaussianLikelihood, "fisher")
    assert by_signal.solver_error == pytest.approx(exact, rel=1e-9)  # the same for normal noise
    monkeypatch.delattr(torch.distributions.Normal, "variance")
    monkeypatch.delattr(torch.distributions.Normal, "stddev")
    with pytest.raises(bo.DataError, match="GaussianLikelihood has no fisher"):
        _ = untold.solver_error


def test_float32_models_predict_in_float32():
    posterior = make_posterior()
    train = posterior.train.to(dtype=torch.float32)
    model, guide = posterior.model.float(), bo.MeanFieldGuide(posterior.model.float(), train)
    single = bo.Posterior(model, guide, train, history=History(), settings={"engine": "svi"})
    ensemble = single.predict(train, num_draws=5, seed=0)
    assert ensemble.values.dtype == ensemble.path.dtype == torch.float32
    assert ensemble.solver_error < 0.1
