"""SDE fields and SDESolver: moments, strong orders, grids of the noise, units, errors."""

import math
import random

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import bayesode as bo
from bayesode.models.contracts import SDE, Diffusion, VectorField
from bayesode.models.fields import AdditiveNoise, BayesianMLP, PhysicsField, SDEField, StateNoise
from bayesode.models.solvers import FixedGridSolver, ODESolver, SDESolver

METHODS = ("split", "euler", "heun", "milstein")
each_method = pytest.mark.parametrize("method", METHODS)
LIMIT = 5  # standard errors: one false alarm in 1.7 million looks


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def additive(drift, scale):
    scale = torch.as_tensor(scale).reshape(-1)
    return SDE(VectorField(drift), Diffusion(lambda t, x: scale, (scale,), is_additive=True))


def geometric(rate, volatility):
    """dx = rate x dt + volatility x dW in Ito's sense."""
    noise = Diffusion(lambda t, x: volatility * x)
    return SDE(VectorField(lambda t, x: rate * x), noise)


def solver_of(method, step, dim=1, **options):
    noise_step = {"noise_step": step} if method == "split" else {}
    return SDESolver(dim, step, method=method, **noise_step, **options)


def increments(solver, start, times, *draws):
    prior = solver.priors(start, times)["noise"]
    return torch.randn(*draws, len(start), *prior.event_shape)


def simulate(solver, sde, x0, times, num_draws):
    """Paths (draws, 1, time, state) from one x0 (state,)."""
    start, times = torch.zeros(1), torch.tensor([times])
    noise = increments(solver, start, times, num_draws)
    return solver(sde, x0.expand(1, -1), start, times, noise=noise)


def assert_moments(draws, mean, variance):
    """Mean and variance of normal draws (draws, ...) within 5 standard errors."""
    num = len(draws)
    assert ((draws.mean(0) - mean).abs() < LIMIT * (variance / num).sqrt()).all()
    assert ((draws.var(0) / variance - 1).abs() < LIMIT * (2 / num) ** 0.5).all()


# ---- moments -------------------------------------------------------------------------------------
@each_method
def test_a_constant_drift_has_the_moments_of_brownian_motion(method):
    speed, scale = torch.tensor([0.5, -1.0]), torch.tensor([0.3, 2.0])
    sde, times = additive(lambda t, x: speed.expand_as(x), scale), [0.4, 1.0]
    paths = simulate(solver_of(method, 0.3, 2), sde, torch.tensor([1.0, 2.0]), times, 4000)
    t = torch.tensor(times).unsqueeze(-1)
    assert_moments(paths[:, 0], torch.tensor([1.0, 2.0]) + speed * t, scale.square() * t)
    # what is added between two times is independent of the past
    later = paths[:, 0, 1] - paths[:, 0, 0]
    assert_moments(later, 0.6 * speed, 0.6 * scale.square())
    correlation = torch.corrcoef(torch.stack([later[:, 0], paths[:, 0, 0, 0]]))[0, 1]
    assert abs(correlation) < LIMIT / 4000**0.5


@each_method
def test_an_ornstein_uhlenbeck_process_has_its_moments(method):
    rate, scale, num = 1.5, 0.8, 4000
    sde = additive(lambda t, x: -rate * x, scale)
    t = torch.tensor([[0.5], [2.0]])
    paths = simulate(solver_of(method, 0.005), sde, torch.tensor([3.0]), t.flatten().tolist(), num)
    mean = 3.0 * torch.exp(-rate * t)
    # the discretisation is off by rate step = .75 %, a seventh of the limit
    assert_moments(paths[:, 0], mean, scale**2 / (2 * rate) * (1 - torch.exp(-2 * rate * t)))


def test_split_noise_at_the_asked_times_has_its_own_exact_variance():
    rate, scale, h, num = 1.5, 0.8, 0.5, 20_000
    sde = additive(lambda t, x: -rate * x, scale)
    paths = simulate(SDESolver(1, 0.02), sde, torch.zeros(1), [h, 2 * h], num)
    factor = math.exp(-2 * rate * h)
    variance = scale**2 * h * torch.tensor([[1.0], [1 + factor]])
    assert_moments(paths[:, 0], torch.zeros(2, 1), variance)


