"""The matrix exponential and the solver of linear fields: closed forms, and other solvers."""

import math
from itertools import pairwise

import pytest
import scipy.linalg
import torch

import bayesode as bo
from bayesode.models.contracts import VectorField
from bayesode.models.solvers.linear import MAX_SQUARINGS, matrix_exponential

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(DOUBLE)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def field_of(matrix):
    return VectorField(lambda t, x: x @ matrix, (matrix,), matrix)


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
    return torch.randn(3, 4), start, times


def exact(matrix, x0, start, times):
    """x0 exp(t matrix) by torch's own exponential, (*draws, series, time, state)."""
    elapsed = (times - start.unsqueeze(-1))[..., None, None]
    across = torch.matrix_exp(elapsed * matrix[..., None, None, :, :])
    return (x0[..., None, None, :] @ across).squeeze(-2)


# ---- the exponential ----------------------------------------------------------------------------
MATRICES = {
    "zero": torch.zeros(3, 3, dtype=DOUBLE),
    "nilpotent": torch.tensor([[0.0, 5.0, 7.0], [0.0, 0.0, -3.0], [0.0, 0.0, 0.0]], dtype=DOUBLE),
    "small": 1e-3 * torch.randn(5, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)),
    "large": 6.0 * torch.randn(5, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(2)),
    "one number": torch.tensor([[-30.0]], dtype=DOUBLE),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_exponential_is_scipys(name):
    matrix = MATRICES[name]
    expected = torch.from_numpy(scipy.linalg.expm(matrix.numpy()))
    error = (matrix_exponential(matrix) - expected).norm() / expected.norm()
    assert error < 1e-12


def test_a_rotation_stays_one_in_single_precision():
    draft = torch.randn(64, 64)
    turn = matrix_exponential((0.3 * (draft - draft.mT)).float())
    assert (turn @ turn.mT - torch.eye(64, dtype=torch.float32)).abs().max() < 2e-5


def test_the_exponential_of_several_draws_is_that_of_each():
    matrices = torch.randn(3, 4, 4) * torch.tensor([0.01, 1.0, 20.0]).view(3, 1, 1)
    for matrix, together in zip(matrices, matrix_exponential(matrices), strict=True):
        expected = torch.matrix_exp(matrix)
        assert (together - expected).norm() < 1e-11 * expected.norm()


