"""The mean-field guide: families, tables of series, and what Pyro does with it."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import biject_to

import bayesode as bo
from bayesode.models.contracts import VectorField, without_plate

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def empty_store():
    with pyro.get_param_store().scope():
        yield


class Decay(nn.Module):
    """dx/dt = -rate x; further sites are declared and do nothing."""

    def __init__(self, **priors) -> None:
        super().__init__()
        self._priors = priors

    def priors(self):
        return self._priors

    def build(self, values, inputs=None):
        return VectorField(lambda t, x: -x)


def model_with(**priors) -> bo.DynamicalModel:
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=Decay(**priors),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.5),
    ).double()


def data(series=("a", "b", "c")) -> bo.Trajectories:
    torch.manual_seed(0)
    values = torch.randn(len(series), 4, 2, dtype=DOUBLE)
    return bo.Trajectories(torch.linspace(0, 1, 4), values, series=series)


ONES = torch.ones(3, dtype=DOUBLE)
SUPPORTED = {
    "normal": (dist.Normal(0 * ONES, ONES).to_event(1), dist.Normal),
    "student-t": (dist.StudentT(3 * ONES, 0 * ONES, ONES).to_event(1), dist.Normal),
    "multivariate normal": (
        dist.MultivariateNormal(0 * ONES, torch.eye(3, dtype=DOUBLE)),
        dist.Normal,
    ),
    "log-normal": (dist.LogNormal(0 * ONES, ONES).to_event(1), dist.LogNormal),
    "half-normal": (dist.HalfNormal(ONES).to_event(1), dist.LogNormal),
    "gamma": (dist.Gamma(2 * ONES, ONES).to_event(1), dist.LogNormal),
    "scalar": (dist.HalfNormal(torch.tensor(1.0, dtype=DOUBLE)), dist.LogNormal),
    "beta": (dist.Beta(2 * ONES, ONES).to_event(1), dist.TransformedDistribution),
    "uniform": (dist.Uniform(-ONES, 2 * ONES).to_event(1), dist.TransformedDistribution),
    "pareto": (dist.Pareto(ONES, 2 * ONES).to_event(1), dist.TransformedDistribution),
    "dirichlet": (dist.Dirichlet(2 * ONES), dist.TransformedDistribution),
    "cholesky factor": (
        dist.LKJCholesky(3, torch.tensor(1.0, dtype=DOUBLE)),
        dist.TransformedDistribution,
    ),
}


@pytest.mark.parametrize("is_copied", [False, True])
@pytest.mark.parametrize("name", SUPPORTED)
def test_family_lives_on_the_support_of_the_prior(name: str, is_copied: bool):
    prior, family = SUPPORTED[name]
    model = model_with(site=prior)
    guide = bo.MeanFieldGuide(model, data())
    guide = copy.deepcopy(guide) if is_copied else guide
    law = guide.posteriors(data())["field.site"]
    assert law.event_shape == prior.event_shape
    assert law.batch_shape == prior.batch_shape
    base = law.base_dist if isinstance(law, torch.distributions.Independent) else law
    assert type(base) is family
    draws = law.rsample(torch.Size([50]))
    assert prior.support.check(draws).all()
    terms = bo.elbo_terms(model, guide, data(), num_particles=3)
    assert math.isfinite(terms.elbo.item())
    assert terms.is_closed_form["field.site"] == (
        name in ("normal", "multivariate normal", "log-normal")
    )


@pytest.mark.parametrize(
    "name", [n for n in SUPPORTED if n not in ("dirichlet", "cholesky factor")]
)
def test_it_begins_at_the_median_of_the_prior(name: str):
    prior = SUPPORTED[name][0]
    guide = bo.MeanFieldGuide(model_with(site=prior), data())
    start = biject_to(prior.support)(guide.location("field.site"))
    torch.manual_seed(0)
    share = (prior.sample(torch.Size([4000])) < start).double().mean(0)
    # 5 standard errors of a share of 4,000, and of a median that may come from 1,000 draws itself
    assert ((share - 0.5).abs() < 5 * 0.5 * math.sqrt(1 / 4000 + 1 / 1000)).all()


def test_a_discrete_prior_is_one_clear_error():
    prior = dist.Bernoulli(0.5 * ONES).to_event(1)
    with pytest.raises(bo.DataError, match=r"field\.site has a discrete prior"):
        bo.MeanFieldGuide(model_with(site=prior), data())


def scaled_weights(values: dict[str, Tensor]) -> dist.TorchDistribution:
    scale = values["scale"].unsqueeze(-1)
    return dist.Normal(torch.zeros(4, dtype=DOUBLE), scale).to_event(1)


def test_hierarchical_priors_are_mirrored_and_scored_at_the_drawn_scale():
    scale = dist.HalfNormal(torch.tensor(1.0, dtype=DOUBLE))
    model, train = model_with(scale=scale, weights=scaled_weights), data()
    guide = bo.MeanFieldGuide(model, train)
    guide.set_site("field.scale", torch.tensor(0.7), torch.tensor(0.5))
    laws = guide.posteriors(train)
    assert laws["field.weights"].event_shape == (4,)
    torch.manual_seed(1)
    ours = bo.elbo_terms(model, guide, train, num_particles=6)
    torch.manual_seed(1)
    elbo = TraceMeanField_ELBO(num_particles=6, vectorize_particles=True, max_plate_nesting=1)
    torch.testing.assert_close(
        -ours.elbo, elbo.differentiable_loss(model, guide, train), rtol=1e-10, atol=0.0
    )
    assert ours.is_closed_form["field.weights"]
    assert not ours.is_closed_form["field.scale"]
    # the scales that were drawn, by the same random numbers
    torch.manual_seed(1)
    drawn = laws["field.scale"].expand([6, 1]).rsample()
    location, width = guide.sites.moments("field.weights")
    ratio = (width**2 + location**2) / (2 * drawn**2)
    exact = ((drawn / width).log() + ratio - 0.5).sum(-1).mean()
    torch.testing.assert_close(ours.kl["field.weights"], exact, rtol=1e-10, atol=0.0)


def test_a_state_dict_makes_a_fresh_guide_the_same():
    train, model = (
        data(),
        bo.DynamicalModel(
            initial=bo.NormalInitial(2),
            field=bo.BayesianMLP(2, [3], 2),
            likelihood=bo.GaussianLikelihood(2),
            solver=bo.FixedGridSolver("rk4", step=0.5),
        ).double(),
    )
    learned, fresh = bo.MeanFieldGuide(model, train), bo.MeanFieldGuide(model, train)
    learned.set_site("field.weights", torch.randn(17), torch.rand(17) + 0.1)
    learned.set_site("x0", torch.randn(3, 2), torch.rand(3, 2) + 0.1)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert (
        bo.elbo_terms(model, fresh, train).total_kl != bo.elbo_terms(model, learned, train).total_kl
    )
    fresh.load_state_dict(learned.state_dict())
    assert (
        bo.elbo_terms(model, fresh, train).total_kl == bo.elbo_terms(model, learned, train).total_kl
    )


def test_runs_saved_before_the_sites_had_a_table_can_be_read():
    model, train = model_with(site=SUPPORTED["normal"][0]), data()
    learned, fresh = bo.MeanFieldGuide(model, train), bo.MeanFieldGuide(model, train)
    learned.set_site("x0", torch.randn(3, 2), torch.rand(3, 2) + 0.1)
    state = learned.state_dict()
    assert all(name.startswith("sites.") for name in state)
    fresh.load_state_dict({name.removeprefix("sites."): value for name, value in state.items()})
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name])
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({})


def test_x0_is_a_table_addressed_by_label():
    train = data()
    guide = bo.MeanFieldGuide(model_with(), train)
    guide.set_site("x0", torch.arange(6.0).view(3, 2), torch.full((3, 2), 0.1))
    asked = train.at([0.5]).rows(torch.tensor([2, 0]))
    assert guide.posteriors(asked)["x0"].mean.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert guide.posteriors(train)["x0"].mean.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_an_unknown_series_is_one_clear_error():
    guide = bo.MeanFieldGuide(model_with(), data())
    with pytest.raises(bo.DataError, match="series 'z' was not in the fit"):
        guide.posteriors(data(("a", "z")))
    with pytest.raises(bo.DataError, match="series 1 was not in the fit"):
        guide.posteriors(data((1, "a")))


def test_a_site_is_put_at_a_value_with_a_scale():
    guide = bo.MeanFieldGuide(model_with(), data())
    value, scale = torch.tensor([0.3, 2.0], dtype=DOUBLE), torch.tensor([0.1, 0.4], dtype=DOUBLE)
    with torch.no_grad():
        guide.sites.offset["likelihood__noise_scale"].add_(3.0)
    guide.set_site("likelihood.noise_scale", value, scale)
    law = guide.posteriors(data())["likelihood.noise_scale"].base_dist
    torch.testing.assert_close(law.loc.exp(), value)
    torch.testing.assert_close(law.scale, scale)
    # a step of one on the location is a step of one posterior scale
    with torch.no_grad():
        guide.sites.offset["likelihood__noise_scale"].add_(1.0)
    moved = guide.posteriors(data())["likelihood.noise_scale"].base_dist
    torch.testing.assert_close(moved.loc - law.loc, scale)


def test_random_paths_need_another_guide():
    class Noisy:
        def priors(self, start, times):
            return {"noise": dist.Normal(torch.zeros(2), 1.0).to_event(1)}

        def solve(self, field, x0, start, times, **noise):
            raise NotImplementedError

        __call__ = solve

    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=Decay(),
        likelihood=bo.GaussianLikelihood(2),
        solver=Noisy(),
    )
    with pytest.raises(bo.DataError, match="random paths needs a guide"):
        bo.MeanFieldGuide(model, data())


# ---- as any guide of Pyro -----------------------------------------------------------------------
class LinearField(nn.Module):
    """dx/dt = rates x, with one normal rate per component."""

    def priors(self):
        return {"rates": dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)}

    def build(self, values, inputs=None):
        rates = without_plate(values["rates"]).unsqueeze(-2)
        return VectorField(lambda t, x: rates * x, (rates,))


def linear_model() -> bo.DynamicalModel:
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=LinearField(),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.25),
    ).double()


@pytest.mark.parametrize("way", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_own_svi_improves_it(way: type):
    train, model = data(), linear_model()
    guide = bo.MeanFieldGuide(model, train)
    pyro.set_rng_seed(0)
    elbo = way(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    before = bo.elbo_terms(model, guide, train, num_particles=50).elbo
    for _ in range(60):
        svi.step(train)
    after = bo.elbo_terms(model, guide, train, num_particles=50).elbo
    assert after > before + 50


def test_pyros_predictive_takes_all_draws_at_once():
    train, model = data(), linear_model()
    guide = bo.MeanFieldGuide(model, train)
    guide.set_site("x0", torch.randn(3, 2), torch.full((3, 2), 1e-6))
    guide.set_site("field.rates", torch.randn(2), torch.full((2,), 1e-6))
    question = train.at([0.0, 0.5, 2.0])
    sites = ["x0", "field.rates", "path", "values"]
    for is_parallel in (False, True):
        predictive = Predictive(
            model, guide=guide, num_samples=7, parallel=is_parallel, return_sites=sites
        )
        with torch.no_grad():
            drawn = predictive(question)
        assert drawn["values"].shape == (7, 3, 3, 2)
        x0, rates = drawn["x0"].reshape(7, 3, 1, 2), drawn["field.rates"].reshape(7, 1, 1, 2)
        exact = x0 * (rates * question.times.view(-1, 1)).exp()
        torch.testing.assert_close(drawn["path"], exact, rtol=1e-3, atol=1e-4)


def test_its_trace_has_the_sites_of_the_model():
    train, model = data(), linear_model()
    guide = bo.MeanFieldGuide(model, train)
    sites = [
        {n for n, _ in pyro.poutine.trace(p).get_trace(train).iter_stochastic_nodes()}
        for p in (model, guide)
    ]
    plate = "trajectories"
    assert sites[0] == sites[1] == {"field.rates", "likelihood.noise_scale", "x0", plate}


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_dtype_is_that_of_the_data(dtype: torch.dtype):
    train = data().to(dtype=dtype)
    guide = bo.MeanFieldGuide(linear_model().to(dtype), train)
    assert {p.dtype for p in guide.parameters()} == {dtype}
    assert guide.posteriors(train)["x0"].rsample().dtype == dtype
