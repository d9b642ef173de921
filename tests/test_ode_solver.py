"""ODESolver against closed forms, and where torchdiffeq alone goes wrong."""

import math
import re

import pytest
import torch
from torchdiffeq import odeint

from bayesode.errors import DataError, ShapeError, SolverError
from bayesode.models.contracts import VectorField
from bayesode.models.fields import BayesianMLP
from bayesode.models.solvers import FixedGridSolver, ODESolver
from bayesode.models.solvers.elapsed import Elapsed
from bayesode.models.solvers.ode import ADAPTIVE, FIXED_STEP

ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
LOW_ORDER = ("fehlberg2", "adaptive_heun", "bosh3")
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


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


def share(method):
    """How far from the solution, in tolerances: one step's estimate says little at low order."""
    return 2000 if method in ("fehlberg2", "bosh3") else 100


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


def fixed(method, step):
    return ODESolver(method, step_size=step)


def both_kinds(step=0.02, **settings):
    return [ODESolver("dopri5", **settings), ODESolver("rk4", step_size=step)]


# ---- closed forms -------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_linear_field_follows_the_matrix_exponential(method):
    matrix = torch.tensor([[-0.2, 1.0], [-1.5, 0.1]])
    x0, start, times = irregular_series()
    tolerance = 1e-5 if method in LOW_ORDER else 1e-9
    solver = ODESolver(method, rtol=tolerance, atol=tolerance)
    path = solver(VectorField(lambda t, x: x @ matrix.T), x0, start, times)
    elapsed = (times - start.unsqueeze(-1))[..., None, None]
    expected = (torch.matrix_exp(matrix * elapsed) @ x0[:, None, :, None]).squeeze(-1)
    torch.testing.assert_close(path, expected, rtol=0, atol=share(method) * tolerance)


def test_van_der_pol_runs_into_its_limit_cycle():
    times = torch.linspace(20, 27, 301).unsqueeze(0)
    solver = ODESolver(rtol=1e-5, atol=1e-5)
    path = solver(VectorField(van_der_pol), torch.tensor([[0.5, 0.0]]), torch.zeros(1), times)
    amplitude = path[0].abs().amax(0)
    torch.testing.assert_close(amplitude, torch.tensor([2.01, 2.68]), rtol=0, atol=0.01)


@pytest.mark.parametrize("method", FIXED_STEP)
def test_the_error_shrinks_at_the_order_of_the_method(method):
    x0, start, times = irregular_series()
    exact = x0[:, None] * (times.sin() - start.sin().unsqueeze(-1)).exp().unsqueeze(-1)
    errors = torch.stack(
        [
            (fixed(method, h)(VectorField(driven), x0, start, times) - exact).norm()
            for h in (0.04, 0.02, 0.01)
        ]
    )
    order = (errors[:-1] / errors[1:]).log2()
    # intervals between asked times hold no whole number of steps: not quite the half
    assert ((order - ORDERS[method]).abs() < 0.3).all(), order


@pytest.mark.parametrize("index", [0, 1])
def test_time_runs_from_each_series_own_start(index):
    start = torch.tensor([0.0, 1.0, 3.0])
    times = start.unsqueeze(-1) + torch.tensor([0.5, 2.0])
    path = both_kinds(rtol=1e-9, atol=1e-9)[index](
        VectorField(driven), torch.ones(2, 3, 1), start, times
    )
    exact = (times.sin() - start.sin().unsqueeze(-1)).exp()
    torch.testing.assert_close(path, exact.expand(2, 3, 2).unsqueeze(-1), rtol=1e-7, atol=0)


def test_both_solvers_find_the_same_path():
    x0, start, times = irregular_series()
    field = BayesianMLP(2, [4], 2, time=True).build({"weights": torch.randn(5, 1, 26)})
    reference = ODESolver(**TIGHT)(field, x0, start, times)
    own = FixedGridSolver("rk4", 0.01)(field, x0, start, times)
    torch.testing.assert_close(own, reference, rtol=0, atol=1e-6)


