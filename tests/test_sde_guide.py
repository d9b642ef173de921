"""SDEGuide: the law of the increments, three ways to one ELBO, fits, predictions, forecasts."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.ops.stats import effective_sample_size
from torch.distributions import kl_divergence

import bayesode as bo
from bayesode.inference.sde_noise import ShiftedNoise
from bayesode.models.contracts import SDE, Diffusion, VectorField

LIMIT = 5  # standard errors: one false alarm in 1.7 million looks


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        yield
    torch.set_default_dtype(torch.float32)


def random_data(kind="plain"):
    torch.manual_seed(5)
    times, values = torch.linspace(0, 1, 5), 0.5 * torch.randn(4, 5, 2)
    if kind == "masked":
        return bo.Trajectories(times, values, mask=torch.rand(4, 5, 2) > 0.4)
    if kind == "own grids":
        own = times * torch.tensor([[1.0], [0.5], [1.2], [0.8]]) + torch.arange(4)[:, None]
        start = torch.arange(4.0) - 0.3
        return bo.Trajectories(own, values, num_times=[5, 3, 4, 1], start=start)
    data = bo.Trajectories(times, values)
    return data.batch(torch.tensor([3, 1])) if kind == "minibatch" else data


def random_model(noise="additive", **options):
    part = bo.AdditiveNoise(2, prior_median=0.5) if noise == "additive" else bo.StateNoise(2, [2])
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.SDEField(bo.BayesianMLP(2, [3], 2, prior_scale=0.5), part),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.SDESolver(2, 0.25, **options),
    )


def scattered_guide(model, data=None):
    """A guide away from every special value: all gradients differ from 0."""
    guide = bo.SDEGuide(model, random_data() if data is None else data)
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


def pyro_elbo(way, num_particles):
    return way(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)


def relative(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


# ---- the law of shifted increments ---------------------------------------------------------------
def shifted(shift, *draws, num_steps=4, scale=0.7, step=0.25):
    """Increments of dx = -x dt + scale dW on steps of one length, from x0 = 1."""
    noise = Diffusion(lambda t, x: torch.full((2,), scale), is_additive=True)
    sde = SDE(VectorField(lambda t, x: -x), noise)
    solver = bo.SDESolver(2, step, noise_step=step)
    grid = solver.noise_grid(torch.zeros(3), torch.full((3, 1), step * num_steps))
    x0 = torch.ones(*draws, 3, 2)
    return ShiftedNoise(lambda x, ask: solver.walk(sde, x, grid, ask), shift, x0, num_steps)


def test_a_constant_shift_has_its_closed_form_kl():
    u = torch.tensor([0.8, -2.0])
    law = shifted(lambda k, x: (u * 0.25**0.5).expand_as(x), 50)
    prior = dist.Normal(torch.zeros(4, 2), 1.0).to_event(2)
    noise = law.rsample()
    exact = 0.5 * u.square().sum().item() * 4 * 0.25  # half of u^2 T
    torch.testing.assert_close(kl_divergence(law, prior), torch.full((50, 3), exact))
    ratio = (law.log_prob(noise) - prior.log_prob(noise)).flatten()
    assert abs(ratio.mean() - exact) < LIMIT * ratio.std() / len(ratio) ** 0.5
    torch.testing.assert_close(
        law.log_prob(noise), dist.Normal(u * 0.5, 1.0).log_prob(noise).sum((-1, -2))
    )


def test_a_shift_that_follows_the_path_has_a_unit_jacobian():
    law = shifted(lambda k, x: 0.4 * torch.sin(3 * x) - 0.2 * k)
    torch.manual_seed(1)
    noise = law.rsample()
    torch.manual_seed(1)
    unshifted = torch.randn(3, 4, 2)
    assert not torch.allclose(noise, unshifted)
    torch.testing.assert_close(
        law.log_prob(noise), dist.Normal(0.0, 1.0).log_prob(unshifted).sum((-1, -2))
    )

    def single(eps):  # as the density says, from the first series alone
        x, out = torch.ones(2), []
        for k in range(4):
            x = x * math.exp(-0.25)
            out.append(eps[k] + 0.4 * torch.sin(3 * x) - 0.2 * k)
            x = x + 0.7 * 0.5 * out[-1]
        return torch.stack(out)

    # the drift of split is RK4: off by its own error
    torch.testing.assert_close(single(unshifted[0]), noise[0], rtol=0, atol=1e-4)
    jacobian = torch.autograd.functional.jacobian(single, unshifted[0]).reshape(8, 8)
    assert abs(torch.linalg.det(jacobian) - 1) < 1e-12


def test_the_kl_along_paths_is_unbiased():
    law = shifted(lambda k, x: 0.4 * torch.sin(3 * x), 4000)
    prior = dist.Normal(torch.zeros(4, 2), 1.0).to_event(2)
    noise = law.rsample()
    difference = kl_divergence(law, prior) - (law.log_prob(noise) - prior.log_prob(noise))
    mean, error = difference.mean(), difference.std() / difference.numel() ** 0.5
    assert difference.std() > 0.1
    assert abs(mean) < LIMIT * error


def linear_kl(pull, scale, step, num_steps):
    """KL of dx = -(1 + pull) x dt + scale dW to dx = -x dt + scale dW from x = 1, per component.

    By the second moment of the state right before each noise step, where the pull acts.
    """
    second, kl = 1.0, 0.0
    for _ in range(num_steps):
        second *= math.exp(-2 * step)
        kl += 0.5 * step * (pull / scale) ** 2 * second
        second = (1 - pull * step) ** 2 * second + scale**2 * step
    return kl


def test_a_pull_of_the_path_has_the_closed_form_kl_of_two_ornstein_uhlenbeck_processes():
    pull, scale = 0.6, 0.7
    for num_steps in (4, 16):
        step = 1 / num_steps
        law = shifted(
            lambda k, x, h=step: -pull * x / scale * h**0.5, 3000, num_steps=num_steps, step=step
        )
        law.rsample()
        prior = dist.Normal(torch.zeros(num_steps, 2), 1.0).to_event(2)
        found = kl_divergence(law, prior).flatten()
        exact = 2 * linear_kl(pull, scale, step, num_steps)
        assert abs(found.mean() - exact) < LIMIT * found.std() / len(found) ** 0.5
    # as the step goes to 0: half the integral of pull^2 E[x^2] / scale^2
    rate, level = 1 + pull, scale**2 / (2 * (1 + pull))
    integral = level + (1 - level) * (1 - math.exp(-2 * rate)) / (2 * rate)
    errors = [
        abs(linear_kl(pull, scale, 1 / num, num) - 0.5 * (pull / scale) ** 2 * integral)
        for num in (16, 32)
    ]
    assert 0.4 < errors[1] / errors[0] < 0.6


def test_a_kl_needs_a_draw_and_an_expanded_law_makes_its_own():
    law = shifted(lambda k, x: 0.1 * x)
    with pytest.raises(NotImplementedError, match="along a draw"):
        kl_divergence(law, dist.Normal(torch.zeros(4, 2), 1.0).to_event(2))
    assert law.expand((3,)) is law
    wide = law.expand((7, 3))
    assert wide.rsample().shape == (7, 3, 4, 2)
    assert law.rsample((5,)).shape == (5, 3, 4, 2)
    assert law.log_prob(torch.zeros(5, 3, 4, 2)).shape == (5, 3)


# ---- three ways to one ELBO ----------------------------------------------------------------------
@pytest.mark.parametrize("num_particles", [1, 5])
@pytest.mark.parametrize("kind", ["plain", "masked", "own grids", "minibatch"])
def test_terms_and_pyros_mean_field_elbo_agree_draw_by_draw(kind, num_particles):
    model, data = random_model(), random_data(kind)
    guide = scattered_guide(model, None if kind == "minibatch" else data)
    torch.manual_seed(1)
    terms = bo.elbo_terms(model, guide, data, num_particles=num_particles)
    torch.manual_seed(1)
    theirs = pyro_elbo(TraceMeanField_ELBO, num_particles).differentiable_loss(model, guide, data)
    assert list(terms.kl)[-1] == "path.noise"
    assert relative(-terms.elbo, theirs) < 1e-10
    parameters = list(guide.parameters())
    ours = torch.autograd.grad(-terms.elbo, parameters)
    for a, b in zip(ours, torch.autograd.grad(theirs, parameters), strict=True):
        assert relative(a, b) < 1e-10


@pytest.mark.parametrize(
    "options",
    [{}, {"noise_step": 0.1}, {"noise": "state"}, {"noise": "state", "method": "euler"}],
)
def test_all_three_ways_have_the_same_mean(options):
    model, data = random_model(**options), random_data("own grids")
    guide = scattered_guide(model, data)
    with torch.no_grad():
        torch.manual_seed(1)
        ours = torch.stack(
            [-bo.elbo_terms(model, guide, data, num_particles=20).elbo for _ in range(25)]
        )
        others = [
            torch.tensor([pyro_elbo(way, 20).loss(model, guide, data) for _ in range(25)])
            for way in (TraceMeanField_ELBO, Trace_ELBO)
        ]
    for theirs in others:
        error = ((ours.var() + theirs.var()) / 25).sqrt()
        assert abs(ours.mean() - theirs.mean()) < LIMIT * error


def test_noise_steps_that_a_series_does_not_have_cost_nothing():
    model, data = random_model(), random_data("own grids")
    guide = scattered_guide(model, data)
    start, times = model.units.dimensionless_times(data)
    lengths = model.solver.noise_grid(start, times).lengths
    assert (lengths == 0).any()
    with torch.no_grad():
        values = bo.inference.elbo.sample_sites(guide.posteriors(data), 6, 4)
    shifts = values[1]["path.noise"].shifts
    is_real = (lengths > 0).unsqueeze(-1).expand(4, -1, 2)
    assert (shifts[:, ~is_real] == 0).all()
    assert (shifts[:, is_real] != 0).all()


def test_a_minibatch_gives_an_unbiased_elbo():
    model, data = random_model(), random_data()
    guide = scattered_guide(model)
    rows = [torch.tensor(pair) for pair in ([0, 1], [2, 3])]
    with torch.no_grad():
        whole = bo.elbo_terms(model, guide, data, num_particles=4000)
        halves = [bo.elbo_terms(model, guide, data.batch(r), num_particles=4000) for r in rows]
    mean = sum(half.kl["path.noise"] for half in halves) / 2
    assert abs(mean / whole.kl["path.noise"] - 1) < 0.05


@pytest.mark.parametrize("noise", ["additive", "state"])
def test_steering_moves_the_state_by_its_share_of_the_way_to_the_target(noise):
    model, data = random_model(noise, noise_step=0.1), random_data("own grids")
    guide = scattered_guide(model, data)
    values, laws = bo.inference.elbo.sample_sites(guide.posteriors(data), 3, 4)
    diffusion = model.build(values, data)[1].diffusion
    grid = model.solver.noise_grid(*model.units.dimensionless_times(data))
    x = torch.randn(3, 4, 2)
    for k in range(grid.num_steps):
        t, h = (grid.begins + grid.lengths)[:, k : k + 1], grid.lengths[:, k : k + 1]
        moved = diffusion(t, x) * h.sqrt() * laws["path.noise"].shift(k, x)
        way = guide.share_logit[:, k].sigmoid() * (guide.origin + guide.offset)[:, k]
        way = way - guide.share_logit[:, k].sigmoid() * x
        torch.testing.assert_close(moved, torch.where(h > 0, way, 0.0))


# ---- the exact answer ----------------------------------------------------------------------------
def kalman_log_evidence(y, factor, process, noise, first):
    """Log evidence of x' = factor x + N(0, process), y = x + N(0, noise), x_0 ~ N(0, first)."""
    num = len(y)
    covariance = torch.zeros(num, num)
    variance = torch.tensor(first)
    for i in range(num):
        for j in range(i, num):
            covariance[i, j] = covariance[j, i] = variance * factor ** (j - i)
        variance = factor**2 * variance + process
    law = torch.distributions.MultivariateNormal(
        torch.zeros(num), covariance + noise * torch.eye(num)
    )
    return law.log_prob(y).item()