# ---- strong order --------------------------------------------------------------------------------
def coarse(noise, factor):
    """Increments (..., steps, state) of the same Brownian path on `factor` times longer steps."""
    return noise.unflatten(-2, (-1, factor)).sum(-2) / factor**0.5


def strong_order(method, sde, exact, brownian, counts=(8, 16, 32, 64)):
    """Slope of the root mean square error at time 1 over the step, on a log-log scale."""
    start, times, errors = torch.zeros(1), torch.ones(1, 1), []
    for count in counts:
        noise = coarse(brownian, brownian.shape[-2] // count)
        solver = solver_of(method, 1 / count)
        end = solver(sde, torch.ones(1, 1), start, times, noise=noise)[..., 0, :]
        errors.append((end - exact).square().mean().sqrt())
    x = torch.tensor(counts).log()
    y = -torch.stack(errors).log()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


@pytest.mark.parametrize(("method", "order"), [("split", 0.5), ("euler", 0.5), ("milstein", 1.0)])
def test_the_strong_order_under_multiplicative_noise(method, order):
    rate, volatility = 0.3, 0.8
    brownian = torch.randn(1000, 1, 64, 1)
    total = brownian.sum(-2) / 8
    exact = torch.exp(rate - volatility**2 / 2 + volatility * total)
    assert abs(strong_order(method, geometric(rate, volatility), exact, brownian) - order) < 0.12


@each_method
def test_the_strong_order_is_one_under_additive_noise(method):
    sde = additive(lambda t, x: torch.sin(3 * x) - x, 0.7)
    brownian = torch.randn(500, 1, 2048, 1)
    start, times = torch.zeros(1), torch.ones(1, 1)
    fine = solver_of("heun", 1 / 2048)(sde, torch.ones(1, 1), start, times, noise=brownian)
    assert abs(strong_order(method, sde, fine[..., 0, :], brownian) - 1) < 0.12


def test_milstein_is_euler_under_additive_noise():
    sde = additive(lambda t, x: torch.sin(x + t), [0.7, 0.2])
    start, times = torch.zeros(1), torch.tensor([[0.3, 1.0]])
    solvers = [solver_of(method, 0.1, 2) for method in ("euler", "milstein")]
    noise = increments(solvers[0], start, times, 3)
    first, second = (s(sde, torch.ones(1, 2), start, times, noise=noise) for s in solvers)
    assert torch.equal(first, second)


@pytest.mark.parametrize(("method", "order"), [("split", 4), ("euler", 1), ("heun", 2)])
def test_without_increments_the_drift_has_the_order_of_its_method(method, order):
    sde, start, times = additive(lambda t, x: -x * t, 1.0), torch.zeros(1), torch.ones(1, 1)
    errors = []
    for step in (0.1, 0.05):
        solver = SDESolver(1, step, method=method)
        noise = torch.zeros_like(increments(solver, start, times))
        end = solver(sde, torch.ones(1, 1), start, times, noise=noise)
        errors.append((end - math.exp(-0.5)).abs().item())
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.3


def drift_at(t, x):
    return -x * (1 + t)


def noise_at(t, x):
    return 0.3 + t + x**2


def one_step(method, t, h, x, brownian):
    """A step by the formula of the method; the slope of the noise is 2 x."""
    if method == "split":  # the classical Runge-Kutta step of the drift, then the noise there
        k1 = drift_at(t, x)
        k2 = drift_at(t + h / 2, x + h / 2 * k1)
        k3 = drift_at(t + h / 2, x + h / 2 * k2)
        k4 = drift_at(t + h, x + h * k3)
        y = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y + noise_at(t + h, y) * brownian
    if method == "heun":  # additive: its scale is noise_at(t, 0)
        kick = noise_at(t, 0.0) * brownian
        second = drift_at(t + h, x + h * drift_at(t, x) + kick)
        return x + h / 2 * (drift_at(t, x) + second) + kick
    end = x + h * drift_at(t, x) + noise_at(t, x) * brownian
    extra = noise_at(t, x) * x * (brownian**2 - h)
    return end + extra if method == "milstein" else end


@each_method
def test_a_single_step_is_that_of_the_formula(method):
    is_additive = method == "heun"
    noise = Diffusion(
        lambda t, x: noise_at(t, 0 * x if is_additive else x), is_additive=is_additive
    )
    start, h, kick = torch.tensor([0.5]), 0.2, 0.9
    path = SDESolver(1, 0.25, method=method)(
        SDE(VectorField(drift_at), noise),
        torch.tensor([[0.7]]),
        start,
        torch.tensor([[0.5 + h]]),
        noise=torch.full((1, 1, 1), kick),
    )
    assert abs(path.item() - one_step(method, 0.5, h, 0.7, kick * h**0.5)) < 1e-12


# ---- Ito and Stratonovich ------------------------------------------------------------------------
class Proportional(torch.nn.Module):
    """g(x) = volatility x of the component itself."""

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return Diffusion(lambda t, x: 0.8 * x)


def growth():
    return PhysicsField(lambda t, x, rate: rate.unsqueeze(-1) * x, {"rate": dist.Normal(0.3, 0.1)})


def test_a_stratonovich_field_is_the_ito_field_with_the_corrected_drift():
    field = SDEField(growth(), Proportional(), interpretation="stratonovich")
    sde, x = field.build({"drift.rate": torch.tensor(0.3)}), torch.randn(4, 2)
    torch.testing.assert_close(sde.drift(torch.tensor(0.0), x), (0.3 + 0.8**2 / 2) * x)
    brownian = torch.randn(200, 1, 512, 2)
    start, times = torch.zeros(1), torch.ones(1, 1)
    end = solver_of("milstein", 1 / 512, 2)(sde, torch.ones(1, 2), start, times, noise=brownian)
    exact = torch.exp(0.3 + 0.8 * brownian.sum(-2) / 512**0.5)
    assert ((end[..., 0, :] - exact) / exact).abs().max() < 0.05  # Ito's solution: 38 % off


def test_the_slope_of_the_noise_is_the_own_derivative_of_each_component():
    noise = Diffusion(lambda t, x: torch.stack([x[..., 0] * x[..., 1], x[..., 1] ** 2], -1))
    x = torch.randn(3, 4, 2)
    value, slope = noise.with_slope(torch.tensor(0.0), x)
    torch.testing.assert_close(value, noise(torch.tensor(0.0), x))
    torch.testing.assert_close(slope, torch.stack([x[..., 1], 2 * x[..., 1]], -1))


def test_additive_noise_means_the_same_in_both_interpretations():
    x, values = (
        torch.randn(4, 2),
        {"drift.rate": torch.tensor(0.3), "diffusion.scale": torch.ones(2)},
    )
    first, second = (
        SDEField(growth(), AdditiveNoise(2), interpretation=name).build(values)
        for name in ("ito", "stratonovich")
    )
    assert torch.equal(first.drift(torch.tensor(0.0), x), second.drift(torch.tensor(0.0), x))


# ---- gradients and randomness --------------------------------------------------------------------
@each_method
def test_gradients_are_those_of_finite_differences_at_fixed_increments(method):
    noise_part = AdditiveNoise(2) if method == "heun" else StateNoise(2, [2], prior_median=0.5)
    field = SDEField(BayesianMLP(2, [3], 2), noise_part)
    solver, start = SDESolver(2, 0.2, method=method), torch.zeros(2)
    times = torch.tensor([[0.3, 0.5], [0.2, 0.2]])
    sites = {site: prior.sample((2, 1)) for site, prior in field.priors().items()}

    def end(x0, noise, *values):
        sde = field.build(dict(zip(sites, values, strict=True)))
        return solver(sde, x0, start, times, noise=noise)

    arguments = [torch.randn(2, 2, 2), increments(solver, start, times, 2), *sites.values()]
    assert torch.autograd.gradcheck(end, [a.detach().requires_grad_() for a in arguments])


def linear_model(solver, units=None):
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=SDEField(BayesianMLP(2, [], 2, prior_scale=0.3), AdditiveNoise(2)),
        likelihood=bo.GaussianLikelihood(2),
        solver=solver,
        units=units,
    )


