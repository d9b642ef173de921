"""Every likelihood's information and slope, and fits that rest on them."""

import math

import pyro.distributions as dist
import pytest
import torch

import bayesode as bo
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import Point, levenberg_marquardt
from bayesode.inference.warm_start.measurement import Measurement
from bayesode.inference.warm_start.problem import PathProblem
from bayesode.models.likelihoods import (
    GaussianLikelihood,
    LogNormalLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)

DOUBLE = torch.float64
IDENTITY = bo.Units([5.0], [1.5])
LOG = bo.Units([1.0], [0.6], transform="log")
NOISE = {"noise_scale": torch.tensor([0.4], dtype=DOUBLE)}

# values at which an expectation is taken, and their weights, for a law at one place
NODES = torch.linspace(-60, 60, 240_001, dtype=DOUBLE)


def by_real_numbers(law):
    """A grid wide enough for the t distribution with 5 degrees of freedom."""
    values = law.mean + NODES
    return values, law.log_prob(values).exp() * (NODES[1] - NODES[0])


def by_logarithms(law):
    values = (law.base_dist.loc + NODES / 20).exp()
    return values, law.base_dist.log_prob(values.log()).exp() * (NODES[1] - NODES[0]) / 20


def by_counts(law):
    values = torch.arange(200, dtype=DOUBLE)
    return values, law.log_prob(values).exp()


CASES = {
    "gaussian": (GaussianLikelihood(1), NOISE, by_real_numbers),
    "lognormal": (LogNormalLikelihood(1), NOISE, by_logarithms),
    "student t": (StudentTLikelihood(1, freedom=5.0), NOISE, by_real_numbers),
    "poisson": (PoissonLikelihood(1), {}, by_counts),
}


@pytest.mark.parametrize("units", [IDENTITY, LOG], ids=["identity", "log"])
@pytest.mark.parametrize("case", CASES)
def test_fisher_is_the_expected_curvature_of_the_log_likelihood(case, units):
    part, noise, nodes = CASES[case]
    part = part.double()
    part.with_units(units)
    place = torch.tensor(0.3, dtype=DOUBLE)

    def law(z):
        return part.build(noise)(z.reshape(1, 1, 1)).base_dist

    values, weights = (part.flatten() for part in nodes(law(place)))
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)

    def log_prob(z):
        return law(z).log_prob(values.reshape(-1, 1, 1, 1)).flatten() @ weights

    curvature = -torch.autograd.functional.hessian(log_prob, place)
    found = part.fisher(place.reshape(1, 1, 1), noise)
    assert found.item() == pytest.approx(curvature.item(), rel=1e-4)


def counts(seed=0, num_series=4, num_times=40, size=20.0):
    """Counts of Lotka-Volterra populations in units of twenty animals."""
    data = bo.datasets.lotka_volterra(num_series=num_series, num_times=num_times, seed=seed)
    expected = size * data.truth.values.clamp_min(1e-3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        values = dist.Poisson(expected).sample()
    return bo.Trajectories(data.observed.times, values, names=["prey", "predator"]), expected


def poisson_model(train, hidden=(6,)):
    smoothable = bo.Trajectories(train.times, train.values.clamp_min(0.5), names=train.names)
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.BayesianMLP(2, list(hidden), 2),
        likelihood=PoissonLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.12),
        units=bo.Units.from_data(smoothable, transform="log"),
    ).double()


def outliers(seed=1, share=0.05, num_series=4, num_times=40):
    data = bo.datasets.van_der_pol(num_series=num_series, num_times=num_times, seed=seed)
    values = data.observed.values.clone()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wild = torch.rand(values.shape) < share
        values = values + wild * 3.0 * torch.randn(values.shape, dtype=values.dtype).sign()
    return bo.Trajectories(data.observed.times, values, names=data.observed.names), data


@pytest.mark.parametrize("kind", ["poisson", "student t", "lognormal in linear units"])
def test_steps_end_where_the_posterior_density_is_largest(kind):
    """No likelihood is replaced by a normal one: the slope of the exact log posterior is 0."""
    if kind == "poisson":
        train, _ = counts(num_series=2, num_times=30)
        model = poisson_model(train.until(2.0), hidden=())
        train = train.until(2.0)
    else:
        data = bo.datasets.damped_pendulum(num_series=2, num_times=12, horizon=3.0)
        train = bo.Trajectories(data.observed.times, data.observed.values + 5)
        part = StudentTLikelihood(2) if kind == "student t" else LogNormalLikelihood(2)
        model = bo.DynamicalModel(
            initial=bo.NormalInitial(2),
            field=bo.BayesianMLP(2, [], 2),
            likelihood=part,
            solver=bo.FixedGridSolver("rk4", step=0.3),
            units=bo.Units.from_data(train),
        ).double()
    torch.manual_seed(0)
    with torch.no_grad():
        data = FitData.of(model, train)
        noise = data.measurement.noise_of(torch.full((2,), 0.3, dtype=DOUBLE))
        begin = Point(0.1 * data.field.random_start(), torch.zeros(2, 1, 2, dtype=DOUBLE))
        found = levenberg_marquardt(
            PathProblem(data, noise), begin, max_iterations=100, tolerance=1e-12
        ).point
    weights, x0 = found.weights.requires_grad_(), found.states.requires_grad_()
    start, times = model.units.dimensionless_times(train)
    path = model.solver(data.field.build(weights), x0[:, 0], start, times)
    law = model.likelihood.build(data.measurement.noise_values(noise))(path, train.mask)
    prior = dist.Normal(data.field.mean, data.field.sd).log_prob(weights).sum()
    first = dist.Normal(data.x0_mean, data.x0_sd).log_prob(x0[:, 0]).sum()
    total = law.log_prob(train.values).sum() + prior + first
    slopes = torch.autograd.grad(total, [weights, x0])
    information = PathProblem(data, noise).linearise(found)
    steps = (information.corner.diagonal(), information.diagonal.diagonal(dim1=-2, dim2=-1))
    for slope, size in zip(slopes, steps, strict=True):
        assert (slope / size.sqrt()).abs().max() < 0.02  # of a conditional posterior sd


