"""New series: x0 is exact where the model is linear, and nested in the draws everywhere."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo
from bayesode.inference.conditioning import ConditionedGuide
from bayesode.inference.initial_states import infer_initial_states
from bayesode.inference.svi import History
from bayesode.models.contracts import VectorField, without_plate

STATE, X0_SD, RATE_SD = 2, 2.0, 0.7
F64 = torch.float64


class Drift(nn.Module):
    """dx/dt = rate: paths x0 + rate t are linear in everything that is random."""

    def priors(self):
        return {"rate": dist.Normal(torch.zeros(STATE).double(), RATE_SD).to_event(1)}

    def build(self, values, inputs=None):
        rate = without_plate(values["rate"])
        return VectorField(lambda t, x: rate.unsqueeze(-2).expand_as(x), (rate,))


class Linear(nn.Module):
    """dx/dt = matrix x."""

    def priors(self):
        return {"matrix": dist.Normal(torch.zeros(STATE, STATE).double(), 1.0).to_event(2)}

    def build(self, values, inputs=None):
        matrix = without_plate(values["matrix"], 2)
        return VectorField(lambda t, x: x @ matrix.mT, (matrix,))


def make_model(field, likelihood=None, step=0.5, **settings):
    return bo.DynamicalModel(
        initial=bo.NormalInitial(STATE, scale=[X0_SD] * STATE),
        field=field,
        likelihood=bo.GaussianLikelihood(STATE) if likelihood is None else likelihood,
        solver=bo.FixedGridSolver("rk4", step=step, **settings),
    ).double()


def observe(num_series=3, num_times=12, seed=0, **settings):
    """Noisy series of the drift (.5, -.3), a fifth of the values missing."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.linspace(0, 3, num_times, dtype=F64)
    x0, noise = (
        torch.randn(num_series, n, STATE, generator=generator, dtype=F64) for n in (1, num_times)
    )
    values = x0 + times[:, None] * torch.tensor([0.5, -0.3]) + 0.2 * noise
    mask = torch.rand(values.shape, generator=generator) > 0.2
    return bo.Trajectories(times, values, mask=mask, names=["a", "b"], **settings)