def test_torchs_seed_alone_decides_about_the_paths():
    model = linear_model(SDESolver(2, 0.1))
    question = bo.Trajectories([0.0, 0.5, 1.0], None, series=["a", "b"], names=["x", "y"])
    traces = []
    for seed, other in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(seed)
        np.random.seed(other)
        random.seed(other)
        traces.append(poutine.trace(model).get_trace(question))
    first, second, third = (trace.nodes["path"]["value"] for trace in traces)
    assert torch.equal(first, second)
    assert not torch.isclose(first, third).any()
    site = traces[0].nodes["path.noise"]
    assert site["value"].shape == (2, 2, 2)
    assert [frame.name for frame in site["cond_indep_stack"]] == ["trajectories"]


# ---- grids ---------------------------------------------------------------------------------------
OWN_TIMES = torch.tensor(
    [[0.0, 0.3, 1.0, 1.1], [0.5, 2.0, 2.0, 2.0], [0.1, 0.2, 0.3, 4.0]], dtype=torch.float64
)
OWN_START = torch.tensor([0.0, 0.2, 0.1], dtype=torch.float64)


def wave():
    return SDE(
        VectorField(lambda t, x: torch.sin(x.flip(-1) + t)),
        Diffusion(lambda t, x: 0.3 + 0.1 * torch.cos(x)),
    )


