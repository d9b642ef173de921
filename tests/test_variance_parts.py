"""Variance parts: closed forms of linear systems, their sum, and what cannot be taken apart."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import bayesode as bo
from bayesode.distributions import observed_law
from bayesode.inference.hold_out import HoldOut
from bayesode.inference.svi import History
from bayesode.inference.variance_parts import PARTS, VarianceParts, components
from bayesode.models.contracts import Observe, VectorField, without_plate

LIMIT = 5  # standard errors: one false alarm in 1.7 million looks
LOCATION, SPREAD, NOISE, PROCESS = 1.5, 0.7, 0.3, 0.5
RATE_MEDIAN, RATE_SCALE = 0.8, 0.5
FIXED = 1e-9  # sd of the logarithm of a number that is known


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def decay(t, x, rate):
    return (-rate * x[..., 0]).unsqueeze(-1)


def linear_model(*, is_random: bool, rate_scale: float = RATE_SCALE, units=None):
    """dx = -rate x dt (+ g dW) with a log-normal rate, normal x0 and normal noise."""
    drift = bo.PhysicsField(decay, {"rate": dist.LogNormal(math.log(RATE_MEDIAN), rate_scale)})
    noise = bo.AdditiveNoise(1, prior_median=PROCESS, prior_log_scale=FIXED)
    return bo.DynamicalModel(
        initial=bo.NormalInitial(1, location=[LOCATION], scale=[SPREAD]),
        field=bo.SDEField(drift, noise) if is_random else drift,
        likelihood=bo.GaussianLikelihood(1, prior_median=NOISE, prior_log_scale=FIXED),
        solver=bo.SDESolver(1, 0.1, noise_step=0.02) if is_random else bo.FixedGridSolver(step=0.1),
        units=units,
    ).double()


def exact_parts(t: torch.Tensor, process: float, rate_scale: float = RATE_SCALE):
    """The four parts at times t of `linear_model`, the rate integrated on a fine grid."""
    z = torch.linspace(-8, 8, 4001)
    weight = dist.Normal(0.0, 1.0).log_prob(z).exp()
    rate = RATE_MEDIAN * (rate_scale * z).exp()[:, None]

    def expected(f):
        return (weight[:, None] * f).sum(0) / weight.sum()

    fade = (-rate * t).exp()
    mean_fade = expected(fade)
    return (
        LOCATION**2 * (expected(fade.square()) - mean_fade.square()),
        SPREAD**2 * expected(fade.square()),
        process**2 * expected((1 - fade.square()) / (2 * rate)),
        torch.full_like(t, NOISE**2),
    )


def check_within_errors(parts: VarianceParts, exact, num_draws: int):
    """Errors of mean squares of normal numbers; those of the weights also hold the total's."""
    weights, initial, process, observation = exact
    root = math.sqrt(2 / num_draws)
    errors = (
        root * 2 * (weights + initial + process),
        root * (initial + process),
        root * process,
        torch.zeros_like(observation),
    )
    for name, value, error in zip(PARTS, exact, errors, strict=True):
        found = getattr(parts, name)[0, :, 0]
        assert ((found - value).abs() <= LIMIT * error + 1e-6 * value + 1e-12).all(), name
    found = parts.total[0, :, 0]
    assert ((found / sum(exact) - 1).abs() < LIMIT * root * 1.5).all()


# ---- closed forms --------------------------------------------------------------------------------
@pytest.mark.parametrize("rate_scale", [FIXED, RATE_SCALE])
def test_parts_of_an_ornstein_uhlenbeck_prior_are_those_of_the_closed_form(rate_scale: float):
    model = linear_model(is_random=True, rate_scale=rate_scale)
    question = bo.Trajectories([0.0, 0.3, 1.0, 2.0], None, series=["a"], names=["x"])
    parts = bo.sample_prior(model, question, num_draws=20_000, seed=1).variance_parts()
    exact = exact_parts(question.times, PROCESS, rate_scale)
    check_within_errors(parts, exact, 20_000)
    assert (parts.process[:, 0] == 0).all()  # no time has passed