class Fixed(torch.nn.Module):
    """A part without randomness."""

    def __init__(self, built):
        super().__init__()
        self.built = built

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return self.built


def linear_model(rate, scale, noise, solver):
    """dx = -rate x dt + scale dW, seen with normal noise, x0 standard normal."""
    sde = SDE(
        VectorField(lambda t, x: -rate * x),
        Diffusion(lambda t, x: torch.full((1,), scale), is_additive=True),
    )
    gaussian = bo.models.contracts.Observe(
        lambda path, mask: dist.Normal(path, noise).to_event(2), lambda path: path
    )
    return bo.DynamicalModel(
        initial=bo.NormalInitial(1, location=[0.0], scale=[1.0]),
        field=Fixed(sde),
        likelihood=Fixed(gaussian),
        solver=solver,
    )


def exact_guide(model, data, y, times, rate, scale, noise):
    """The guide of a linear SDE with the steering and x0 of its exact posterior."""
    guide = bo.SDEGuide(model, data)
    grid = model.solver.noise_grid(*model.units.dimensionless_times(data))
    ends = (grid.begins + grid.lengths)[0]
    precision, pull = torch.tensor(0.0), torch.tensor(0.0)  # log p(later y | x): -P x^2 / 2 + b x
    shares, targets = [], []
    for k in range(len(ends) - 1, -1, -1):
        seen = (times - ends[k]).abs() < 1e-9
        precision, pull = precision + seen.sum() / noise**2, pull + y[seen].sum() / noise**2
        gain = 1 + scale**2 * grid.lengths[0, k] * precision
        shares.append(1 - 1 / gain)
        targets.append(pull / precision)
        factor = torch.exp(-rate * grid.lengths[0, k])
        precision, pull = factor**2 * precision / gain, factor * pull / gain
    precision, pull = precision + 1 / noise**2 + 1, pull + y[0] / noise**2
    guide.shared.set_site("x0", (pull / precision).view(1, 1), precision.rsqrt().view(1, 1))
    with torch.no_grad():
        guide.offset.copy_(torch.stack(targets[::-1]).view_as(guide.offset) - guide.origin)
        guide.share_logit.copy_(torch.stack(shares[::-1]).logit().view_as(guide.share_logit))
    return guide