@pytest.mark.parametrize("method", ["split", "euler", "milstein"])
def test_a_path_does_not_depend_on_batch_mates(method):
    solver = solver_of(method, 0.17, 2)
    noise = increments(solver, OWN_START, OWN_TIMES, 5)
    x0 = torch.randn(5, 3, 2)
    together = solver(wave(), x0, OWN_START, OWN_TIMES, noise=noise)
    for row in range(3):
        start, times = OWN_START[row : row + 1], OWN_TIMES[row : row + 1]
        steps = solver.noise_grid(start, times).num_steps
        own = noise[:, row : row + 1, :steps]
        alone = solver(wave(), x0[:, row : row + 1], start, times, noise=own)
        torch.testing.assert_close(alone[:, 0], together[:, row], rtol=1e-12, atol=1e-12)


def test_noise_after_a_series_own_end_does_nothing():
    solver = solver_of("split", 0.17, 2)
    noise = increments(solver, OWN_START, OWN_TIMES)
    path = solver(wave(), torch.ones(3, 2), OWN_START, OWN_TIMES, noise=noise)
    lengths = solver.noise_grid(OWN_START, OWN_TIMES).lengths
    assert (lengths[1] == 0).any()
    other = torch.where((lengths == 0).unsqueeze(-1), 100.0, noise)
    changed = solver(wave(), torch.ones(3, 2), OWN_START, OWN_TIMES, noise=other)
    assert torch.equal(path, changed)
    assert not torch.equal(path[1, 0], path[1, 1])
    assert torch.equal(path[1, 1], path[1, 3])  # padding repeats the last time


def test_noise_steps_pass_through_the_asked_times_and_are_no_longer_than_asked():
    grid = SDESolver(2, 0.1, noise_step=0.25).noise_grid(OWN_START, OWN_TIMES)
    assert grid.lengths.max() <= 0.25 * (1 + 1e-4)
    ends = torch.cat([OWN_START.unsqueeze(-1), grid.begins + grid.lengths], -1)
    torch.testing.assert_close(ends.gather(-1, grid.reached), OWN_TIMES)
    torch.testing.assert_close(grid.lengths.sum(-1), OWN_TIMES[:, -1] - OWN_START)
    # without it noise enters at the asked times alone
    assert SDESolver(2, 0.1).noise_grid(OWN_START, OWN_TIMES).num_steps == 3


