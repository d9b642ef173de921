"""Prior predictive draws: laws in closed form, independence of paths, explosions, seeds."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import nn

import bayesode as bo
from bayesode.models.contracts import VectorField, without_plate

LIMIT = 5  # standard errors: one false alarm in 1.7 million looks
FIXED = 1e-9  # sd of the logarithm of a number that is known


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Growth(nn.Module):
    """dz/ds = rate z^power, rates normal."""

    def __init__(self, power: int = 1) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("scale", torch.ones(1))

    def priors(self):
        return {"rate": dist.Normal(torch.zeros_like(self.scale), self.scale).to_event(1)}

    def build(self, values, inputs=None):
        rate = without_plate(values["rate"]).unsqueeze(-2)
        return VectorField(lambda t, x: rate * x**self.power, (rate,))


def ode_model(power=1, units=None):
    return bo.DynamicalModel(
        initial=bo.NormalInitial(1, location=[1.0], scale=[0.2]),
        field=Growth(power),
        likelihood=bo.GaussianLikelihood(1, prior_median=0.1, prior_log_scale=0.5),
        solver=bo.FixedGridSolver("rk4", step=0.05),
        units=units,
    )


def brownian_model(**options):
    """dx = dW from x0 = 0 in three components."""
    still = bo.PhysicsField(lambda t, x, none: 0.0 * x, {"none": dist.Normal(0.0, 1.0)})
    return bo.DynamicalModel(
        initial=bo.NormalInitial(3, location=[0.0] * 3, scale=[FIXED] * 3),
        field=bo.SDEField(still, bo.AdditiveNoise(3, prior_median=1.0, prior_log_scale=FIXED)),
        likelihood=bo.GaussianLikelihood(3, prior_median=0.1, prior_log_scale=FIXED),
        solver=bo.SDESolver(3, 0.1, **options),
    )


def question(times=(0.0, 0.5, 1.0), series=("a", "b"), names=("x",), **options):
    return bo.Trajectories(list(times), None, series=list(series), names=list(names), **options)


# ---- the law of the draws ------------------------------------------------------------------------
@pytest.mark.parametrize("units", [None, bo.Units([2.0], [0.5], time_origin=-1.0, time_unit=2.0)])
def test_draws_of_an_ode_solve_their_own_equation(units):
    prior = bo.sample_prior(ode_model(units=units), question(), num_draws=3000, seed=0)
    x0, rate = prior.draws["x0"], prior.draws["field.rate"]
    assert x0.shape == (3000, 2, 1) and rate.shape == (3000, 1)
    unit = 1.0 if units is None else 2.0
    fade = (rate[:, None, None] * prior.times[:, None] / unit).exp()
    z0 = prior.units.to_state(x0).unsqueeze(2)
    torch.testing.assert_close(
        prior.path, z0 * fade, rtol=1e-4, atol=1e-6
    )  # the step, at large rates
    root = math.sqrt(3000)
    assert abs(rate.mean()) < LIMIT / root and abs(rate.std() - 1) < LIMIT / root
    assert ((x0.mean(0) - 1).abs() < LIMIT * 0.2 / root).all()
    assert ((x0.std(0) / 0.2 - 1).abs() < LIMIT / root).all()
    assert abs(x0[..., 0].T.corrcoef()[0, 1]) < LIMIT / root
    noise = (prior.values - prior.signal) / prior.draws["likelihood.noise_scale"][:, None, None]
    assert abs(noise.std() - 1) < LIMIT / math.sqrt(2 * noise.numel())


def test_every_draw_series_and_component_has_a_brownian_path_of_its_own():
    asked = question([0.0, 0.5, 2.0], names="xyz")
    prior = bo.sample_prior(brownian_model(), asked, num_draws=4000, seed=1)
    steps = prior.states.diff(dim=2)  # (draws, series, 2, component)
    root = math.sqrt(4000)
    assert ((steps.var(0) / torch.tensor([[0.5], [1.5]]) - 1).abs() < LIMIT * 1.42 / root).all()
    together = steps.flatten(1).T.corrcoef() - torch.eye(12)
    assert together.abs().max() < LIMIT / root
    between = (steps[1:] * steps[:-1]).mean(0) / steps.var(0)  # neighbouring draws
    assert between.abs().max() < LIMIT / root
    assert prior.solver_error < 1e-9


def test_draws_have_the_law_of_the_generative_program():
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(1),
        field=bo.SDEField(
            bo.BayesianMLP(1, [], 1, prior_scale=0.3, hierarchical=True), bo.StateNoise(1, [2])
        ),
        likelihood=bo.GaussianLikelihood(1),
        solver=bo.SDESolver(1, 0.25, noise_step=0.25),
    )
    own = bo.sample_prior(model, question(), num_draws=2000, seed=0)
    torch.manual_seed(1)
    theirs = Predictive(model, num_samples=2000, parallel=True)(question())
    pyros = theirs["path"].view(2000, 2, 3, 1)
    assert own.draws.keys() >= {"field.drift.weights", "field.diffusion.weights", "path.noise"}
    for level in (0.1, 0.5, 0.9):
        share = (pyros < own.quantile(level, of="states")[0]).double().mean(0)
        error = math.sqrt(2 * level * (1 - level) / 2000)
        assert ((share - level).abs() < LIMIT * error).all()


def test_values_of_a_question_are_not_looked_at_but_give_the_dtype():
    times, model = torch.tensor([0.0, 0.5, 1.0]), ode_model().float()
    for dtype in (torch.float32, torch.float64):
        data = bo.Trajectories(times, 1e6 * torch.randn(2, 3, 1, dtype=dtype), names=["x"])
        prior = bo.sample_prior(model, data, num_draws=4, seed=0)
        assert prior.values.dtype == prior.path.dtype == dtype
        assert prior.values.abs().max() < 1e3
    assert bo.sample_prior(model, question(), num_draws=4, seed=0).path.dtype == torch.float32
    assert next(model.buffers()).dtype == torch.float32  # the caller's model stays


def test_own_grids_and_many_series_are_solved_together():
    times = torch.linspace(0, 1, 5) * (1 + torch.arange(20.0)[:, None] / 10)
    count = [2] * 18 + [5, 4]
    data = bo.Trajectories(times, None, names=["x", "y", "z"], num_times=count)
    prior = bo.sample_prior(brownian_model(), data, num_draws=2000, seed=0)
    last = prior.states[:, :, -1].var(0) / data.grid[:, -1:]
    assert ((last - 1).abs() < LIMIT * math.sqrt(2 / 2000)).all()
    assert prior.solver_error < 1e-9  # of the first 16 series, which have a shorter noise grid


# ---- explosions ----------------------------------------------------------------------------------
def test_draws_that_explode_are_counted_as_failed():
    """z' = rate z^3 explodes at 1 / (2 rate z0^2): known for every draw."""
    prior = bo.sample_prior(ode_model(power=3), question([0.0, 2.0]), num_draws=400, seed=5)
    explodes = (4 * prior.draws["field.rate"] * prior.draws["x0"][..., 0] ** 2) > 1
    assert 0.1 < explodes.double().mean() < 0.6
    assert (prior.failed == explodes).double().mean() > 0.98  # a fixed step may pass a pole
    assert prior.share_failed == prior.failed.double().mean()
    assert prior.mean.isfinite().all()