def test_its_gradient_is_that_of_torchs_exponential():
    matrix, weights = torch.randn(2, 4, 4, requires_grad=True), torch.randn(2, 4, 4)
    found, expected = (
        torch.autograd.grad((weights * way(matrix)).sum(), matrix)[0]
        for way in (matrix_exponential, torch.matrix_exp)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_an_exponential_that_overflows_ends():
    matrix = torch.eye(2) * 2.0 ** (MAX_SQUARINGS + 40)
    assert not matrix_exponential(matrix).isfinite().all()


# ---- paths --------------------------------------------------------------------------------------
def test_paths_on_own_grids_are_exact_for_all_draws_and_series():
    x0, start, times = irregular_series()
    solver, matrix = bo.MatrixExponentialSolver(1e6), torch.randn(5, 4, 4) / 2
    for states in (x0, x0.expand(5, 3, 4) + torch.randn(5, 1, 1)):
        path = solver(field_of(matrix), states, start, times)
        assert path.shape == (5, 3, 7, 4)
        expected = exact(matrix, states, start, times)
        torch.testing.assert_close(path, expected, rtol=1e-9, atol=1e-9)
    one = solver(field_of(matrix[0]), states, start, times)
    torch.testing.assert_close(one, exact(matrix[0], states, start, times), rtol=1e-9, atol=1e-9)


def test_runge_kutta_comes_nearer_at_its_order():
    x0, start, times = irregular_series()
    field = field_of(torch.randn(4, 4) / 2)
    path = bo.MatrixExponentialSolver()(field, x0, start, times)
    errors = [
        (bo.FixedGridSolver("rk4", step)(field, x0, start, times) - path).norm()
        for step in (0.2, 0.1, 0.05)
    ]
    for coarse, fine in pairwise(errors):
        assert 3.5 < math.log2(coarse / fine) < 4.5
    assert errors[-1] < 1e-4 * path.norm()


@pytest.mark.parametrize("num_draws", [None, 3])
def test_gradients_reach_the_matrix_and_the_initial_states(num_draws):
    x0, start, times = irregular_series()
    lead = [] if num_draws is None else [num_draws]
    matrix = (torch.randn(*lead, 4, 4) / 3).requires_grad_()
    x0 = x0.requires_grad_()
    weights = torch.randn(*lead, 3, 7, 4)
    path = bo.MatrixExponentialSolver()(field_of(matrix), x0, start, times)
    found = torch.autograd.grad((weights * path).sum(), [matrix, x0])
    expected = torch.autograd.grad((weights * exact(matrix, x0, start, times)).sum(), [matrix, x0])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_path_does_not_depend_on_batch_mates_nor_on_other_asked_times():
    x0, start, times = irregular_series()
    field, solver = field_of(torch.randn(2, 4, 4) / 2), bo.MatrixExponentialSolver()
    path = solver(field, x0, start, times)
    for row in range(3):
        alone = solver(field, x0[row : row + 1], start[row : row + 1], times[row : row + 1])
        torch.testing.assert_close(alone[:, 0], path[:, row], rtol=1e-13, atol=1e-13)
    last = solver(field, x0, start, times[:, -1:])
    torch.testing.assert_close(last[..., 0, :], path[..., -1, :], rtol=1e-9, atol=1e-9)


def test_series_on_one_even_grid_share_one_exponential():
    times = (0.1 * torch.arange(8)).expand(5, -1)  # differences of .1 differ in their last digits
    assert len(times.diff().unique()) > 1
    solution = bo.MatrixExponentialSolver().solve(
        field_of(torch.randn(3, 3)), torch.randn(5, 3), torch.zeros(5), times
    )
    assert solution.num_evaluations == 1
    assert not solution.failed.any()


def test_exponentials_are_forgotten_after_their_last_use():
    from bayesode.models.solvers.linear import _Steps

    kind = torch.tensor([[0, 1, 1], [1, 2, 1]])
    steps = _Steps(torch.randn(2, 2), torch.tensor([0.0, 0.5, 0.7]), kind)
    kept = []
    for column in range(3):
        steps.take(torch.ones(2, 2), column)
        kept.append(sorted(steps.made))
    assert kept == [[1], [1], []] and steps.num_exponentials == 2


# ---- what leaves the bound ----------------------------------------------------------------------
def test_paths_freeze_and_fail_as_those_of_the_fixed_grid():
    growth = torch.tensor([[0.1, 2.0, 3.0]]).T[..., None]  # three draws of dx/dt = growth x
    x0, start = torch.tensor([[1.0], [20.0], [-31.0]]), torch.zeros(3)
    times = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(3, -1)
    found = bo.MatrixExponentialSolver().solve(field_of(growth), x0, start, times)
    grid = bo.FixedGridSolver("rk4", 1.0, 30.0).solve(field_of(growth), x0, start, times)
    assert torch.equal(found.failed, grid.failed) and 0 < found.failed.sum() < 9
    assert found.failed.shape == (3, 3)
    kept = ~found.failed
    expected = exact(growth, x0, start, times)
    torch.testing.assert_close(found.path[kept], expected[kept], rtol=1e-9, atol=1e-9)
    assert (found.path[:, :2].abs() <= 30).all()
    assert torch.equal(found.path[:, 2, 0], x0[2].expand(3, 1))
    assert (found.path[:, 2, 1:] == -30).all()


def test_a_draw_that_overflows_is_frozen_and_leaves_gradients_finite():
    matrix = torch.stack([-torch.eye(2), 1e6 * torch.eye(2)]).requires_grad_()
    x0 = torch.ones(1, 2, requires_grad=True)
    times = torch.tensor([[0.0, 1.0, 2.0]])
    solution = bo.MatrixExponentialSolver().solve(field_of(matrix), x0, torch.zeros(1), times)
    assert solution.failed.tolist() == [[False], [True]]
    assert solution.path.isfinite().all()
    by_matrix, by_x0 = torch.autograd.grad(solution.path.sum(), [matrix, x0])
    assert by_matrix.isfinite().all() and by_x0.isfinite().all()
    assert (by_matrix[0] != 0).any() and not by_matrix[1].any()


def test_states_that_begin_outside_the_bound_are_shown_as_they_are_at_the_start():
    path = bo.MatrixExponentialSolver(2.0)(
        field_of(torch.zeros(1, 1)),
        torch.tensor([[5.0]]),
        torch.zeros(1),
        torch.tensor([[0.0, 1.0]]),
    )
    assert path.flatten().tolist() == [5.0, 2.0]


# ---- what it is not for -------------------------------------------------------------------------
def test_other_fields_and_sizes_are_one_clear_error():
    solver, question = bo.MatrixExponentialSolver(), (torch.zeros(1), torch.ones(1, 1))
    network = bo.BayesianMLP(2, [3], 2)
    field = network.build({"weights": torch.zeros(network.num_weights)})
    with pytest.raises(bo.SolverError, match="linear fields alone"):
        solver(field, torch.ones(1, 2), *question)
    with pytest.raises(bo.ShapeError, match=r"matrix of \(2, 2\) for states of shape \(1, 3\)"):
        solver(field_of(torch.eye(2)), torch.ones(1, 3), *question)
    with pytest.raises(bo.DataError, match="max_state must be a positive number"):
        bo.MatrixExponentialSolver(0.0)


def test_settings_rebuild_the_solver():
    solver = bo.MatrixExponentialSolver(12.0)
    assert bo.MatrixExponentialSolver(**solver.config) == solver
    assert solver.priors(torch.zeros(1), torch.ones(1, 1)) == {}
    assert solver.drift_solver() == bo.FixedGridSolver("rk4", 0.1, 12.0)