def test_parts_are_in_users_units():
    units = bo.Units([10.0], [4.0], time_origin=-1.0, time_unit=3.0)
    model = linear_model(is_random=True, units=units)
    # Knots every .015 in users' units: every .06 the process part is 4 % too large.
    model.solver = bo.SDESolver(1, 0.1, noise_step=0.005)
    question = bo.Trajectories([5.0, 6.0, 7.0], None, series=["a"], names=["x"])
    parts = bo.sample_prior(model, question, num_draws=20_000, seed=2).variance_parts()
    check_within_errors(parts, exact_parts(question.times - 5.0, PROCESS), 20_000)


def test_an_ode_has_no_process_part_at_all():
    question = bo.Trajectories([0.0, 1.0, 2.0], None, series=["a"], names=["x"])
    prior = bo.sample_prior(linear_model(is_random=False), question, num_draws=20_000, seed=3)
    parts = prior.variance_parts()
    assert (parts.process == 0).all()
    check_within_errors(parts, exact_parts(question.times, 0.0), 20_000)
    assert prior.paired().rewalked is prior.path  # not solved a third time


def test_noise_that_torchsde_draws_inside_is_process_noise():
    model = linear_model(is_random=True)
    model.solver = bo.TorchSDESolver("euler", step=0.05)
    question = bo.Trajectories([0.0, 1.0], None, series=["a"], names=["x"])
    parts = bo.sample_prior(model, question, num_draws=4000, seed=3).variance_parts()
    exact = exact_parts(question.times, PROCESS)
    assert abs(parts.process[0, 1, 0] / exact[2][1] - 1) < LIMIT * math.sqrt(2 / 4000) + 0.05


def test_components_are_unbiased_with_few_draws():
    """20,000 tables of 5 draws with sds 1, 2 and .5, some of which do not count."""
    torch.manual_seed(0)
    w, x, y, p, q, r = torch.randn(6, 5, 20_000)
    first, redrawn, rewalked = w + 2 * x + p / 2, w + 2 * y + q / 2, w + 2 * x + r / 2
    kept = torch.arange(5)[:, None] < torch.tensor([5, 3]).repeat(10_000)
    found = components(first, redrawn, rewalked, kept)
    for part, exact in zip(found, (1.0, 4.0, 0.25), strict=True):
        for some in (part[::2], part[1::2]):
            assert abs(some.mean() - exact) < LIMIT * some.std() / math.sqrt(len(some))
    variance = first[:, ::2].var(0)
    torch.testing.assert_close(sum(found)[::2], variance, rtol=1e-12, atol=1e-12)


# ---- sums and shapes -----------------------------------------------------------------------------
def test_parts_add_up_to_the_ensembles_own_variance():
    question = bo.Trajectories([0.0, 1.0, 2.0], None, series=["a", "b"], names=["x"])
    ensemble = bo.sample_prior(linear_model(is_random=True), question, num_draws=50, seed=4)
    parts = ensemble.variance_parts()
    for name in PARTS:
        assert getattr(parts, name).shape == (2, 3, 1)
    total = ensemble.signal.var(0) + NOISE**2
    torch.testing.assert_close(parts.total, total, rtol=1e-7, atol=1e-12)
    added = parts.weights + parts.initial + parts.process + parts.observation
    torch.testing.assert_close(parts.total, added, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(parts.shares.values()), torch.ones(2, 3, 1))
    assert ensemble.variance_parts() is parts


def test_a_printed_table_has_the_mean_share_of_each_part():
    parts = VarianceParts(*(torch.tensor([[[1.0], [a]]]) for a in (0.0, 1.0, 1.0, 2.0)))
    lines = str(parts).splitlines()
    shares = [line.split() for line in lines[1:]]
    assert [(name, share) for name, share, _ in shares] == [
        ("weights", "12.5"),
        ("initial", "25.0"),
        ("process", "25.0"),
        ("observation", "37.5"),
    ]