@pytest.mark.parametrize("method", ["split", "euler", "milstein"])
def test_on_a_fixed_grid_a_part_of_its_times_sees_the_same_path(method):
    solver = solver_of(method, 0.17, 2)
    noise = increments(solver, OWN_START, OWN_TIMES, 5)
    full = solver(wave(), torch.ones(3, 2), OWN_START, OWN_TIMES, noise=noise)
    for columns in ([2], [0, 2], [0, 1, 2, 3]):
        asked = solver.on(OWN_TIMES, solver.noise_step)
        part = asked(wave(), torch.ones(3, 2), OWN_START, OWN_TIMES[:, columns], noise=noise)
        assert torch.equal(part, full[..., columns, :])


def test_times_between_the_points_of_a_fixed_grid_are_reached_by_drift():
    sde = additive(lambda t, x: -x, [0.5, 0.5])
    start, grid = torch.zeros(2), torch.tensor([[1.0, 2.0], [1.5, 2.0]])
    solver = SDESolver(2, 0.01).on(grid)
    noise = torch.randn(3, 2, 2, 2)
    times = torch.tensor([[0.5, 1.0, 1.5, 2.0], [0.5, 1.5, 1.75, 3.0]])
    path = solver(sde, torch.ones(2, 2), start, times, noise=noise)
    known = solver(sde, torch.ones(2, 2), start, grid, noise=noise)
    torch.testing.assert_close(path[..., [1, 3], :][:, 0], known[:, 0])
    half = math.exp(-0.5)
    torch.testing.assert_close(path[:, :, 0], torch.full((3, 2, 2), half))
    torch.testing.assert_close(path[:, 0, 2], half * known[:, 0, 0])
    torch.testing.assert_close(path[:, 1, 3], math.exp(-1) * known[:, 1, 1])


def test_a_question_at_the_start_alone_gives_the_initial_state():
    sde, solver = additive(lambda t, x: -x, 1.0), SDESolver(1)
    start, times = torch.tensor([0.5]), torch.tensor([[0.5]])
    noise = increments(solver, start, times, 3)
    assert noise.shape == (3, 1, 0, 1)
    assert torch.equal(
        solver(sde, torch.ones(1, 1), start, times, noise=noise).flatten(), torch.ones(1)
    )


def test_a_step_longer_than_the_gaps_is_cut_to_them():
    times, start = torch.linspace(0, 1, 6)[None], torch.zeros(1)
    noise = torch.randn(5, 1, 5, 1)
    sde = additive(lambda t, x: torch.sin(x), 0.3)
    long, exact = (
        SDESolver(1, step)(sde, torch.ones(1, 1), start, times, noise=noise) for step in (9.0, 0.2)
    )
    assert torch.equal(long, exact)


def test_without_noise_the_path_is_that_of_the_ode():
    x0, start, times = torch.randn(3, 2), OWN_START, OWN_TIMES
    sde = additive(lambda t, x: torch.sin(x.flip(-1) + t), [0.0, 0.0])
    noise = torch.randn(3, 3, 2)
    path = SDESolver(2, 0.1)(sde, x0, start, times, noise=noise)
    ode = FixedGridSolver("rk4", 0.1)(sde.drift, x0, start, times)
    torch.testing.assert_close(path, ode, rtol=1e-12, atol=1e-12)


@each_method
def test_a_trajectory_that_leaves_the_bound_is_frozen_and_the_others_are_not(method):
    rate = torch.tensor([[1.0], [8.0]], requires_grad=True)
    sde = SDE(VectorField(lambda t, x: rate * x), additive(lambda t, x: x, 0.1).diffusion)
    start, times = torch.zeros(2), torch.tensor([[0.5, 1.0], [0.5, 1.0]])
    solver = solver_of(method, 0.05)
    noise = increments(solver, start, times, 3)
    solution = solver.solve(sde, torch.ones(2, 1), start, times, noise=noise)
    assert solution.failed.tolist() == [[False, True]] * 3
    assert (solution.path.abs() <= solver.max_state).all()
    (gradient,) = torch.autograd.grad(solution.path[:, :, 1].sum(), rate)
    assert gradient[0] != 0
    assert gradient.isfinite().all()


