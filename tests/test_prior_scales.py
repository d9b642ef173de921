"""Prior scales of a fit: fixed, latent, or set by the data."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import bayesode as bo
from bayesode.distributions import observed_law
from bayesode.inference import objectives
from bayesode.inference.empirical import NUM_FROZEN, EmpiricalScales, group_means
from bayesode.inference.warm_start import attempts as warm
from bayesode.models.contracts import Observe, Tuning, VectorField, without_plate

DOUBLE = torch.float64
NOISE = 0.3


@pytest.fixture(autouse=True)
def empty_store():
    with pyro.get_param_store().scope():
        yield


# ---- set by the data --------------------------------------------------------------------------
class Drift(nn.Module):
    """dz/ds = b, b ~ N(0, p^2), of which p may be tuned: paths are linear in b and x0."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((2,), scale, dtype=DOUBLE))

    def priors(self):
        return {"b": dist.Normal(torch.zeros_like(self.scale), self.scale).to_event(1)}

    def tunable(self):
        return {"b": Tuning(torch.zeros(2, dtype=torch.long), "scale")}

    def build(self, values, inputs=None):
        b = without_plate(values["b"]).unsqueeze(-2)
        return VectorField(lambda t, x: b + 0 * x, (b,))


class KnownNoise(nn.Module):
    def priors(self):
        return {}

    def build(self, values, inputs=None):
        def law(path, mask):
            return observed_law(dist.Normal(path, NOISE), mask, event_dim=2, fill=0.0)

        return Observe(law, lambda path: path)


def linear_problem():
    torch.manual_seed(0)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=Drift(),
        likelihood=KnownNoise(),
        solver=bo.FixedGridSolver("rk4", step=1.0),
    ).double()
    times = torch.linspace(0.0, 3.0, 4, dtype=DOUBLE)
    values = torch.randn(4, 1, 2, dtype=DOUBLE) + torch.tensor([0.2, -0.4]) * times[:, None]
    train = bo.Trajectories(times, values + NOISE * torch.randn(values.shape, dtype=DOUBLE))
    guide = bo.MeanFieldGuide(model, train)
    guide.set_site("field.b", torch.zeros(2), torch.full((2,), 0.05))
    guide.set_site("x0", train.values[:, 0], torch.full((4, 2), 0.1))
    return model, guide, train


def exact_optimum(train: bo.Trajectories) -> tuple[torch.Tensor, float]:
    """Posterior mean of x0 and b (5, 2) at the fixed point of p^2 = mean(m(p)^2 + s(p)^2), and p.

    m and s are those of the mean-field optimum under b ~ N(0, p^2).
    """
    times, scale, mean = train.times, 1.0, torch.zeros(5, 2, dtype=DOUBLE)
    for _ in range(100):
        precision = torch.diag(torch.full((5,), 4 / NOISE**2 + 1 / 4.0, dtype=DOUBLE))
        precision[:4, -1] = precision[-1, :4] = times.sum() / NOISE**2
        precision[-1, -1] = 4 * times.square().sum() / NOISE**2 + scale**-2
        by_time = (train.values * times[:, None]).sum((0, 1))
        pull = torch.cat([train.values.sum(1), by_time[None]]) / NOISE**2
        mean = torch.linalg.solve(precision, pull)
        scale = float((mean[-1].square().mean() + 1 / precision[-1, -1]).sqrt())
    return mean, scale


def fit(model, guide, train, **settings) -> bo.Posterior:
    settings = {"seed": 0, "warm_start": False, "progress": False} | settings
    return bo.fit_svi(model, guide, train, **settings)


def empirical(model, guide, train, **settings) -> bo.Posterior:
    return fit(model, guide, train, prior_scale="empirical", **settings)


def test_the_scale_is_the_fixed_point_of_type_two_likelihood():
    model, guide, train = linear_problem()
    mean, exact = exact_optimum(train)
    assert exact < 0.6  # the prior's own is 1
    guide.set_site("field.b", mean[-1], torch.full((2,), 0.1))  # too wide
    guide.set_site("x0", mean[:-1], torch.full((4, 2), 0.3))
    posterior = empirical(model, guide, train, num_steps=150, num_particles=16)
    found = posterior.model.field.scale
    assert (found / exact).log().abs().max() < 0.03
    assert torch.equal(model.field.scale, torch.ones(2, dtype=DOUBLE))
    assert posterior.settings["prior_scale"] == "empirical"


