"""Fits of models with process noise as users meet them: new series, units, files, bad input."""

import math

import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import (
    DOUBLE,
    ConstantDrift,
    Linear,
    kalman,
    known_model,
    random_data,
)
from torch import nn

import bayesode as bo
from bayesode.models.contracts import VectorField, without_plate

NAMES = ["x", "y"]


def fit(model, train, **settings):
    return bo.fit_laplace(model, train, seed=0, progress=False, **settings)


def neural(train, **settings):
    model, _ = bo.neural_sde(train, hidden=[3], verbose=False, **settings)
    return fit(model, train)


def volterra(**settings):
    sizes = {"num_series": 2, "num_times": 25, "seed": 3} | settings
    return bo.datasets.stochastic_lotka_volterra(**sizes).observed


@pytest.fixture(scope="module")
def posterior():
    return neural(volterra().to(dtype=DOUBLE))


# ---- new series ----------------------------------------------------------------------------------
def one_point(values, start=None):
    start = None if start is None else torch.tensor([start], dtype=DOUBLE)
    values = torch.tensor([[values]], dtype=DOUBLE)
    return bo.Trajectories(torch.tensor([1.0]), values, series=["n"], names=NAMES, start=start)


def two_lengths():
    times = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.4, 2.0]], dtype=DOUBLE)
    values = torch.linspace(-1, 1, 12, dtype=DOUBLE).view(2, 3, 2)
    return bo.Trajectories(times, values, names=NAMES, num_times=torch.tensor([1, 3]))


NEW = {
    "other times": lambda: random_data("irregular"),
    "a start before": lambda: random_data("late start"),
    "one point": lambda: one_point([0.5, -0.3]),
    "half a point after the start": lambda: one_point([0.5, math.nan], -2.0),
    "one point beside three": two_lengths,
}


@pytest.mark.parametrize("kind", NEW)
def test_conditioning_a_known_linear_model_is_the_kalman_smoother(kind):
    fitted, new = fit(known_model(), random_data()), NEW[kind]()
    conditioned = fitted.condition(new)
    question = new.at(new.grid.max() + torch.tensor([0.1, 2.0], dtype=DOUBLE))
    for asked, extra in ((new, []), (question, question.grid[0].tolist())):
        course = conditioned.predictive.course(asked)
        variance = course.variance(conditioned.guide.covariance_weights)
        for row in range(new.num_series):
            count, index = int(asked.num_times[row]), course.asked[row]
            knots = conditioned.guide.times[row].tolist() + extra
            exact = kalman(new, row, knots, conditioned.guide.longest.item())
            mean, spread = exact.at(asked.grid[row, :count].tolist())
            close = {"rtol": 0, "atol": 1e-6}
            torch.testing.assert_close(course.states[row, index[:count]], mean, **close)
            torch.testing.assert_close(variance[row, index[:count]], spread, **close)
    assert conditioned.predict(question, num_draws=5, seed=0).values.isfinite().all()


def test_conditioning_on_the_training_series_gives_the_states_of_the_fit(posterior):
    train = posterior.train
    again = posterior.condition(train)
    one, two = posterior.guide, again.guide
    assert ((one.states - two.states).norm() / one.states.norm()).item() < 1e-4
    assert torch.equal(one.weights, two.weights)
    first, second = (p.predict(train, num_draws=20, seed=1).states for p in (posterior, again))
    assert ((first - second).norm() / first.norm()).item() < 1e-4


def test_the_longest_step_of_the_fit_holds_for_new_series():
    fitted = fit(known_model(), random_data())
    new = bo.Trajectories([0.0, 4.0], torch.ones(1, 2, 2, dtype=DOUBLE), names=NAMES)
    course = fitted.condition(new).predictive.course(new)
    assert course.grid.longest <= fitted.guide.longest * (1 + 1e-4)