def test_the_tight_reference_takes_the_same_increments():
    start, times = torch.zeros(1), torch.tensor([[0.5, 1.0]])
    sde = additive(lambda t, x: torch.sin(3 * x), 0.5)
    for solver, largest in ((SDESolver(1, 0.1), 1e-4), (solver_of("heun", 0.1), 0.2)):
        noise, other = increments(solver, start, times, 40), increments(solver, start, times, 40)
        own, tight, apart = (
            s(sde, torch.ones(1, 1), start, times, noise=n)
            for s, n in ((solver, noise), (solver.tight(), noise), (solver, other))
        )
        # beside what other increments do: the drift's error alone, or that of order 1 in the step
        assert 0 < (own - tight).std() < largest * (own - apart).std()


# ---- units ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("transform", ["identity", "log"])
def test_a_noise_scale_is_in_users_units_per_square_root_of_their_time(transform):
    units = bo.Units([1.0], [4.0], time_unit=25.0, time_origin=3.0, transform=transform)
    field = SDEField(BayesianMLP(1, [], 1), AdditiveNoise(1))
    field.with_units(units)
    values = {"drift.weights": torch.zeros(2), "diffusion.scale": torch.tensor([0.6])}
    solver, start = SDESolver(1), torch.zeros(1)
    times = torch.tensor([[10.0 / 25.0]])  # ten of the users' units after the start
    noise = increments(solver, start, times, 20_000)
    end = solver(field.build(values), torch.zeros(1, 1), start, times, noise=noise)
    users = units.to_users(end).log() if transform == "log" else units.to_users(end)
    assert_moments(users.reshape(-1, 1), torch.ones(1), torch.tensor([0.6**2 * 10.0]))


def test_the_default_noise_prior_follows_the_units_and_a_given_one_does_not():
    units = bo.Units([0.0, 0.0], [4.0, 0.1], time_unit=25.0, names=("prey", "predator"))
    default, given = AdditiveNoise(2), AdditiveNoise(2, prior_median=0.7)
    for part in (default, given):
        part.with_units(units)
        assert part.labels == {"scale": ["prey", "predator"]}
    # .3 of the scale per square root of the dimensionless unit, 5 square roots of the users' one
    torch.testing.assert_close(default.log_median.exp(), 0.3 * units.scale / 5)
    torch.testing.assert_close(given.log_median.exp(), torch.full((2,), 0.7))


def test_state_noise_is_positive_and_has_its_median_in_users_units():
    units = bo.Units([0.0, 0.0], [4.0, 0.1], time_unit=25.0)
    part, x = StateNoise(2, [4], prior_median=0.2, floor=0.1), 10 * torch.randn(50, 2)
    part.with_units(units)
    dimensionless = 0.2 * 5 / units.scale
    flat = part.build({"weights": torch.zeros(part.network.num_weights)})
    torch.testing.assert_close(flat(torch.tensor(0.0), x), (1.1 * dimensionless).expand(50, 2))
    for _ in range(20):
        scale = part.build({"weights": 30 * torch.randn(part.network.num_weights)})
        assert (scale(torch.tensor(0.0), x) >= 0.1 * dimensionless * (1 - 1e-12)).all()


def test_an_sde_field_names_its_tunable_buffers():
    field = SDEField(BayesianMLP(2, [3], 2), StateNoise(2, [3]))
    assert set(field.tunable()) == {"drift.weights", "diffusion.weights"}
    for site, tuning in field.tunable().items():
        buffer = field.get_buffer(tuning.buffer)
        assert buffer.shape == tuning.groups.shape == field.priors()[site].event_shape
        assert len(field.labels[site]) == len(buffer)