# ---- which times are asked ----------------------------------------------------------------------
@pytest.mark.parametrize("method", FIXED_STEP)
def test_a_time_asked_alone_agrees_within_the_error_of_a_fixed_step(method):
    x0, start, times = irregular_series()
    field, gaps, errors = VectorField(van_der_pol), [], []
    exact = ODESolver(**TIGHT)(field, x0, start, times[:, -1:])[:, 0]
    for h in [0.1 / 2**k for k in range(4)]:
        alone = fixed(method, h)(field, x0, start, times[:, -1:])[:, 0]
        gaps.append((alone - fixed(method, h)(field, x0, start, times)[:, -1]).norm())
        errors.append((alone - exact).norm())
    assert gaps[0] > 1e-6  # the grids do differ
    assert all(gap < error for gap, error in zip(gaps, errors, strict=True))
    slope = torch.stack(gaps).log2().diff().mean().neg()
    assert slope > ORDERS[method] - 0.3, gaps


@pytest.mark.parametrize("method", ADAPTIVE)
def test_asked_times_change_an_adaptive_path_within_its_tolerance(method):
    # dopri8 fails without its stops at asked times: 1.3e-4 at 1e-6
    x0, start, times = irregular_series()
    tolerance = 1e-4 if method in LOW_ORDER else 1e-6
    solver, field = ODESolver(method, rtol=tolerance, atol=tolerance), VectorField(van_der_pol)
    exact = ODESolver(**TIGHT)(field, x0, start, times)
    bound = {"rtol": 0, "atol": share(method) * tolerance}
    for last in (4, 7):
        path = solver(field, x0, start, times[:, last - 1 : last])
        torch.testing.assert_close(path[:, 0], exact[:, last - 1], **bound)
    torch.testing.assert_close(solver(field, x0, start, times), exact, **bound)


def test_the_size_of_the_step_bounds_it_however_few_times_are_asked():
    # torchdiffeq alone follows the asked times, and is off by 1e8 and more here
    x0, start, times = torch.tensor([[2.0, 0.0]]), torch.zeros(1), torch.tensor([[4.0]])
    field, solver = VectorField(van_der_pol), fixed("rk4", 0.1)
    exact = ODESolver(**TIGHT)(field, x0, start, times)
    torch.testing.assert_close(solver(field, x0, start, times), exact, rtol=0, atol=1e-3)
    alone = odeint(van_der_pol, x0, torch.tensor([0.0, 4.0]), method="rk4")[-1:]
    assert not (alone - exact[0]).abs().max() < 1


@pytest.mark.parametrize("index", [0, 1])
def test_the_start_itself_gives_the_initial_state(index):
    x0, start, times = irregular_series()
    x0.requires_grad_()
    solver, field = both_kinds()[index], VectorField(van_der_pol)
    path = solver(field, x0, start, times)
    assert torch.equal(path[0, 0], x0[0])
    assert not torch.equal(path[1, 0], x0[1])
    solution = solver.solve(field, x0, start, start.unsqueeze(-1))
    assert torch.equal(solution.path, x0.unsqueeze(1))
    assert not solution.failed.any()
    (gradient,) = torch.autograd.grad(solution.path.sum(), x0)
    assert torch.equal(gradient, torch.ones_like(x0))


@pytest.mark.parametrize("index", [0, 1])
def test_series_that_end_at_their_start_stand_among_others(index):
    x0, start, times = irregular_series()
    times[1] = start[1]
    solution = both_kinds()[index].solve(VectorField(van_der_pol), x0, start, times)
    assert torch.equal(solution.path[1], x0[1].expand(7, 2))
    assert not solution.failed.any()
    alone = both_kinds()[index](VectorField(van_der_pol), x0[:1], start[:1], times[:1])
    torch.testing.assert_close(solution.path[:1], alone, rtol=0, atol=1e-2)


