"""The `path` objective: exact sums of divergences, both of Pyro's bounds, and no half alone."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from pyro.infer import NUTS, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import bayesode as bo
from bayesode.errors import DataError, FitError
from bayesode.inference.elbo import ELBOTerms
from bayesode.inference.path_halves import later_times
from bayesode.inference.path_objective import path_objective
from bayesode.models.contracts import VectorField
from bayesode.models.solvers.density import HutchinsonTrace

DOUBLE = torch.float64
TERM = "path.objective"


@pytest.fixture(autouse=True)
def empty_store():
    with pyro.get_param_store().scope():
        yield


def random_data(kind: str = "plain") -> bo.Trajectories:
    torch.manual_seed(7)
    times = torch.tensor([0.0, 0.4, 0.9, 1.5, 1.6], dtype=DOUBLE)
    values = torch.randn(4, 5, 2, dtype=DOUBLE)
    if kind == "masked":
        mask = torch.rand(4, 5) > 0.2
        mask[:, 0] = True  # what an encoder reads
        return bo.Trajectories(times, values, mask=mask)
    if kind == "own grids":
        stretch = torch.tensor([[1.0], [0.5], [1.2], [0.8]], dtype=DOUBLE)
        own = times * stretch + torch.arange(4)[:, None]
        start = torch.arange(4.0) - torch.tensor([0.0, 0.3, 0.0, 0.1])
        return bo.Trajectories(own, values, num_times=[5, 3, 4, 1], start=start)
    data = bo.Trajectories(times, values)
    return data.batch(torch.tensor([3, 1])) if kind == "minibatch" else data


def random_model(field: nn.Module | None = None) -> bo.DynamicalModel:
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=field or bo.BayesianMLP(2, [3], 2, prior_scale=1.0),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.25),
    ).double()


def scattered_guide(model: bo.DynamicalModel, kind: str = "mean-field", seed: int = 8):
    torch.manual_seed(seed)
    if kind == "mean-field":
        guide = bo.MeanFieldGuide(model, random_data())
    else:
        guide = bo.AmortizedGuide(model, bo.MLPEncoder((2,), 2)).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return guide


def loss(way: type, model, guide, data: bo.Trajectories, num_particles: int = 3) -> Tensor:
    torch.manual_seed(1)
    elbo = way(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    return elbo.differentiable_loss(model, guide, data)


def terms(model, guide, data: bo.Trajectories, num_particles: int = 3) -> ELBOTerms:
    torch.manual_seed(1)
    return bo.elbo_terms(model, guide, data, num_particles=num_particles)


# ---- the same objective three times --------------------------------------------------------------
@pytest.mark.parametrize("guide_kind", ["mean-field", "amortized"])
@pytest.mark.parametrize("kind", ["plain", "masked", "own grids", "minibatch"])
def test_the_three_ways_to_the_objective_agree_draw_by_draw(kind: str, guide_kind: str):
    plain_model, data = random_model(), random_data(kind)
    plain_guide = scattered_guide(plain_model, guide_kind)
    model, guide = path_objective(plain_model, plain_guide)
    ours = terms(model, guide, data)
    assert not ours.is_closed_form[TERM] and "path.objective" in str(ours)
    assert ours.kl[TERM].abs() > 0.1
    found = [-ours.elbo, loss(TraceMeanField_ELBO, model, guide, data)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0.0)
    # Trace_ELBO estimates every other term from draws: what the objective adds is the same
    extra = loss(Trace_ELBO, model, guide, data) - loss(Trace_ELBO, plain_model, plain_guide, data)
    torch.testing.assert_close(extra, ours.kl[TERM], rtol=1e-9, atol=1e-9)
    strict = terms(plain_model, plain_guide, data)
    torch.testing.assert_close(ours.elbo, strict.elbo - ours.kl[TERM], rtol=1e-12, atol=0.0)
    torch.testing.assert_close(
        ours.kl_per_series[TERM].sum() * data.num_total / data.num_series, ours.kl[TERM]
    )
    parameters = list(guide.parameters())
    gradients = [torch.autograd.grad(value, parameters, allow_unused=True) for value in found]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_both_of_pyros_bounds_agree_with_a_probe_too():
    data, plain = random_data(), random_model()
    model, guide = path_objective(plain, scattered_guide(plain), trace=HutchinsonTrace())
    ours = -terms(model, guide, data).elbo
    torch.testing.assert_close(
        loss(TraceMeanField_ELBO, model, guide, data), ours, rtol=1e-10, atol=0.0
    )


# ---- exact where exactness is known --------------------------------------------------------------
MATRIX = torch.tensor([[-0.3, 1.2], [-0.7, 0.2]], dtype=DOUBLE)


class Known(nn.Module):
    """A linear field without anything random, whose matrix no solver sees."""

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return VectorField(lambda t, x: x @ MATRIX, (MATRIX,))


def pushed(law: MultivariateNormal, elapsed: Tensor) -> MultivariateNormal:
    flow = torch.linalg.matrix_exp(MATRIX * elapsed)
    return MultivariateNormal(law.mean @ flow, flow.mT @ law.covariance_matrix @ flow)


def exact_case(kind: str):
    """The pair, its law of x0, and points whose means are exact for quadratic functions."""
    data, plain = random_data(kind), random_model(Known())
    plain.solver = bo.FixedGridSolver("rk4", step=0.01)
    model, guide = path_objective(plain, scattered_guide(plain))
    law = guide.posteriors(data)["x0"]
    spread = 2**0.5 * torch.diag_embed(law.base_dist.scale)  # (series, point, state)
    points = law.base_dist.loc.unsqueeze(-2) + torch.cat([spread, -spread], -2)
    laws = [
        MultivariateNormal(law.mean[i], torch.diag(law.variance[i])) for i in range(data.num_series)
    ]
    return model, guide, data, law, {"x0": points.movedim(-2, 0).detach()}, laws


@pytest.mark.parametrize("kind", ["plain", "own grids"])
def test_the_sum_of_divergences_is_exact_for_a_linear_field(kind: str):
    model, guide, data, law, values, laws = exact_case(kind)
    path = model.solve(Known().build({}), values, data).path
    found = guide.path_half.divergences(law, values, data, path)[TERM].mean(0)
    unit = MultivariateNormal(torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE))
    for series in range(4):
        times = data.grid[series, : data.num_times[series]] - data.start[series]
        each = [kl_divergence(pushed(laws[series], t), unit) for t in times if t > 0]
        exact = torch.stack(each).sum() if each else torch.zeros((), dtype=DOUBLE)
        torch.testing.assert_close(found[series], exact, rtol=0.0, atol=1e-6)


def test_the_divergence_from_the_prior_pushed_forward_is_that_at_the_start_at_all_times():
    model, guide, data, law, values, laws = exact_case("plain")
    prior = MultivariateNormal(
        torch.tensor([0.3, -0.2], dtype=DOUBLE), torch.diag(torch.tensor([1.0, 4.0])).double()
    )
    path = model.solve(Known().build({}), values, data).path
    log_density = guide.path_half.pushed_forward(law, values, data)[1]
    for series in range(4):
        for time in range(5):
            elapsed = data.grid[series, time] - data.start[series]
            log_prior = pushed(prior, elapsed).log_prob(path[:, series, time])
            found = (log_density[:, series, time] - log_prior).mean()
            exact = kl_divergence(laws[series], prior)
            torch.testing.assert_close(found, exact, rtol=0.0, atol=1e-6)
            wrong = 2 * law.log_prob(values["x0"])[:, series] - log_density[:, series, time]
            if elapsed > 0:  # the other sign of the trace
                assert ((wrong - log_prior).mean() - exact).abs() > 0.01


@pytest.mark.parametrize("seed", range(6))
def test_path_is_below_initial_on_random_models(seed: int):
    data, plain = random_data(), random_model()
    plain_guide = scattered_guide(plain, seed=seed)
    model, guide = path_objective(plain, plain_guide)
    torch.manual_seed(seed)
    each = [bo.elbo_terms(model, guide, data, num_particles=20) for _ in range(30)]
    extra = torch.stack([one.kl[TERM] for one in each]).detach()
    assert extra.mean() > 5 * extra.std() / 30**0.5
    strict = [one.log_likelihood - one.total_kl + one.kl[TERM] for one in each]
    assert torch.stack([one.elbo for one in each]).mean() < torch.stack(strict).mean()


def test_neither_the_start_nor_padding_counts():
    kept = later_times(random_data("own grids"))
    assert kept.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [1, 0, 0, 0, 0]]


def test_weights_of_times_weigh_their_divergences():
    data, plain = random_data(), random_model()
    model, guide = path_objective(plain, scattered_guide(plain))
    found = []
    for weights in ([0.0, 3.0, 0.0, 0.0, 0.0], [7.0, 0.0, 3.0, 3.0, 3.0], [1.0] * 5):
        torch.manual_seed(1)
        weight = torch.tensor(weights, dtype=DOUBLE).expand(4, 5)
        found.append(bo.elbo_terms(model, guide, data, time_weights=weight).kl[TERM])
    torch.testing.assert_close(found[0] + found[1], 3 * found[2])
    torch.testing.assert_close(found[2], terms(model, guide, data, 1).kl[TERM])


# ---- halves --------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", [Trace_ELBO, TraceMeanField_ELBO])
def test_one_half_alone_raises_in_pyro(way: type):
    data, plain_model = random_data(), random_model()
    plain_guide = scattered_guide(plain_model)
    model, guide = path_objective(plain_model, plain_guide)
    with pytest.raises(FitError, match=r"the guide has its half .* take both from path_objective"):
        loss(way, plain_model, guide, data)
    with pytest.raises(FitError, match=r"the model has its half .* take both from path_objective"):
        loss(way, model, plain_guide, data)
    assert loss(way, model, guide, data).isfinite()


def test_one_half_alone_raises_in_every_engine():
    data, plain_model = random_data(), random_model()
    plain_guide = scattered_guide(plain_model)
    model, guide = path_objective(plain_model, plain_guide)
    with pytest.raises(FitError, match="the guide has its half"):
        bo.elbo_terms(plain_model, guide, data)
    options = {"num_steps": 1, "warm_start": False, "progress": False}
    with pytest.raises(FitError, match="the model has its half"):
        bo.fit_svi(model, plain_guide, data, **options)
    with pytest.raises(FitError, match="the model has its half"):
        bo.fit_svi(model, AutoNormal(model), data, **options)
    with pytest.raises(FitError, match="the model has its half"):
        bo.fit_laplace(model, data, progress=False)
    with pytest.raises(FitError, match="the model has its half"):
        NUTS(model).setup(1, data)


def test_what_has_no_place_for_a_half_is_refused():
    model = random_model()
    guide = bo.MeanFieldGuide(model, random_data())
    pair = path_objective(model, guide)
    with pytest.raises(DataError, match="already"):
        path_objective(*pair)
    with pytest.raises(DataError, match="AutoNormal has no place"):
        path_objective(model, AutoNormal(model))
    assert model.path_half is None and guide.path_half is None


def test_a_question_without_values_is_simulated_as_ever():
    model, guide = path_objective(random_model(), scattered_guide(random_model()))
    question = random_data().at([0.5, 1.0])
    assert model(question).shape == (4, 2, 2)
    assert set(guide(question)) == {"field.weights", "likelihood.noise_scale", "x0"}


# ---- fits ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("guide_kind", ["mean-field", "amortized"])
def test_a_fit_maximises_it_and_predicts(guide_kind: str):
    data, plain = random_data(), random_model()
    model, guide = path_objective(plain, scattered_guide(plain, guide_kind))
    posterior = bo.fit_svi(
        model, guide, data, seed=0, num_steps=60, warm_start=False, batch_size=2, progress=False
    )
    before = terms(model, guide, data, 100)
    after = posterior.elbo_terms(num_particles=100)
    assert after.elbo > before.elbo + 10
    assert after.kl[TERM] < before.kl[TERM]
    assert posterior.model.path_half is not None
    assert posterior.guide.path_half.model is posterior.model
    assert posterior.predict(data.at([2.0]), num_draws=7, seed=0).values.shape == (7, 4, 1, 2)


def test_copies_keep_both_halves_together():
    plain = random_model()
    model, guide = copy.deepcopy(path_objective(plain, scattered_guide(plain)))
    assert guide.path_half.model is model
    assert loss(TraceMeanField_ELBO, model, guide, random_data()).isfinite()


def test_conditioning_and_files_keep_both_halves(tmp_path):
    times = torch.arange(8.0)
    phase = 0.5 * times + torch.arange(5.0).unsqueeze(-1)
    values = torch.stack([phase.cos(), phase.sin(), phase.cos() + phase.sin()], -1)
    data = bo.Trajectories(times, values)
    pair = path_objective(*bo.ode_vae(data, dim_latent=2, likelihood="gaussian", verbose=False))
    posterior = bo.fit_svi(*pair, data, seed=0, num_steps=2, num_particles=1, progress=False)
    found = posterior.elbo_terms(num_particles=4)
    assert TERM in found.kl
    new = bo.Trajectories(times[:4], values[:2, :4], series=["a", "b"])
    assert TERM in posterior.condition(new).elbo_terms(num_particles=4).kl
    posterior.save(tmp_path / "run")
    loaded = bo.load(tmp_path / "run", model=pair[0], guide=pair[1])
    torch.testing.assert_close(loaded.elbo_terms(num_particles=4).elbo, found.elbo)
    plain = bo.load(tmp_path / "run").elbo_terms(num_particles=4)
    assert TERM not in plain.kl