def test_poisson_counts_are_fitted_and_zeros_are_no_obstacle():
    train, expected = counts(size=8.0)
    assert (train.values == 0).any()
    posterior = bo.fit_laplace(poisson_model(train), train, seed=0, progress=False)
    ensemble = posterior.predict(train, num_draws=200, seed=0)
    assert (ensemble.values == ensemble.values.round()).all()
    error = (ensemble.mean - expected) / expected.sqrt()  # in sds of a count
    assert error.square().mean().sqrt() < 0.6
    low, high = ensemble.signal.quantile(0.05, 0), ensemble.signal.quantile(0.95, 0)
    covered = ((low <= expected) & (expected <= high)).double().mean()
    assert 0.75 < covered < 0.99


def test_student_t_noise_shrugs_at_outliers():
    train, data = outliers(num_series=3, num_times=25)
    errors = {}
    for name, part in (("t", StudentTLikelihood(2)), ("normal", GaussianLikelihood(2))):
        model = bo.DynamicalModel(
            initial=bo.NormalInitial(2),
            field=bo.BayesianMLP(2, [8], 2),
            likelihood=part,
            solver=bo.FixedGridSolver("rk4", step=0.15),
            units=bo.Units.from_data(train),
        ).double()
        posterior = bo.fit_laplace(model, train, seed=0, progress=False)
        ensemble = posterior.predict(train, num_draws=100, seed=0)
        error = (ensemble.mean - data.truth.values) / data.noise_scale
        errors[name] = error.square().mean().sqrt().item()
    assert errors["t"] < 0.7 * errors["normal"]
    assert errors["t"] < 1.0


def test_noise_of_student_t_maximises_its_own_evidence():
    """Beside the fit's volume: the slope of log likelihood + used * log scale + log prior is 0."""
    train, _ = outliers()
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.BayesianMLP(2, [2], 2),
        likelihood=StudentTLikelihood(2, prior_median=0.1),
        solver=bo.FixedGridSolver("rk4", step=0.2),
    ).double()
    measurement = Measurement.of(model, train)
    path = torch.cat([train.values[:, :1], train.values + 0.1 * torch.randn(train.values.shape)], 1)
    variance = torch.full_like(train.values, 0.01)
    noise, freedom, used, _ = measurement.better_noise(path, torch.zeros(2).double(), variance)

    def log_posterior(scale):
        law = dist.StudentT(4.0, path[:, 1:], scale.exp())
        prior = dist.Normal(math.log(0.1), 1.0).log_prob(scale).sum()
        return law.log_prob(train.values).sum() + (used * scale).sum() + prior

    place = noise.clone().requires_grad_()
    slope = torch.autograd.grad(log_posterior(place), place)[0]
    assert (slope.abs() < 1e-5).all()
    assert (freedom > 50).all()
    # 160 values, variance .01, information 5/7 at scale 1
    torch.testing.assert_close(used, torch.full((2,), 160 * 0.01 * 5 / 7, dtype=DOUBLE))


@pytest.mark.parametrize("freedom", [2.0, math.inf, math.nan, -1.0])
def test_freedom_without_a_variance_is_refused(freedom):
    with pytest.raises(bo.DataError, match="above 2"):
        StudentTLikelihood(2, freedom=freedom)


@pytest.mark.parametrize("likelihood", ["poisson", "student_t"])
def test_systems_and_saved_runs_know_the_likelihood(likelihood, tmp_path):
    train, _ = counts(num_series=2, num_times=20, size=8.0)
    assert (train.values == 0).any()
    model, guide = bo.neural_ode(train, likelihood=likelihood, hidden=[3], verbose=False)
    posterior = bo.fit(model, guide, train, seed=0, progress=False)
    ensemble = posterior.predict(train, num_draws=50, seed=0)
    table = bo.diagnostics.score_table(ensemble, train)
    assert table.notna().all(axis=None)
    again = bo.load(posterior.save(tmp_path / "run")).predict(train, num_draws=50, seed=0)
    torch.testing.assert_close(again.values, ensemble.values)
    bo.diagnostics.diagnose(posterior)
    svi = bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)
    assert svi.predict(train, num_draws=5, seed=0).values.isfinite().all()
    assert svi.condition(train.until(2.0), num_draws=5, seed=0).train.num_series == 2