def test_same_seed_same_parts_and_no_trace_in_the_global_generator():
    question = bo.Trajectories([0.0, 1.0], None, series=["a"], names=["x"])
    model = linear_model(is_random=True)
    found = [bo.sample_prior(model, question, num_draws=20, seed=s) for s in (4, 4, 5)]
    state = torch.get_rng_state()
    one, two, other = (ensemble.variance_parts().weights for ensemble in found)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, two) and not torch.equal(one, other)


# ---- posteriors ----------------------------------------------------------------------------------
def known_posterior(model, guide, train):
    return bo.Posterior(model, guide, train, history=History(), settings={"engine": "svi"})


def noisy_data(num_series=2, num_times=9):
    torch.manual_seed(3)
    times = torch.linspace(0.0, 2.0, num_times)
    return bo.Trajectories(times, torch.randn(num_series, num_times, 1), names=["x"])


def test_parts_of_a_mean_field_posterior_are_those_of_its_log_normal_rate():
    model, train = linear_model(is_random=False), noisy_data(1)
    guide = bo.MeanFieldGuide(model, train)
    guide.set_site("field.rate", torch.tensor(RATE_MEDIAN), torch.tensor(RATE_SCALE))
    guide.set_site("x0", torch.tensor([[LOCATION]]), torch.tensor([[SPREAD]]))
    guide.set_site("likelihood.noise_scale", torch.tensor([NOISE]), torch.tensor([FIXED]))
    posterior = known_posterior(model, guide, train)
    question = train.at([0.5, 4.0])
    parts = posterior.predict(question, num_draws=20_000, seed=5).variance_parts()
    assert (parts.process == 0).all()
    check_within_errors(parts, exact_parts(question.times, 0.0), 20_000)


def test_parts_of_an_sde_posterior_grow_by_process_noise_in_a_forecast():
    model, train = linear_model(is_random=True), noisy_data()
    guide = bo.SDEGuide(model, train)
    guide.shared.set_site("x0", torch.ones(2, 1), torch.full((2, 1), 0.2))
    posterior = known_posterior(model, guide, train)
    ensemble = posterior.predict(train.at([0.0, 1.0, 2.0, 3.0]), num_draws=500, seed=6)
    parts = ensemble.variance_parts()
    torch.testing.assert_close(
        parts.total - parts.observation, ensemble.signal.var(0), rtol=1e-12, atol=1e-12
    )
    assert (parts.process[:, 0] == 0).all()  # x0 is kept where only the path is redrawn
    assert (parts.initial[:, 0] - 0.04).abs().max() < LIMIT * 0.04 * math.sqrt(2 / 500)
    assert (parts.process[:, 3] > 1.5 * parts.process[:, 2]).all()  # steered no longer
    values = posterior.predictive.sample(train, 5)
    shared = {site: v for site, v in values.items() if site != "path.noise"}
    again = posterior.predictive.sample(train, 5, shared)
    assert all(torch.equal(again[site], value) for site, value in shared.items())
    assert not torch.equal(again["path.noise"], values["path.noise"])


@pytest.fixture(scope="module")
def laplace():
    torch.set_default_dtype(torch.float64)
    train = bo.datasets.van_der_pol(num_series=2, num_times=20).observed
    model, _ = bo.neural_ode(train, hidden=[3], verbose=False)
    posterior = bo.fit_laplace(model, train, seed=0, prior_scale="fixed", progress=False)
    torch.set_default_dtype(torch.float32)
    return posterior


