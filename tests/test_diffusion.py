"""Drifts fitted with their states integrated over, and forecasts that are not normal."""

import math
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo
from bayesode.inference.linear_draws import CLIMATE
from bayesode.inference.warm_start.covariance import factor_chain
from bayesode.inference.warm_start.diffusion import DiffusionProblem
from bayesode.inference.warm_start.evidence import _lengthened, best_of
from bayesode.inference.warm_start.levenberg_marquardt import Point
from bayesode.models.contracts import VectorField, without_plate

DOUBLE = torch.float64
KNOWN = 1e-6  # log sd of a prior that leaves nothing open


class Decay(nn.Module):
    """dx/dt = -exp(log_rate) x."""

    def priors(self):
        zero = torch.zeros(1, dtype=DOUBLE)
        return {"log_rate": dist.Normal(zero, zero + 3.0).to_event(1)}

    def build(self, values, inputs=None):
        rate = without_plate(values["log_rate"]).exp()
        rate = rate.unsqueeze(-2) if rate.dim() > 1 else rate
        return VectorField(lambda t, x: -rate * x, (rate,))


class Wells(nn.Module):
    """dx/dt = 4 x (1 - x^2), nothing random."""

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return VectorField(lambda t, x: 4 * x * (1 - x.square()), ())


def model_of(drift, *, process, noise, noise_step=None, first=1.0):
    return bo.DynamicalModel(
        initial=bo.NormalInitial(1, location=[0.0], scale=[first]),
        field=bo.SDEField(drift, bo.AdditiveNoise(1, prior_median=process, prior_log_scale=KNOWN)),
        likelihood=bo.GaussianLikelihood(1, prior_median=noise, prior_log_scale=KNOWN),
        solver=bo.SDESolver(1, 0.05, noise_step=noise_step),
    ).double()


def kalman_log_evidence(values, factor, process, noise, first):
    """Of one series x_{k+1} = factor x_k + process e, seen at every k."""
    mean, variance, total = 0.0, first**2, 0.0
    for value in values.tolist():
        spread = variance + noise**2
        total -= (value - mean) ** 2 / (2 * spread) + math.log(2 * math.pi * spread) / 2
        gain = variance / spread
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
        mean, variance = factor * mean, factor**2 * variance + process**2
    return total


def rk4_factor(rate, gap, step):
    count = math.ceil(gap / step - 1e-9)
    h = rate * gap / count
    return (1 - h + h**2 / 2 - h**3 / 6 + h**4 / 24) ** count


def test_a_rate_of_decay_is_fitted_with_the_states_integrated_over():
    """The mode of the exact posterior of the rate; that of rate and states is far too small."""
    data = bo.datasets.ornstein_uhlenbeck(num_series=4, num_times=60, horizon=12.0, seed=3)
    train = bo.Trajectories(data.observed.times, data.observed.values - data.observed.values.mean())
    process, noise, gap = 0.8, 0.3, 12.0 / 59
    model = model_of(Decay(), process=process, noise=noise)
    posterior = bo.fit_laplace(model, train, seed=0, progress=False)
    grid = torch.linspace(-2, 2, 4001, dtype=DOUBLE)
    exact = []
    for log_rate in grid.tolist():
        factor = rk4_factor(math.exp(log_rate), gap, 0.05)
        total = -((log_rate / 3) ** 2) / 2
        for series in train.values[..., 0]:
            total += kalman_log_evidence(series, factor, process * math.sqrt(gap), noise, 1.0)
        exact.append(total)
    best = grid[int(torch.tensor(exact).argmax())].item()
    assert posterior.guide.weights.item() == pytest.approx(best, abs=2e-3)


def test_the_slope_of_the_volume_is_the_total_derivative_of_the_log_determinant():
    data = bo.datasets.double_well(num_series=3, num_times=12, seed=0).observed
    model, _ = bo.neural_sde(data, hidden=[3], verbose=False)
    problem = DiffusionProblem.of(model.double(), data)
    torch.manual_seed(1)
    point = Point(
        0.5 * torch.randn(len(problem.data.field.mean), dtype=DOUBLE),
        torch.randn(3, problem.data.gaps.shape[1] + 1, 1, dtype=DOUBLE),
    )
    plain = problem.states.linearise(point)
    slope = 2 * (plain.weights - problem.linearise(point).weights)
    gain = -factor_chain(plain).solve(plain.border)
    for _ in range(3):
        direction = torch.randn(len(slope), dtype=DOUBLE)
        step = 1e-5 * direction
        moved = [
            factor_chain(
                problem.states.linearise(
                    Point(point.weights + sign * step, point.states + sign * (gain @ step))
                )
            ).log_determinant
            for sign in (1, -1)
        ]
        expected = (moved[0] - moved[1]) / 2e-5
        assert float(slope @ direction) == pytest.approx(expected, rel=1e-5)