# ---- units ---------------------------------------------------------------------------------------
def test_a_fit_knows_nothing_of_the_units_of_its_data(posterior):
    factor, offset, day, train = 1000.0, 5000.0, 365.0, posterior.train
    times, values = day * train.times + 100.0, factor * train.values + offset
    other = neural(bo.Trajectories(times, values, names=train.names))
    for name in ("weights", "covariance_weights", "states", "curvature", "freedom"):
        mine, its = getattr(posterior.guide, name), getattr(other.guide, name)
        assert ((mine - its).norm() / mine.norm()).item() < 1e-4, name
    change = torch.tensor([factor, factor, factor / day**0.5, factor / day**0.5], dtype=DOUBLE)
    noise = other.guide.noise - posterior.guide.noise
    assert torch.allclose(noise, change.log(), rtol=0, atol=1e-4)
    shift = -train.num_observed * math.log(factor)
    assert other.log_evidence - posterior.log_evidence == pytest.approx(shift, abs=1e-3)
    asked = torch.linspace(0.0, 12.0, 30, dtype=DOUBLE)
    first = posterior.predict(train.at(asked), num_draws=30, seed=1)
    second = other.predict(other.train.at(day * asked + 100.0), num_draws=30, seed=1)
    for name in ("states", "signal", "values"):
        mine, its = getattr(first, name), (getattr(second, name) - offset) / factor
        assert ((mine - its).norm() / mine.norm()).item() < 1e-4, name


# ---- files and dtypes ----------------------------------------------------------------------------
def same_predictions(one, two, times):
    pair = [p.predict(p.train.at(times), num_draws=10, seed=3) for p in (one, two)]
    assert torch.equal(pair[0].values, pair[1].values)
    assert torch.equal(pair[0].states, pair[1].states)
    assert one.log_evidence == two.log_evidence


def test_saved_runs_predict_the_same(posterior, tmp_path):
    posterior.save(tmp_path / "run")
    same_predictions(posterior, bo.load(tmp_path / "run"), [0.5, 3.0, 12.0])


def test_saved_conditioned_runs_predict_the_same(posterior, tmp_path):
    new = volterra(num_series=3, num_times=11, seed=9)
    conditioned = posterior.condition(new.until(3.0))
    conditioned.save(tmp_path / "run")
    same_predictions(conditioned, bo.load(tmp_path / "run"), [0.5, 3.0, 12.0])


def test_saved_hand_made_models_are_loaded_into_the_users_objects(tmp_path):
    train = random_data("irregular")
    fitted = fit(known_model(ConstantDrift(), noise_step=0.3), train)
    fitted.save(tmp_path / "run")
    model = known_model(ConstantDrift(), noise_step=0.3)
    guide = bo.load(tmp_path / "run", model=model, guide=None)
    times = train.grid.max() + torch.tensor([0.1, 2.0])
    same_predictions(fitted, guide, times)


def test_float32_data_give_the_fit_of_float64(posterior):
    train = volterra()
    assert train.values.dtype == torch.float32
    fitted = neural(train)
    assert fitted.guide.weights.dtype == fitted.guide.states.dtype == DOUBLE
    scale = posterior.guide.states.norm()
    assert ((fitted.guide.states - posterior.guide.states).norm() / scale).item() < 1e-3
    assert fitted.predict(train, num_draws=5, seed=0).values.isfinite().all()


