"""A solver that answers at frames alone."""

import math

import pytest
import torch

import bayesode as bo
from bayesode.models.contracts import Solver, VectorField

DECAY = VectorField(lambda t, x: -x)
RK4 = bo.FixedGridSolver("rk4", 0.1, 7.0)


def test_at_frames_it_is_the_solver_inside():
    start = torch.tensor([0.0, 1.7], dtype=torch.float64)
    times = start.unsqueeze(-1) + torch.tensor([0.0, 0.3, 0.6, 3.0], dtype=torch.float64)
    x0 = torch.ones(2, 1)
    own, inner = (s.solve(DECAY, x0, start, times) for s in (bo.OnFrames(RK4, 0.3), RK4))
    assert torch.equal(own.path, inner.path) and own.num_evaluations == inner.num_evaluations
    assert torch.equal(bo.OnFrames(RK4, 0.3)(DECAY, x0, start, times), inner.path)


@pytest.mark.parametrize("late", [1e-3, 0.15, 0.2999])
def test_between_frames_it_says_that_nothing_is_determined(late):
    start = torch.zeros(2, dtype=torch.float64)
    times = torch.tensor([[0.0, 0.3, 0.6], [0.0, 0.3, 0.3 + late]], dtype=torch.float64)
    with pytest.raises(bo.DataError, match=r"series 1 is asked .*aliasing"):
        bo.OnFrames(RK4, 0.3)(DECAY, torch.ones(2, 1), start, times)


def test_rounding_of_times_is_no_time_between_frames():
    start = torch.full((1,), 1e4, dtype=torch.float64)
    times = start + torch.tensor([[1 / 3, 100 / 3, 1000 / 3]], dtype=torch.float64)
    bo.OnFrames(bo.FixedGridSolver("euler", 1.0), 1 / 3)(DECAY, torch.ones(1, 1), start, times)


def test_frames_that_look_the_same_come_from_motions_that_differ_between_them():
    """The reason for the refusal: a turn more between two frames leaves no trace on them."""
    slow = torch.tensor([[0.0, 0.5], [-0.5, 0.0]], dtype=torch.float64)
    fast = slow + 2 * math.pi * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    x0, start = torch.tensor([[1.0, 0.2]], dtype=torch.float64), torch.zeros(1)
    fields = [VectorField(lambda t, x, m=m: x @ m, (m,), m) for m in (slow, fast)]

    def apart(times):
        solver = bo.MatrixExponentialSolver()
        one, other = (solver(f, x0, start, torch.tensor([times]).double()) for f in fields)
        return (one - other).abs().max()

    assert apart([1.0, 2.0, 5.0]) < 1e-8
    assert apart([0.5]) > 1


def test_it_has_the_settings_of_the_solver_inside():
    solver = bo.OnFrames(RK4, 0.3)
    assert isinstance(solver, Solver)
    assert (solver.step, solver.max_state) == (0.1, 7.0)
    assert solver.drift_solver() is RK4 and solver.priors(torch.zeros(1), torch.ones(1, 1)) == {}
    inner = {"type": "FixedGridSolver", "method": "rk4", "step": 0.1, "max_state": 7.0}
    assert solver.config == {"solver": inner, "gap": 0.3}
    exact = bo.OnFrames(bo.MatrixExponentialSolver())
    assert exact.step == math.inf and exact.drift_solver() == bo.FixedGridSolver("rk4", 0.1)
    assert bo.OnFrames(bo.ODESolver()).drift_solver() == bo.FixedGridSolver("rk4", 0.1)


def test_bad_settings_are_one_clear_error():
    with pytest.raises(bo.DataError, match="gap must be a positive number"):
        bo.OnFrames(RK4, 0.0)
    for wrong in (bo.FixedGridSolver, "rk4"):
        with pytest.raises(bo.DataError, match="is no solver"):
            bo.OnFrames(wrong)


def test_a_model_refuses_predictions_between_frames():
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.LinearField(2),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.OnFrames(bo.MatrixExponentialSolver(), 1.0),
        units=bo.Units(time_origin=10.0, time_unit=0.5),
    )
    data = bo.Trajectories(10 + 0.5 * torch.arange(4), torch.randn(3, 4, 2))
    assert model(data.at([10.5, 12.0])).shape == (3, 2, 2)
    with pytest.raises(bo.DataError, match="aliasing"):
        model(data.at([10.25]))