def uneven(seed=1):
    """Three new series with times, starts and lengths of their own."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.rand(3, 6, generator=generator, dtype=F64).sort(-1).values + 1
    values = torch.randn(3, 6, STATE, generator=generator, dtype=F64)
    return bo.Trajectories(
        times,
        values,
        mask=torch.rand(values.shape, generator=generator) > 0.3,
        names=["a", "b"],
        series=["new", 0, "c"],
        num_times=[6, 3, 5],
        start=[0.5, 1.0, 0.0],
    )


def exact_x0(new, rate, noise_scale):
    """Mean, slope by the rate, and variance of x0 given the rate, each (series, state)."""
    elapsed = (new.grid - new.start[:, None]).unsqueeze(-1)
    share = new.mask / noise_scale**2
    precision = share.sum(1) + X0_SD**-2
    rest = torch.where(new.mask, new.values - rate * elapsed, 0.0)
    return (share * rest).sum(1) / precision, -(share * elapsed).sum(1) / precision, 1 / precision


def by_hand(train, rate, rate_sd, noise_scale):
    """An SVI posterior whose weights are known."""
    model = make_model(Drift())
    guide = bo.MeanFieldGuide(model, train)
    guide.set_site("field.rate", rate, rate_sd)
    guide.set_site("likelihood.noise_scale", noise_scale, torch.full((STATE,), 1e-9).double())
    return bo.Posterior(model, guide, train, history=History(), settings={"engine": "svi"})


@pytest.fixture(scope="module")
def svi():
    rate, sd = torch.tensor([0.5, -0.3]).double(), torch.tensor([0.3, 0.5]).double()
    return by_hand(observe(), rate, sd, torch.tensor([0.2, 0.3]).double())


@pytest.fixture(scope="module")
def laplace():
    return bo.fit_laplace(make_model(Drift()), observe(), seed=0, progress=False)


# ---- closed forms -----------------------------------------------------------------------------
def test_laplace_gives_the_exact_conditional_of_x0_and_keeps_the_rest(laplace):
    new, fitted = uneven(), laplace.guide
    guide = laplace.condition(new, seed=0).guide
    mean, slope, variance = exact_x0(new, fitted.weights, fitted.noise.exp())
    torch.testing.assert_close(guide.x0, mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(guide.gain, torch.diag_embed(slope), atol=1e-10, rtol=0)
    torch.testing.assert_close(guide.own, torch.diag_embed(variance), atol=1e-10, rtol=0)
    for name in ("weights", "covariance_weights", "noise", "freedom", "log_evidence"):
        assert torch.equal(getattr(guide, name), getattr(fitted, name)), name


def test_laplace_draws_of_new_x0_follow_the_weights(laplace):
    new = uneven()
    conditioned = laplace.condition(new, seed=0)
    draws = conditioned.draws(4000, seed=1)
    _, slope, variance = exact_x0(new, laplace.guide.weights, laplace.guide.noise.exp())
    spread = laplace.guide.covariance_weights.diagonal()
    expected = (variance + slope.square() * spread).sqrt()
    # the sd of 4000 normal draws, five standard errors
    assert ((draws["x0"].std(0) / expected - 1).abs() < 5 / 8000**0.5).all()
    rate = draws["field.rate"] - laplace.guide.weights
    rest = draws["x0"] - draws["x0"].mean(0) - slope * rate.unsqueeze(1)
    together = (rest * rate.unsqueeze(1)).mean(0) / (variance * spread).sqrt()
    assert (together.abs() < 5 / 4000**0.5).all()


def test_every_stored_draw_has_its_own_exact_x0(svi):
    new = uneven()
    guide = svi.condition(new, num_draws=40, seed=0).guide
    rates = guide.get_buffer("draws_field__rate")
    scales = guide.get_buffer("draws_likelihood__noise_scale")
    assert len(rates) == 40 and rates.std(0).min() > 0.1
    for draw in range(40):
        mean, _, variance = exact_x0(new, rates[draw], scales[draw])
        torch.testing.assert_close(guide.mean[draw], mean, atol=1e-6, rtol=0)
        own = guide.factor[draw] @ guide.factor[draw].mT
        torch.testing.assert_close(own, torch.diag_embed(variance), atol=1e-10, rtol=0)


def test_spread_of_x0_is_within_plus_between_draws_never_that_of_the_mean_weights(svi):
    new = uneven()
    x0 = svi.condition(new, num_draws=2000, seed=0).draws(2000, seed=1)["x0"]
    scales = torch.tensor([0.2, 0.3]).double()
    _, slope, within = exact_x0(new, torch.tensor([0.5, -0.3]).double(), scales)
    total = within + slope.square() * torch.tensor([0.3, 0.5]).double().square()
    assert ((x0.var(0) / total - 1).abs() < 5 * (2 / 2000) ** 0.5).all()
    assert (total > 1.2 * within).all()  # the mean weights alone would be far off


def test_x0_of_a_linear_field_is_exact_for_each_matrix():
    generator = torch.Generator().manual_seed(3)
    matrices = torch.randn(5, STATE, STATE, generator=generator, dtype=F64)
    model, new, noise = make_model(Linear(), step=0.05), uneven(), 0.4
    values = {
        "field.matrix": matrices.unsqueeze(1),
        "likelihood.noise_scale": torch.full((5, 1, STATE), noise, dtype=F64),
    }
    found = infer_initial_states(model, values, new)
    for draw, matrix in enumerate(matrices):
        elapsed = (new.grid - new.start[:, None])[..., None, None]
        design = torch.linalg.matrix_exp(elapsed * matrix) * new.mask.unsqueeze(-1)
        precision = torch.einsum("ntci,ntcj->nij", design, design) / noise**2
        precision += torch.eye(STATE) / X0_SD**2
        seen = torch.where(new.mask, new.values, 0.0)
        right = torch.einsum("ntci,ntc->ni", design, seen) / noise**2
        torch.testing.assert_close(found.precision[draw], precision, rtol=1e-4, atol=1e-4)
        exact = torch.linalg.solve(precision, right)
        torch.testing.assert_close(found.mean[draw], exact, rtol=1e-4, atol=1e-4)
    assert not found.failed.any()


@pytest.mark.parametrize("likelihood", ["lognormal", "poisson", "student-t"])
def test_x0_is_the_most_probable_one_under_other_noise(likelihood):
    parts = {
        "lognormal": bo.LogNormalLikelihood(STATE, prior_median=0.2),
        "poisson": bo.PoissonLikelihood(STATE),
        "student-t": bo.StudentTLikelihood(STATE, prior_median=2.0),
    }
    units = bo.Units([1.0, 1.0], [0.5, 0.5], transform="log")
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(STATE),
        field=bo.BayesianMLP(STATE, [4], STATE, prior_scale=1.0),
        likelihood=parts[likelihood],
        solver=bo.FixedGridSolver("rk4", step=0.25),
        units=units,
    ).double()
    generator = torch.Generator().manual_seed(5)
    counts = torch.randint(1, 9, (3, 5, STATE), generator=generator).double()
    new = bo.Trajectories(torch.arange(5.0) / 4, counts)
    values = {s: v.double().expand(2, 1, *v.shape).clone() for s, v in model.prototype().items()}
    weights = values["field.weights"]
    weights += 0.5 * torch.randn(weights.shape, generator=generator, dtype=F64)
    found = infer_initial_states(model, values, new)
    x0 = found.mean.clone().requires_grad_()
    law, field, observed = model.build(values, new)
    path = model.solve(field, {"x0": x0}, new).path
    whole = observed(path, new.mask).log_prob(new.values).sum() + law.log_prob(x0).sum()
    slope = torch.autograd.grad(whole, x0)[0]
    sd = torch.linalg.inv(found.precision).diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((slope * sd).abs() < 1e-4).all()
    assert not found.failed.any()


# ---- what the data leave open -----------------------------------------------------------------
@pytest.mark.parametrize("engine", ["svi", "laplace"])
def test_one_point_is_enough_and_without_any_the_prior_remains(engine, request):
    posterior = request.getfixturevalue(engine)
    values = torch.tensor([[[1.0, math.nan]], [[math.nan, math.nan]]], dtype=F64)
    new = bo.Trajectories([1.0], values, names=["a", "b"], start=0.0)
    x0 = posterior.condition(new, num_draws=4000, seed=0).draws(4000, seed=0)["x0"]
    assert x0[:, 0, 0].std() < 1.0
    for column in (x0[:, 0, 1], x0[:, 1, 0], x0[:, 1, 1]):
        assert column.mean().abs() < 5 * X0_SD / 4000**0.5
        assert (column.std() / X0_SD - 1).abs() < 5 / 8000**0.5


def test_values_under_the_mask_and_batch_mates_do_not_matter(svi):
    new = uneven()
    wild = bo.Trajectories(
        new.times,
        torch.where(new.mask, new.values, 1e6),
        mask=new.mask,
        names=new.names,
        series=new.series,
        num_times=new.num_times,
        start=new.start,
    )
    base = svi.condition(new, num_draws=5, seed=0).guide
    assert torch.equal(svi.condition(wild, num_draws=5, seed=0).guide.mean, base.mean)
    alone = svi.condition(new.rows([1]), num_draws=5, seed=0).guide
    torch.testing.assert_close(alone.mean[:, 0], base.mean[:, 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.factor[:, 0], base.factor[:, 1])


def test_draws_that_explode_count_as_failed_and_no_prediction_is_nan():
    model, new = make_model(Linear(), max_state=30.0), uneven()
    guide = bo.MeanFieldGuide(model, new)
    wide = torch.full((STATE, STATE), 1e-6).double()
    guide.set_site("field.matrix", 40 * torch.eye(STATE).double(), wide)
    settings = {"history": History(), "settings": {"engine": "svi"}}
    posterior = bo.Posterior(model, guide, new, **settings)
    shifted = bo.Trajectories([1.0, 3.0], 20 + torch.zeros(1, 2, STATE).double(), names=["a", "b"])
    with pytest.warns(UserWarning, match=r"for 100.0% of the draws no initial state was found"):
        conditioned = posterior.condition(shifted, num_draws=4, seed=0)
    assert conditioned.draws(4, seed=0)["x0"].isnan().all()
    with pytest.warns(UserWarning, match="no draw of series 0"):
        ensemble = conditioned.predict(shifted.at([1.0]), num_draws=4, seed=0)
    assert ensemble.failed.all() and ensemble.path.isfinite().all()
    assert ensemble.values.isfinite().all()


# ---- as any posterior -------------------------------------------------------------------------
def test_stored_draws_come_once_before_any_comes_again_with_fresh_x0(svi):
    conditioned = svi.condition(uneven(), num_draws=10, seed=0)
    stored = conditioned.guide.get_buffer("draws_field__rate")
    some = conditioned.draws(6, seed=1)["field.rate"]
    assert len(some.unique(dim=0)) == 6
    draws = conditioned.draws(25, seed=1)
    distinct, counts = draws["field.rate"].unique(dim=0, return_counts=True)
    assert torch.equal(distinct, stored.unique(dim=0)) and counts.max() - counts.min() <= 1
    assert len(draws["x0"].flatten(1).unique(dim=0)) == 25
    again = conditioned.draws(25, seed=1)
    assert all(torch.equal(draws[site], again[site]) for site in draws)
    other = svi.condition(uneven(), num_draws=10, seed=0)
    assert torch.equal(other.guide.mean, conditioned.guide.mean)


@pytest.mark.parametrize("engine", ["svi", "laplace"])
def test_a_conditioned_posterior_answers_every_question(engine, request):
    posterior, new = request.getfixturevalue(engine), uneven()
    conditioned = posterior.condition(new, num_draws=30, seed=0)
    assert conditioned.train.series == new.series
    stored = {"num_draws": 30} if engine == "svi" else {}
    assert conditioned.settings["conditioned"] == {"seed": 0} | stored
    mixed = new.rows([2, 0]).at([2.5, 4.0])
    ensemble = conditioned.predict(mixed, num_draws=500, seed=1)
    assert ensemble.values.shape == (500, 2, 2, STATE) and ensemble.share_failed == 0
    whole = conditioned.predict(new.at([2.5, 4.0]), num_draws=500, seed=1)
    error = whole.signal.std(0) / 500**0.5
    assert ((ensemble.mean - whole.mean[[2, 0]]).abs() < 7 * error[[2, 0]]).all()
    assert conditioned.field(torch.zeros(4, STATE), num_draws=7, seed=0).shape == (7, 4, STATE)
    assert conditioned.to_arviz(num_draws=20).posterior["x0"].shape == (1, 20, 3, STATE)
    assert ensemble.solver_error < 1e-3
    with pytest.raises(bo.DataError, match=r"was not in the fit.*posterior\.condition\(new\)"):
        conditioned.predict(observe().at([4.0]))
    third = conditioned.condition(observe(seed=9, series=["x", "y", "z"]), num_draws=30, seed=0)
    assert third.predict(third.train, num_draws=10, seed=0).values.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_runs_predict_the_same(dtype, tmp_path):
    data = bo.datasets.van_der_pol(num_series=4, num_times=20, seed=5).observed.to(dtype=dtype)
    train, new = data.split(series=[3])
    model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
    settings = {"seed": 0, "num_steps": 3, "warm_start": False, "progress": False}
    posterior = bo.fit_svi(model, guide, train, **settings)
    assert_survives(posterior.condition(new.until(2.5), num_draws=9, seed=0), tmp_path / "run")


def test_saved_laplace_runs_predict_the_same(van_der_pol, tmp_path):
    assert_survives(van_der_pol[1], tmp_path / "run")


def assert_survives(conditioned, folder):
    loaded, question = bo.load(conditioned.save(folder)), conditioned.train.at([1.0, 7.0])
    one, two = (p.predict(question, num_draws=12, seed=3) for p in (conditioned, loaded))
    assert torch.equal(one.values, two.values) and torch.equal(one.path, two.path)
    assert loaded.settings == conditioned.settings
    assert loaded.train.series == conditioned.train.series


def test_saved_runs_of_hand_made_models_need_the_model_alone(svi, tmp_path):
    conditioned = svi.condition(uneven(), num_draws=9, seed=0)
    folder = conditioned.save(tmp_path / "run")
    with pytest.raises(bo.DataError, match="hand-made model"):
        bo.load(folder)
    loaded = bo.load(folder, model=make_model(Drift()))
    one, two = (p.predict(p.train, num_draws=12, seed=3).values for p in (conditioned, loaded))
    assert torch.equal(one, two)


def test_a_guide_may_bring_its_own_way(svi):
    class Encoder(bo.MeanFieldGuide):
        def condition(self, model, new):
            return ConditionedGuide(model, new, 3)

    guide = Encoder(svi.model, svi.train)
    posterior = bo.Posterior(svi.model, guide, svi.train, history=History(), settings={})
    assert not posterior.condition(uneven(), seed=0).draws(3, seed=0)["field.rate"].any()


# ---- believable -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def van_der_pol():
    simulated = bo.datasets.van_der_pol(num_series=6, num_times=40, seed=3)
    model, _ = bo.neural_ode(simulated.observed, hidden=[8], verbose=False)
    posterior = bo.fit_laplace(model, simulated.observed, seed=0, progress=False)
    new = bo.datasets.van_der_pol(num_series=10, num_times=40, seed=33)
    return new, posterior.condition(new.observed.until(float(new.observed.times[4])), seed=0)


def test_latent_paths_of_new_series_of_van_der_pol_lie_in_the_bands(van_der_pol):
    new, conditioned = van_der_pol
    ensemble = conditioned.predict(new.observed, num_draws=300, seed=0)
    low, high = ensemble.interval(0.9, of="signal")
    truth = new.truth.values
    assert 0.75 < ((truth >= low) & (truth <= high)).double().mean() <= 1
    # five points leave some series open: half of all errors are of the size of the noise
    assert ((ensemble.mean - truth).abs() / new.noise_scale).median() < 1.5


# ---- what is not allowed ----------------------------------------------------------------------
@pytest.mark.parametrize("engine", ["svi", "laplace"])
def test_bad_requests_get_one_clear_error(engine, request):
    posterior, new = request.getfixturevalue(engine), uneven()
    with pytest.raises(bo.DataError, match="nothing to condition on"):
        posterior.condition(new.at([3.0]))
    with pytest.raises(bo.DataError, match=r"components \['x', 'b'\]"):
        posterior.condition(bo.Trajectories([0.0], torch.zeros(1, 1, 2), names=["x", "b"]))
    with pytest.raises(bo.DataError, match="components"):
        posterior.condition(bo.Trajectories([0.0], torch.zeros(1, 1, 1), names=["a"]))
    with pytest.raises(bo.DataError, match=r"value 500 of series 0 lies beyond .* bound of 30"):
        posterior.condition(bo.Trajectories([0.0], 500 + torch.zeros(1, 1, 2), names=["a", "b"]))
    with pytest.raises(bo.DataError, match="inputs"):
        inputs = bo.Inputs([[1.0]], ["dose"])
        values = torch.zeros(1, 1, 2)
        posterior.condition(bo.Trajectories([0.0], values, names=["a", "b"], inputs=inputs))
    with pytest.raises(bo.DataError, match="num_draws"):
        posterior.condition(new, num_draws=0)
    with pytest.raises(bo.DataError, match=r"Trajectories are needed, .*observed"):
        posterior.condition(bo.datasets.van_der_pol(num_series=2))


def test_impossible_values_and_likelihoods_without_information_are_one_clear_error():
    model = make_model(Drift(), bo.LogNormalLikelihood(STATE))
    new = bo.Trajectories([0.0], torch.tensor([[[1.0, -2.0]]]).double(), names=["a", "b"])
    settings = {"history": History(), "settings": {"engine": "svi"}}
    posterior = bo.Posterior(model, bo.MeanFieldGuide(model, new), new, **settings)
    with pytest.raises(bo.DataError, match="value -2 of series 0 is impossible"):
        posterior.condition(new)

    class Blind(bo.GaussianLikelihood):
        fisher = property()  # as if it were not there

    model = make_model(Drift(), Blind(STATE))
    posterior = bo.Posterior(model, bo.MeanFieldGuide(model, new), new, **settings)
    with pytest.raises(bo.DataError, match="Blind has no fisher"):
        posterior.condition(new)