# ---- bad input -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SDESolver(2, 0.0), "step must be a positive number"),
        (lambda: SDESolver(2, 0.1, noise_step=-1.0), "noise_step must be a positive number"),
        (lambda: SDESolver(0, 0.1), "dim must be a positive whole number"),
        (lambda: SDESolver(2.0, 0.1), "dim must be a positive whole number"),
        (lambda: SDESolver(2, "0.1"), "step must be a positive number, not '0.1'"),
        (lambda: SDESolver(2, None), "step must be a positive number"),
        (lambda: SDESolver(2, 0.1, max_state=math.inf), "max_state must be a positive number"),
        (lambda: SDESolver(2, 0.1, noise_step=math.nan), "noise_step must be a positive number"),
        (lambda: SDESolver(2, 0.1, method=["split"]), "method must be one of"),
        (lambda: AdditiveNoise("2"), "dim must be a positive whole number"),
        (lambda: AdditiveNoise(2, prior_median=math.inf), "prior_median must be a positive number"),
        (lambda: AdditiveNoise(2, prior_log_scale=None), "prior_log_scale must be a positive"),
        (lambda: StateNoise(None), "dim must be a positive whole number"),
        (lambda: StateNoise(2, [4, 0]), r"hidden\[1\] must be a positive whole number"),
        (lambda: StateNoise(2, "8"), r"hidden\[0\] must be a positive whole number"),
        (lambda: StateNoise(2, floor=None), "floor must be a positive number"),
        (lambda: StateNoise(2, prior_scale=math.nan), "prior_scale must be a positive number"),
        (lambda: SDEField(growth(), 0.3), "diffusion=0.3 is no random part"),
        (lambda: SDEField(None, AdditiveNoise(2)), "drift=None is no random part"),
        (lambda: SDEField(growth(), AdditiveNoise), "is no random part"),
        (lambda: SDESolver(2, 0.1, method="rk4"), "method must be one of"),
        (lambda: SDESolver(2, 0.1, method="euler", noise_step=0.1), "leave noise_step out"),
        (lambda: AdditiveNoise(2, prior_median=0.0), "prior_median must be a positive number"),
        (lambda: AdditiveNoise(2, prior_log_scale=-1.0), "prior_log_scale must be a positive"),
        (lambda: StateNoise(2, floor=0.0), "floor must be a positive number"),
        (lambda: SDEField(growth(), AdditiveNoise(2), interpretation="x"), "interpretation is one"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(bo.DataError, match=message):
        make()


def test_one_width_of_state_noise_may_stand_alone():
    assert StateNoise(2, 4).config["hidden"] == [4]


def test_drift_and_diffusion_in_each_others_place_are_refused():
    affine, noise = BayesianMLP(2, [], 2), AdditiveNoise(2)
    scale, weights = torch.ones(2), torch.zeros(6)
    swapped = SDEField(noise, affine)
    with pytest.raises(bo.DataError, match="build Diffusion and VectorField in place of"):
        swapped.build({"drift.scale": scale, "diffusion.weights": weights})
    nested = SDEField(SDEField(affine, noise), noise)
    inner = {"drift.drift.weights": weights, "drift.diffusion.scale": scale}
    with pytest.raises(bo.DataError, match="build SDE and Diffusion in place of"):
        nested.build(inner | {"diffusion.scale": scale})


@pytest.mark.parametrize("noise", [AdditiveNoise(3), StateNoise(1), AdditiveNoise(1)])
def test_noise_of_another_size_than_the_units_is_refused(noise):
    units = bo.Units([0.0, 0.0], [4.0, 0.1])
    with pytest.raises(bo.ShapeError, match="meets units of 2 components"):
        SDEField(growth(), noise).with_units(units)


@pytest.mark.parametrize(
    "times", [[[1.0, 0.5, 2.0]], [[-0.5, 2.0]], [[1.0, math.nan]]], ids=["order", "start", "nan"]
)
def test_times_that_are_not_sorted_have_no_noise_grid(times):
    sde, times = additive(lambda t, x: -x, 1.0), torch.tensor(times)
    noise = torch.zeros(1, times.shape[-1], 1)
    for solver in (SDESolver(1), SDESolver(1).on(times)):
        with pytest.raises(bo.DataError, match="must be sorted, finite and none before the start"):
            solver(sde, torch.ones(1, 1), torch.zeros(1), times, noise=noise)


def test_states_and_increments_that_are_no_numbers_freeze_their_own_trajectory_alone():
    sde, start, times = additive(lambda t, x: -x, 1.0), torch.zeros(4), torch.ones(4, 1)
    x0, noise = torch.ones(4, 1), torch.zeros(4, 1, 1)
    x0[0], x0[1], noise[2] = math.nan, 31.0, math.nan
    solution = SDESolver(1).solve(sde, x0, start, times, noise=noise)
    assert solution.failed.tolist() == [True, True, True, False]
    assert abs(solution.path[3].item() - math.exp(-1)) < 1e-6  # RK4 at step .1
    assert solution.path.isfinite().all()


def test_a_noise_of_scale_0_by_condition_is_the_ode():
    model = linear_model(SDESolver(2, 0.1))
    question = bo.Trajectories([0.0, 0.5, 1.0], None, series=["a", "b"], names=["x", "y"])
    silent = poutine.condition(model, {"field.diffusion.scale": torch.zeros(2)})
    trace = poutine.trace(silent).get_trace(question)
    values = {site: trace.nodes[site]["value"] for site in model.global_priors()}
    _, sde, _ = model.build(values, question)
    x0 = trace.nodes["x0"]["value"]
    times = torch.tensor([0.0, 0.5, 1.0]).expand(2, -1)
    ode = FixedGridSolver("rk4", 0.1)(sde.drift, x0, torch.zeros(2), times)
    torch.testing.assert_close(trace.nodes["path"]["value"], ode)
    with pytest.raises(ValueError, match=r"field\.diffusion\.scale"):  # its prior has no 0
        trace.compute_log_prob()


@pytest.mark.parametrize("solver", [FixedGridSolver(), ODESolver(), ODESolver(gradient="adjoint")])
def test_a_solver_of_odes_refuses_an_sde(solver):
    sde = additive(lambda t, x: -x, 1.0)
    with pytest.raises(bo.DataError, match="take SDESolver"):
        solver(sde, torch.ones(1, 1), torch.zeros(1), torch.ones(1, 1))


def test_the_sde_solver_refuses_what_does_not_fit_together():
    x0, start, times = torch.ones(1, 2), torch.zeros(1), torch.ones(1, 1)
    sde, noise = additive(lambda t, x: -x, [1.0, 1.0]), torch.zeros(1, 1, 2)
    with pytest.raises(bo.DataError, match=r"needs a field with noise, SDEField"):
        SDESolver(2)(sde.drift, x0, start, times, noise=noise)
    with pytest.raises(bo.DataError, match="needs its increments"):
        SDESolver(2)(sde, x0, start, times)
    with pytest.raises(bo.ShapeError, match="drawn for other times"):
        SDESolver(2)(sde, x0, start, times, noise=torch.zeros(1, 3, 2))
    with pytest.raises(bo.ShapeError, match="all three must agree"):
        SDESolver(2)(additive(lambda t, x: -x, 1.0), x0, start, times, noise=noise)
    with pytest.raises(bo.ShapeError, match="all three must agree"):
        SDESolver(1)(sde, x0, start, times, noise=torch.zeros(1, 1, 1))
    with pytest.raises(bo.DataError, match="'heun' is for additive noise"):
        SDESolver(2, method="heun")(wave(), x0, start, times, noise=torch.zeros(1, 10, 2))
    with pytest.raises(bo.ShapeError, match="increments of 3 series meet 1 series"):
        SDESolver(2)(sde, x0, start, times, noise=torch.zeros(3, 1, 2))
    with pytest.raises(bo.SolverError, match=r"1e\+09 steps of 1e-09"):
        SDESolver(2, 1e-9)(sde, x0, start, times, noise=noise)
    with pytest.raises(bo.ShapeError, match="2 series meets 1 series"):
        SDESolver(2).on(torch.ones(2, 1))(sde, x0, start, times, noise=noise)


def test_an_sde_field_inside_a_sum_is_refused_with_the_mend():
    field = bo.Sum(only=SDEField(growth(), AdditiveNoise(2)))
    with pytest.raises((bo.DataError, bo.ShapeError), match="fields inside the drift"):
        built = field.build(
            {"only.drift.rate": torch.tensor(0.3), "only.diffusion.scale": torch.ones(2)}
        )
        built(torch.tensor(0.0), torch.ones(1, 2))
