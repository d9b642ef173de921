"""FixedGridSolver against closed forms, its order, and what freezing does."""

import math

import pytest
import torch
from torch.func import jacfwd, vmap

from bayesode.errors import DataError, ShapeError, SolverError
from bayesode.models.contracts import VectorField
from bayesode.models.fields import BayesianMLP
from bayesode.models.solvers import FixedGridSolver
from bayesode.models.solvers.grid import SLACK, substeps

ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}
each_method = pytest.mark.parametrize("method", ORDERS)
# torch 2.13 scripts its decompositions for jvp when the first one is needed, and warns about it
TORCHS_OWN = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def van_der_pol(t, x):
    return torch.stack([x[..., 1], (1 - x[..., 0] ** 2) * x[..., 1] - x[..., 0]], -1)


def driven(t, x):
    """dx/dt = x cos t: x = x0 exp(sin t - sin start)."""
    return x * torch.cos(torch.as_tensor(t))


def irregular_series():
    """Three series with their own starts, ends and grids; the ends are padding."""
    start = torch.tensor([0.0, -1.3, 2.0])
    times = torch.tensor(
        [
            [0.0, 0.07, 0.31, 0.9, 1.7, 2.0, 2.83],
            [-1.1, -0.2, 0.05, 0.4, 0.4, 0.4, 0.4],
            [2.9, 4.1, 4.2, 4.33, 5.0, 5.0, 5.0],
        ]
    )
    x0 = torch.tensor([[1.0, 0.0], [0.3, -1.0], [-2.0, 0.5]])
    return x0, start, times


# ---- closed forms -------------------------------------------------------------------------------
def test_a_linear_field_follows_the_matrix_exponential():
    matrix = torch.tensor([[-0.2, 1.0], [-1.5, 0.1]])
    x0, start, times = irregular_series()
    field = VectorField(lambda t, x: x @ matrix.T)
    path = FixedGridSolver("rk4", 0.005)(field, x0, start, times)
    elapsed = (times - start.unsqueeze(-1))[..., None, None]
    expected = (torch.matrix_exp(matrix * elapsed) @ x0[:, None, :, None]).squeeze(-1)
    torch.testing.assert_close(path, expected, rtol=0, atol=1e-9)


def test_van_der_pol_runs_into_its_limit_cycle():
    times = torch.linspace(20, 30, 1001).unsqueeze(0)
    solver = FixedGridSolver("rk4", 0.05)
    path = solver(VectorField(van_der_pol), torch.tensor([[0.5, 0.0]]), torch.zeros(1), times)
    amplitude = path[0].abs().amax(0)
    # with 1 - x2^2 in the equation they would be other numbers
    torch.testing.assert_close(amplitude, torch.tensor([2.01, 2.68]), rtol=0, atol=0.01)


@each_method
def test_the_error_shrinks_at_the_order_of_the_method(method):
    x0, start, times = irregular_series()
    exact = x0[:, None] * (times.sin() - start.sin().unsqueeze(-1)).exp().unsqueeze(-1)
    steps = [0.02, 0.01, 0.005]
    errors = torch.stack(
        [
            (FixedGridSolver(method, h)(VectorField(driven), x0, start, times) - exact).norm()
            for h in steps
        ]
    )
    order = (errors[:-1] / errors[1:]).log2()
    # the substeps of an interval of 3.5 steps are 4, then 7: not quite the half
    assert ((order - ORDERS[method]).abs() < 0.15).all(), order


def test_time_runs_from_each_series_own_start():
    start = torch.tensor([0.0, 1.0, 3.0])
    times = start.unsqueeze(-1) + torch.tensor([0.5, 2.0])
    solver = FixedGridSolver("rk4", 0.02)
    path = solver(VectorField(driven), torch.ones(2, 3, 1), start, times)
    exact = (times.sin() - start.sin().unsqueeze(-1)).exp()
    torch.testing.assert_close(path, exact.expand(2, 3, 2).unsqueeze(-1), rtol=1e-8, atol=0)