@pytest.mark.parametrize("index", [0, 1])
def test_repeated_times_repeat_the_state(index):
    x0, start, times = irregular_series()
    path = both_kinds()[index](VectorField(van_der_pol), x0, start, times)
    assert torch.equal(path[1, 4:], path[1, 3].expand(3, 2))
    inside = both_kinds()[index](
        VectorField(van_der_pol), x0[:1], start[:1], torch.tensor([[0.5, 0.5, 0.9]])
    )
    assert torch.equal(inside[0, 0], inside[0, 1])
    assert not torch.equal(inside[0, 1], inside[0, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index", [0, 1])
def test_times_that_differ_by_rounding_alone_are_one_time(index, dtype):
    # single precision has one number for both; torchdiffeq refuses what does not increase
    start = torch.tensor([0.0, 0.1, 0.0])
    times = torch.tensor([[0.3, 0.6, 0.9], [0.4, 0.7, 1.0], [0.3 + 1e-9, 0.6, 0.9]])
    x0 = torch.ones(3, 1, dtype=dtype)
    path = both_kinds()[index](VectorField(lambda t, x: -x), x0, start, times)
    assert path.dtype == dtype
    expected = (start.unsqueeze(-1) - times).exp().to(dtype).unsqueeze(-1)
    torch.testing.assert_close(path, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("index", [0, 1])
def test_a_state_of_single_precision_keeps_far_origins(index):
    start = torch.tensor([1e8])
    times = start + torch.tensor([[0.05, 0.4, 1.0]])
    x0 = torch.ones(1, 1, dtype=torch.float32)
    path = both_kinds(rtol=1e-5, atol=1e-6)[index](VectorField(lambda t, x: -x), x0, start, times)
    expected = (start - times).exp().float().unsqueeze(-1)
    torch.testing.assert_close(path, expected, rtol=1e-4, atol=0)


def test_equal_shares_of_different_spans_are_one_point_of_the_grid():
    start = torch.tensor([0.0, 0.1, -7.3])
    times = start.unsqueeze(-1) + torch.tensor([[3.0], [2.7], [1.9]]) * torch.linspace(0.1, 1, 10)
    solver, field, x0 = fixed("rk4", 0.1), VectorField(lambda t, x: -x), torch.ones(3, 1)
    together = solver.solve(field, x0, start, times)
    alone = solver.solve(field, x0[:1], start[:1], times[:1])
    assert together.num_evaluations == alone.num_evaluations


# ---- batch-mates --------------------------------------------------------------------------------
def hard_among_easy():
    """One van der Pol trajectory in the first row, and 999 at rest."""
    x0 = torch.cat([torch.tensor([[2.0, 0.0]]), torch.zeros(999, 2)])
    return x0, torch.zeros(1000), torch.tensor([[4.0, 8.0]]).expand(1000, 2)


def gap_to_the_trajectory_alone(rtol):
    x0, start, times = hard_among_easy()
    solver, field = ODESolver(rtol=rtol, atol=rtol), VectorField(van_der_pol)
    together = solver(field, x0, start, times)[0]
    return (together - solver(field, x0[:1], start[:1], times[:1])[0]).abs().max()


def test_a_hard_trajectory_does_not_hide_among_easy_ones(monkeypatch):
    assert gap_to_the_trajectory_alone(1e-5) < 1e-5
    # torchdiffeq's own norm takes the mean over the batch
    monkeypatch.setattr(Elapsed, "norm", lambda self, error: error.detach().pow(2).mean().sqrt())
    assert gap_to_the_trajectory_alone(1e-5) > 100 * 1e-5


@pytest.mark.parametrize("rtol", [1e-4, 1e-6])
def test_a_series_alone_has_the_path_that_it_has_in_a_batch(rtol):
    x0, start, times = irregular_series()
    x0 = torch.stack([x0, x0.flip(0)])
    solver = ODESolver(rtol=rtol, atol=rtol)
    field = VectorField(lambda t, x: van_der_pol(t, x) + t)
    together = solver(field, x0, start, times)
    assert together.shape == (2, 3, 7, 2)
    for row in range(3):
        one = slice(row, row + 1)
        alone = solver(field, x0[:1, one], start[one], times[one])
        torch.testing.assert_close(alone, together[:1, one], rtol=0, atol=100 * rtol)


@pytest.mark.parametrize("index", [0, 1])
def test_one_initial_state_may_meet_many_draws_of_the_field(index):
    field = BayesianMLP(2, [3], 2).build({"weights": torch.randn(5, 1, 17)})
    x0, start, times = irregular_series()
    x0.requires_grad_()
    solution = both_kinds()[index].solve(field, x0, start, times)
    expected = both_kinds()[index].solve(field, x0.expand(5, 3, 2), start, times)
    assert solution.path.shape == (5, 3, 7, 2)
    assert torch.equal(solution.path, expected.path)
    assert torch.equal(solution.failed, expected.failed)
    own, other = (torch.autograd.grad(s.path.sum(), x0)[0] for s in (solution, expected))
    assert torch.equal(own, other)


# ---- gradients ----------------------------------------------------------------------------------
def gradients(solver, *, tensors=True, draws=True):
    """Of a loss by weights, x0 and the bias of a time-dependent field."""
    field = BayesianMLP(2, [4], 2, time=True)
    generator = torch.Generator().manual_seed(3)
    lead = (2, 1) if draws else ()
    weights = torch.randn(*lead, 26, generator=generator).requires_grad_()
    x0, start, times = irregular_series()
    x0.requires_grad_()
    f = field.build({"weights": weights})
    f = f if tensors else VectorField(f.function)
    path = solver(
        f, x0, start, start.unsqueeze(-1) + torch.tensor([[0.1, 0.5]]) * times[:, -1:].abs()
    )
    weighting = torch.randn(path.shape, generator=generator)
    return torch.autograd.grad((weighting * path).sum(), [weights, x0], allow_unused=True)


@pytest.mark.parametrize("draws", [False, True])
def test_the_adjoint_gradient_is_the_direct_one(draws):
    direct = gradients(ODESolver(**TIGHT), draws=draws)
    adjoint = gradients(ODESolver(gradient="adjoint", **TIGHT), draws=draws)
    for one, other in zip(direct, adjoint, strict=True):  # per tensor, in the 2-norm
        assert (one - other).norm() < 1e-7 * one.norm()


@pytest.mark.parametrize("method", ["euler", "heun2", "rk4"])
def test_the_adjoint_of_a_fixed_step_method_tends_to_the_direct_gradient(method):
    gaps = []
    for step in (0.2, 0.05):
        direct = gradients(ODESolver(method, step_size=step))
        adjoint = gradients(ODESolver(method, step_size=step, gradient="adjoint"))
        gaps.append(sum((a - b).norm() / a.norm() for a, b in zip(direct, adjoint, strict=True)))
    assert gaps[1] < 0.05
    assert gaps[1] < gaps[0] / 4 ** (ORDERS[method] - 0.5), gaps


def test_the_direct_gradient_is_a_finite_difference():
    field = BayesianMLP(2, [3], 2)
    weights, (x0, start, times) = torch.randn(17), irregular_series()
    solver = ODESolver(**TIGHT)

    def loss(w):
        return solver(field.build({"weights": w}), x0, start, times).square().sum()

    direction = torch.randn(17)
    (gradient,) = torch.autograd.grad(loss(weights.requires_grad_()), weights)
    with torch.no_grad():
        h = 1e-5
        slope = (loss(weights + h * direction) - loss(weights - h * direction)) / (2 * h)
    torch.testing.assert_close(gradient @ direction, slope, rtol=1e-6, atol=0)


def test_an_adjoint_without_the_fields_tensors_loses_the_gradient():
    # without an error, which is why every field lists its tensors
    direct = gradients(ODESolver(**TIGHT))
    blind = gradients(ODESolver(gradient="adjoint", **TIGHT), tensors=False)
    assert blind[0] is None or (blind[0] - direct[0]).norm() > 0.5 * direct[0].norm()
    assert (blind[1] - direct[1]).norm() < 1e-7 * direct[1].norm()


def test_a_state_at_rest_has_a_finite_gradient():
    # the root in an error norm has an infinite slope at 0
    weight = torch.tensor(1.0, requires_grad=True)
    x0 = torch.zeros(2, 1, requires_grad=True)
    field = VectorField(lambda t, x: weight * x, (weight,))
    path = ODESolver()(field, x0, torch.zeros(2), torch.tensor([[0.5, 1.0]] * 2))
    by_weight, by_x0 = torch.autograd.grad(path.sum(), [weight, x0])
    assert by_weight == 0
    torch.testing.assert_close(by_x0, torch.full((2, 1), math.exp(0.5) + math.e), rtol=1e-4, atol=0)


# ---- counting and giving up ---------------------------------------------------------------------
@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_evaluations_are_counted(method, gradient):
    count = [0]

    def counted(t, x):
        count[0] += 1
        return van_der_pol(t, x)

    step = 0.1 if method == "rk4" else None
    solver = ODESolver(method, step_size=step, gradient=gradient)
    solution = solver.solve(VectorField(counted), *irregular_series())
    assert solution.num_evaluations == count[0] > 20


def test_evaluations_grow_with_the_accuracy_that_is_asked():
    counts = [
        ODESolver(rtol=r, atol=r)
        .solve(VectorField(van_der_pol), *irregular_series())
        .num_evaluations
        for r in (1e-3, 1e-6, 1e-9)
    ]
    assert counts == sorted(counts)
    assert counts[-1] > 3 * counts[0]


def stiff(rates):
    """Fast decay to sin t in some trajectories; the others move faster, but smoothly."""
    rates = torch.as_tensor(rates).unsqueeze(-1)
    return VectorField(
        lambda t, x: -rates * (x - torch.sin(torch.as_tensor(t))) + 5 * torch.cos(3 * t)
    )


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([1.0, 1.0, 1e5], "in series 2 near"),
        ([[1.0, 1.0, 1.0], [1.0, 1e5, 1.0]], "in draw 1, series 1 near"),
    ],
)
def test_a_stiff_field_is_an_error_that_says_where(rates, words):
    x0 = torch.zeros(*torch.as_tensor(rates).shape, 1)
    start, times = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[2.0], [3.0], [4.0]])
    solver = ODESolver(max_num_steps=100)
    with pytest.raises(SolverError, match=words) as caught:
        solver.solve(stiff(rates), x0, start, times)
    message = str(caught.value)
    assert "max_num_steps=100" in message
    assert "Tighten the weight prior" in message
    time = float(re.search(r"dimensionless time ([-.\de]+):", message)[1])
    row = int(re.search(r"series (\d)", message)[1])
    assert start[row] <= time < times[row, 0]
    # enough steps solve it: it is stiff, nothing else
    exact = solver.solve(stiff([1.0, 1.0, 1.0]), torch.zeros(3, 1), start, times)
    assert exact.path.isfinite().all()


