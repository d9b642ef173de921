"""Known equations with unknown constants, alone and beside a network."""

import pyro.distributions as dist
import pytest
import torch

import bayesode as bo
from bayesode.inference.warm_start.flat import FlatField
from bayesode.models.contracts import rate_of
from bayesode.models.fields import BayesianMLP, PhysicsField, Sum

DOUBLE = torch.float64


def lotka_volterra(t, x, growth, loss):
    prey, predator = x.unbind(-1)
    return torch.stack([prey * (growth - predator), predator * (prey - loss)], -1)


def constants(spread=0.5):
    return {"growth": dist.LogNormal(0.0, spread), "loss": dist.LogNormal(1.0, spread)}


def field():
    return PhysicsField(lotka_volterra, constants())


VALUES = {"growth": torch.tensor(1.5, dtype=DOUBLE), "loss": torch.tensor(3.0, dtype=DOUBLE)}
UNITS = {
    "identity": bo.Units([2.0, 1.0], [0.5, 3.0], time_origin=7.0, time_unit=4.0),
    "log": bo.Units([0.2, -0.4], [0.5, 1.3], time_origin=7.0, time_unit=4.0, transform="log"),
}


@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
def test_equations_are_those_of_the_users_units(units):
    """dz/ds = (dz/dx) (dx/dt) (dt/ds), by autodiff of the map itself."""

    def rhs(t, x, growth, loss):
        return lotka_volterra(t, x, growth, loss) + torch.cos(t).unsqueeze(-1)

    physics = PhysicsField(rhs, constants())
    physics.with_units(units)
    state, s = torch.randn(5, 2, dtype=DOUBLE), torch.rand(5, 1, dtype=DOUBLE)
    users = units.to_users(state)
    rate = rhs(7.0 + 4.0 * s[:, 0], users, **VALUES)
    slope = torch.stack([torch.autograd.functional.jacobian(units.to_state, x) for x in users])
    expected = 4.0 * (slope @ rate.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(physics.build(VALUES)(s, state), expected)


@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
def test_rates_there_and_back_are_the_same(units):
    state, rate = torch.randn(4, 2, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    torch.testing.assert_close(units.to_state_rate(state, units.to_users_rate(state, rate)), rate)


def test_draws_of_scalar_constants_broadcast_over_series():
    drawn = {"growth": torch.rand(3, 1, dtype=DOUBLE), "loss": torch.rand(3, 1, dtype=DOUBLE)}
    x = torch.rand(3, 4, 2, dtype=DOUBLE)
    together = field().build(drawn)(torch.tensor(0.0), x)
    for k in range(3):
        alone = field().build({site: value[k, 0] for site, value in drawn.items()})
        torch.testing.assert_close(together[k], alone(torch.tensor(0.0), x[k]))


def test_priors_follow_the_dtype_of_the_model_and_are_saved():
    part = field().double()
    assert {law.sample().dtype for law in part.priors().values()} == {DOUBLE}
    state = part.state_dict()
    assert {"growth_loc", "growth_scale", "loss_loc", "loss_scale"} <= set(state)
    other = PhysicsField(lotka_volterra, constants(spread=2.0)).double()
    other.load_state_dict(state)
    assert other.priors()["growth"].base_dist.scale == 0.5


def test_a_prior_may_depend_on_a_constant_drawn_before():
    laws = {"growth": dist.LogNormal(0.0, 0.1), "loss": lambda v: dist.LogNormal(v["growth"], 0.1)}
    part = Sum(physics=PhysicsField(lotka_volterra, laws))
    flat = FlatField.of(part)
    assert flat.mean.tolist() == pytest.approx([0.0, 1.0])  # the median of growth is 1


def test_a_sum_is_the_sum_and_shows_all_tensors_to_an_adjoint():
    part = Sum(physics=field(), network=BayesianMLP(2, [3], 2)).double()
    weights = torch.randn(part.fields["network"].num_weights, dtype=DOUBLE)
    named = {f"physics.{site}": value for site, value in VALUES.items()}
    built = part.build(named | {"network.weights": weights})
    x, t = torch.rand(4, 2, dtype=DOUBLE), torch.tensor(0.0, dtype=DOUBLE)
    network = part.fields["network"].build({"weights": weights})
    torch.testing.assert_close(built(t, x), lotka_volterra(t, x, **VALUES) + network(t, x))
    assert len(built.tensors) == 2 + len(network.tensors)
    assert len(part.labels["network.weights"]) == len(weights)


def test_prior_scales_inside_a_sum_are_tuned_where_they_live():
    part = Sum(physics=field(), network=BayesianMLP(2, [3], 2)).double()
    flat = FlatField.of(part)
    assert (flat.groups[:2] == -1).all() and flat.groups[2:].min() == 0
    flat.sd[2:] = torch.arange(len(flat.sd) - 2).double() + 1
    flat.write_prior(part)
    assert torch.equal(part.fields["network"].prior_sd, flat.sd[2:])


def test_what_does_not_fit_together_is_one_clear_error():
    with pytest.raises(bo.DataError, match="name one constant or more"):
        PhysicsField(lotka_volterra, {})
    with pytest.raises(bo.DataError, match="identifiers"):
        PhysicsField(lotka_volterra, {"my rate": dist.LogNormal(0.0, 1.0)})
    with pytest.raises(bo.DataError, match="at least one field"):
        Sum()
    flat = PhysicsField(lambda t, x, a: a * x[..., 0], {"a": dist.LogNormal(0.0, 1.0)})
    with pytest.raises(bo.ShapeError, match="has to be that of x"):
        flat.build({"a": torch.tensor(1.0)})(torch.tensor(0.0), torch.ones(3, 2))
    narrow = Sum(one=BayesianMLP(2, [3], 2), other=BayesianMLP(2, [3], 1))
    values = {f"{k}.weights": torch.zeros(f.num_weights) for k, f in narrow.fields.items()}
    with pytest.raises(bo.ShapeError, match="give all of them the same"):
        rate_of(narrow.build(values), torch.tensor(0.0), torch.ones(3, 2))


def hybrid(train, *parts):
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=Sum(**dict(parts)),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.1),
        units=bo.Units.from_data(train),
    ).double()