def test_parts_of_a_laplace_posterior_are_those_of_its_arrow_covariance(laplace):
    question = laplace.train.at([1.0, 3.0])
    parts = laplace.predict(question, num_draws=20_000, seed=7).variance_parts()
    predictive, covariance = laplace.predictive, laplace.guide.covariance(torch.arange(2))
    _, by_weights, by_x0, _ = predictive._sensitivities(question)
    whole = by_weights + torch.einsum("ntsk,nkp->ntsp", by_x0, covariance.gain)
    weights = torch.einsum("ntsp,pq,ntsq->nts", whole, covariance.weights, whole)
    initial = torch.einsum("ntsk,nkl,ntsl->nts", by_x0, covariance.own, by_x0)
    shrink = laplace.model.units.scale.square() / (1 + (weights + initial) / 4)
    error = LIMIT * math.sqrt(2 / 20_000) * shrink
    assert ((parts.initial - initial * shrink).abs() < error * initial).all()
    assert ((parts.weights - weights * shrink).abs() < 2 * error * (weights + initial)).all()
    assert (parts.process == 0).all()
    assert initial.max() > 0.05 * weights.max() > 0  # both are seen


def test_initial_states_of_a_laplace_posterior_follow_the_given_weights(laplace):
    guide, predictive = laplace.guide, laplace.predictive
    weights = guide.weights + 3 * guide.covariance_weights.diagonal().sqrt()
    many = predictive.shared(weights.expand(4000, -1), guide.noise.expand(4000, -1))
    x0 = predictive.sample(laplace.train, 4000, many)["x0"]
    mean = guide.x0 + guide.gain @ (weights - guide.weights)
    sd = guide.own.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((x0.mean(0) - mean).abs() < LIMIT * sd / math.sqrt(4000)).all()
    assert ((x0.std(0) / sd - 1).abs() < LIMIT / math.sqrt(8000)).all()
    with pytest.raises(bo.DataError, match="have to be the first"):
        predictive.sample(laplace.train, 4000, {"x0": x0})


class Shifted(bo.Posterior):
    """A posterior whose paths are moved."""

    def __init__(self, like: bo.Posterior, by: float) -> None:
        super().__init__(like.model, like.guide, like.train, history=None, settings=like.settings)
        inner, paths = self.predictive, self.predictive.paths

        class Moved:
            sample, rates, solver_error = inner.sample, inner.rates, inner.solver_error

            @staticmethod
            def paths(*args):
                path, failed = paths(*args)
                return path + by, failed

        self.predictive = Moved()


def test_parts_of_a_mixture_count_the_member_as_weights(laplace):
    other = bo.Posterior(
        laplace.model, laplace.guide, laplace.train, history=None, settings=laplace.settings
    )
    mixture = bo.Mixture([laplace, other], weights=[3, 1])
    ensemble = mixture.predict(laplace.train, num_draws=400, seed=0)
    parts = ensemble.variance_parts()
    torch.testing.assert_close(
        parts.total - parts.observation, ensemble.signal.var(0), rtol=1e-9, atol=1e-12
    )
    apart = bo.Mixture([laplace, Shifted(laplace, 10.0)])
    found = apart.predict(laplace.train, num_draws=100, seed=0).variance_parts()
    shift = (10.0 * laplace.model.units.scale).square() / 4 * 100 / 99  # two groups of 50 draws
    assert ((found.weights / shift - 1).abs() < 0.1).all()


# ---- failures and refusals -----------------------------------------------------------------------
class Explosive(nn.Module):
    """dz/ds = rate z^3, rates normal: half of them explode."""

    def priors(self):
        return {"rate": dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1)}

    def build(self, values, inputs=None):
        rate = without_plate(values["rate"]).unsqueeze(-2)
        return VectorField(lambda t, x: rate * x**3, (rate,))


def explosive_model(likelihood=None):
    return bo.DynamicalModel(
        initial=bo.NormalInitial(1, location=[1.0], scale=[0.2]),
        field=Explosive(),
        likelihood=likelihood or bo.GaussianLikelihood(1),
        solver=bo.FixedGridSolver("rk4", step=0.05),
    )