def test_the_number_of_steps_is_bounded_however_many_times_are_asked():
    times = torch.linspace(0.001, 2, 2000).unsqueeze(0)
    with pytest.raises(SolverError, match="max_num_steps=100"):
        ODESolver(max_num_steps=100)(stiff([1e4]), torch.zeros(1, 1), torch.zeros(1), times)


def test_a_stiff_way_back_is_the_same_error():
    # 25 steps into a stable point, 72 out of it
    weight = torch.tensor(60.0, requires_grad=True)
    field = VectorField(lambda t, x: torch.sin(weight * x), (weight,))
    solver = ODESolver(gradient="adjoint", max_num_steps=40)
    path = solver(field, torch.ones(1, 1), torch.zeros(1), torch.tensor([[1.0]]))
    with pytest.raises(SolverError, match="max_num_steps=40"):
        path.sum().backward()


def test_an_explosion_too_steep_to_follow_is_an_error_and_no_endless_loop():
    field = VectorField(lambda t, x: x.square().exp())
    with pytest.raises(SolverError, match="shrunk to nothing"):
        ODESolver(rtol=1e-8, atol=1e-8)(field, torch.ones(1, 1), torch.zeros(1), torch.ones(1, 1))


def test_an_initial_state_that_is_no_number_is_an_error():
    x0 = torch.tensor([[1.0], [math.nan]])
    with pytest.raises(SolverError, match="not finite"):
        ODESolver()(VectorField(lambda t, x: -x), x0, torch.zeros(2), torch.ones(2, 1))