# ---- which times are asked ----------------------------------------------------------------------
@each_method
def test_a_time_asked_alone_agrees_within_the_solvers_error(method):
    x0, start, times = irregular_series()
    field, gaps, errors = VectorField(van_der_pol), [], []
    exact = FixedGridSolver("rk4", 0.001)(field, x0, start, times[:, -1:])[:, 0]
    for h in [0.1 / 2**k for k in range(5)]:
        solver = FixedGridSolver(method, h)
        alone = solver(field, x0, start, times[:, -1:])[:, 0]
        gaps.append((alone - solver(field, x0, start, times)[:, -1]).norm())
        errors.append((alone - exact).norm())
    assert gaps[0] > 1e-6  # the grids do differ
    assert all(gap < error for gap, error in zip(gaps, errors, strict=True))
    slope = torch.stack(gaps).log2().diff().mean().neg()
    assert slope > ORDERS[method] - 0.1, gaps


def test_the_size_of_the_step_bounds_it_however_few_times_are_asked():
    # a fixed number of substeps per interval is off by far here
    x0, start, times = torch.tensor([[2.0, 0.0]]), torch.zeros(1), torch.tensor([[4.0]])
    solver, field = FixedGridSolver("rk4", 0.1), VectorField(van_der_pol)
    dense = solver(field, x0, start, torch.linspace(0, 4, 401).unsqueeze(0))[:, -1:]
    torch.testing.assert_close(solver(field, x0, start, times), dense, rtol=0, atol=5e-4)


