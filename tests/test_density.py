"""Log densities along a flow: against exact Gaussians, an integral of one, and by probes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

import bayesode as bo
from bayesode.errors import DataError
from bayesode.models.contracts import VectorField
from bayesode.models.solvers.density import ExactTrace, HutchinsonTrace, log_density_along

DOUBLE = torch.float64
FINE = bo.FixedGridSolver("rk4", step=0.01)
TIGHT = bo.ODESolver("dopri5", rtol=1e-9, atol=1e-10)
MATRIX = torch.tensor([[-0.4, 1.3, 0.0], [-0.9, 0.1, 0.5], [0.3, 0.0, -0.6]], dtype=DOUBLE)
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=DOUBLE)
SCALE = torch.tensor([0.3, 0.8, 1.5], dtype=DOUBLE)
START = torch.tensor([0.0, 1.0], dtype=DOUBLE)
TIMES = torch.tensor([[0.0, 0.7, 2.0], [1.5, 1.5, 2.2]], dtype=DOUBLE)  # the second one is padding


def linear(has_matrix: bool) -> VectorField:
    return VectorField(lambda t, x: x @ MATRIX, (MATRIX,), MATRIX if has_matrix else None)


def exact_law(series: int, time: int) -> MultivariateNormal:
    flow = torch.linalg.matrix_exp(MATRIX * (TIMES[series, time] - START[series]))
    return MultivariateNormal(MEAN @ flow, flow.mT @ torch.diag(SCALE**2) @ flow)


def sampled(num_draws: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    law = Normal(MEAN, SCALE)
    x0 = law.sample((num_draws, 2))
    return x0, law.log_prob(x0).sum(-1)


WAYS = {
    "fixed grid": (FINE, False),
    "torchdiffeq": (TIGHT, False),
    "fixed step of torchdiffeq": (bo.ODESolver("rk4", step_size=0.01), False),
    "known matrix": (FINE, True),
    "matrix exponential": (bo.MatrixExponentialSolver(), True),
}


@pytest.mark.parametrize("way", WAYS)
def test_density_under_a_linear_field_is_the_exact_gaussian(way: str):
    solver, has_matrix = WAYS[way]
    path, found = log_density_along(linear(has_matrix), solver, *sampled(), START, TIMES)
    for series in range(2):
        for time in range(3):
            exact = exact_law(series, time).log_prob(path[:, series, time])
            torch.testing.assert_close(found[:, series, time], exact, rtol=0.0, atol=1e-6)


def integral(trace: ExactTrace, sign: float = 1.0, log_scale: float = 1.0) -> float:
    """Of the density at the end over the end points, of N(.2, .5^2) under dx/dt = sin 2x."""
    field = VectorField(lambda t, x: torch.sin(2 * x))
    x0 = torch.linspace(-4.0, 4.0, 10001, dtype=DOUBLE).view(-1, 1, 1)
    log_q0 = Normal(0.2, 0.5).log_prob(x0) + (log_scale - 1) * -torch.tensor(0.5).log()
    start, times = torch.zeros(1, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE)
    path, found = log_density_along(field, FINE, x0, log_q0.squeeze(-1), start, times, trace=trace)
    change = found - log_q0
    return torch.trapezoid((log_q0 + sign * change).exp().flatten(), path.flatten()).item()


def test_density_integrates_to_one_and_neither_with_the_other_sign_nor_without_its_log_scale():
    assert abs(integral(ExactTrace()) - 1) < 1e-5
    assert abs(integral(ExactTrace(), sign=-1.0) - 1) > 0.1
    assert abs(integral(ExactTrace(), log_scale=0.0) - 0.5) < 1e-5


def curved(weight: Tensor) -> VectorField:
    """With draws of its own: weight (draws, 1, 1)."""

    def rate(t: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(weight * (x @ MATRIX)) + 0.3 * torch.sin(t) * x

    return VectorField(rate, (weight,))


def test_density_of_a_curved_field_is_that_of_the_numeric_flow_map():
    weight = torch.tensor([0.5, 2.0], dtype=DOUBLE).view(2, 1, 1)
    field, (x0, log_q0) = curved(weight), sampled(2)
    path, found = log_density_along(field, FINE, x0[0], log_q0[0], START, TIMES)
    assert path.shape == (2, 2, 3, 3) and found.shape == (2, 2, 3)

    def flow(x: Tensor) -> Tensor:  # of both draws, series 1, last time
        return FINE(field, torch.stack([x0[0, 0], x]), START, TIMES)[:, 1, -1]

    jacobian = torch.autograd.functional.jacobian(flow, x0[0, 1])
    exact = log_q0[0, 1] - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(found[:, 1, -1], exact, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("components", [None, (1, 2)])
def test_hutchinson_is_unbiased(components: tuple[int, ...] | None):
    num_draws = 4000
    x0 = torch.tensor([0.4, -0.3, 0.8], dtype=DOUBLE).expand(num_draws, 1, 3)

    def rate(t: Tensor, x: Tensor) -> Tensor:
        moved = torch.tanh(x @ MATRIX)
        if components is None:
            return moved
        return torch.cat([x[..., 1:2], moved[..., 1:]], -1)  # its first slope is 0

    slope = VectorField(rate)
    zero, times = torch.zeros(1, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE)
    solver, log_q0 = bo.FixedGridSolver("rk4", step=0.1), torch.zeros(num_draws, 1, dtype=DOUBLE)
    torch.manual_seed(3)
    trace = HutchinsonTrace(components=components)
    found = log_density_along(slope, solver, x0, log_q0, zero, times, trace=trace)[1].flatten()
    exact = log_density_along(slope, solver, x0[:1], log_q0[:1], zero, times)[1].item()
    error = found.std().item() / num_draws**0.5
    assert error > 1e-4  # the probes differ
    assert abs(found.mean().item() - exact) < 5 * error
    assert abs(found.mean().item() + exact) > 5 * error  # the other sign is seen


def test_a_probe_is_fixed_for_a_solve():
    class Counting:
        count = 0

        def directions(self, x0: Tensor) -> Tensor:
            self.count += 1
            return self.probe

        probe = torch.tensor([1.0, -1.0, 1.0], dtype=DOUBLE).view(1, 1, 1, 3)

    trace, (x0, log_q0) = Counting(), sampled()
    found = log_density_along(linear(False), FINE, x0, log_q0, START, TIMES, trace=trace)[1]
    probe = trace.probe.flatten()
    exact = log_q0[..., None] - (TIMES - START[:, None]) * (probe @ MATRIX @ probe)
    torch.testing.assert_close(found, exact, rtol=0.0, atol=1e-10)
    assert trace.count == 1


def test_probes_are_averaged_and_differ_between_trajectories():
    torch.manual_seed(0)
    directions = HutchinsonTrace(num_probes=3).directions(torch.zeros(50, 2, 4, dtype=DOUBLE))
    assert directions.shape == (3, 50, 2, 4)
    torch.testing.assert_close(directions.square().sum(0), torch.ones(50, 2, 4, dtype=DOUBLE))
    assert directions.flatten(-1).std(1).min() > 0.3


def test_trace_of_a_second_order_field_is_that_of_its_velocity_block():
    def rate(t: Tensor, x: Tensor) -> Tensor:
        position, velocity = x.chunk(2, -1)
        return torch.cat([velocity, torch.sin(position) - velocity**3 / 3 - 0.2 * velocity], -1)

    torch.manual_seed(0)
    x0, log_q0 = torch.randn(5, 2, 4, dtype=DOUBLE), torch.zeros(5, 2, dtype=DOUBLE)
    field = VectorField(rate)
    found = [
        log_density_along(field, FINE, x0, log_q0, START, TIMES, trace=ExactTrace(block))[1]
        for block in (None, range(2, 4), range(2))
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0.0, atol=1e-12)
    assert (found[0][..., -1] > 0.1).all()  # the friction contracts
    assert (found[2] == 0).all()  # the positions alone tell nothing


@pytest.mark.parametrize("solver", [bo.FixedGridSolver(step=0.05), TIGHT])
def test_a_density_beyond_the_bound_of_states_freezes_nothing(solver):
    field = VectorField(lambda t, x: -5 * x)
    x0, log_q0 = torch.ones(1, 10, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)
    start, times = START[:1], torch.tensor([[1.0, 2.0]], dtype=DOUBLE)
    path, found = log_density_along(field, solver, x0, log_q0, start, times)
    torch.testing.assert_close(found, torch.tensor([[50.0, 100.0]], dtype=DOUBLE))
    own = solver(field, x0, start, times)
    torch.testing.assert_close(path, own, rtol=0.0, atol=1e-7)
    own = replace(solver, max_state=0.5).solve(field, x0, start, times)
    assert own.failed.all()


@pytest.mark.parametrize("solver", [bo.FixedGridSolver(step=0.05), bo.ODESolver(rtol=1e-6)])
def test_a_trajectory_that_leaves_the_bound_is_frozen_with_its_density(solver):
    growth = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    field = VectorField(lambda t, x: growth * x, (growth,))
    x0 = torch.tensor([[1.0, 1.0], [1e-3, 1e-3]], dtype=DOUBLE)
    start, times = torch.zeros(2, dtype=DOUBLE), torch.tensor([[1.0, 3.0, 4.0]] * 2).double()
    path, found = log_density_along(field, solver, x0, torch.zeros(2).double(), start, times)
    own = solver(field, x0, start, times)
    torch.testing.assert_close(path, own, rtol=1e-3, atol=1e-3)
    exact = torch.tensor([-4.0, -12.0, -16.0], dtype=DOUBLE)
    torch.testing.assert_close(found[1], exact, rtol=1e-4, atol=0.0)
    assert found[0, 1] == found[0, 2] and found[0, 1] > -8
    assert torch.autograd.grad(found[0, 2], growth, retain_graph=True)[0] == 0
    torch.testing.assert_close(
        torch.autograd.grad(found[1, 2], growth)[0], torch.tensor(-8.0).double(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
def test_gradients_reach_the_field_through_the_trace(gradient: str):
    matrix = MATRIX.clone().requires_grad_()
    weight = torch.ones(1, 1, 1, dtype=DOUBLE)
    field = VectorField(lambda t, x: torch.tanh(weight * (x @ matrix)), (matrix,))
    solver = replace(TIGHT, gradient=gradient)
    path, found = log_density_along(field, solver, *sampled(), START, TIMES)
    gradients = torch.autograd.grad(found.sum() + path.square().sum(), matrix)[0]
    step = 1e-5 * torch.eye(3, dtype=DOUBLE)[[1, 0, 2]]

    def value(shift: Tensor) -> Tensor:
        other = VectorField(lambda t, x: torch.tanh(x @ (MATRIX + shift)))
        path, found = log_density_along(other, FINE, *sampled(), START, TIMES)
        return found.sum() + path.square().sum()

    slope = (value(step) - value(-step)) / 2e-5
    torch.testing.assert_close((gradients * step).sum() * 1e5, slope, rtol=1e-6, atol=0.0)


def test_random_paths_and_wrong_components_are_refused():
    with pytest.raises(DataError, match="SDESolver have noise of their own"):
        log_density_along(linear(False), bo.SDESolver(3), *sampled(), START, TIMES)
    with pytest.raises(DataError, match=r"\[3\] are none of a state of size 3"):
        log_density_along(linear(False), FINE, *sampled(), START, TIMES, trace=ExactTrace([3]))
    with pytest.raises(DataError, match="one component at least"):
        ExactTrace([])
    with pytest.raises(DataError, match="num_probes"):
        HutchinsonTrace(0)