# ---- frozen trajectories ------------------------------------------------------------------------
def cube(weight):
    return lambda t, x: weight * x**3


def exponential(weight):
    return lambda t, x: weight * x.exp()


def undefined(weight):
    return lambda t, x: torch.where(x > 2.5, torch.nan, weight * x)


EXPLOSIONS = {
    "cube": (cube, [2.0, 0.1, -0.3]),
    "exponential": (exponential, [1.5, -2.0, -3.0]),
    "undefined": (undefined, [2.0, 0.1, -0.3]),
}
TIMES = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
SOLVERS = {
    "adaptive": ODESolver(),
    "adjoint": ODESolver(gradient="adjoint"),
    "fixed step": ODESolver("rk4", step_size=0.05),
    "midpoint": ODESolver("midpoint", step_size=0.05),
    "order 8": ODESolver("dopri8"),
}
each_explosion = pytest.mark.parametrize("case", EXPLOSIONS)
each_solver = pytest.mark.parametrize("solver", ["adaptive", "adjoint", "fixed step"])


def explode(case, solver, *, x0=None, dtype=torch.float64):
    make, states = EXPLOSIONS[case]
    weight = torch.tensor(1.0, requires_grad=True, dtype=dtype)
    x0 = torch.tensor(states).unsqueeze(-1) if x0 is None else x0
    x0 = x0.to(dtype).clone().requires_grad_()
    field, start = VectorField(make(weight), (weight,)), torch.zeros(len(x0))
    return SOLVERS[solver].solve(field, x0, start, TIMES.expand(len(x0), -1)), weight, x0