def test_asked_times_that_lie_on_the_grid_change_nothing():
    x0, start, _ = irregular_series()
    grid = start.unsqueeze(-1) + 0.25 * torch.arange(9)
    solver, field = FixedGridSolver("rk4", 0.25), VectorField(van_der_pol)
    full = solver(field, x0, start, grid)
    some = solver(field, x0, start, grid[:, [2, 8]])
    torch.testing.assert_close(some, full[:, [2, 8]], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(solver(field, x0, start, grid[:, 1:]), full[:, 1:], rtol=0, atol=0)


@each_method
def test_a_series_alone_has_the_path_that_it_has_in_a_batch(method):
    x0, start, times = irregular_series()
    x0 = torch.stack([x0, x0.flip(0)])
    solver, field = FixedGridSolver(method, 0.1), VectorField(lambda t, x: van_der_pol(t, x) + t)
    together = solver(field, x0, start, times)
    assert together.shape == (2, 3, 7, 2)
    for row in range(3):
        one = slice(row, row + 1)
        alone = solver(field, x0[:, one], start[one], times[one])
        torch.testing.assert_close(alone, together[:, one], rtol=1e-13, atol=1e-13)
    alone = solver(field, x0[0, 1:2], start[1:2], times[1:2, :4])  # without its padding
    torch.testing.assert_close(alone, together[0, 1:2, :4], rtol=1e-13, atol=1e-13)


def test_the_start_itself_gives_the_initial_state():
    x0, start, times = irregular_series()
    path = FixedGridSolver()(VectorField(van_der_pol), x0, start, times)
    assert torch.equal(path[0, 0], x0[0])  # asked at its start, 0
    assert not torch.equal(path[1, 0], x0[1])
    solution = FixedGridSolver().solve(VectorField(van_der_pol), x0, start, start.unsqueeze(-1))
    assert torch.equal(solution.path, x0.unsqueeze(1))
    assert solution.num_evaluations == 0
    assert solution.failed.shape == (3,)


def test_repeated_times_repeat_the_state():
    x0, start, times = irregular_series()
    path = FixedGridSolver()(VectorField(van_der_pol), x0, start, times)
    assert torch.equal(path[1, 4:], path[1, 3].expand(3, 2))
    inside = torch.tensor([[0.5, 0.5, 0.9]])
    path = FixedGridSolver()(VectorField(van_der_pol), x0[:1], start[:1], inside)
    assert torch.equal(path[0, 0], path[0, 1])
    assert not torch.equal(path[0, 1], path[0, 2])


# ---- the grid -----------------------------------------------------------------------------------
def test_substeps_are_equal_bounded_and_pass_through_the_asked_times():
    _, start, times = irregular_series()
    lengths, begins, reached = substeps(start, times, 0.1)
    assert (lengths <= 0.1 * (1 + SLACK)).all()
    ends = begins + lengths
    for row in range(3):
        position, time = 0, start[row]
        for asked, last in zip(times[row], reached[row].tolist(), strict=True):
            own = lengths[row, position:last]
            assert len(own) == math.ceil((asked - time - 1e-9) / 0.1)
            torch.testing.assert_close(own, own[:1].expand_as(own), rtol=1e-12, atol=0)
            torch.testing.assert_close(own.sum(), asked - time)
            if len(own):
                torch.testing.assert_close(begins[row, position], time)
                torch.testing.assert_close(ends[row, last - 1], asked)
            position, time = last, asked
        assert (lengths[row, position:] == 0).all()
        assert (begins[row, position:] == times[row, -1]).all()


@pytest.mark.parametrize(
    "rounded", [lambda t: t.float().double(), lambda t: t.mul(1e7).round() / 1e7]
)
def test_rounding_of_times_adds_no_step(rounded):
    times = (torch.arange(1, 41) * 0.3).unsqueeze(0)
    exact = substeps(torch.zeros(1), times, 0.1)[0]
    assert exact.shape == (1, 120)
    assert substeps(torch.zeros(1), rounded(times), 0.1)[0].shape == (1, 120)
    shifted = substeps(torch.full((1,), 0.7), rounded(times) + 0.7, 0.1)[0]
    assert shifted.shape == (1, 120)


@each_method
def test_evaluations_are_counted(method):
    count = [0]

    def counted(t, x):
        count[0] += 1
        return van_der_pol(t, x)

    solver = FixedGridSolver(method, 0.25)
    solution = solver.solve(VectorField(counted), *irregular_series())
    assert solution.num_evaluations == count[0] > 0
    one = solver.solve(VectorField(counted), torch.ones(1, 2), torch.zeros(1), torch.ones(1, 1))
    assert one.num_evaluations == 4 * {"euler": 1, "midpoint": 2, "rk4": 4}[method]


def test_a_state_of_single_precision_keeps_far_origins():
    # single precision holds no step of .1 at 1e8: subtracted there, all times would be the same
    start = torch.tensor([1e8], dtype=torch.float64)
    times = start + torch.tensor([[0.05, 0.4, 1.0]], dtype=torch.float64)
    solver, x0 = FixedGridSolver("rk4", 0.1), torch.ones(1, 1, dtype=torch.float32)
    path = solver(VectorField(lambda t, x: -x), x0, start, times)
    assert path.dtype == torch.float32
    expected = (start - times).exp().float().unsqueeze(-1)
    torch.testing.assert_close(path, expected, rtol=2e-6, atol=0)


def test_a_start_far_from_the_data_is_an_error_about_units():
    x0, start = torch.ones(1, 1), torch.zeros(1)
    for last in (1.7e9, 1e30):
        with pytest.raises(SolverError, match=r"steps of 0.1 lie between .* units"):
            FixedGridSolver()(VectorField(van_der_pol), x0, start, torch.tensor([[last]]))


# ---- draws --------------------------------------------------------------------------------------
def test_one_initial_state_may_meet_many_draws_of_the_field():
    field = BayesianMLP(2, [3], 2)
    weights, solver = torch.randn(5, 1, 17), FixedGridSolver()
    x0, start, times = irregular_series()
    for asked in (times, start.unsqueeze(-1)):
        f = field.build({"weights": weights})
        solution = solver.solve(f, x0, start, asked)
        expected = solver.solve(f, x0.expand(5, 3, 2), start, asked)
        full = (5, 3, asked.shape[1], 2)
        assert torch.equal(solution.path.expand(full), expected.path)
        assert torch.equal(solution.failed.expand(5, 3), expected.failed)


def test_vmap_over_draws_is_the_batch_of_draws():
    field, solver = BayesianMLP(2, [3], 2), FixedGridSolver()
    weights, (x0, start, times) = torch.randn(5, 17), irregular_series()

    def run(w):
        return solver(field.build({"weights": w}), x0, start, times)

    together = solver(field.build({"weights": weights.unsqueeze(1)}), x0, start, times)
    torch.testing.assert_close(vmap(run)(weights), together, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings(TORCHS_OWN)
@pytest.mark.parametrize("max_state", [30.0, 1.5])
def test_forward_derivatives_are_those_of_the_tape(max_state):
    field, solver = BayesianMLP(2, [3], 2, time=True), FixedGridSolver(max_state=max_state)
    weights, (x0, start, times) = 0.5 * torch.randn(20), irregular_series()

    def run(w, x):
        return solver(field.build({"weights": w}), x, start, times)

    own = jacfwd(run, (0, 1))(weights, x0)
    tape = torch.autograd.functional.jacobian(run, (weights, x0))
    torch.testing.assert_close(own, tape, rtol=1e-11, atol=1e-12)
    if max_state == 1.5:  # the third series is frozen where it begins
        assert (own[0][2] == 0).all()


# ---- frozen trajectories ------------------------------------------------------------------------
def cube(weight):
    return lambda t, x: weight * x**3


def exponential(weight):
    return lambda t, x: weight * x.exp()


def undefined(weight):
    return lambda t, x: torch.where(x > 2.5, torch.nan, weight * x)


def undefined_later(weight):
    return lambda t, x: torch.where(torch.as_tensor(t) > 0.5, torch.nan, weight * x)


EXPLOSIONS = {
    "cube": (cube, [2.0, 0.1, -0.3]),
    "exponential": (exponential, [1.5, -2.0, -3.0]),
    "undefined": (undefined, [2.0, 0.1, -0.3]),
}
TIMES = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)  # every step is asked


def last_alive(path):
    """Number of steps before a trajectory is frozen."""
    return int((path[:, 0].diff() != 0).nonzero().max()) + 1


def explode(case, *, method="rk4", x0=None):
    make, states = EXPLOSIONS[case]
    weight = torch.tensor(1.0, requires_grad=True)
    x0 = torch.tensor(states).unsqueeze(-1) if x0 is None else x0
    x0 = x0.clone().requires_grad_()
    times = TIMES.expand(len(x0), -1)
    field, start = VectorField(make(weight), (weight,)), torch.zeros(len(x0))
    return FixedGridSolver(method, 0.05).solve(field, x0, start, times), weight, x0


@each_method
@pytest.mark.parametrize("case", EXPLOSIONS)
def test_a_trajectory_that_leaves_is_frozen_and_reported(case, method):
    solution, _, _ = explode(case, method=method)
    assert solution.failed.tolist() == [True, False, False]
    assert solution.path.isfinite().all()
    assert (solution.path.abs() <= 30).all()
    last = last_alive(solution.path[0])
    assert 0 < last < 19
    assert (solution.path[0, last:] == solution.path[0, last]).all()


@each_method
@pytest.mark.parametrize("case", EXPLOSIONS)
def test_batch_mates_do_not_notice_a_frozen_trajectory(case, method):
    solution, weight, x0 = explode(case, method=method)
    mates, own_weight, own_x0 = explode(case, method=method, x0=x0.detach()[1:])
    assert torch.equal(solution.path[1:], mates.path)
    gradients = torch.autograd.grad(solution.path[1:].sum(), [weight, x0])
    expected = torch.autograd.grad(mates.path.sum(), [own_weight, own_x0])
    torch.testing.assert_close(gradients[0], expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[1][1:], expected[1], rtol=1e-12, atol=0)
    assert (gradients[1][0] == 0).all()


@each_method
@pytest.mark.parametrize("case", EXPLOSIONS)
def test_gradients_are_finite_and_end_where_a_trajectory_is_frozen(case, method):
    solution, weight, x0 = explode(case, method=method)
    path, last = solution.path[0], last_alive(solution.path[0])
    total = torch.autograd.grad(solution.path.sum(), [weight, x0], retain_graph=True)
    assert all(gradient.isfinite().all() for gradient in total)
    after = torch.autograd.grad(path[last + 1 :].sum(), [weight, x0], retain_graph=True)
    assert all((gradient == 0).all() for gradient in after)
    before = torch.autograd.grad(path[last].sum(), [weight, x0])
    assert all((gradient.flatten()[0] != 0) for gradient in before)


def test_a_field_that_ends_at_some_time_freezes_there():
    weight = torch.tensor(-1.0, requires_grad=True)
    field = VectorField(undefined_later(weight))
    start = torch.tensor([0.0, -1.0])
    times = start.unsqueeze(-1) + TIMES
    solution = FixedGridSolver("rk4", 0.05).solve(field, torch.ones(2, 1), start, times)
    assert solution.failed.tolist() == [True, False]
    torch.testing.assert_close(solution.path[1, :, 0], (-TIMES).exp(), rtol=1e-6, atol=0)
    torch.testing.assert_close(solution.path[0, 10:, 0], torch.full((11,), math.exp(-0.5)))
    (gradient,) = torch.autograd.grad(solution.path.sum(), weight)
    by_weight = TIMES * (-TIMES).exp()
    exact = by_weight.sum() + by_weight[:11].sum()
    torch.testing.assert_close(gradient, exact, rtol=1e-6, atol=0)


def test_a_trajectory_that_begins_outside_is_frozen_at_the_bound():
    x0 = torch.tensor([[31.0, 0.0], [1.0, 0.0], [0.0, -40.0]], requires_grad=True)
    _, start, times = irregular_series()
    solution = FixedGridSolver().solve(VectorField(lambda t, x: -x), x0, start, times)
    assert solution.failed.tolist() == [True, False, True]
    assert (solution.path[0, 1:] == torch.tensor([30.0, 0.0])).all()
    assert (solution.path[2] == torch.tensor([0.0, -30.0])).all()
    (gradient,) = torch.autograd.grad(solution.path[:, 1:].sum(), x0)
    assert (gradient[[0, 2]] == 0).all()
    assert (gradient[1] > 0).all()


def test_the_bound_is_a_setting():
    x0, start, times = irregular_series()
    field = VectorField(lambda t, x: torch.ones_like(x))
    loose = FixedGridSolver(max_state=1e3).solve(field, x0 + 100, start, times)
    assert not loose.failed.any()
    torch.testing.assert_close(loose.path[0, -1], x0[0] + 102.83)
    assert FixedGridSolver(max_state=1.0).solve(field, x0, start, times).failed.all()


@each_method
def test_a_rate_that_is_not_as_large_as_the_state_is_refused(method):
    x0, start, times = irregular_series()
    for size in (1, 3):  # one would be broadcast without a word
        field = BayesianMLP(2, [3], size)
        field = field.build({"weights": torch.zeros(field.num_weights)})
        with pytest.raises(
            ShapeError, match=rf"rate of shape \(3, {size}\) for states of shape \(3, 2\)"
        ):
            FixedGridSolver(method)(field, x0, start, times)


# ---- the border ---------------------------------------------------------------------------------
def test_an_unknown_method_is_answered_with_the_list():
    with pytest.raises(DataError, match=r"\['euler', 'midpoint', 'rk4'\], not 'dopri5'"):
        FixedGridSolver("dopri5")


@pytest.mark.parametrize("number", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["step", "max_state"])
def test_settings_that_are_no_positive_numbers_are_refused(name, number):
    with pytest.raises(DataError, match=f"{name} must be a positive number, not {number}"):
        FixedGridSolver(**{name: number})


def test_the_config_rebuilds_an_equal_solver():
    solver = FixedGridSolver("midpoint", 0.3, 7.0)
    assert FixedGridSolver(**solver.config) == solver
    assert solver.priors(torch.zeros(1), torch.ones(1, 1)) == {}