def test_exact_steering_of_a_linear_sde_has_the_kalman_evidence_up_to_the_step():
    rate, scale, noise, num = 0.7, 0.8, 0.3, 8
    times = torch.linspace(0, 2, num)
    y = torch.randn(num).cumsum(0) * 0.4
    data = bo.Trajectories(times, y[None, :, None])
    gaps = []
    for num_cuts in (4, 16):
        h = 2 / (num - 1) / num_cuts
        model = linear_model(rate, scale, noise, bo.SDESolver(1, 0.05, noise_step=h))
        guide = exact_guide(model, data, y, times, rate, scale, noise)
        factor = math.exp(-rate * h)
        process = sum(scale**2 * h * factor ** (2 * i) for i in range(num_cuts))
        exact = kalman_log_evidence(y, factor**num_cuts, process, noise**2, 1.0)
        with torch.no_grad():
            gaps.append(exact - bo.elbo_terms(model, guide, data, num_particles=2000).elbo.item())
    # steered increments keep the prior's variance, the exact ones do not: order 1 in the step
    assert 0 < gaps[1] < 0.35 * gaps[0] < 0.35


@pytest.mark.slow
def test_nuts_on_the_increments_finds_the_smoothed_path():
    rate, scale, noise = 0.7, 0.8, 0.3
    times, y = torch.tensor([0.0, 0.5, 1.0, 1.5]), torch.tensor([0.2, 1.0, 0.4, 0.9])
    model = linear_model(rate, scale, noise, bo.SDESolver(1, 0.5))
    data = bo.Trajectories(times, y[None, :, None])
    chain = MCMC(NUTS(model), num_samples=200, warmup_steps=60, disable_progbar=True)
    chain.run(data)
    draws = chain.get_samples()
    assert draws["path.noise"].shape == (200, 1, 3, 1)
    start, grid = model.units.dimensionless_times(data)
    path = model.solver(model.field.built, draws["x0"], start, grid, noise=draws["path.noise"])[
        :, 0, :, 0
    ]
    factor, covariance, variance = math.exp(-rate * 0.5), torch.zeros(4, 4), 1.0
    for i in range(4):
        for j in range(i, 4):
            covariance[i, j] = covariance[j, i] = variance * factor ** (j - i)
        variance = factor**2 * variance + scale**2 * 0.5
    gain = covariance @ torch.linalg.inv(covariance + noise**2 * torch.eye(4))
    sd = (covariance - gain @ covariance).diagonal().sqrt()
    count, count_squares = (
        effective_sample_size(x.unsqueeze(0)) for x in (path, (path - gain @ y).square())
    )
    assert min(count.min(), count_squares.min()) > 50
    assert ((path.mean(0) - gain @ y).abs() < LIMIT * sd / count.sqrt()).all()
    second = (path - gain @ y).square().mean(0) / sd.square()
    assert ((second - 1).abs() < LIMIT * (2 / count_squares).sqrt()).all()