def test_steps_that_keep_their_ratio_reach_their_limit_at_once():
    # 1, 1/2, 1/4, ... ends 2 from where it began: half of it is done, as much is left
    before, step = torch.tensor([0.4, 0.4, 0.4]), torch.tensor([0.2, -0.2, 0.39])
    found = _lengthened(step, before, 4.0)
    torch.testing.assert_close(found, torch.tensor([0.4, -0.2, 1.0]))  # none, opposite, bounded


@pytest.mark.slow
def test_paths_of_an_ode_are_fitted_without_process_noise():
    data = bo.datasets.lotka_volterra(num_series=4, num_times=40, seed=0).observed
    model, _ = bo.neural_sde(data, hidden=[8], verbose=False)
    clean = bo.fit_laplace(model, data, seed=0, progress=False)
    scale = clean.draws(50, seed=0)["field.diffusion.scale"]
    assert (scale < 0.01 * clean.model.units.scale).all()
    noisy = bo.datasets.stochastic_lotka_volterra(num_series=4, num_times=40, seed=0).observed
    model, _ = bo.neural_sde(noisy, hidden=[8], verbose=False)
    found = bo.fit_laplace(model, noisy, seed=0, progress=False)
    assert (found.draws(50, seed=0)["field.diffusion.scale"].median(0).values > 0.08).all()


def settled_at(place):
    """Known wells; all values of the data lie at one place."""
    times = torch.linspace(0, 1, 11, dtype=DOUBLE)
    train = bo.Trajectories(times, torch.full((2, 11, 1), place, dtype=DOUBLE))
    model = model_of(Wells(), process=0.5, noise=0.1, noise_step=0.05)
    return bo.fit_laplace(model, train, seed=0, progress=False)


def test_forecasts_from_a_ridge_end_in_both_wells():
    posterior = settled_at(0.0)
    ensemble = posterior.forecast(posterior.train.at([4.0]), num_draws=2000, seed=0)
    ends = ensemble.path[:, :, 0, 0]
    assert ((ends.abs() - 1).abs() < 0.6).double().mean() > 0.9
    share = (ends > 0).double().mean(0)
    assert ((share - 0.5).abs() < 5 * 0.5 / math.sqrt(2000) + 0.1).all()


def test_forecasts_are_the_paths_of_the_solver_on_the_same_increments():
    """Nothing of this drift is random, so nothing after the data is linearised."""
    posterior = settled_at(1.0)
    question, predictive = posterior.train.at([1.5, 2.0, 4.0]), posterior.predictive
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        values = predictive.sample(question, 200)
        found, _ = predictive.paths(values, question)
        solved, _ = predictive.paths(values, question, posterior.model.solver)
    assert found.shape == solved.shape == (200, 2, 3, 1)
    low, center, high = solved.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=DOUBLE), 0)
    # what the climate leaves of a variance
    share = 1 / (1 + ((high - low) / 1.349 / CLIMATE).square())
    expected = center * share + (solved - center) * share.sqrt()
    error = (found - expected).abs()
    # what is left of linear steps inside the data is forgotten in the well
    assert error[:, :, 0].amax() < 0.05
    assert error[:, :, 2].amax() < 0.005


def test_a_fit_without_measurement_noise_comes_after_all_others():
    made = [SimpleNamespace(is_singular=s, log_evidence=e) for s, e in ((True, 5.0), (False, 1.0))]
    assert best_of(made) is made[1]
    assert best_of([*made, SimpleNamespace(is_singular=False, log_evidence=2.0)]).log_evidence == 2
    assert best_of(made[:1]) is made[0]  # data without noise


def test_noise_at_its_smallest_is_told_from_small_noise():
    train = bo.datasets.van_der_pol(num_series=2, num_times=20).observed
    model, _ = bo.neural_sde(train, hidden=[3], verbose=False)
    measurement = DiffusionProblem.of(model.double(), train).data.measurement
    assert measurement.is_singular(measurement.floor)
    assert measurement.is_singular(measurement.floor + torch.tensor([0.0, 3.0]))
    assert not measurement.is_singular(measurement.floor + 0.5)
