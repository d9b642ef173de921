"""The generative program as a Pyro model."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from torch import nn

from bayesode.errors import DataError, ShapeError
from bayesode.models import DynamicalModel, NormalInitial
from bayesode.models.contracts import VectorField, without_plate
from bayesode.models.dynamical import median
from bayesode.models.fields import BayesianMLP
from bayesode.models.likelihoods import GaussianLikelihood, LogNormalLikelihood
from bayesode.models.solvers import FixedGridSolver, ODESolver
from bayesode.trajectories import Trajectories
from bayesode.units import Units

GLOBAL = ["field.weights", "likelihood.noise_scale"]


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def make(**parts):
    """A small neural ODE; 17 weights."""
    return DynamicalModel(
        **{
            "initial": NormalInitial(2),
            "field": BayesianMLP(2, [3], 2, prior_scale=1.0),
            "likelihood": GaussianLikelihood(2),
            "solver": FixedGridSolver("rk4", 0.25),
        }
        | parts
    )


def data(num_series=4, *, missing=True):
    times = torch.tensor([0.0, 0.3, 0.7, 1.0, 1.6])
    values = 2 + torch.rand(num_series, 5, 2)
    if missing:
        values[0, 2, 1] = torch.nan
        values[1, 3:] = torch.nan
    labels = [f"s{row}" for row in range(num_series)]
    return Trajectories(times, values, series=labels, names=["a", "b"], start=-0.5)


def question(num_series=4):
    return data(num_series).at([0.5, 2.0, 3.0])


def trace_of(model, trajectories, *, num_particles=None, **values):
    """A trace with all log densities, under vectorised particles if asked."""
    conditioned = poutine.condition(model, {k.replace("__", "."): v for k, v in values.items()})
    if num_particles is None:
        trace = poutine.trace(conditioned).get_trace(trajectories)
    else:
        with pyro.plate("particles", num_particles, dim=-2):
            trace = poutine.trace(conditioned).get_trace(trajectories)
    trace.compute_log_prob()
    return trace


def shapes(trace):
    return {
        site: tuple(node["value"].shape)
        for site, node in trace.nodes.items()
        if node["type"] == "sample" and not site.startswith(("trajectories", "particles"))
    }


# ---- the program --------------------------------------------------------------------------------
def test_every_site_is_drawn_once_in_order():
    trace = trace_of(make(), data())
    drawn = [site for site, node in trace.nodes.items() if node["type"] == "sample"]
    assert drawn == [*GLOBAL, "trajectories", "x0", "path", "values"]
    assert shapes(trace) == {
        "field.weights": (17,),
        "likelihood.noise_scale": (2,),
        "x0": (4, 2),
        "path": (4, 5, 2),
        "values": (4, 5, 2),
    }


@pytest.mark.parametrize("num_particles", [1, 3])
def test_particles_lead_every_shape(num_particles):
    trace = trace_of(make(), question(), num_particles=num_particles)
    assert shapes(trace) == {
        "field.weights": (num_particles, 1, 17),
        "likelihood.noise_scale": (num_particles, 1, 2),
        "x0": (num_particles, 4, 2),
        "path": (num_particles, 4, 3, 2),
        "values": (num_particles, 4, 3, 2),
    }


def test_local_sites_stand_in_the_plate_of_series_and_global_ones_do_not():
    trace = trace_of(make(), data())
    plates = {
        site: [(f.name, f.dim, f.size) for f in node["cond_indep_stack"]]
        for site, node in trace.nodes.items()
        if node["type"] == "sample"
    }
    for site in GLOBAL:
        assert plates[site] == []
    for site in ("x0", "path", "values"):
        assert plates[site] == [("trajectories", -1, 4)]


def test_the_joint_density_is_that_of_the_parts():
    model, train = make(), data()
    values = {
        "field__weights": 0.3 * torch.randn(17),
        "likelihood__noise_scale": torch.tensor([0.3, 0.6]),
        "x0": torch.randn(4, 2),
    }
    trace = trace_of(model, train, **values)
    weights, noise, x0 = values.values()
    matrix, bias = weights[:6].view(3, 2), weights[6:9]
    outer, last = weights[9:15].view(2, 3), weights[15:]
    field = VectorField(lambda t, x: torch.tanh(x @ matrix.T + bias) @ outer.T + last)
    path = FixedGridSolver("rk4", 0.25)(field, x0, train.start, train.grid)
    normal = torch.distributions.Normal
    expected = {
        "x0": normal(0.0, 2.0).log_prob(x0).sum(),
        "values": torch.where(
            train.mask, normal(path, noise).log_prob(torch.nan_to_num(train.values)), 0.0
        ).sum(),
        "likelihood.noise_scale": torch.distributions.LogNormal(math.log(0.3), 1.0)
        .log_prob(noise)
        .sum(),
        "field.weights": normal(0.0, model.field.prior_sd).log_prob(weights).sum(),
    }
    torch.testing.assert_close(trace.nodes["path"]["value"], path, rtol=1e-12, atol=1e-12)
    for site, density in expected.items():
        torch.testing.assert_close(trace.nodes[site]["log_prob_sum"], density, rtol=1e-7, atol=0)
    torch.testing.assert_close(trace.log_prob_sum(), sum(expected.values()), rtol=1e-7, atol=0)


def test_particles_at_once_are_the_particles_one_by_one():
    model, train = make(), data()
    weights, noise, x0 = torch.randn(3, 1, 17), torch.rand(3, 1, 2), torch.randn(3, 4, 2)
    values = {"field__weights": weights, "likelihood__noise_scale": noise, "x0": x0}
    together = trace_of(model, train, num_particles=3, **values)
    for index in range(3):
        alone = trace_of(
            model,
            train,
            field__weights=weights[index, 0],
            likelihood__noise_scale=noise[index, 0],
            x0=x0[index],
        )
        for site in ("x0", "values"):
            torch.testing.assert_close(
                together.nodes[site]["log_prob"][index], alone.nodes[site]["log_prob"]
            )


def test_a_conditioned_initial_state_serves_all_particles():
    trace = trace_of(make(), data(), num_particles=3, x0=torch.randn(4, 2))
    assert shapes(trace)["path"] == (3, 4, 5, 2)
    assert trace.nodes["values"]["log_prob"].shape == (3, 4)


@pytest.mark.parametrize("solver", [FixedGridSolver("rk4", 0.25), ODESolver()])
def test_nothing_is_drawn_inside_the_solver(solver):
    model, train = make(solver=solver), data()
    values = {site: value.sample() for site, value in model.global_priors().items()}
    _, field, _ = model.build(values, train)
    before = torch.get_rng_state()
    with poutine.trace() as trace:
        one = model.solve(field, {"x0": torch.zeros(4, 2)}, train)
        two = model.solve(field, {"x0": torch.zeros(4, 2)}, train)
    assert torch.equal(one.path, two.path)
    assert torch.equal(torch.get_rng_state(), before)
    assert [n for n in trace.trace.nodes if not n.startswith("_")] == []


def test_build_and_solve_are_the_program_without_pyro():
    model, train = make(units=Units([2.5, 2.5], [0.3, 0.3], time_unit=2.0)), data()
    trace = trace_of(model, train, num_particles=3)
    drawn = {site: trace.nodes[site]["value"] for site in [*GLOBAL, "x0"]}
    initial, field, observe = model.build(drawn, train)
    path = model.solve(field, drawn, train).path
    assert torch.equal(path, trace.nodes["path"]["value"])
    assert torch.equal(initial.log_prob(drawn["x0"]), trace.nodes["x0"]["log_prob"])
    law = observe(path, train.mask)
    assert torch.equal(law.log_prob(train.values), trace.nodes["values"]["log_prob"])
    other = model.solve(field, drawn, train, ODESolver(rtol=1e-9, atol=1e-9)).path
    assert not torch.equal(other, path)
    torch.testing.assert_close(other, path, rtol=0, atol=1e-2)


# ---- data, masks, questions ---------------------------------------------------------------------
def test_values_under_the_mask_change_nothing():
    model, train = make(), data(missing=False)
    mask = torch.rand(4, 5, 2) > 0.5
    fixed = {"field__weights": torch.zeros(17), "likelihood__noise_scale": torch.ones(2)}
    densities = []
    for hidden in (math.nan, 1e9, -3.0):
        values = torch.where(mask, train.values, hidden)
        masked = Trajectories(train.times, values, mask=mask, start=train.start)
        x0 = torch.zeros(4, 2, requires_grad=True)
        total = trace_of(model, masked, x0=x0, **fixed).log_prob_sum()
        (gradient,) = torch.autograd.grad(total, x0)
        densities.append(torch.cat([total.detach().view(1), gradient.flatten()]))
    assert torch.equal(densities[0], densities[1])
    assert torch.equal(densities[0], densities[2])
    assert densities[0].isfinite().all()


def test_a_question_draws_values():
    trace = trace_of(make(), question())
    assert not trace.nodes["values"]["is_observed"]
    assert trace.nodes["values"]["value"].isfinite().all()
    assert trace_of(make(), data()).nodes["values"]["is_observed"]


def test_answers_have_the_spread_of_the_noise():
    model, ask = make(), question()
    noise = torch.tensor([0.5, 2.0])
    fixed = {
        "field__weights": torch.zeros(17),
        "likelihood__noise_scale": noise,
        "x0": torch.zeros(4, 2),
    }
    trace = trace_of(model, ask, num_particles=20_000, **fixed)
    standard = trace.nodes["values"]["value"] / noise
    # 24 entries, mean and sd each: 5 standard errors, a false alarm in 4e4 seeds
    assert (standard.mean(0).abs() < 5 / math.sqrt(20_000)).all()
    assert ((standard.std(0) - 1).abs() < 5 / math.sqrt(40_000)).all()


def test_a_question_about_later_times_begins_at_the_start():
    model, train = make(), data()
    fixed = {
        "field__weights": 0.5 * torch.randn(17),
        "likelihood__noise_scale": torch.ones(2),
        "x0": torch.randn(4, 2),
    }
    path = trace_of(model, train, **fixed).nodes["path"]["value"]
    later = trace_of(model, train.at([1.0, 1.6]), **fixed).nodes["path"]["value"]
    # the grids differ, so within the solver's error
    torch.testing.assert_close(later, path[:, 3:], rtol=0, atol=1e-4)


def test_minibatches_are_unbiased():
    model, train = make(), data()
    x0 = torch.randn(4, 2)
    fixed = {"field__weights": torch.zeros(17), "likelihood__noise_scale": torch.ones(2)}
    full = trace_of(model, train, x0=x0, **fixed)
    batches = [
        trace_of(model, train.batch(rows), x0=x0[rows], **fixed)
        for rows in (torch.tensor([2, 0]), torch.tensor([3, 1]))
    ]
    for site in ("x0", "values", *GLOBAL):
        mean = sum(batch.nodes[site]["log_prob_sum"] for batch in batches) / 2
        torch.testing.assert_close(mean, full.nodes[site]["log_prob_sum"], rtol=1e-12, atol=0)


# ---- units --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [GaussianLikelihood, LogNormalLikelihood])
@pytest.mark.parametrize("transform", ["identity", "log"])
def test_units_of_the_data_shift_the_density_by_their_logarithms(kind, transform):
    factor, clock = 1000.0, 60.0
    train = data()
    scaled = Trajectories(
        clock * train.times,
        factor * train.values,
        series=train.series,
        names=train.names,
        start=clock * train.start,
    )
    one, other = (Units.from_data(t, transform=transform) for t in (train, scaled))
    models = [make(likelihood=kind(2), units=units) for units in (one, other)]
    noise = torch.tensor([0.3, 0.6])
    noises = [noise, noise * (factor if kind is GaussianLikelihood else 1.0)]
    shared = {"field__weights": torch.randn(17), "x0": torch.randn(4, 2)}
    before, after = (
        trace_of(model, t, likelihood__noise_scale=n, **shared)
        for model, t, n in zip(models, (train, scaled), noises, strict=True)
    )
    shift = {
        "values": -train.num_observed * math.log(factor),
        "likelihood.noise_scale": -2 * math.log(factor) if kind is GaussianLikelihood else 0.0,
        "x0": 0.0,
        "field.weights": 0.0,
    }
    for site, expected in shift.items():
        difference = after.nodes[site]["log_prob_sum"] - before.nodes[site]["log_prob_sum"]
        assert difference.item() == pytest.approx(expected, rel=1e-7, abs=1e-5)
    path = [trace.nodes["path"]["value"] for trace in (before, after)]
    torch.testing.assert_close(path[1], path[0], rtol=1e-7, atol=1e-7)


def test_a_given_initial_state_and_a_path_at_rest_are_in_users_units():
    units = Units([10.0, 100.0], [2.0, 5.0])
    initial = NormalInitial(2, location=[14.0, 90.0], scale=[1.0, 1.0])
    model = make(initial=initial, units=units)
    fixed = {"field__weights": torch.zeros(17), "likelihood__noise_scale": torch.tensor([1e-9] * 2)}
    trace = trace_of(model, question(), x0=torch.tensor([[2.0, -2.0]] * 4), **fixed)
    answer = trace.nodes["values"]["value"]
    torch.testing.assert_close(answer, torch.tensor([14.0, 90.0]).expand(4, 3, 2))
    expected = dist.Normal(torch.tensor([14.0, 90.0]), 1.0).log_prob(torch.tensor([14.0, 90.0]))
    jacobian = math.log(2.0) + math.log(
        5.0
    )  # x0 is dimensionless, its law was given in users' units
    density = trace.nodes["x0"]["log_prob"][0].item()
    assert density == pytest.approx(expected.sum().item() + jacobian)


def test_hidden_states_are_solved_and_not_observed():
    model = make(
        initial=NormalInitial(3), field=BayesianMLP(3, [3], 3), likelihood=GaussianLikelihood(2)
    )
    trace = trace_of(model, data())
    assert shapes(trace)["path"] == (4, 5, 3)
    assert shapes(trace)["values"] == (4, 5, 2)


def test_a_model_in_single_precision_keeps_far_origins():
    train = data(missing=False)
    far = Trajectories(train.times + 1.6e9, train.values, start=train.start + 1.6e9)
    fixed = {
        "field__weights": torch.randn(17).float(),
        "likelihood__noise_scale": torch.ones(2).float(),
        "x0": torch.randn(4, 2).float(),
    }
    paths = []
    for trajectories, origin in ((train, 0.0), (far, 1.6e9)):
        model = make(units=Units([2.5, 2.5], [0.3, 0.3], time_origin=origin)).float()
        paths.append(trace_of(model, trajectories.to(dtype=torch.float32), **fixed))
    near, far_path = (trace.nodes["path"]["value"] for trace in paths)
    assert near.dtype == torch.float32
    torch.testing.assert_close(far_path, near, rtol=1e-5, atol=1e-5)


# ---- Pyro's own tools ---------------------------------------------------------------------------
def test_parallel_predictions_are_the_sequential_ones():
    model, ask = make(), question()
    samples = {
        "field.weights": torch.randn(6, 1, 17),
        "likelihood.noise_scale": torch.rand(6, 1, 2),
        "x0": torch.randn(6, 4, 2),
    }
    together = Predictive(model, samples, parallel=True, return_sites=["path", "values"])(ask)
    assert together["path"].shape == together["values"].shape == (6, 4, 3, 2)
    alone = {site: value[:, 0] if value.shape[1] == 1 else value for site, value in samples.items()}
    one_by_one = Predictive(model, alone, return_sites=["path"])(ask)
    torch.testing.assert_close(together["path"], one_by_one["path"].view(6, 4, 3, 2))


def test_prior_predictions_run_in_parallel():
    drawn = Predictive(make(), num_samples=7, parallel=True)(question())
    assert {site: tuple(value.shape) for site, value in drawn.items()} == {
        "field.weights": (7, 1, 17),
        "likelihood.noise_scale": (7, 1, 2),
        "x0": (7, 4, 2),
        "path": (7, 4, 3, 2),
        "values": (7, 4, 3, 2),
    }


def test_nuts_runs_on_the_model_as_it_is():
    model, train = make(), data(2)
    kernel = NUTS(model, step_size=0.05, max_tree_depth=3)
    chain = MCMC(kernel, num_samples=15, warmup_steps=5, disable_progbar=True)
    chain.run(train)
    samples = chain.get_samples()
    assert {site: tuple(value.shape) for site, value in samples.items()} == {
        "field.weights": (15, 17),
        "likelihood.noise_scale": (15, 2),
        "x0": (15, 2, 2),
    }
    assert all(value.isfinite().all() for value in samples.values())
    assert (samples["field.weights"].diff(dim=0).abs().sum(-1) > 0).any()
    assert (samples["likelihood.noise_scale"] > 0).all()


# ---- the parts ----------------------------------------------------------------------------------
def test_parts_are_copied_and_stay_as_they_were():
    field, likelihood, units = (
        BayesianMLP(2, [3], 2),
        GaussianLikelihood(2),
        Units([9.0, 9.0], [2.0, 2.0]),
    )
    initial = NormalInitial(2, location=[9.0, 11.0])
    model = make(initial=initial, field=field, likelihood=likelihood, units=units)
    assert model.initial.build({}).mean.tolist() == [0.0, 1.0]
    assert initial.build({}).mean.tolist() == [9.0, 11.0]
    assert likelihood.priors()["noise_scale"].base_dist.loc.exp().tolist() == pytest.approx(
        [0.3] * 2
    )
    assert model.likelihood.log_median.exp().tolist() == pytest.approx([0.6] * 2)
    field.prior_sd.mul_(7)
    units.scale.mul_(7)
    assert model.field.prior_sd.max() < 7
    assert model.units.scale.tolist() == [2.0, 2.0]
    assert model.likelihood.units is model.units


def test_one_part_may_serve_two_models():
    likelihood = GaussianLikelihood(2)
    models = [make(likelihood=likelihood, units=Units([0.0], [s])) for s in (1.0, 10.0)]
    medians = [m.prototype()["likelihood.noise_scale"][0].item() for m in models]
    assert medians == pytest.approx([0.3, 3.0])


def test_a_deep_copy_is_independent_and_keeps_its_units_together():
    model = make(units=Units([9.0, 9.0], [2.0, 2.0]))
    twin = copy.deepcopy(model)
    twin.field.prior_sd.mul_(7)
    assert model.field.prior_sd.max() < 7
    assert twin.likelihood.units is twin.units
    assert twin.units is not model.units


def test_a_state_dict_carries_the_numbers_over(tmp_path):
    source, target = (make(units=Units([9.0, 9.0], [s, s])) for s in (2.0, 3.0))
    source.field.prior_sd.mul_(1.5)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    target.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    fixed = {
        "field__weights": torch.ones(17),
        "likelihood__noise_scale": torch.ones(2),
        "x0": torch.ones(4, 2),
    }
    train = data()
    one, other = (trace_of(model, train, **fixed).log_prob_sum() for model in (source, target))
    assert torch.equal(one, other)


def test_labels_name_every_entry_of_every_global_site():
    model = make(units=Units([0.0, 0.0], [1.0, 1.0], names=["prey", "predator"]))
    labels = model.labels()
    assert list(labels) == GLOBAL
    assert labels["likelihood.noise_scale"] == ["prey", "predator"]
    assert len(labels["field.weights"]) == 17
    assert [name for name, _ in model.parts()] == ["initial", "field", "likelihood"]


@pytest.mark.parametrize("name", ["initial", "field", "likelihood"])
@pytest.mark.parametrize("wrong", [nn.Linear(2, 2), BayesianMLP, None, "mlp", lambda t, x: -x])
def test_what_is_no_random_part_is_refused(name, wrong):
    with pytest.raises(DataError, match=f"{name}=.* is no random part"):
        make(**{name: wrong})


@pytest.mark.parametrize("wrong", ["rk4", None, FixedGridSolver, BayesianMLP(2, [], 2)])
def test_what_is_no_solver_is_refused(wrong):
    with pytest.raises(DataError, match="is no solver; take FixedGridSolver or ODESolver"):
        make(solver=wrong)


def test_parts_of_different_sizes_are_refused_where_they_meet():
    with pytest.raises(ShapeError, match="rate of shape"):
        trace_of(make(field=BayesianMLP(2, [3], 1)), data())
    with pytest.raises(ShapeError, match="as many components"):
        trace_of(make(likelihood=GaussianLikelihood(1)), data())


# ---- prototypes ---------------------------------------------------------------------------------
class Physics(nn.Module):
    """A field with priors that have and have not an `icdf`, and one on another value."""

    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.ones(()))

    def priors(self):
        one = self.one
        return {
            "growth": dist.LogNormal(0.5 * one, one),
            "rate": dist.Gamma(3 * one, 2 * one),
            "share": dist.Beta(2 * one.expand(2), 5 * one).to_event(1),
            "shift": dist.StudentT(4 * one, 1.5 * one, 0.2 * one),
            "scale": dist.HalfNormal(2 * one),
            "effect": lambda v: dist.Normal(v["growth"], v["scale"]),
        }

    def build(self, values, inputs=None):
        growth = without_plate(values["growth"], 0)[..., None, None]
        return VectorField(lambda t, x: -growth * x, (growth,))


EXACT_MEDIANS = {
    "growth": math.exp(0.5),
    "rate": 1.33703,  # of Gamma(3, 2)
    "share": 0.26445,  # of Beta(2, 5)
    "shift": 1.5,
    "scale": 2 * 0.67449,
    "effect": math.exp(0.5),
}
SPREAD = {"rate": 0.866, "share": 0.16, "shift": 0.28}


def test_a_prototype_lies_at_the_prior_medians():
    model = make(field=Physics())
    prototype = model.prototype()
    assert list(prototype) == list(model.global_priors())
    assert {s: v.shape for s, v in prototype.items()} == {
        s: resolve_shape(p, prototype) for s, p in model.global_priors().items()
    }
    for site, exact in EXACT_MEDIANS.items():
        # of 1,000 draws where there is no icdf: sd about 1.25 sd / sqrt(1000), with 5 of them
        tolerance = 5 * 1.25 * SPREAD.get(site, 0.0) / math.sqrt(1000) + 1e-4
        error = (prototype[f"field.{site}"] - exact).abs().max()
        assert error < tolerance, site


def resolve_shape(prior, values):
    if not isinstance(prior, dist.Distribution):
        return torch.Size([])
    return prior.batch_shape + prior.event_shape


def test_prototypes_leave_the_random_state_alone_and_do_not_depend_on_it():
    model = make(field=Physics())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = model.prototype()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    other = model.prototype()
    assert all(torch.equal(one[site], other[site]) for site in one)


def test_the_median_of_a_masked_or_transformed_law_is_that_of_its_entries():
    normal = dist.Normal(torch.tensor([1.0, -2.0]), 1.0)
    mask = torch.tensor([True, False])
    assert median(normal.mask(mask).to_event(1)).tolist() == [1.0, -2.0]
    pushed = dist.TransformedDistribution(normal, [dist.transforms.ExpTransform()])
    torch.testing.assert_close(median(pushed.to_event(1)), torch.tensor([1.0, -2.0]).exp())
    assert median(dist.Delta(torch.tensor(3.0))).item() == 3.0


def test_a_model_of_other_parts_runs():
    trace = trace_of(make(field=Physics()), data(), num_particles=3)
    growth, x0 = trace.nodes["field.growth"]["value"], trace.nodes["x0"]["value"]
    assert growth.shape == (3, 1)
    elapsed = torch.tensor([0.0, 0.3, 0.7, 1.0, 1.6]) + 0.5
    exact = x0.unsqueeze(-2) * (-growth[..., None, None] * elapsed[:, None]).exp()
    fine = FixedGridSolver("rk4", 0.01)
    field = VectorField(lambda t, x: -growth[..., None] * x)
    path = fine(field, x0, torch.full((4,), -0.5), (elapsed - 0.5).expand(4, 5))
    torch.testing.assert_close(path, exact, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trace.nodes["path"]["value"], exact, rtol=0, atol=0.3)