def test_no_other_scale_has_a_higher_elbo():
    """The closed form is the optimum of the ELBO over the scale: the KL alone depends on it."""
    model, guide, train = linear_problem()
    guide.set_site("field.b", torch.tensor([0.2, -0.4]), torch.tensor([0.05, 0.1]))
    EmpiricalScales(model, guide, train).update()
    best = model.field.scale.clone()

    def divergence(factor: float) -> float:
        model.field.scale.copy_(factor * best)
        with torch.no_grad():
            return float(bo.elbo_terms(model, guide, train).kl["field.b"])

    assert divergence(1.0) < min(divergence(1.01), divergence(0.99))


def test_groups_have_scales_of_their_own():
    values, groups = torch.tensor([1.0, 3.0, 5.0, 8.0]), torch.tensor([0, 0, 2, 2])
    assert group_means(values, groups).tolist() == [2.0, 2.0, 6.5, 6.5]


def scales_by_step(monkeypatch, **settings) -> tuple[list[float], bo.Posterior]:
    """The prior scale under which each step was taken."""
    loss, seen = objectives.TermsObjective.loss, []

    def spy(self, batch, num_particles):
        if torch.is_grad_enabled():  # looks at the ELBO are no steps
            seen.append(self.model.field.scale[0].item())
        return loss(self, batch, num_particles)

    monkeypatch.setattr(objectives.TermsObjective, "loss", spy)
    return seen, empirical(*linear_problem(), **settings)


def test_the_scale_is_frozen_in_the_last_50_steps(monkeypatch):
    seen, posterior = scales_by_step(monkeypatch, num_steps=80)
    assert len(seen) == 80
    assert len(set(seen[: 80 - NUM_FROZEN])) == 30
    assert set(seen[80 - NUM_FROZEN - 1 :]) == {posterior.model.field.scale[0].item()}


def test_it_is_frozen_too_where_the_number_of_steps_is_not_known(monkeypatch):
    seen, posterior = scales_by_step(monkeypatch, learning_rate=0.1)
    assert posterior.history.is_converged
    assert set(seen[-NUM_FROZEN - 1 :]) == {posterior.model.field.scale[0].item()}
    assert len(set(seen[-100:-NUM_FROZEN])) == 50


def test_a_network_keeps_its_tuned_scales_in_the_file(tmp_path):
    train = bo.datasets.van_der_pol(num_series=2, num_times=12).observed
    model, guide = bo.neural_ode(train, hidden=[3], verbose=False)
    posterior = empirical(model, guide, train, num_steps=52)
    sd = posterior.model.field.prior_sd
    assert len(sd.unique()) == 4  # two matrices, two biases
    loaded = bo.load(posterior.save(tmp_path / "run"))
    assert torch.equal(loaded.model.field.prior_sd, sd)
    assert loaded.settings["prior_scale"] == "empirical"


def test_what_cannot_be_tuned_is_one_clear_error():
    model, guide, train = linear_problem()
    with pytest.raises(bo.DataError, match="prior_scale must be one of"):
        fit(model, guide, train, prior_scale="wide")
    with pytest.raises(bo.DataError, match="num_steps=50 leaves none"):
        empirical(model, guide, train, num_steps=50)
    with pytest.raises(bo.FitError, match=r"AutoNormal does not tell: take MeanFieldGuide"):
        empirical(model, AutoNormal(model), train)
    with pytest.raises(bo.DataError, match=r"build it so, BayesianMLP\(..., hierarchical=True\)"):
        fit(model, guide, train, prior_scale="hierarchical")
    latent = hierarchical_model()
    with pytest.raises(bo.DataError, match=r"needs a part with tunable\(\)"):
        empirical(latent, bo.MeanFieldGuide(latent, data()), data())


# ---- latent -----------------------------------------------------------------------------------
def data() -> bo.Trajectories:
    torch.manual_seed(7)
    times = torch.tensor([0.0, 0.4, 0.9, 1.5, 1.6], dtype=DOUBLE)
    return bo.Trajectories(times, torch.randn(4, 5, 2, dtype=DOUBLE))


def hierarchical_model() -> bo.DynamicalModel:
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.BayesianMLP(2, [3], 2, hierarchical=True, prior_scale=1.5),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.25),
    ).double()