def test_failed_draws_and_those_with_failed_partners_are_left_out():
    question = bo.Trajectories([0.0, 1.0], None, series=["a", "b"], names=["x"])
    ensemble = bo.sample_prior(explosive_model(), question, num_draws=400, seed=1)
    pairs, parts = ensemble.paired(), ensemble.variance_parts()
    assert (pairs.failed & ~ensemble.failed).any() and (ensemble.failed & ~pairs.failed).any()
    for row in range(2):
        kept = ~(ensemble.failed | pairs.failed)[:, row]
        signal = (parts.total - parts.observation)[row]
        torch.testing.assert_close(signal, ensemble.signal[kept, row].var(0))
        noise = ensemble.draws["likelihood.noise_scale"][kept].square().mean(0)
        torch.testing.assert_close(parts.observation[row], noise.expand(2, 1))


def known_noise(base):
    """A likelihood without own sites."""

    class Known(nn.Module):
        def priors(self):
            return {}

        def build(self, values, inputs=None):
            def law(path, mask):
                return observed_law(base(path), mask, event_dim=2, fill=0.5)

            return Observe(law, lambda path: path)

    return Known()


def test_noise_without_finite_variance_is_told():
    question = bo.Trajectories([0.0, 0.1], None, series=["a"], names=["x"])

    def parts_of(base):
        model = explosive_model(known_noise(base))
        return bo.sample_prior(model, question, num_draws=20, seed=1).variance_parts()

    wide = parts_of(lambda path: dist.StudentT(2.0, path, 0.1))
    assert wide.observation.isinf().all() and wide.initial.isfinite().all()
    assert "no finite variance" in str(wide)
    with pytest.raises(bo.DataError, match="has no variance"):
        parts_of(lambda path: dist.StudentT(1.0, path, 0.1))


def test_a_single_draw_and_a_hand_made_ensemble_are_refused():
    question = bo.Trajectories([0.0, 0.1], None, series=["a"], names=["x"])
    ensemble = bo.sample_prior(linear_model(is_random=False), question, num_draws=1, seed=1)
    with pytest.raises(bo.DataError, match="2 or more"):
        ensemble.variance_parts()
    two = bo.sample_prior(linear_model(is_random=False), question, num_draws=2, seed=1)
    two._pairs = None
    with pytest.raises(bo.DataError, match="was not made by predict"):
        two.variance_parts()


def test_posteriors_of_joint_draws_alone_are_refused(laplace):
    train = noisy_data()
    model = linear_model(is_random=False)
    guide = bo.MeanFieldGuide(model, train)
    conditioned = known_posterior(model, guide, train).condition(train, num_draws=4, seed=0)
    stock = bo.fit_svi(
        model, AutoNormal(model), train, seed=0, num_steps=2, warm_start=False, progress=False
    )
    for posterior in (conditioned, stock):
        ensemble = posterior.predict(train, num_draws=4, seed=0)
        with pytest.raises(bo.DataError, match="only joint draws are known"):
            ensemble.variance_parts()


def test_inflated_forecasts_have_no_parts_but_smoothed_paths_have(laplace):
    wide = HoldOut(inflation=2.0, num_points=10, log_score=0.0, baselines={})
    mixture = bo.Mixture([laplace, laplace], hold_out=wide)
    assert mixture.smooth(num_draws=10, seed=0).variance_parts().total.isfinite().all()
    later = laplace.train.at(laplace.train.times[-1:] + 1.0)
    with pytest.raises(bo.DataError, match="inflated x2 by hold-out"):
        mixture.forecast(later, num_draws=10, seed=0).variance_parts()


def test_sites_that_do_not_come_first_cannot_be_given():
    model, train = linear_model(is_random=False), noisy_data()
    posterior = known_posterior(model, bo.MeanFieldGuide(model, train), train)
    values = posterior.predictive.sample(train, 3)
    for given in ({"x0": values["x0"]}, {"unknown": values["x0"]}):
        with pytest.raises(bo.DataError, match="have to be the first"):
            posterior.predictive.sample(train, 3, given)