def test_a_series_of_which_every_draw_explodes_is_announced():
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(1, location=[100.0], scale=[0.2]),
        field=Growth(),
        likelihood=bo.GaussianLikelihood(1),
        solver=bo.FixedGridSolver("rk4", step=0.05),
    )
    with pytest.warns(UserWarning, match="no draw of series 'a' stays within"):
        prior = bo.sample_prior(model, question(), num_draws=5, seed=0)
    assert prior.share_failed == 1 and prior.mean.isnan().all()


# ---- seeds and borders ---------------------------------------------------------------------------
def test_same_seed_same_draws_and_no_trace_in_the_global_state():
    model, asked = brownian_model(), question(names="xyz")
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    one, two, other = (bo.sample_prior(model, asked, num_draws=3, seed=s).values for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert not list(pyro.get_param_store().keys()) and not one.requires_grad
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        found.append(bo.sample_prior(model, asked, num_draws=3).values)
    assert torch.equal(*found)


def test_what_is_no_question_is_one_clear_error():
    with pytest.raises(bo.DataError, match="num_draws must be positive"):
        bo.sample_prior(ode_model(), question(), num_draws=0)
    with pytest.raises(bo.DataError, match=r"of simulated data: \.observed"):
        bo.sample_prior(ode_model(), bo.datasets.van_der_pol(num_series=2))