def hierarchical_guide(model: bo.DynamicalModel) -> bo.MeanFieldGuide:
    guide = bo.MeanFieldGuide(model, data())
    torch.manual_seed(8)
    guide.set_site("field.scale", 1 + torch.rand(4), torch.full((4,), 0.3))
    guide.set_site("field.weights", torch.randn(17), torch.full((17,), 0.3))
    guide.set_site("likelihood.noise_scale", torch.tensor([0.8, 1.2]), torch.tensor([0.2, 0.3]))
    guide.set_site("x0", torch.randn(4, 2), torch.full((4, 2), 0.3))
    return guide


def pyro_elbo(way: type, num_particles: int):
    return way(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)


@pytest.mark.parametrize("num_particles", [1, 5])
def test_latent_scales_have_the_same_elbo_in_both_ways_draw_by_draw(num_particles: int):
    model, train = hierarchical_model(), data()
    guide = hierarchical_guide(model)
    torch.manual_seed(1)
    terms = bo.elbo_terms(model, guide, train, num_particles=num_particles)
    torch.manual_seed(1)
    loss = pyro_elbo(TraceMeanField_ELBO, num_particles).differentiable_loss(model, guide, train)
    torch.testing.assert_close(terms.elbo, -loss, rtol=1e-10, atol=1e-10)
    assert all(terms.is_closed_form.values())
    parameters = list(guide.parameters())
    mine, theirs = (torch.autograd.grad(x, parameters) for x in (terms.elbo, -loss))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_divergence_of_weights_is_that_of_textbooks_given_the_scale():
    model, train = hierarchical_model(), data()
    guide = hierarchical_guide(model)
    torch.manual_seed(1)
    kl = bo.elbo_terms(model, guide, train, num_particles=20_000).kl["field.weights"].item()
    # E[log p] and E[1/p^2] of a LogNormal p are known: mean over the drawn scales in closed form
    location, spread = guide.sites.moments("field.scale")
    groups, (mean, sd) = model.field.layout.groups, guide.sites.moments("field.weights")
    unit = model.field.prior_sd / 1.5
    log_scale = location[groups] + unit.log()
    inverse = (-2 * location + 2 * spread**2).exp()[groups] / unit**2
    exact = log_scale - sd.log() + (sd**2 + mean**2) * inverse / 2 - 0.5
    terms = ((sd**2 + mean**2) * inverse).detach()
    error = float(terms.sum()) * 0.8 / math.sqrt(20_000)  # sd of 1/p^2 is .66 of its mean
    assert abs(kl - exact.sum().item()) < 5 * error


def test_both_of_pyros_elbos_agree_on_average():
    """Five standard errors: false alarm 6e-7."""
    model, train = hierarchical_model(), data()
    guide = hierarchical_guide(model)
    torch.manual_seed(2)
    means = []
    with torch.no_grad():
        for way in (Trace_ELBO, TraceMeanField_ELBO):
            values = [-pyro_elbo(way, 100).loss(model, guide, train) for _ in range(30)]
            means.append((torch.tensor(values).mean(), torch.tensor(values).std() / 30**0.5))
    (a, ea), (b, eb) = means
    assert abs(a - b) < 5 * math.hypot(ea, eb)


def test_latent_scales_are_learned_from_a_warm_start_and_by_a_stock_guide(monkeypatch):
    monkeypatch.setattr(warm, "MAX_ATTEMPTS", 1)
    train = bo.datasets.van_der_pol(num_series=2, num_times=10, seed=1).observed.to(dtype=DOUBLE)
    plain, _ = bo.neural_ode(train, hidden=[3], verbose=False)
    model = bo.DynamicalModel(
        initial=plain.initial,
        field=bo.BayesianMLP(2, [3], 2, hierarchical=True),
        likelihood=plain.likelihood,
        solver=plain.solver,
        units=plain.units,
    ).double()
    guide = bo.MeanFieldGuide(model, train)
    settings = {"warm_start": True, "prior_scale": "hierarchical", "num_steps": 20}
    posterior = fit(model, guide, train, **settings)
    assert posterior.history.start_ratio is not None
    assert posterior.settings["prior_scale"] == "hierarchical"
    before, after = (
        guide.sites.moments("field.scale")[1],
        posterior.guide.sites.moments("field.scale")[1],
    )
    assert (before != after).all()
    drawn = posterior.draws(5, seed=0)
    assert drawn["field.scale"].shape == (5, 4)
    stock = fit(model, AutoNormal(model), train, **settings | {"num_steps": 5})
    assert stock.draws(5, seed=0)["field.scale"].shape == (5, 4)
