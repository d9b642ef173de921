"""The evidence lower bound: three ways to it agree, and it is exact where exactness is known."""

from __future__ import annotations

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import bayesode as bo
from bayesode.distributions import observed_law
from bayesode.models.contracts import Observe, VectorField, without_plate

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def empty_store():
    with pyro.get_param_store().scope():
        yield


# ---- a model with everything random, and data of every shape ------------------------------------
def random_data(kind: str) -> bo.Trajectories:
    torch.manual_seed(7)
    times = torch.tensor([0.0, 0.4, 0.9, 1.5, 1.6], dtype=DOUBLE)
    values = torch.randn(4, 5, 2, dtype=DOUBLE)
    if kind == "masked":
        values[0, 1, 0] = values[2, 3:] = math.nan
        return bo.Trajectories(times, values, mask=torch.rand(4, 5) > 0.2)
    if kind == "own grids":
        own = (
            times * torch.tensor([[1.0], [0.5], [1.2], [0.8]], dtype=DOUBLE)
            + torch.arange(4)[:, None]
        )
        return bo.Trajectories(own, values, num_times=[5, 3, 4, 1], start=torch.arange(4.0) - 0.3)
    data = bo.Trajectories(times, values)
    return data.batch(torch.tensor([3, 1])) if kind == "minibatch" else data


def random_model(likelihood: nn.Module | None = None) -> bo.DynamicalModel:
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.BayesianMLP(2, [3], 2, prior_scale=1.0),
        likelihood=likelihood or bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.25),
    ).double()


def scattered_guide(model: bo.DynamicalModel) -> bo.MeanFieldGuide:
    """A guide away from every special value: all gradients differ from 0."""
    guide = bo.MeanFieldGuide(model, random_data("plain"))
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter))
    return guide


def pyro_elbo(way: type, num_particles: int) -> Trace_ELBO:
    return way(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("num_particles", [1, 5])
@pytest.mark.parametrize("kind", ["plain", "masked", "own grids", "minibatch"])
def test_terms_and_pyros_mean_field_elbo_agree_draw_by_draw(kind: str, num_particles: int):
    model, data = random_model(), random_data(kind)
    guide = scattered_guide(model)
    torch.manual_seed(1)
    ours = -bo.elbo_terms(model, guide, data, num_particles=num_particles).elbo
    torch.manual_seed(1)
    theirs = pyro_elbo(TraceMeanField_ELBO, num_particles).differentiable_loss(model, guide, data)
    assert relative(ours, theirs) < 1e-10
    parameters = list(guide.parameters())
    pairs = zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    )
    assert all(relative(a, b) < 1e-10 for a, b in pairs)


class PositivePrior(bo.GaussianLikelihood):
    """Noise scales whose priors have no closed-form KL to a log-normal."""

    def __init__(self, law: dist.TorchDistribution) -> None:
        super().__init__(2)
        self.law = law

    def priors(self):
        return {"noise_scale": self.law}


