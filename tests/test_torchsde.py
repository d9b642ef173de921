"""TorchSDESolver: torchsde behind the interface, for simulation and as the reference."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchsde

import bayesode as bo
from bayesode.models.contracts import SDE, Diffusion, Solver, VectorField
from bayesode.models.solvers import SDESolver, TorchSDESolver

LIMIT = 5  # standard errors: one false alarm in 1.7 million looks
START = torch.tensor([0.0, 0.5], dtype=torch.float64)
TIMES = torch.tensor([[0.5, 1.0, 2.0], [0.75, 1.0, 1.0]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def ornstein_uhlenbeck(rate=1.5, scale=0.8):
    noise = Diffusion(lambda t, x: torch.full((1,), scale), is_additive=True)
    return SDE(VectorField(lambda t, x: -rate * x), noise)


@pytest.mark.parametrize(
    "solver",
    [
        TorchSDESolver("euler", 0.02),
        TorchSDESolver("milstein", 0.02),
        TorchSDESolver("srk", 0.05),
        TorchSDESolver("srk", 0.05, rtol=1e-2, atol=1e-2),
    ],
)
def test_every_series_has_the_moments_at_its_own_times(solver):
    num, rate, scale = 2000, 1.5, 0.8
    path = solver(ornstein_uhlenbeck(rate, scale), 3.0 * torch.ones(num, 2, 1), START, TIMES)
    elapsed = (TIMES - START[:, None]).unsqueeze(-1)
    mean = 3.0 * torch.exp(-rate * elapsed)
    variance = scale**2 / (2 * rate) * (1 - torch.exp(-2 * rate * elapsed))
    # a step of .02 moves the mean by at most .02 rate elapsed = 3 % of itself: 1.6 % of its start
    bias = 0.02 * rate * rate * elapsed / 2 * mean if solver.method != "srk" else 0.01
    assert ((path.mean(0) - mean).abs() < LIMIT * (variance / num).sqrt() + bias).all()
    assert ((path.var(0) / variance - 1).abs() < LIMIT * (2 / num) ** 0.5 + 0.04).all()
    assert torch.equal(path[:, 1, 1], path[:, 1, 2])  # padding


def test_it_agrees_with_our_solver_under_multiplicative_noise():
    sde = SDE(VectorField(lambda t, x: 0.3 * x), Diffusion(lambda t, x: 0.5 * x))
    num, x0 = 3000, torch.ones(2, 1)
    theirs = TorchSDESolver("milstein", 0.02)(sde, x0.expand(num, 2, 1), START, TIMES)
    own = SDESolver(1, 0.02, method="milstein")
    noise = torch.randn(num, 2, own.noise_grid(START, TIMES).num_steps, 1)
    ours = own(sde, x0, START, TIMES, noise=noise)
    for moment in (lambda x: x.log(), lambda x: (x.log() - ours.log().mean(0)).square()):
        a, b = moment(theirs), moment(ours)
        assert ((a.mean(0) - b.mean(0)).abs() < LIMIT * ((a.var(0) + b.var(0)) / num).sqrt()).all()


class Theirs(torch.nn.Module):
    """dx = -sin(x) rate dt + g dW as torchsde takes it, g = scale or scale x."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, is_additive):
        super().__init__()
        self.is_additive = is_additive
        self.rate = torch.nn.Parameter(torch.tensor(0.7))
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def f(self, t, y):
        return -self.rate * torch.sin(y)

    def g(self, t, y):
        return self.scale.expand_as(y) if self.is_additive else self.scale * y


def gradients(solve, motion, is_additive, num_steps):
    """Of the mean square at time 1, with respect to rate and scale, (2,)."""
    theirs = Theirs(is_additive)
    x0, times = torch.full(motion.shape, 0.8), torch.tensor([0.0, 1.0])
    end = solve(theirs, x0, times, bm=motion, method="euler", dt=1 / num_steps)[-1]
    return torch.stack(torch.autograd.grad(end.square().mean(), [theirs.rate, theirs.scale]))


def ours(theirs, x0, times, *, bm, method, dt):
    """The same by our solver, with torchsde's increments."""
    noise = Diffusion(theirs.g, (theirs.scale,), is_additive=theirs.is_additive)
    sde = SDE(VectorField(theirs.f, (theirs.rate,)), noise)
    grid = torch.linspace(0, 1, round(1 / dt) + 1)
    kicks = torch.stack([bm(a, b) for a, b in pairwise(grid)], -2)
    start, asked = torch.zeros(len(x0)), torch.ones(len(x0), 1)
    path = SDESolver(1, dt, method=method)(sde, x0, start, asked, noise=kicks / dt**0.5)
    return path.movedim(-2, 0)