@pytest.mark.parametrize("engine", ["laplace", "svi"])
def test_constants_are_found_in_users_units(engine):
    """Noise .1 on 300 numbers: the rates 1.5 and 3 to within five posterior sds, these small."""
    train = bo.datasets.lotka_volterra(num_series=3, num_times=50, seed=5).observed
    model = hybrid(train, ("physics", PhysicsField(lotka_volterra, constants())))
    if engine == "laplace":
        posterior = bo.fit_laplace(model, train, seed=0, progress=False)
    else:
        guide = bo.MeanFieldGuide(model, train)
        posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=40, progress=False)
    draws = posterior.draws(500, seed=0)
    for site, truth in (("growth", 1.5), ("loss", 3.0)):
        found = draws[f"field.physics.{site}"]
        assert found.std() < 0.05
        assert abs(found.mean() - truth) < 5 * found.std()


def test_a_network_beside_wrong_physics_mends_it():
    train = bo.datasets.lotka_volterra(num_series=3, num_times=25, seed=6)

    def no_predation(t, x, growth, loss):
        prey, predator = x.unbind(-1)
        return torch.stack([prey * growth, -predator * loss], -1)

    physics = ("physics", PhysicsField(no_predation, constants()))
    network = ("network", BayesianMLP(2, [4], 2))
    evidence = [
        bo.fit_laplace(hybrid(train.observed, *parts), train.observed, seed=0, progress=False)
        for parts in ([physics], [physics, network])
    ]
    assert evidence[1].log_evidence > evidence[0].log_evidence + 100
    ensemble = evidence[1].predict(train.observed, num_draws=100, seed=0)
    error = (ensemble.mean - train.truth.values) / train.noise_scale
    assert error.square().mean().sqrt() < 0.8