def first_frozen(path):
    """Number of asked times before the explosion."""
    return int((path[:, 0].diff().abs() > 1e-6).nonzero().max()) + 2


@each_explosion
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trajectory_that_leaves_is_frozen_and_reported(case, solver, dtype):
    solution, _, _ = explode(case, solver, dtype=dtype)
    assert solution.failed.tolist() == [True, False, False]
    assert solution.path.isfinite().all()
    assert (solution.path.abs() <= 30).all()
    first = first_frozen(solution.path[0])
    assert 1 < first < 19
    assert (solution.path[0, first:] == solution.path[0, first]).all()
    if case == "undefined" and solver in ("adaptive", "adjoint", "order 8"):
        # the place where the field ends is found to the tolerance
        assert solution.path[0, -1, 0].item() == pytest.approx(2.5, abs=1e-4)


@each_explosion
@each_solver
def test_batch_mates_do_not_notice_a_frozen_trajectory(case, solver):
    solution, weight, x0 = explode(case, solver)
    mates, own_weight, own_x0 = explode(case, solver, x0=x0.detach()[1:])
    torch.testing.assert_close(solution.path[1:], mates.path, rtol=1e-3, atol=0)
    gradients = torch.autograd.grad(solution.path[1:].sum(), [weight, x0])
    expected = torch.autograd.grad(mates.path.sum(), [own_weight, own_x0])
    torch.testing.assert_close(gradients[0], expected[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(gradients[1][1:], expected[1], rtol=1e-3, atol=0)
    assert gradients[1][0].abs() < 1e-12


@each_explosion
@each_solver
def test_gradients_are_finite_and_end_where_a_trajectory_is_frozen(case, solver):
    solution, weight, x0 = explode(case, solver)
    path, first = solution.path[0], first_frozen(solution.path[0])
    keep = {"retain_graph": True}
    total = torch.autograd.grad(solution.path.sum(), [weight, x0], **keep)
    assert all(gradient.isfinite().all() for gradient in total)
    after = torch.autograd.grad(path[first:].sum(), [weight, x0], **keep)
    assert all((gradient == 0).all() for gradient in after)
    before = torch.autograd.grad(path[1 : first - 1].sum(), [weight, x0])
    assert all((gradient.flatten()[0] != 0) for gradient in before)


@each_solver
def test_a_field_that_ends_at_some_time_freezes_there(solver):
    weight = torch.tensor(-1.0, requires_grad=True)
    field = VectorField(
        lambda t, x: torch.where(torch.as_tensor(t) > 0.5, torch.nan, weight * x), (weight,)
    )
    start = torch.tensor([0.0, -1.0])
    times = start.unsqueeze(-1) + TIMES
    solution = SOLVERS[solver].solve(field, torch.ones(2, 1), start, times)
    assert solution.failed.tolist() == [True, False]
    torch.testing.assert_close(solution.path[1, :, 0], (-TIMES).exp(), rtol=1e-3, atol=0)
    frozen = torch.full((10,), math.exp(-0.5))
    torch.testing.assert_close(solution.path[0, 11:, 0], frozen, rtol=1e-2, atol=0)
    (gradient,) = torch.autograd.grad(solution.path.sum(), weight)
    by_weight = TIMES * (-TIMES).exp()
    exact = by_weight.sum() + by_weight[:11].sum()
    # the state at the end of the field may itself count as frozen
    missing = by_weight[10].item()
    assert exact.item() - missing - 0.01 < gradient.item() < exact.item() + 0.01


@each_solver
def test_a_field_that_ends_in_the_last_step_is_reported(solver):
    field = VectorField(lambda t, x: torch.where(torch.as_tensor(t) > 0.52, torch.nan, -x))
    times = TIMES[:12].unsqueeze(0)  # until .55
    solution = SOLVERS[solver].solve(field, torch.ones(1, 1), torch.zeros(1), times)
    assert solution.failed.tolist() == [True]
    assert solution.path.isfinite().all()
    before = SOLVERS[solver].solve(field, torch.ones(1, 1), torch.zeros(1), times[:, :10])
    assert before.failed.tolist() == [False]


def test_a_stage_beyond_the_end_of_a_field_only_shortens_the_step():
    # dx/dt = -sqrt(x) + 1 stays at x > 0, but a first step of .5 tries x < 0
    field = VectorField(lambda t, x: 30 * (0.04 - x.sqrt()))
    start, times = torch.zeros(1), torch.tensor([[5.0]])
    solution = ODESolver(rtol=1e-3, atol=1e-3).solve(field, torch.ones(1, 1), start, times)
    assert not solution.failed.any()
    torch.testing.assert_close(solution.path.item(), 0.0016, rtol=0, atol=2e-3)


@pytest.mark.parametrize("index", [0, 1])
def test_a_trajectory_that_begins_outside_is_frozen_at_the_bound(index):
    x0 = torch.tensor([[31.0, 0.0], [1.0, 0.0], [0.0, -40.0]], requires_grad=True)
    _, start, times = irregular_series()
    solution = both_kinds()[index].solve(VectorField(lambda t, x: -x), x0, start, times)
    assert solution.failed.tolist() == [True, False, True]
    assert (solution.path[0] == torch.tensor([30.0, 0.0])).all()
    assert (solution.path[2] == torch.tensor([0.0, -30.0])).all()
    (gradient,) = torch.autograd.grad(solution.path.sum(), x0)
    assert (gradient[[0, 2]] == 0).all()
    assert (gradient[1] > 0).all()


@pytest.mark.parametrize("index", [0, 1])
def test_the_bound_is_a_setting(index):
    x0, start, times = irregular_series()
    field = VectorField(lambda t, x: torch.ones_like(x))
    loose = (
        both_kinds(max_state=1e3)[index]
        if index == 0
        else ODESolver("rk4", step_size=0.1, max_state=1e3)
    )
    solution = loose.solve(field, x0 + 100, start, times)
    assert not solution.failed.any()
    torch.testing.assert_close(solution.path[0, -1], x0[0] + 102.83)


@pytest.mark.parametrize("index", [0, 1])
def test_a_rate_that_is_not_as_large_as_the_state_is_refused(index):
    field = BayesianMLP(2, [3], 1)
    field = field.build({"weights": torch.zeros(field.num_weights)})
    with pytest.raises(ShapeError, match=r"rate of shape \(3, 1\) for states of shape \(3, 2\)"):
        both_kinds()[index](field, *irregular_series())


# ---- the border ---------------------------------------------------------------------------------
def test_an_unknown_method_is_answered_with_the_list():
    for unknown in ("implicit_adams", "lsoda"):
        with pytest.raises(DataError, match=rf"'dopri5'.*\(adaptive\).*'rk4'.*not '{unknown}'"):
            ODESolver(unknown)
    with pytest.raises(DataError, match=r"\['direct', 'adjoint'\], not 'reverse'"):
        ODESolver(gradient="reverse")


def test_the_methods_that_are_named_are_installed():
    from torchdiffeq._impl.odeint import SOLVERS as INSTALLED

    assert {"dopri5", "dopri8", "bosh3"} <= set(ADAPTIVE) <= set(INSTALLED)
    assert set(ORDERS) == set(FIXED_STEP) <= set(INSTALLED)


@pytest.mark.parametrize("method", FIXED_STEP)
def test_a_fixed_step_method_needs_its_step(method):
    with pytest.raises(DataError, match="needs step_size="):
        ODESolver(method)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_an_adaptive_method_has_no_step(method):
    with pytest.raises(DataError, match="leave step_size out"):
        ODESolver(method, step_size=0.1)


@pytest.mark.parametrize("number", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["rtol", "atol", "step_size", "max_num_steps", "max_state"])
def test_settings_that_are_no_positive_numbers_are_refused(name, number):
    method = "rk4" if name == "step_size" else "dopri5"
    with pytest.raises(DataError, match=f"{name} must be a positive number, not {number}"):
        ODESolver(method, **{name: number})


def test_the_config_rebuilds_an_equal_solver():
    solver = ODESolver("rk4", step_size=0.3, max_state=7.0, gradient="adjoint")
    assert ODESolver(**solver.config) == solver
    assert solver.priors(torch.zeros(1), torch.ones(1, 1)) == {}