PRIORS = {
    "half-normal": dist.HalfNormal(torch.full((2,), 0.5, dtype=DOUBLE)).to_event(1),
    "gamma": dist.Gamma(torch.full((2,), 2.0, dtype=DOUBLE), torch.ones(2).double()).to_event(1),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_estimated_terms_agree_with_pyros_estimates(prior: str):
    model, data = random_model(PositivePrior(PRIORS[prior])), random_data("masked")
    guide = scattered_guide(model)
    torch.manual_seed(1)
    ours = bo.elbo_terms(model, guide, data, num_particles=3)
    torch.manual_seed(1)
    theirs = pyro_elbo(TraceMeanField_ELBO, 3).differentiable_loss(model, guide, data)
    assert relative(-ours.elbo, theirs) < 1e-10
    assert ours.is_closed_form == {
        "field.weights": True,
        "likelihood.noise_scale": False,
        "x0": True,
    }
    assert "KL likelihood.noise_scale" in str(ours)
    assert str(ours).count("estimated from draws") == 1


@pytest.mark.parametrize("is_copied", [False, True])
def test_normal_and_lognormal_divergences_do_not_depend_on_the_draws(is_copied: bool):
    model, data = random_model(), random_data("plain")
    guide = scattered_guide(model)
    guide = copy.deepcopy(guide) if is_copied else guide
    terms = [bo.elbo_terms(model, guide, data, num_particles=n) for n in (1, 3)]
    assert all(terms[0].is_closed_form.values())
    for site, value in terms[0].kl.items():
        torch.testing.assert_close(value, terms[1].kl[site], rtol=1e-12, atol=0.0)
    assert "estimated" not in str(terms[0])


class Shared:
    """A guide whose series have one law of x0 in common."""

    def __init__(self, guide: bo.MeanFieldGuide) -> None:
        self.guide = guide

    def posteriors(self, trajectories: bo.Trajectories):
        law = dist.Normal(torch.tensor([0.5, -1.0], dtype=DOUBLE), 0.3).to_event(1)
        return self.guide.posteriors(trajectories) | {"x0": law}

    def __call__(self, trajectories: bo.Trajectories) -> None:
        laws = self.posteriors(trajectories)
        for site in ("field.weights", "likelihood.noise_scale"):
            pyro.sample(site, laws[site])
        with trajectories.plate():
            pyro.sample("x0", laws["x0"])


@pytest.mark.parametrize("kind", ["plain", "minibatch"])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_law_that_the_series_share_counts_for_each_of_them(kind: str, num_particles: int):
    model, data = random_model(), random_data(kind)
    guide = Shared(scattered_guide(model))
    torch.manual_seed(1)
    ours = bo.elbo_terms(model, guide, data, num_particles=num_particles)
    torch.manual_seed(1)
    theirs = pyro_elbo(TraceMeanField_ELBO, num_particles).loss(model, guide, data)
    assert -ours.elbo.item() == pytest.approx(theirs, rel=1e-10)


def test_divergences_are_those_of_textbooks():
    model, data = random_model(), random_data("plain")
    guide = scattered_guide(model)
    kl = bo.elbo_terms(model, guide, data).kl
    prior_sd = {
        "field.weights": (0.0, model.field.prior_sd),
        "likelihood.noise_scale": (model.likelihood.log_median, model.likelihood.log_scale),
        "x0": (model.initial.mean, model.initial.deviation),
    }
    for site, (mean, sd) in prior_sd.items():
        location, scale = guide.sites.moments(site)
        exact = (sd / scale).log() + (scale**2 + (location - mean) ** 2) / (2 * sd**2) - 0.5
        torch.testing.assert_close(kl[site], exact.sum(), rtol=1e-12, atol=0.0)


def estimates(estimate, num_batches: int = 40) -> tuple[float, float]:
    """Mean and standard error of independent estimates."""
    values = torch.tensor([float(estimate()) for _ in range(num_batches)], dtype=DOUBLE)
    return values.mean().item(), (values.std() / math.sqrt(num_batches)).item()


def agree(*pairs: tuple[float, float]) -> bool:
    """Whether independent means lie within 5 standard errors of the first (false alarm 6e-7)."""
    mean, error = pairs[0]
    return all(abs(m - mean) < 5 * math.hypot(e, error) for m, e in pairs[1:])


def tame_guide(model: bo.DynamicalModel) -> bo.MeanFieldGuide:
    """Noise and scales so moderate that an estimate has a small standard error."""
    guide = bo.MeanFieldGuide(model, random_data("plain"))
    torch.manual_seed(8)
    guide.set_site("field.weights", torch.randn(17), torch.full((17,), 0.3))
    guide.set_site("likelihood.noise_scale", torch.tensor([0.8, 1.2]), torch.tensor([0.2, 0.3]))
    guide.set_site("x0", torch.randn(4, 2), torch.full((4, 2), 0.3))
    return guide


@pytest.mark.parametrize("kind", ["masked", "own grids", "minibatch"])
def test_all_three_ways_agree_on_average(kind: str):
    model, data = random_model(), random_data(kind)
    guide = tame_guide(model)
    torch.manual_seed(2)
    means = [
        estimates(lambda w=way: -pyro_elbo(w, 100).loss(model, guide, data))
        for way in (Trace_ELBO, TraceMeanField_ELBO)
    ]
    with torch.no_grad():
        ours = estimates(lambda: bo.elbo_terms(model, guide, data, num_particles=100).elbo)
    assert ours[1] < 0.5
    assert agree(ours, *means)


def test_a_stock_autonormal_has_the_elbo_of_the_same_mean_field_guide():
    model, data = random_model(), random_data("masked")
    guide, stock = tame_guide(model), AutoNormal(model)
    stock(data)
    for site in ("field.weights", "likelihood.noise_scale", "x0"):
        location, scale = guide.sites.moments(site)
        for module, value in ((stock.locs, location), (stock.scales, scale)):
            *names, last = site.split(".")
            for name in names:
                module = getattr(module, name)
            setattr(module, last, value.detach().clone())
    torch.manual_seed(3)
    means = [
        estimates(lambda w=way: -pyro_elbo(w, 100).loss(model, stock, data))
        for way in (Trace_ELBO, TraceMeanField_ELBO)
    ]
    with torch.no_grad():
        ours = estimates(lambda: bo.elbo_terms(model, guide, data, num_particles=100).elbo)
    assert agree(ours, *means)


# ---- a linear model: everything is known in closed form -----------------------------------------
class Drift(nn.Module):
    """dx/dt = A x + drift, with a Gaussian drift: the path is linear in drift and x0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.tensor([[-0.3, 1.0], [-1.0, -0.1]], dtype=DOUBLE))
        self.register_buffer("covariance", torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=DOUBLE))

    def priors(self):
        return {"drift": dist.MultivariateNormal(torch.zeros(2, dtype=DOUBLE), self.covariance)}

    def build(self, values, inputs=None):
        drift = without_plate(values["drift"]).unsqueeze(-2)
        return VectorField(lambda t, x: x @ self.matrix.mT + drift, (drift,))


class CorrelatedInitial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, -1.0], dtype=DOUBLE))
        self.register_buffer("covariance", torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE))

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return dist.MultivariateNormal(self.mean, self.covariance)


class KnownNoise(nn.Module):
    scale = 0.3

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        def law(path, mask):
            return observed_law(dist.Normal(path, self.scale), mask, event_dim=2, fill=0.0)

        return Observe(law, lambda path: path)


def linear_model() -> bo.DynamicalModel:
    return bo.DynamicalModel(
        initial=CorrelatedInitial(),
        field=Drift(),
        likelihood=KnownNoise(),
        solver=bo.FixedGridSolver("rk4", step=0.2),
    )


class Conjugate:
    """Exact posterior of drift and x0 given data, as a guide; and the exact log evidence.

    One series is y = H x0 + G drift + noise, with H and G the solver's own linear maps.
    """

    def __init__(self, model: bo.DynamicalModel, data: bo.Trajectories) -> None:
        self.data, noise = data, KnownNoise.scale**2
        mean, prior = model.initial.mean, model.initial.covariance
        maps = [self._maps(model, row) for row in range(data.num_series)]
        precision, pull = torch.linalg.inv(model.field.covariance), torch.zeros(2, dtype=DOUBLE)
        self.shifts, self.slopes, self.covariances, self.log_evidence = [], [], [], 0.0
        conditional = []
        for h, g, y in maps:  # y | drift ~ N(h mean + g drift, h prior h' + noise)
            marginal = h @ prior @ h.mT + noise * torch.eye(len(y), dtype=DOUBLE)
            precision = precision + g.mT @ torch.linalg.solve(marginal, g)
            pull = pull + g.mT @ torch.linalg.solve(marginal, y - h @ mean)
            gain = prior @ h.mT @ torch.linalg.inv(marginal)
            self.shifts.append(mean + gain @ (y - h @ mean))
            self.slopes.append(-gain @ g)
            self.covariances.append(prior - gain @ h @ prior)
            conditional.append((h @ mean, g, marginal, y))
        self.drift = dist.MultivariateNormal(
            torch.linalg.solve(precision, pull), torch.linalg.inv(precision)
        )
        joint_mean = torch.cat([m for m, _, _, _ in conditional])
        g = torch.cat([g for _, g, _, _ in conditional])
        joint = torch.block_diag(*[m for _, _, m, _ in conditional])
        joint = joint + g @ model.field.covariance @ g.mT
        y = torch.cat([y for _, _, _, y in conditional])
        self.log_evidence = dist.MultivariateNormal(joint_mean, joint).log_prob(y).item()

    def _maps(self, model: bo.DynamicalModel, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """The path of one series is linear: its columns are the paths of unit vectors."""
        one = self.data.rows(torch.tensor([row]))
        seen = one.mask[0].flatten()

        def path(x0: Tensor, drift: Tensor) -> Tensor:
            field = model.field.build({"drift": drift})
            return model.solve(field, {"x0": x0.unsqueeze(0)}, one).path[0].flatten()[seen]

        zero, units = torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)
        h = torch.stack([path(unit, zero) for unit in units], -1)
        g = torch.stack([path(zero, unit) for unit in units], -1)
        return h, g, one.values[0].flatten()[seen]

    def posteriors(self, trajectories: bo.Trajectories):
        def x0(values):
            drift = without_plate(values["field.drift"]).unsqueeze(-2)
            slopes, shifts = torch.stack(self.slopes), torch.stack(self.shifts)
            location = shifts + (slopes @ drift.unsqueeze(-1)).squeeze(-1)
            return dist.MultivariateNormal(location, torch.stack(self.covariances))

        return {"field.drift": self.drift, "x0": x0}

    def __call__(self, trajectories: bo.Trajectories) -> None:
        laws = self.posteriors(trajectories)
        values = {"field.drift": pyro.sample("field.drift", laws["field.drift"])}
        with trajectories.plate():
            pyro.sample("x0", laws["x0"](values))


@pytest.fixture(scope="module")
def linear() -> tuple[bo.DynamicalModel, bo.Trajectories, Conjugate]:
    model, data = linear_model(), random_data("masked")
    return model, data, Conjugate(model, data)


def test_with_the_exact_posterior_every_draw_of_the_elbo_is_the_log_evidence(linear):
    model, data, exact = linear
    torch.manual_seed(4)
    for num_particles in (1, 1, 1, 7):
        loss = pyro_elbo(Trace_ELBO, num_particles).loss(model, exact, data)
        assert abs(-loss - exact.log_evidence) < 1e-6


def test_closed_form_ways_give_the_log_evidence_in_expectation(linear, monkeypatch):
    """Sigma points integrate quadratics exactly, and these log likelihoods are quadratic."""
    model, data, exact = linear
    corners = 2 * torch.cat([torch.eye(4, dtype=DOUBLE), -torch.eye(4, dtype=DOUBLE)])

    def sigma_points(shape, dtype, device):
        own = corners[:, :2] if shape[-2] == 1 else corners[:, 2:]
        return own.unsqueeze(1).expand(shape)

    monkeypatch.setattr("torch.distributions.multivariate_normal._standard_normal", sigma_points)
    terms = bo.elbo_terms(model, exact, data, num_particles=8)
    assert all(terms.is_closed_form.values())
    assert abs(terms.elbo.item() - exact.log_evidence) < 1e-6
    loss = pyro_elbo(TraceMeanField_ELBO, 8).loss(model, exact, data)
    assert abs(-loss - exact.log_evidence) < 1e-6


def test_any_other_guide_stays_below_the_log_evidence(linear):
    model, data, exact = linear
    exact = copy.copy(exact)
    exact.covariances = [1.2 * covariance for covariance in exact.covariances]
    torch.manual_seed(5)
    mean, error = estimates(lambda: bo.elbo_terms(model, exact, data, num_particles=200).elbo, 20)
    # KL of a 2-d Gaussian from one with 1.2 times its covariance, once per series
    gap = 4 * (1.2 - 1 - math.log(1.2))
    assert agree((exact.log_evidence - gap, 0.0), (mean, error))


# ---- minibatches --------------------------------------------------------------------------------
def every_batch(data: bo.Trajectories, size: int) -> list[bo.Trajectories]:
    rows = itertools.combinations(range(data.num_series), size)
    return [data.batch(torch.tensor(batch)) for batch in rows]


@pytest.mark.parametrize("kind", ["masked", "own grids"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_minibatches_average_to_the_full_elbo(kind: str, size: int, monkeypatch):
    model, data = random_model(), random_data(kind)
    guide = scattered_guide(model)
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal",
        lambda shape, dtype, device: torch.ones(shape, dtype=dtype, device=device),
    )
    full = bo.elbo_terms(model, guide, data)
    parts = [bo.elbo_terms(model, guide, batch) for batch in every_batch(data, size)]
    for read in (lambda t: t.log_likelihood, lambda t: t.kl["x0"], lambda t: t.elbo):
        mean = torch.stack([read(part) for part in parts]).mean()
        torch.testing.assert_close(mean, read(full), rtol=1e-12, atol=0.0)
    for part in parts:
        for site in ("field.weights", "likelihood.noise_scale"):
            assert part.kl[site] == full.kl[site]


@pytest.mark.parametrize("size", [1, 3])
def test_the_programs_density_is_unbiased_under_minibatches(size: int):
    model, data = random_model(), random_data("masked")
    guide = scattered_guide(model)
    laws = guide.posteriors(data)
    latent = {site: law.mean for site, law in laws.items()}

    def density(program, batch: bo.Trajectories) -> Tensor:
        values = latent | {"x0": latent["x0"][batch.index]}
        return pyro.poutine.trace(pyro.condition(program, values)).get_trace(batch).log_prob_sum()

    for program in (model, guide):
        parts = torch.stack([density(program, batch) for batch in every_batch(data, size)])
        assert parts.std() > 0.1
        torch.testing.assert_close(parts.mean(), density(program, data), rtol=1e-12, atol=0.0)


def test_guide_and_model_take_the_rows_of_the_batch():
    model, data = random_model(), random_data("plain")
    guide = scattered_guide(model)
    rows = torch.tensor([2, 0])
    batch = data.batch(rows)
    traces = [pyro.poutine.trace(program).get_trace(batch) for program in (guide, model)]
    for trace in traces:
        assert trace.nodes["trajectories"]["value"].tolist() == [2, 0]
    location = traces[0].nodes["x0"]["fn"].base_dist.loc
    assert torch.equal(location, guide.sites.moments("x0")[0][rows])
    assert torch.equal(traces[1].nodes["values"]["value"], data.values[rows])


def test_no_particle_is_one_clear_error():
    model, data = random_model(), random_data("plain")
    with pytest.raises(bo.DataError, match="num_particles must be positive"):
        bo.elbo_terms(model, scattered_guide(model), data, num_particles=0)


def test_particles_share_one_solve():
    model, data = random_model(), random_data("plain")
    counts = []
    for num_particles in (1, 6):
        solution = bo.elbo_terms(
            model, scattered_guide(model), data, num_particles=num_particles
        ).solution
        assert solution.path.shape == (num_particles, 4, 5, 2)
        counts.append(solution.num_evaluations)
    assert counts[0] == counts[1]


def test_masked_values_do_not_matter():
    model, data = random_model(), random_data("masked")
    guide, elbos = scattered_guide(model), []
    for hidden in (0.0, 1e30, math.nan):
        values = torch.where(data.mask, data.values, hidden)
        other = bo.Trajectories(data.times, values, mask=data.mask)
        torch.manual_seed(6)
        elbo = bo.elbo_terms(model, guide, other).elbo
        gradients = torch.autograd.grad(elbo, list(guide.parameters()))
        elbos.append([elbo.item(), *(g.sum().item() for g in gradients)])
    assert elbos[0] == elbos[1] == elbos[2]
    assert all(map(math.isfinite, elbos[0]))
