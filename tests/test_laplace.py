"""The Laplace posterior: exact where the model is linear and Gaussian."""

import copy
import math
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo
from bayesode.inference.warm_start.evidence import fit_noise
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import Point
from bayesode.inference.warm_start.scales import log_volume
from bayesode.models.contracts import VectorField, without_plate

STATE = 2


class Drift(nn.Module):
    """dx/dt = rate: paths x0 + rate t are linear in everything that is random."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sd", torch.full((STATE,), 0.7, dtype=torch.float64))

    def priors(self):
        return {"rate": dist.Normal(torch.zeros_like(self.sd), self.sd).to_event(1)}

    def build(self, values, inputs=None):
        rate = without_plate(values["rate"])
        return VectorField(lambda t, x: rate.unsqueeze(-2).expand_as(x), (rate,))


@pytest.fixture
def train():
    generator = torch.Generator().manual_seed(0)
    times = torch.linspace(0, 3, 12, dtype=torch.float64)
    x0 = torch.randn(3, 1, STATE, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, 12, STATE, generator=generator, dtype=torch.float64)
    values = x0 + times[:, None] * torch.tensor([0.5, -0.3]) + 0.2 * noise
    mask = torch.rand(values.shape, generator=generator) > 0.2
    return bo.Trajectories(times, values, mask=mask)


@pytest.fixture
def model():
    return bo.DynamicalModel(
        initial=bo.NormalInitial(STATE),
        field=Drift(),
        likelihood=bo.GaussianLikelihood(STATE),
        solver=bo.FixedGridSolver("rk4", step=0.5),
    ).double()


def exact(train, noise_scale, prior_sd=0.7, x0_sd=2.0):
    """Mean and covariance of (rate, x0 of each series), design matrix and log evidence."""
    num_series, num_times = train.grid.shape
    size = STATE * (1 + num_series)
    design = torch.zeros(num_series, num_times, STATE, size, dtype=torch.float64)
    for j in range(STATE):
        design[:, :, j, j] = train.grid
        for n in range(num_series):
            design[n, :, j, STATE * (1 + n) + j] = 1.0
    seen = design[train.mask]
    values = train.values[train.mask]
    noise = noise_scale.expand_as(train.values)[train.mask]
    prior = torch.tensor([prior_sd] * STATE + [x0_sd] * (size - STATE), dtype=torch.float64)
    precision = seen.mT @ (seen / noise[:, None] ** 2) + torch.diag(prior**-2)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (seen.mT @ (values / noise**2))
    marginal = (seen * prior**2) @ seen.mT + torch.diag(noise**2)
    evidence = dist.MultivariateNormal(torch.zeros_like(values), marginal).log_prob(values)
    return mean, covariance, design, evidence


def fit(model, train, **settings):
    with torch.no_grad():
        data = FitData.of(model, train)
        point = Point(torch.zeros(STATE).double(), torch.zeros(3, 13, STATE).double()[:, :1])
        return fit_noise(data, point, torch.full((STATE,), 0.5).double().log(), **settings)


def test_mean_covariance_and_evidence_are_exact_for_a_linear_model(model, train):
    found = fit(model, train)
    mean, covariance, _, evidence = exact(train, found.noise.exp())
    states = found.point.states[:, 0].flatten()
    assert torch.allclose(torch.cat([found.point.weights, states]), mean, atol=1e-8)
    own = found.covariance
    cross = own.gain @ own.weights
    for n in range(3):
        rows = slice(STATE * (1 + n), STATE * (2 + n))
        block = own.own[n] + own.gain[n] @ own.weights @ own.gain[n].mT
        assert torch.allclose(block, covariance[rows, rows], atol=1e-10)
        assert torch.allclose(cross[n], covariance[rows, :STATE], atol=1e-10)
    assert torch.allclose(own.weights, covariance[:STATE, :STATE], atol=1e-10)
    volume = log_volume(found.data.measurement.sites, found.noise, found.freedom)
    assert found.log_evidence == pytest.approx(evidence.item() + volume, abs=1e-7)


def test_the_evidence_integrates_over_the_noise_scales(model, train):
    """Beside quadrature; components do not interact, so there is one integral for each."""
    found = fit(model, train)
    sites, best = found.data.measurement.sites, exact(train, found.noise.exp())[3]
    expected, nodes = best.item(), torch.linspace(-1.5, 1.5, 121, dtype=torch.float64)
    for j in range(STATE):
        density = []
        for node in nodes:
            noise = found.noise + node * torch.eye(STATE)[j]
            prior = dist.Normal(sites.mean[j], sites.sd[j]).log_prob(noise[j])
            density.append(exact(train, noise.exp())[3] - best + prior)
        step = math.log(3 / 120)
        expected += torch.stack(density).logsumexp(0).item() + step
    assert found.log_evidence == pytest.approx(expected, abs=0.05)


def test_leverage_is_the_trace_of_the_hat_matrix(model, train):
    found = fit(model, train)
    _, covariance, design, _ = exact(train, found.noise.exp())
    variance = ((design @ covariance) * design).sum(-1)
    expected = torch.where(train.mask, variance, 0.0).sum((0, 1)) / found.noise.exp() ** 2
    measurement, path = found.data.measurement, found.data.path(found.point)
    used = measurement.better_noise(path, found.noise, variance)[2]
    assert torch.allclose(used, expected, rtol=1e-8)
    assert found.num_used == pytest.approx(expected.sum().item(), rel=1e-8)
    assert (used > 3).all()  # three initial values and a rate per component


def test_noise_is_the_residual_over_what_the_fit_left_under_a_wide_prior(model, train):
    model.likelihood.log_scale.fill_(1e4)
    found = fit(model, train)
    path = found.data.path(found.point)
    count = train.mask.sum((0, 1))
    squares = found.data.measurement.residual_scale(path).square() * count
    _, covariance, design, _ = exact(train, found.noise.exp())
    variance = torch.where(train.mask, ((design @ covariance) * design).sum(-1), 0.0)
    used = variance.sum((0, 1)) / found.noise.exp() ** 2
    fresh, freedom, *_ = found.data.measurement.better_noise(path, found.noise, variance)
    assert torch.allclose(fresh.exp() ** 2, squares / (count - used), rtol=1e-6)
    assert torch.allclose(freedom, count - used, rtol=1e-6)
    assert torch.allclose(fresh, found.noise, atol=0.02)


def test_noise_prior_pulls_the_noise_scale(model, train):
    model.likelihood.log_median.fill_(math.log(0.01))
    model.likelihood.log_scale.fill_(1e-3)
    assert torch.allclose(fit(model, train).noise.exp(), torch.tensor(0.01).double(), rtol=0.05)


def test_predictions_have_the_exact_moments_within_the_climate(model, train):
    posterior = bo.fit_laplace(model, train, seed=0, progress=False)
    mean, covariance, design, _ = exact(train, posterior.guide.noise.exp())
    variance = ((design @ covariance) * design).sum(-1)
    share = 1 / (1 + variance / 4)
    ensemble = posterior.predict(train, num_draws=4000, seed=1)
    sd = (variance * share).sqrt()
    assert ((ensemble.mean - (design @ mean) * share).abs() < 5 * sd / 4000**0.5).all()
    assert ((ensemble.signal.std(0) / sd - 1).abs() < 5 / 8000**0.5).all()


def test_noise_draws_are_inverse_chi_square(model, train):
    posterior = bo.fit_laplace(model, train, seed=0, progress=False)
    draws = posterior.draws(4000, seed=1)["likelihood.noise_scale"]
    freedom = posterior.guide.freedom
    share = freedom * (posterior.guide.noise.exp() / draws) ** 2  # chi-square
    error = (2 * freedom / 4000).sqrt()
    assert ((share.mean(0) - freedom).abs() < 5 * error).all()


def test_values_are_wider_than_plug_in_noise_on_little_data(model, train):
    few = train.until(0.6)  # 3 times, 3 series
    posterior = bo.fit_laplace(model, few, seed=0, progress=False)
    scale = posterior.guide.noise.exp()
    drawn = posterior.draws(4000, seed=0)["likelihood.noise_scale"]
    assert (drawn.square().mean(0) > scale.square()).all()


def test_log_evidence_is_in_users_units(model, train):
    data = bo.Trajectories(train.times, 1000 * train.values, mask=train.mask)
    units = bo.Units([0.0, 0.0], [1000.0, 1000.0])
    parts = {"initial": model.initial, "field": model.field, "likelihood": model.likelihood}
    raw = bo.DynamicalModel(**parts, solver=model.solver, units=units).double()
    ours = bo.fit_laplace(model, train, seed=0, progress=False).log_evidence
    theirs = bo.fit_laplace(raw, data, seed=0, progress=False).log_evidence
    shift = train.num_observed * torch.tensor(1000.0).log().item()
    assert theirs == pytest.approx(ours - shift, abs=1e-4)


@pytest.fixture(scope="module")
def van_der_pol():
    simulated = bo.datasets.van_der_pol(num_series=4, num_times=40, seed=5)
    model, _ = bo.neural_ode(simulated.observed, hidden=[8], verbose=False)
    return simulated, model, bo.fit_laplace(model, simulated.observed, seed=0, progress=False)


def test_fit_finds_path_and_noise_of_van_der_pol(van_der_pol):
    simulated, _, posterior = van_der_pol
    ensemble = posterior.predict(simulated.observed, num_draws=400, seed=0)
    error = (ensemble.mean - simulated.truth.values) / simulated.noise_scale
    assert error.square().mean().sqrt() < 0.6
    ratio = posterior.guide.noise.exp() / simulated.noise_scale
    # an sd estimated from about 130 degrees of freedom per component, five standard errors
    assert ((ratio - 1).abs() < 5 / (2 * 130) ** 0.5).all()


def test_tuned_prior_scales_are_written_to_the_fits_own_model(van_der_pol):
    simulated, model, posterior = van_der_pol
    assert not torch.allclose(posterior.model.field.prior_sd, model.field.prior_sd)
    sd, groups = posterior.model.field.prior_sd, model.field.tunable()["weights"].groups
    for group in groups.unique():
        assert sd[groups == group].unique().numel() == 1
    fixed = bo.fit_laplace(model, simulated.observed, seed=0, prior_scale="fixed", progress=False)
    assert torch.equal(fixed.model.field.prior_sd, model.field.prior_sd)


def test_the_same_seed_gives_the_same_posterior(van_der_pol):
    simulated, model, posterior = van_der_pol
    before = torch.get_rng_state()
    again = bo.fit_laplace(model, simulated.observed, seed=0, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    for name, value in posterior.guide.state_dict().items():
        assert torch.equal(value, again.guide.state_dict()[name]), name


def test_saved_runs_predict_the_same(van_der_pol, tmp_path):
    simulated, _, posterior = van_der_pol
    posterior.save(tmp_path / "run")
    loaded = bo.load(tmp_path / "run")
    question = simulated.observed.at([0.5, 12.0])
    one, two = (p.predict(question, num_draws=20, seed=3) for p in (posterior, loaded))
    assert torch.equal(one.values, two.values)
    assert loaded.log_evidence == posterior.log_evidence


def test_what_the_data_do_not_determine_gets_the_climate(van_der_pol):
    simulated, _, posterior = van_der_pol
    wild = copy.deepcopy(posterior)
    wild.guide.covariance_weights *= 1e8
    ensemble = wild.predict(simulated.observed.at([9.0]), num_draws=2000, seed=0)
    sd = ensemble.signal.std(0) / posterior.model.units.scale
    assert (sd < 2.0 * (1 + 5 / 4000**0.5)).all()
    assert (wild.predictive.uncapped_sd(simulated.observed.at([9.0])) > 1).any()


def test_field_draws_are_linearised_around_the_mean(van_der_pol):
    simulated, _, posterior = van_der_pol
    points = simulated.observed.values[0, :5]
    rates = posterior.field(points, num_draws=2000, seed=0)
    center = posterior.predictive.center(simulated.observed)
    _, field, _ = posterior.model.build(center, simulated.observed)
    units = posterior.model.units
    z = units.to_state(points.double())
    mean = units.to_users_rate(z, field(torch.tensor(0.0), z[None])[0])
    assert ((rates.mean(0) - mean).abs() < 5 * rates.std(0) / 2000**0.5).all()


def test_bad_requests_get_one_clear_error(van_der_pol, train):
    simulated, model, posterior = van_der_pol
    with pytest.raises(bo.DataError, match="prior_scale"):
        bo.fit_laplace(model, simulated.observed, prior_scale="wide")
    with pytest.raises(bo.DataError, match=r"was not in the fit|unknown series"):
        posterior.predict(bo.Trajectories([0.0, 1.0], None, series=["new"], names=["x1", "x2"]))
    with pytest.raises(bo.DataError, match="log_evidence"):
        posterior.elbo_terms()
    with pytest.raises(bo.DataError, match="nothing to fit"):
        bo.fit_laplace(model, simulated.observed.at([1.0]))


def test_a_wrong_covariance_would_be_seen(model, train):
    found = fit(model, train)
    broken = replace(found.covariance, gain=-found.covariance.gain)
    _, covariance, design, _ = exact(train, found.noise.exp())
    by_weights, by_x0 = design[..., :STATE], torch.zeros(3, 12, STATE, STATE).double()
    by_x0[:] = torch.eye(STATE)
    right = ((design @ covariance) * design).sum(-1)
    assert torch.allclose(found.covariance.along(by_weights, by_x0), right, atol=1e-9)
    assert not torch.allclose(broken.along(by_weights, by_x0), right, atol=1e-3)