def brownian(size):
    entropy = int(torch.randint(2**31 - 1, ()))
    dtype = torch.get_default_dtype()
    return torchsde.BrownianInterval(
        t0=0.0, t1=1.0, size=size, dtype=dtype, dt=1 / 256, entropy=entropy
    )


@pytest.mark.parametrize("is_additive", [True, False])
def test_our_gradient_along_torchsdes_increments_is_its_direct_one(is_additive):
    motion = brownian((16, 1))
    theirs, own = (gradients(solve, motion, is_additive, 64) for solve in (torchsde.sdeint, ours))
    torch.testing.assert_close(own, theirs, rtol=1e-10, atol=0.0)


def discrepancy(is_additive, num_steps, motion):
    """Relative distance of torchsde's adjoint gradient from its direct one."""
    direct, adjoint = (
        gradients(solve, motion, is_additive, num_steps)
        for solve in (torchsde.sdeint, torchsde.sdeint_adjoint)
    )
    return ((adjoint - direct).norm() / direct.norm()).item()


def test_torchsdes_adjoint_is_off_by_the_order_of_the_step_under_additive_noise():
    """Along the same Brownian paths: .3 % at dt 1/32, half as much with every halving."""
    motion = brownian((64, 1))
    off = [discrepancy(True, num_steps, motion) for num_steps in (32, 64, 128)]
    assert off[0] < 0.01
    assert all(0.4 < b / a < 0.6 for a, b in pairwise(off))


def test_torchsdes_adjoint_is_off_by_a_percent_under_multiplicative_ito_noise():
    """.8 to 2.9 % at dt 1/32, .2 to 1.1 % at 1/256 for single motions: no order to rely on."""
    motions = [brownian((64, 1)) for _ in range(4)]
    coarse, fine = (
        math.hypot(*(discrepancy(False, num_steps, motion) for motion in motions)) / 2
        for num_steps in (32, 256)
    )
    assert 1e-3 < fine < 0.02
    assert fine < coarse


def test_torchs_seed_alone_decides():
    paths = []
    for seed, other in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(seed)
        np.random.seed(other)
        paths.append(TorchSDESolver(step=0.1)(ornstein_uhlenbeck(), torch.ones(2, 1), START, TIMES))
    assert torch.equal(paths[0], paths[1])
    assert not torch.isclose(paths[0], paths[2]).any()


def test_it_simulates_a_model():
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.SDEField(bo.BayesianMLP(2, [3], 2, prior_scale=0.1), bo.AdditiveNoise(2)),
        likelihood=bo.GaussianLikelihood(2),
        solver=TorchSDESolver(step=0.1),
    )
    question = bo.Trajectories([0.0, 0.5, 1.0], None, series=["a", "b"], names=["x", "y"])
    assert model(question).shape == (2, 3, 2)
    assert isinstance(model.solver, Solver)
    assert TorchSDESolver(**model.solver.config) == model.solver


def test_single_precision_and_a_question_at_the_start_alone_work():
    sde, x0 = ornstein_uhlenbeck(), torch.ones(2, 1, dtype=torch.float32)
    torch.set_default_dtype(torch.float32)
    path = TorchSDESolver(step=0.1)(sde, x0, START, TIMES)
    assert path.dtype == torch.float32
    assert path.isfinite().all()
    assert torch.equal(TorchSDESolver()(sde, x0, START, START[:, None]), x0.unsqueeze(-2))


def test_a_trajectory_that_leaves_the_bound_is_frozen():
    rate = torch.tensor([[0.1], [9.0]])
    sde = SDE(VectorField(lambda t, x: rate * x), ornstein_uhlenbeck().diffusion)
    solution = TorchSDESolver(step=0.01).solve(sde, torch.ones(3, 2, 1), START, TIMES + 0.5)
    assert solution.failed.tolist() == [[False, True]] * 3
    assert (solution.path.abs() <= 30).all()


def test_bad_input_is_refused():
    with pytest.raises(bo.DataError, match="method must be one of"):
        TorchSDESolver("rk4")
    with pytest.raises(bo.DataError, match="step must be a positive number"):
        TorchSDESolver(step=math.nan)
    with pytest.raises(bo.DataError, match="adaptive steps need strong order 1"):
        TorchSDESolver("euler", rtol=1e-2)
    with pytest.raises(bo.DataError, match="step must be a positive number, not None"):
        TorchSDESolver(step=None)
    with pytest.raises(bo.DataError, match="rtol must be a positive number, not 'small'"):
        TorchSDESolver("srk", rtol="small")
    sde = ornstein_uhlenbeck()
    with pytest.raises(bo.DataError, match="needs a field with noise"):
        TorchSDESolver()(sde.drift, torch.ones(2, 1), START, TIMES)
    with pytest.raises(bo.DataError, match="draws its own noise"):
        TorchSDESolver()(sde, torch.ones(2, 1), START, TIMES, noise=torch.zeros(2, 3, 1))