# ---- fits and predictions ------------------------------------------------------------------------
def ornstein_uhlenbeck(num_series=3, num_times=13):
    torch.manual_seed(2)
    times = torch.linspace(0, 3, num_times)
    x = [2 * torch.randn(num_series, 2)]
    for _ in range(num_times - 1):
        x.append(x[-1] * math.exp(-0.25) + 0.3 * torch.randn(num_series, 2))
    path = torch.stack(x, 1)
    return bo.Trajectories(times, path + 0.1 * torch.randn_like(path), names=["x", "y"])


def small_fit(train, num_steps=100, **options):
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.SDEField(bo.BayesianMLP(2, [], 2), bo.AdditiveNoise(2)),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.SDESolver(2, 0.2),
        units=bo.Units.from_data(train),
    )
    return bo.fit_svi(
        model,
        bo.SDEGuide(model, train),
        train,
        seed=0,
        num_steps=num_steps,
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def fitted():
    torch.set_default_dtype(torch.float64)
    posterior = small_fit(ornstein_uhlenbeck())
    torch.set_default_dtype(torch.float32)
    return posterior


def test_a_fit_raises_the_elbo_and_predicts_the_data(fitted):
    elbo = fitted.history.elbo
    assert sum(elbo[-10:]) > sum(elbo[:10])
    ensemble = fitted.predict(fitted.train, num_draws=100, seed=0)
    error = ensemble.states.mean(0) - fitted.train.values
    assert error.square().mean().sqrt() < 0.3  # the data's sd is about 1
    assert ensemble.share_failed == 0
    assert ensemble.solver_error < 1e-3
    draws = fitted.draws(5, seed=0)
    assert draws["path.noise"].shape == (5, 3, 12, 2)
    assert draws["field.diffusion.scale"].shape == (5, 2)
    assert fitted.field(torch.zeros(4, 2), num_draws=5, seed=0).shape == (5, 4, 2)
    assert fitted.to_arviz(num_draws=5) is not None


def test_minibatches_and_single_precision_run():
    train = ornstein_uhlenbeck()
    data = bo.Trajectories(train.times, train.values.float(), names=["x", "y"])
    torch.set_default_dtype(torch.float32)
    posterior = small_fit(data, num_steps=3, batch_size=2, warm_start=False)
    assert posterior.predict(data, num_draws=3, seed=0).path.dtype == torch.float32
    assert posterior.guide.offset.dtype == torch.float32
    assert posterior.guide.times.times.dtype == torch.float64


def test_a_part_of_the_training_times_sees_the_same_paths(fitted):
    full = fitted.predict(fitted.train, num_draws=20, seed=3).path
    columns = [0, 4, 12]
    part = fitted.predict(fitted.train.at(fitted.train.times[columns]), num_draws=20, seed=3).path
    torch.testing.assert_close(part, full[:, :, columns], rtol=1e-12, atol=1e-12)
    between = fitted.train.at(torch.tensor([0.1, 1.0, 1.1]))
    near = fitted.predict(between, num_draws=20, seed=3).path
    torch.testing.assert_close(near[:, :, 1], full[:, :, 4], rtol=1e-12, atol=1e-12)
    assert (near[:, :, 2] - near[:, :, 1]).abs().max() < 0.5


def test_after_the_data_increments_are_those_of_the_prior(fitted):
    train, later = fitted.train, torch.tensor([3.25, 3.5, 6.0])
    question = train.at(torch.cat([train.times, later]))
    law = fitted.guide.posteriors(question)["path.noise"]
    values = {site: v for site, v in fitted.predictive.sample(question, 500).items()}
    noise = values["path.noise"]
    assert noise.shape == (500, 3, 24, 2)  # noise steps no longer than in training
    shifts = law(values)
    shifts.log_prob(noise)
    _, shift = shifts._follow(shifts.x0, lambda k, s: noise[..., k, :])
    assert (shift[:, :, 12:] == 0).all()
    assert (shift[:, :, :12] != 0).any()
    fresh = noise[:, :, 12:]
    assert abs(fresh.mean()) < LIMIT / fresh.numel() ** 0.5
    assert abs(fresh.var() - 1) < LIMIT * (2 / fresh.numel()) ** 0.5
    ensemble = fitted.predict(question, num_draws=300, seed=0)
    sd = ensemble.states.std(0).mean((0, 2))
    assert sd[-1] > 1.5 * sd[11]  # a forecast is less sure than a smoothed path


def test_series_that_end_early_are_forecast_without_steering():
    train = random_data("own grids")
    model = random_model()
    guide = scattered_guide(model, train)
    question = train.at(torch.stack([train.grid[:, 0], torch.full((4,), 5.0)], -1))
    grid = guide.solver_on(question).noise_grid(*model.units.dimensionless_times(question))
    _, laws = bo.inference.elbo.sample_sites(guide.posteriors(question), 3, 4)
    own = guide.num_steps
    shifts = laws["path.noise"].shifts
    for row in range(4):
        assert (shifts[:, row, : own[row]] != 0).all()
        assert (shifts[:, row, own[row] :] == 0).all()
        assert (grid.lengths[row] > 0).sum() > own[row]


def test_another_solver_of_sdes_takes_the_same_increments(fitted):
    own = fitted.predict(fitted.train, num_draws=10, seed=1).path
    fine = fitted.predict(fitted.train, num_draws=10, seed=1, solver=bo.SDESolver(2, 0.01)).path
    torch.testing.assert_close(own, fine, rtol=0, atol=1e-4)
    with pytest.raises(bo.DataError, match="need an SDESolver"):
        fitted.predict(fitted.train, num_draws=10, seed=1, solver=bo.ODESolver())


def test_pyros_predictive_runs_model_and_guide(fitted):
    train = fitted.train
    question = bo.Trajectories(train.times, None, series=list(train.series), names=["x", "y"])
    for guide in (None, fitted.guide):
        with pyro.get_param_store().scope():
            drawn = Predictive(fitted.model, guide=guide, num_samples=6, parallel=True)(question)
        assert drawn["values"].shape[-3:] == (3, 13, 2)
        assert drawn["path.noise"].shape == (6, 3, 12, 2)


def test_an_ode_and_unknown_contexts_are_refused():
    train = ornstein_uhlenbeck()
    ode, _ = bo.neural_ode(train, hidden=[2], verbose=False)
    with pytest.raises(bo.DataError, match="take MeanFieldGuide"):
        bo.SDEGuide(ode, train)
    model = random_model()
    with pytest.raises(bo.DataError, match="context must be one of"):
        bo.SDEGuide(model, train, context="encoder")


class Scaled(torch.nn.Module):
    """A noise of the given scale."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return Diffusion(lambda t, x: self.scale(x))


def with_parts(data, *, drift=None, noise=None, **parts):
    """A model of two components with some of its parts exchanged."""
    field = bo.SDEField(drift or bo.BayesianMLP(2, [3], 2), noise or bo.AdditiveNoise(2))
    usual = {
        "initial": bo.NormalInitial(2),
        "field": field,
        "likelihood": bo.GaussianLikelihood(2),
        "solver": bo.SDESolver(2, 0.2),
    }
    return bo.DynamicalModel(**usual | parts)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"field": bo.BayesianMLP(2, [3], 2)}, bo.DataError, "needs a field with noise"),
        ({"solver": bo.SDESolver(3, 0.2)}, bo.ShapeError, "all three must agree"),
        ({"initial": bo.NormalInitial(3)}, bo.ShapeError, "all three must agree"),
        ({"noise": bo.AdditiveNoise(3)}, bo.ShapeError, "all three must agree"),
        ({"noise": bo.StateNoise(3)}, bo.ShapeError, "at states of 2 components"),
        ({"drift": bo.BayesianMLP(3, [3], 2)}, bo.ShapeError, "at states of 2 components"),
        ({"drift": bo.BayesianMLP(2, [3], 1)}, bo.ShapeError, "the field gives a rate of shape"),
        ({"noise": Scaled(lambda x: 0 * x)}, bo.DataError, "component 0 is 0 everywhere"),
        ({"noise": Scaled(lambda x: math.nan * x)}, bo.DataError, "not a finite number"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_before_the_fit(parts, error, message):
    data = ornstein_uhlenbeck()
    with pytest.raises(error, match=message):
        bo.SDEGuide(with_parts(data, **parts), data)


def test_the_sign_of_a_noise_scale_does_not_matter():
    data, elbos = random_data(), []
    for sign in (1, -1):
        model = with_parts(data, noise=Scaled(lambda x, sign=sign: sign * (0.3 + 0.1 * x**2)))
        torch.manual_seed(0)
        elbos.append(bo.elbo_terms(model, bo.SDEGuide(model, data), data, num_particles=4000).elbo)
    # particles of steered paths: an sd of one of about 2.5 nats
    assert abs(elbos[0] - elbos[1]) < 0.02 * abs(elbos[0])


def test_a_step_that_explodes_is_one_clear_error():
    data = ornstein_uhlenbeck()
    cubic = bo.PhysicsField(
        lambda t, x, rate: rate.unsqueeze(-1) * x**3, {"rate": dist.LogNormal(5.0, 0.01)}
    )
    model = with_parts(data, drift=cubic)
    with pytest.raises(bo.FitError, match="leave the model's bound"):
        guide, settings = bo.SDEGuide(model, data), dict(warm_start=False, progress=False)
        bo.fit_svi(model, guide, data, num_steps=3, **settings)


def test_series_with_a_single_time_are_fitted_beside_others_and_refused_alone():
    data = ornstein_uhlenbeck()
    grid = data.times.expand(3, -1)
    mixed = bo.Trajectories(grid, data.values, num_times=[13, 5, 1], names=["x", "y"])
    posterior = small_fit(mixed, num_steps=3)
    ensemble = posterior.predict(mixed.at(torch.tensor([0.0, 3.0])), num_draws=40, seed=0)
    assert ensemble.states.isfinite().all() and ensemble.share_failed == 0
    sd = ensemble.states[:, :, -1].std(0).mean(-1)
    assert sd[2] > sd[0]  # nothing was seen of its end
    alone = bo.Trajectories(data.times[:1], data.values[:, :1], names=["x", "y"])
    model = with_parts(alone)
    with pytest.raises(bo.DataError, match="every series has a single time"):
        bo.fit_svi(model, bo.SDEGuide(model, alone), alone, num_steps=3, progress=False)


def test_missing_values_and_a_series_without_any_are_no_obstacle():
    data = ornstein_uhlenbeck()
    values = data.values.clone()
    values[0, 3], values[1, :, 1], values[2] = math.nan, math.nan, math.nan
    holed = bo.Trajectories(data.times, values, names=["x", "y"])
    posterior = small_fit(holed, num_steps=3)
    assert all(map(math.isfinite, posterior.history.elbo))
    assert posterior.predict(holed, num_draws=5, seed=0).states.isfinite().all()


def test_a_guide_of_another_noise_grid_and_a_check_of_adjoints_are_refused():
    data = random_data()
    guide = bo.SDEGuide(random_model(noise_step=0.05), data)
    with pytest.raises(bo.ShapeError, match="build the guide for this model"):
        bo.elbo_terms(random_model(), guide, data)
    with pytest.raises(bo.DataError, match="gradcheck"):
        bo.check_gradients(random_model(), bo.SDEGuide(random_model(), data), data)


def test_a_warm_start_matches_the_drift_to_the_data_and_says_if_it_cannot():
    train = ornstein_uhlenbeck(8, 25)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.SDEField(bo.BayesianMLP(2, [], 2), bo.AdditiveNoise(2)),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.SDESolver(2, 0.2),
        units=bo.Units.from_data(train),
    )
    guide = bo.SDEGuide(model, train)
    before = bo.elbo_terms(model, guide, train, num_particles=8).elbo
    guide.warm_start(model, train)
    assert bo.elbo_terms(model, guide, train, num_particles=8).elbo > before + 100
    scale = guide.location("field.diffusion.scale").exp() / model.units.scale
    torch.testing.assert_close(scale * model.units.time_unit.sqrt(), torch.full((2,), 0.3))
    half = bo.Trajectories(train.times, train.values[..., :1], names=["x"])
    hidden = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.SDEField(bo.BayesianMLP(2, [], 2), bo.AdditiveNoise(2)),
        likelihood=bo.GaussianLikelihood(1),
        solver=bo.SDESolver(2, 0.2),
    )
    with pytest.raises(bo.DataError, match="warm_start=False"):
        bo.SDEGuide(hidden, half).warm_start(hidden, half)
    fit = bo.fit_svi(
        hidden, bo.SDEGuide(hidden, half), half, num_steps=3, warm_start=False, progress=False
    )
    assert fit.predict(half, num_draws=3, seed=0).states.shape == (3, 8, 25, 2)


def test_a_saved_fit_predicts_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.SDEField(bo.BayesianMLP(2, [], 2), bo.AdditiveNoise(2)),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.SDESolver(2, 0.2),
        units=bo.Units.from_data(fitted.train),
    )
    loaded = bo.load(tmp_path / "run", model=model, guide=bo.SDEGuide(model, fitted.train))
    first, second = (p.predict(p.train, num_draws=5, seed=1) for p in (fitted, loaded))
    assert torch.equal(first.values, second.values)


def test_a_guide_that_does_not_know_the_noise_grid_is_refused_before_the_fit():
    train = ornstein_uhlenbeck()
    guide = AutoNormal(random_model())
    with pytest.raises(bo.FitError, match="take SDEGuide"):
        bo.fit_svi(random_model(), guide, train, num_steps=2, progress=False)


def test_new_series_are_refused_by_the_tables(fitted):
    new = bo.Trajectories([0.0, 1.0], None, series=["new"], names=["x", "y"])
    with pytest.raises(bo.DataError, match="was not in the fit"):
        fitted.guide.posteriors(new)


def test_a_guide_starts_with_paths_near_the_data():
    train = ornstein_uhlenbeck()
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.SDEField(bo.BayesianMLP(2, [], 2), bo.AdditiveNoise(2)),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.SDESolver(2, 0.2, noise_step=0.05),
        units=bo.Units.from_data(train),
    )
    values = bo.SDEGuide(model, train).predictive(model, train)
    drawn = values.sample(train, 50)
    path = values.paths(drawn, train)[0].mean(0)
    state = model.units.to_state(train.values)
    steered = (path - state)[:, 6:].square().mean()
    assert steered < 0.5 * state[:, 6:].square().mean()