def test_a_model_may_be_cast(posterior):
    model, _ = bo.neural_sde(posterior.train, hidden=[3], verbose=False)
    again = fit(model.double(), posterior.train)
    torch.testing.assert_close(again.guide.weights, posterior.guide.weights, rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_fit(posterior):
    before = torch.get_rng_state()
    again = neural(posterior.train)
    assert torch.equal(before, torch.get_rng_state())
    for name, value in posterior.guide.state_dict().items():
        assert torch.equal(value, again.guide.state_dict()[name]), name


# ---- other likelihoods ---------------------------------------------------------------------------
@pytest.mark.parametrize("likelihood", ["poisson", "lognormal", "student_t"])
def test_other_likelihoods_are_fitted_and_smooth_the_path(likelihood):
    """Logarithms that turn in a circle with a process scale of .2, seen with each kind of noise."""
    torch.manual_seed(6)
    times, turn = torch.linspace(0, 6, 31, dtype=DOUBLE), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    turn = torch.linalg.matrix_exp(0.2 * turn).double()
    state, path = torch.randn(4, 2, dtype=DOUBLE), []
    for _ in times:
        path.append(state)
        state = state @ turn.mT + 0.2 * 0.2**0.5 * torch.randn(4, 2, dtype=DOUBLE)
    log = torch.stack(path, 1) + 3.0
    values = {
        "poisson": lambda: torch.poisson(log.exp()),
        "lognormal": lambda: (log + 0.2 * torch.randn_like(log)).exp(),
        "student_t": lambda: log + 0.15 * dist.StudentT(3.0).sample(log.shape).double(),
    }[likelihood]()
    fitted = neural(bo.Trajectories(times, values, names=NAMES), likelihood=likelihood)
    ensemble = fitted.predict(fitted.train, num_draws=200, seed=0)
    assert ensemble.values.isfinite().all() and math.isfinite(fitted.log_evidence)
    signal, truth, raw = ensemble.signal, log, values
    if likelihood != "student_t":
        signal, truth, raw = signal.log(), log, values.clamp_min(0.5).log()
    low, high = signal.quantile(torch.tensor([0.05, 0.95], dtype=DOUBLE), 0)
    covered = ((low < truth) & (truth < high)).double().mean().item()
    assert 0.7 < covered < 1.0  # of 248 numbers, neighbours of one path tied: an sd of about .04
    error, unsmoothed = (signal.median(0).values - truth).square().mean(), (raw - truth).square()
    assert error < 0.6 * unsmoothed.mean()


# ---- what cannot be fitted, or only just ---------------------------------------------------------
def sde_model(drift=None, noise=None, likelihood=None, solver=None, dim=2, **settings):
    return bo.DynamicalModel(
        initial=bo.NormalInitial(dim),
        field=bo.SDEField(drift or bo.BayesianMLP(dim, [3], dim), noise or bo.AdditiveNoise(dim)),
        likelihood=likelihood or bo.GaussianLikelihood(2),
        solver=solver or bo.SDESolver(dim, 0.2),
        **settings,
    )


def bad(kind):
    train = random_data().to(dtype=torch.float32)
    if kind == "state noise":
        return sde_model(noise=bo.StateNoise(2, [2])), train
    if kind == "euler":
        return sde_model(solver=bo.SDESolver(2, 0.2, method="euler")), train
    if kind == "wide":
        return sde_model(bo.BayesianMLP(2, [500], 2)), train
    if kind == "hidden":
        return sde_model(dim=3), train
    if kind == "no noise":
        model = sde_model()
        model.field = bo.BayesianMLP(2, [3], 2)
        return model, train
    mask = train.mask.clone()
    mask[:, 1:] = False
    return sde_model(), bo.Trajectories(train.times, train.values, mask=mask, names=NAMES)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("state noise", r"additive.*fit_svi"),
        ("euler", "method='split'"),
        ("wide", "2502 random numbers"),
        ("hidden", "not observed"),
        ("no noise", "SDEField"),
        ("single points", "single time"),
    ],
)
def test_what_cannot_be_fitted_gets_one_clear_error(kind, message):
    model, train = bad(kind)
    with pytest.raises((bo.DataError, bo.FitError), match=message):
        fit(model, train)


def test_a_constant_component_and_unsorted_times_are_refused_at_the_border():
    train = random_data()
    values = train.values.clone()
    values[..., 1] = 3.0
    with pytest.raises(bo.DataError, match="constant"):
        bo.neural_sde(bo.Trajectories(train.times, values), verbose=False)
    with pytest.raises(bo.DataError, match="not sorted"):
        bo.Trajectories([0.0, 2.0, 1.0], torch.randn(1, 3, 2))


def test_a_solver_without_noise_is_refused_by_name():
    fitted = fit(known_model(), random_data())
    with pytest.raises(bo.DataError, match="FixedGridSolver takes no noise"):
        fitted.predict(fitted.train, num_draws=3, solver=bo.FixedGridSolver())


def test_a_series_with_one_observation_among_others_is_fitted_rightly():
    train = random_data()
    mask = train.mask.clone()
    mask[0, 1:] = False
    train = bo.Trajectories(train.times, train.values, mask=mask, names=NAMES)
    fitted = fit(known_model(), train)
    exact = sum(kalman(train, row).log_evidence for row in range(3))
    assert fitted.log_evidence == pytest.approx(exact, abs=1e-6)


def test_noise_steps_longer_than_the_gaps_change_nothing():
    train = random_data()
    one, two = (fit(known_model(noise_step=step), train) for step in (None, 0.9))
    assert one.log_evidence == pytest.approx(two.log_evidence, abs=1e-8)
    torch.testing.assert_close(one.guide.states, two.guide.states)


def test_three_points_give_a_fit_with_wide_forecasts():
    values = torch.tensor([[[0.0, 1.0], [0.6, 0.7], [0.9, 0.1]]], dtype=DOUBLE)
    train = bo.Trajectories([0.0, 1.0, 2.0], values, names=NAMES)
    model = sde_model(ConstantDrift(), units=bo.Units([0.5, 0.5], [0.4, 0.4])).double()
    ensemble = fit(model, train).predict(train.at([0.0, 1.0, 9.0]), num_draws=200, seed=0)
    assert ensemble.values.isfinite().all()
    sd = ensemble.signal.std(0)[0]
    assert (sd[2] > 3 * sd[1]).all()


class Cubic(nn.Module):
    """dx/dt = a x^3: leaves every bound in finite time."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sd", torch.full((2,), 0.5, dtype=DOUBLE))

    def priors(self):
        return {"a": dist.Normal(torch.zeros_like(self.sd), self.sd).to_event(1)}

    def build(self, values, inputs=None):
        a = without_plate(values["a"]).unsqueeze(-2)
        return VectorField(lambda t, x: a * x**3, (a,))


def test_forecasts_of_an_exploding_drift_become_the_climate():
    torch.manual_seed(0)
    times = torch.linspace(0, 0.8, 9, dtype=DOUBLE)
    x0 = torch.tensor([[1.0, 0.8], [0.9, 1.1]], dtype=DOUBLE)[:, None]
    path = x0 / (1 - 0.8 * x0**2 * times[:, None]).sqrt()
    train = bo.Trajectories(times, path + 0.02 * torch.randn_like(path), names=NAMES)
    small = torch.full((2,), 0.02, dtype=DOUBLE)
    fitted = fit(known_model(Cubic(), process=2 * small, noise=small, step=0.1), train)
    for asked in ([0.4, 0.9, 3.0, 5.0], [5.0]):  # it explodes at about 1.3
        ensemble = fitted.predict(train.at(asked), num_draws=1000, seed=0)
        assert ensemble.values.isfinite().all() and not ensemble.failed.any()
        last = ensemble.states[:, :, -1]
        error = 2.0 / 1000**0.5
        assert (last.mean(0).abs() < 5 * error).all()
        assert ((last.std(0) / 2.0 - 1).abs() < 5 / 2000**0.5).all()
        assert ensemble.variance_parts().total.isfinite().all()
    assert (fitted.predict(train.at([0.4]), num_draws=100, seed=0).states.std(0) < 0.1).all()
    assert math.isinf(fitted.predictive.uncapped_sd(train.at([5.0])).max().item())


# ---- the entry to all engines --------------------------------------------------------------------
def test_auto_takes_laplace_for_a_neural_sde():
    train = volterra(num_times=12)
    model, guide = bo.neural_sde(train, hidden=[2], verbose=False)
    fitted = bo.fit(model, guide, train, seed=0, progress=False)
    assert fitted.settings["engine"] == "laplace"
    assert "bands hold best" in fitted.settings["reason"]
    same = known_model(Linear())
    assert bo.fit(same, None, random_data(), seed=0, progress=False).settings["engine"] == "laplace"


def test_auto_takes_svi_for_noise_that_depends_on_the_state(monkeypatch):
    train = volterra(num_times=12)
    model = sde_model(noise=bo.StateNoise(2, [2]), units=bo.Units.from_data(train))

    def short(model, guide, train, **settings):
        return bo.fit_svi(model, guide, train, num_steps=5, warm_start=False, **settings)

    monkeypatch.setattr("bayesode.inference.fit.fit_svi", short)
    fitted = bo.fit(model, bo.SDEGuide(model, train), train, seed=0, progress=False)
    assert fitted.settings["engine"] == "svi"
    assert "additive" in fitted.settings["reason"]
