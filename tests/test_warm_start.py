"""The warm start: block solves, Gauss-Newton systems, gradient matching, and where they lead."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

import bayesode as bo
from bayesode.distributions import observed_law
from bayesode.inference.warm_start import find_start, match_gradients, matching
from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.chains import ChainFactor
from bayesode.inference.warm_start.covariance import Covariance
from bayesode.inference.warm_start.evidence import fit_noise
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.flat import FlatField
from bayesode.inference.warm_start.levenberg_marquardt import Point, levenberg_marquardt
from bayesode.inference.warm_start.problem import PathProblem, StateProblem
from bayesode.models.contracts import Observe, VectorField, nest, unnest, without_plate
from bayesode.smoothing import Smoothed

DOUBLE = torch.float64


# ---- linear systems -----------------------------------------------------------------------------
def random_chain(num_series: int, num_knots: int, size: int, num_weights: int) -> BorderedChain:
    """Normal equations J'J + I of random residuals that tie neighbours and weights together."""
    torch.manual_seed(num_knots)
    link = torch.randn(num_series, num_knots, size, 2 * size + num_weights, dtype=DOUBLE)
    link[:, -1, :, size : 2 * size] = 0.0  # the last knot has no next one
    own, following, weights = link.split([size, size, num_weights], -1)
    diagonal = torch.eye(size, dtype=DOUBLE) + own.mT @ own
    diagonal[:, 1:] += (following.mT @ following)[:, :-1]
    border = own.mT @ weights
    border[:, 1:] += (following.mT @ weights)[:, :-1]
    flat = weights.flatten(0, 2)
    return BorderedChain(
        diagonal,
        (own.mT @ following)[:, :-1],
        border,
        flat.mT @ flat + torch.eye(num_weights, dtype=DOUBLE),
        torch.randn(num_series, num_knots, size, dtype=DOUBLE),
        torch.randn(num_weights, dtype=DOUBLE),
    )


def dense(chain: BorderedChain) -> tuple[Tensor, Tensor]:
    """Matrix and right-hand side with the states of all series first, then the weights."""
    num_series, num_knots, size, num_weights = chain.border.shape
    total = num_series * num_knots * size
    matrix = torch.zeros(total + num_weights, total + num_weights, dtype=DOUBLE)
    place = torch.arange(total).view(num_series, num_knots, size)
    tail = torch.arange(total, total + num_weights)
    for row in range(num_series):
        for knot in range(num_knots):
            here = place[row, knot]
            matrix[here[:, None], here] = chain.diagonal[row, knot]
            matrix[here[:, None], tail] = chain.border[row, knot]
            matrix[tail[:, None], here] = chain.border[row, knot].mT
            if knot + 1 < num_knots:
                following = place[row, knot + 1]
                matrix[here[:, None], following] = chain.upper[row, knot]
                matrix[following[:, None], here] = chain.upper[row, knot].mT
    matrix[tail[:, None], tail] = chain.corner
    return matrix, torch.cat([chain.states.flatten(), chain.weights])


@pytest.mark.parametrize("num_knots", [1, 2, 6])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_bordered_chain_is_solved_as_the_dense_system_is(num_knots: int, damping: float):
    chain = random_chain(3, num_knots, 2, 5)
    matrix, right = dense(chain)
    damped = matrix + damping * torch.diag(matrix.diagonal())
    exact = torch.linalg.solve(damped, right)
    weights, states = chain.solve(damping)
    found = torch.cat([states.flatten(), weights])
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10)


def test_chain_of_states_is_solved_as_the_dense_system_is():
    chain = random_chain(2, 5, 3, 0)
    matrix, _ = dense(chain)
    right = torch.randn(2, 5, 3, 4, dtype=DOUBLE)
    exact = torch.linalg.solve(matrix, right.flatten(0, 2))
    found = ChainFactor.of(chain.diagonal, chain.upper).solve(right)
    torch.testing.assert_close(found.flatten(0, 2), exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("where", ["diagonal", "corner"])
def test_a_system_that_is_not_positive_has_no_solution(where: str):
    chain = random_chain(2, 4, 2, 3)
    getattr(chain, where)[..., 0, 0] -= 1e3
    assert chain.solve(0.01) is None


def test_covariance_is_the_inverse_of_the_normal_equations():
    chain = random_chain(3, 1, 2, 4)
    matrix, _ = dense(chain)
    inverse, found = torch.linalg.inv(matrix), Covariance.of(chain)
    torch.testing.assert_close(found.weights, inverse[6:, 6:])
    assert found.log_determinant == pytest.approx(matrix.logdet().item(), rel=1e-12)
    for row in range(3):
        index = torch.tensor([6, 7, 8, 9, 2 * row, 2 * row + 1])
        slope = torch.randn(3, 5, 6, dtype=DOUBLE)
        exact = ((slope[row] @ inverse[index][:, index]) * slope[row]).sum(-1)
        torch.testing.assert_close(found.along(slope[..., :4], slope[..., 4:])[row], exact)
    torch.manual_seed(10)
    weights, states = found.sample(100_000)
    drawn = torch.cat([states.flatten(1), weights], 1)
    # standard error of an entry of a sample covariance: sqrt((c_ii c_jj + c_ij^2) / n)
    sds = inverse.diagonal().sqrt()
    error = ((torch.outer(sds, sds).square() + inverse.square()) / len(drawn)).sqrt()
    assert ((drawn.mT.cov() - inverse).abs() < 5 * error).all()


# ---- models and data ----------------------------------------------------------------------------
class Matrix(nn.Module):
    """dx/dt = A x + b with all of A and b in one normal site."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((6,), scale, dtype=DOUBLE))

    def priors(self):
        return {"weights": dist.Normal(torch.zeros_like(self.scale), self.scale).to_event(1)}

    def build(self, values, inputs=None):
        weights = without_plate(values["weights"])
        matrix, drift = weights[..., :4].unflatten(-1, (2, 2)), weights[..., None, 4:]
        return VectorField(lambda t, x: x @ matrix.mT + drift, (matrix, drift))


class Drift(nn.Module):
    """dx/dt = b: paths are linear in b and x0, so least squares are exact."""

    def priors(self):
        return {"b": dist.Normal(torch.tensor([0.3, -0.2], dtype=DOUBLE), 0.7).to_event(1)}

    def build(self, values, inputs=None):
        b = without_plate(values["b"]).unsqueeze(-2)
        return VectorField(lambda t, x: b + 0 * x, (b,))


class Forced(nn.Module):
    """dx/dt = a sin t - x: depends on time, so a start at the wrong time shows."""

    def priors(self):
        return {"a": dist.Normal(torch.zeros(2, dtype=DOUBLE), 2.0).to_event(1)}

    def build(self, values, inputs=None):
        a = without_plate(values["a"]).unsqueeze(-2)
        return VectorField(lambda t, x: a * torch.sin(torch.as_tensor(t)) - x, (a,))


def model_of(field: nn.Module, *, solver=None, units=None) -> bo.DynamicalModel:
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2, location=[0.2, -0.1], scale=[1.5, 2.5]),
        field=field,
        likelihood=bo.GaussianLikelihood(2),
        solver=solver or bo.FixedGridSolver("rk4", step=0.1),
        units=units,
    ).double()


TRUE = torch.tensor([-0.2, 1.0, -1.2, -0.1, 0.1, -0.3], dtype=DOUBLE)


def seen(
    field: nn.Module, values: dict[str, Tensor], kind: str = "plain", noise: float = 0.05
) -> bo.Trajectories:
    """Noisy paths of a field."""
    torch.manual_seed(11)
    times = torch.linspace(0.0, 3.0, 9, dtype=DOUBLE)
    question = bo.Trajectories(times, None, series=["a", "b", "c"], names=["x", "y"])
    settings: dict = {}
    if kind in ("own grids", "start"):
        own = times * torch.tensor([[1.0], [0.7], [0.9]], dtype=DOUBLE) + torch.arange(3)[:, None]
        settings = {"num_times": torch.tensor([9, 5, 7])}
        if kind == "start":
            settings["start"] = torch.tensor([-0.7, 0.5, 2.0])
        question = bo.Trajectories(
            own, None, series=question.series, names=question.names, **settings
        )
        settings["start"] = question.start
    x0 = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.5, -1.5]], dtype=DOUBLE)
    path = model_of(field).solve(field.build(values), {"x0": x0}, question).path
    observed = path + noise * torch.randn(path.shape, dtype=DOUBLE)
    if kind == "masked":
        observed[0, 2] = observed[1, 4:, 0] = observed[2, 0] = math.nan
    return bo.Trajectories(
        question.times, observed, series=question.series, names=question.names, **settings
    )


KINDS = ["plain", "masked", "own grids", "start"]


# ---- Gauss-Newton systems -----------------------------------------------------------------------
SPREAD = torch.tensor([0.2, 0.05], dtype=DOUBLE)  # of the miss in a mean interval


def residuals(problem, data: FitData, model, train, point: Point) -> Tensor:
    """The residuals of a problem, written down a second time, through `Solver.solve`."""
    field, states = data.field.build(point.weights), point.states
    start, times = model.units.dimensionless_times(train)
    prior = (point.weights - data.field.mean) / data.field.sd
    first = (states[:, 0] - model.initial.mean) / model.initial.deviation
    if isinstance(problem, PathProblem):
        path, miss = model.solver.solve(field, states[:, 0], start, times).path, states.new_zeros(0)
    else:
        path, knots, misses = states[:, 1:], torch.cat([start[:, None], times], 1), []
        gaps = knots.diff(dim=1)
        for k in range(gaps.shape[1]):
            end = model.solver.solve(field, states[:, k], knots[:, k], knots[:, k + 1 : k + 2]).path
            share = (gaps[:, k] / gaps[gaps > 0].mean()).clamp_min(1e-6).sqrt().unsqueeze(-1)
            misses.append((states[:, k + 1] - end[:, 0]) / (SPREAD * share))
        miss = torch.stack(misses).flatten()
    error = torch.where(train.mask, (train.values - path) / problem.noise.exp(), 0.0)
    return torch.cat([miss, prior, first.flatten(), error.nan_to_num(0.0).flatten()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", [Matrix(), bo.BayesianMLP(2, [3], 2, time=True).double()])
@pytest.mark.parametrize("which", ["path", "states"])
def test_normal_equations_are_those_of_the_residuals(kind: str, field: nn.Module, which: str):
    model, train = model_of(field), seen(Matrix(), {"weights": TRUE}, kind)
    data = FitData.of(model, train)
    noise = torch.tensor([0.3, 0.7], dtype=DOUBLE)
    problem = (
        PathProblem(data, noise.log())
        if which == "path"
        else StateProblem(
            data, noise.log(), StateProblem.shrunk(data, noise.log(), 1.0).spread * SPREAD
        )
    )
    torch.manual_seed(12)
    num_knots = 1 if which == "path" else train.grid.shape[1] + 1
    weights = 0.5 * torch.randn(len(data.field.mean), dtype=DOUBLE)
    states = torch.randn(3, num_knots, 2, dtype=DOUBLE)

    def at(vector: Tensor) -> Tensor:
        inner = Point(vector[states.numel() :], vector[: states.numel()].view_as(states))
        return residuals(problem, data, model, train, inner)

    vector = torch.cat([states.flatten(), weights])
    exact, jacobian = at(vector), jacrev(at)(vector)
    assert problem.cost(Point(weights, states)) == pytest.approx(exact.square().sum().item())
    matrix, right = dense(problem.linearise(Point(weights, states)))
    torch.testing.assert_close(matrix, jacobian.mT @ jacobian, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(right, -jacobian.mT @ exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_sensitivities_are_the_derivatives_of_the_path(kind: str):
    model, train = model_of(Forced()), seen(Forced(), {"a": torch.ones(2).double()}, kind)
    data, start = FitData.of(model, train), torch.randn(3, 1, 2, dtype=DOUBLE)
    weights = torch.tensor([0.4, -1.0], dtype=DOUBLE)
    path, by_weights, by_x0 = data.sensitivities(Point(weights, start))
    exact = jacrev(lambda w, x: data.path(Point(w, x)), argnums=(0, 1))(weights, start)
    torch.testing.assert_close(path, data.path(Point(weights, start)))
    torch.testing.assert_close(by_weights, exact[0], rtol=1e-9, atol=1e-10)
    for row in range(3):
        torch.testing.assert_close(by_x0[row], exact[1][row, :, :, row, 0], rtol=1e-9, atol=1e-10)
    begin, times = model.units.dimensionless_times(train)
    solved = model.solver.solve(data.field.build(weights), start[:, 0], begin, times).path
    torch.testing.assert_close(path[:, 1:], solved, rtol=1e-9, atol=1e-10)


# ---- Levenberg-Marquardt ------------------------------------------------------------------------
def exact_drift_fit(train: bo.Trajectories, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Most probable drift and x0 of a model with `Drift`: one linear solve per component."""
    b, x0 = torch.zeros(2, dtype=DOUBLE), torch.zeros(3, 2, dtype=DOUBLE)
    prior_x0 = torch.tensor([0.2, -0.1]).double(), torch.tensor([1.5, 2.5]).double()
    prior_b = torch.tensor([0.3, -0.2]).double()
    elapsed = train.grid - train.start[:, None]
    for j in range(2):
        rows, right = [], []
        for series in range(3):
            unit = torch.eye(3, dtype=DOUBLE)[series]
            for k in range(train.grid.shape[1]):
                if train.mask[series, k, j]:
                    rows.append(torch.cat([unit, elapsed[series, k : k + 1]]) / noise[j])
                    right.append(train.values[series, k, j] / noise[j])
            rows.append(torch.cat([unit, torch.zeros(1).double()]) / prior_x0[1][j])
            right.append(prior_x0[0][j] / prior_x0[1][j])
        rows.append(torch.tensor([0.0, 0.0, 0.0, 1 / 0.7], dtype=DOUBLE))
        right.append(prior_b[j] / 0.7)
        best = torch.linalg.lstsq(torch.stack(rows), torch.stack(right)[:, None]).solution[:, 0]
        x0[:, j], b[j] = best[:3], best[3]
    return b, x0


@pytest.mark.parametrize("kind", KINDS)
def test_steps_reach_the_exact_least_squares_solution_of_a_linear_problem(kind: str):
    train = seen(Drift(), {"b": torch.tensor([0.5, -1.0], dtype=DOUBLE)}, kind)
    data = FitData.of(model_of(Drift()), train)
    noise = torch.tensor([0.1, 0.4], dtype=DOUBLE)
    begin = Point(torch.tensor([3.0, 3.0]).double(), torch.zeros(3, 1, 2, dtype=DOUBLE))
    found = levenberg_marquardt(
        PathProblem(data, noise.log()), begin, max_iterations=30, tolerance=1e-14
    )
    b, x0 = exact_drift_fit(train, noise)
    torch.testing.assert_close(found.point.weights, b, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.point.states[:, 0], x0, rtol=1e-6, atol=1e-7)


def test_steps_reach_a_stationary_point_no_worse_than_the_truth():
    train = seen(Matrix(), {"weights": TRUE}, "masked")
    data = FitData.of(model_of(Matrix()), train)
    problem = PathProblem(data, torch.full((2,), 0.05, dtype=DOUBLE).log())
    begin = Point(torch.zeros(6, dtype=DOUBLE), torch.zeros(3, 1, 2, dtype=DOUBLE))
    found = levenberg_marquardt(problem, begin, max_iterations=60, tolerance=1e-13)
    right = problem.linearise(found.point)
    assert right.weights.abs().max() < 1e-3 * found.cost
    assert right.states.abs().max() < 1e-3 * found.cost
    x0 = torch.tensor([[[1.0, 0.0]], [[-1.0, 1.0]], [[0.5, -1.5]]], dtype=DOUBLE)
    assert found.cost < problem.cost(Point(TRUE, x0))
    assert (found.point.weights - TRUE).abs().max() < 0.1


def test_steps_never_raise_the_cost_and_end_at_a_wall_of_nan():
    class Wall:
        """x^2 beyond 1, undefined before: an optimum that cannot be passed."""

        def cost(self, point: Point) -> float:
            w = point.weights.item()
            return w * w if w > 1 else math.nan

        def linearise(self, point: Point) -> BorderedChain:
            one = torch.ones(1, 1, 1, 1, dtype=DOUBLE)
            return BorderedChain(
                one, one[:, :0], 0 * one, one[0, 0], 0 * one[..., 0], -point.weights
            )

    begin = Point(torch.tensor([5.0], dtype=DOUBLE), torch.zeros(1, 1, 1, dtype=DOUBLE))
    found = levenberg_marquardt(Wall(), begin, max_iterations=50, tolerance=1e-9)
    assert 1 < found.point.weights.item() < 2
    assert found.cost == found.point.weights.item() ** 2


@pytest.mark.parametrize("kind", ["plain", "masked", "own grids", "start"])
def test_evidence_of_a_linear_model_is_exact(kind: str):
    """Laplace's approximation is no approximation there: the joint density of data is Gaussian."""
    train = seen(Drift(), {"b": torch.tensor([0.5, -1.0], dtype=DOUBLE)}, kind, noise=0.2)
    data = FitData.of(model_of(Drift()), train)
    begin = Point(torch.zeros(2).double(), torch.zeros(3, 1, 2, dtype=DOUBLE))
    fit = fit_noise(data, begin, torch.full((2,), 0.3, dtype=DOUBLE).log())
    elapsed = train.grid - train.start[:, None]
    exact = 0.0
    for j, (mean, sd, drift) in enumerate([(0.2, 1.5, 0.3), (-0.1, 2.5, -0.2)]):
        rows, steps = train.mask[..., j].nonzero().T
        time = elapsed[rows, steps]
        same = (rows[:, None] == rows).double()
        covariance = sd**2 * same + 0.7**2 * time[:, None] * time
        covariance += fit.noise[j].exp() ** 2 * torch.eye(len(rows), dtype=DOUBLE)
        law = dist.MultivariateNormal(mean + drift * time, covariance)
        exact += law.log_prob(train.values[rows, steps, j]).item()
    # the scales are integrated over: prior density times the volume of a normal posterior
    sites = fit.data.measurement.sites
    volume = dist.Normal(sites.mean, sites.sd).log_prob(fit.noise)
    volume += math.log(2 * math.pi) / 2 - (2 * fit.freedom).log() / 2
    assert fit.log_evidence == pytest.approx(exact + volume.sum().item(), abs=1e-5)
    assert 2 < fit.num_used < 8


# ---- a field as one vector ----------------------------------------------------------------------
ONES = torch.ones(3, dtype=DOUBLE)


def scaled(values: dict[str, Tensor]) -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(4, dtype=DOUBLE), values["scale"].unsqueeze(-1)).to_event(1)


class Sites(nn.Module):
    """Sites of every kind, one inside a nested part."""

    def priors(self):
        return {
            "weights": dist.Normal(0.5 * ONES, 2 * ONES).to_event(1),
            "rates": dist.LogNormal(0.1 * ONES, 0.7 * ONES).to_event(1),
            **nest("inner", {"scale": dist.HalfNormal(0.5 * ONES[0]), "weights": scaled}),
            "share": dist.Dirichlet(2 * ONES),
        }

    def build(self, values, inputs=None):
        total = sum(value.sum() for value in values.values())
        assert set(unnest("inner", values)) == {"scale", "weights"}
        return VectorField(lambda t, x: total * x)


def test_values_survive_packing_and_unpacking():
    field = FlatField.of(Sites())
    values = {
        "weights": torch.randn(3, dtype=DOUBLE),
        "rates": torch.rand(3, dtype=DOUBLE) + 0.1,
        "inner.scale": torch.tensor(0.8, dtype=DOUBLE),
        "inner.weights": torch.randn(4, dtype=DOUBLE),
        "share": torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE),
    }
    vector = field.pack(values)
    assert vector.shape == field.mean.shape == field.sd.shape == (3 + 3 + 1 + 4 + 2,)
    found = field.unpack(vector)
    assert list(found) == list(values)
    for site, value in values.items():
        torch.testing.assert_close(found[site], value)
    assert [piece.numel() for piece in field.split(vector).values()] == [3, 3, 1, 4, 2]
    drift = field.build(vector)(torch.tensor(0.0), torch.ones(1, 1, dtype=DOUBLE))
    torch.testing.assert_close(drift.item(), sum(v.sum().item() for v in values.values()))


def test_prior_of_the_vector_is_exact_where_it_is_normal():
    field = FlatField.of(Sites())
    parts = zip(field.split(field.mean).items(), field.split(field.sd).values(), strict=True)
    found = {site: (mean, sd) for (site, mean), sd in parts}
    for site, mean, sd in (("weights", 0.5, 2.0), ("rates", 0.1, 0.7)):
        torch.testing.assert_close(found[site][0], torch.full((3,), mean, dtype=DOUBLE))
        torch.testing.assert_close(found[site][1], torch.full((3,), sd, dtype=DOUBLE))
    # a prior that depends on another site is taken at that site's median: .6745 of a half normal
    middle = torch.full((4,), 0.5 * 0.67449, dtype=DOUBLE)
    torch.testing.assert_close(found["inner.weights"][1], middle, rtol=1e-4, atol=0.0)
    assert (found["inner.scale"][1] > 0.5) & (found["inner.scale"][1] < 2)
    assert (found["share"][1] > 0).all()


def test_the_users_field_is_left_alone():
    field = bo.BayesianMLP(2, [3], 2)
    assert FlatField.of(field).mean.dtype == DOUBLE
    assert field.prior_sd.dtype == torch.float32


# ---- gradient matching --------------------------------------------------------------------------
def test_gradient_matching_recovers_the_derivative_of_a_smooth_path():
    times = torch.linspace(0, 4, 40, dtype=DOUBLE).expand(3, -1)
    matrix, drift = TRUE[:4].view(2, 2), TRUE[4:]
    torch.manual_seed(13)
    x0 = torch.randn(3, 2, 1, dtype=DOUBLE)
    path = (torch.linalg.matrix_exp(times[..., None, None] * matrix) @ x0[:, None]).squeeze(-1)
    path = path - torch.linalg.solve(matrix, drift)
    slope = path @ matrix.mT + drift
    none = torch.full_like(path, 1e-3)
    smoothed = Smoothed(path, slope, none, torch.ones(2), torch.ones(2))
    field = FlatField.of(bo.BayesianMLP(2, [], 2).double())
    vector = match_gradients(field, times, smoothed)
    found = field.build(vector)(times[..., None], path)
    assert ((found - slope).square().mean() / slope.square().mean()).sqrt() < 0.01


def test_gradient_matching_weighs_by_the_derivatives_error_and_leaves_padding_out():
    times = torch.tensor([[0.0, 1.0, 2.0, 3.0, 3.0, 3.0]], dtype=DOUBLE)
    path = torch.zeros(1, 6, 1, dtype=DOUBLE)
    # constant field: the target is the weighted mean; padding says 50 and must not be seen
    target = torch.tensor([1.0, 1.0, 1.0, 5.0, 50.0, 50.0], dtype=DOUBLE).view(1, 6, 1)
    error = torch.tensor([0.0, 0.0, 0.0, 0.05, 0.0, 0.0], dtype=DOUBLE).view(1, 6, 1)
    smoothed = Smoothed(path, target, error, torch.ones(1), torch.ones(1))
    torch.manual_seed(14)
    vector = match_gradients(FlatField.of(bo.BayesianMLP(1, [], 1).double()), times, smoothed)
    weights = torch.tensor([2.0, 2.0, 2.0, 1.0])  # 1 / (error^2 + .05^2), in halves
    exact = (weights * target[0, :4, 0]).sum() / weights.sum()
    assert vector[1].item() == pytest.approx(exact.item(), rel=1e-3)


def test_priors_of_float32_constants_give_a_float64_vector():
    class Constant(torch.nn.Module):
        def priors(self):
            return {"rate": dist.LogNormal(torch.zeros(2), 1.0).to_event(1)}

        def build(self, values, inputs=None):
            return VectorField(lambda t, x: values["rate"] * x, (values["rate"],))

    field = FlatField.of(Constant())
    assert field.mean.dtype == field.sd.dtype == torch.float64
    assert field.unpack(field.random_start())["rate"].dtype == torch.float64


def test_first_order_matching_reaches_the_same_minimum():
    times = torch.linspace(0, 3, 20, dtype=DOUBLE).expand(2, -1)
    path = torch.stack([torch.sin(times), torch.cos(times)], -1)
    slope = torch.stack([torch.cos(times), -torch.sin(times)], -1)
    smoothed = Smoothed(path, slope, torch.zeros_like(path), torch.ones(2), torch.ones(2))
    field = FlatField.of(bo.BayesianMLP(2, [], 2).double())
    torch.manual_seed(16)
    direct = match_gradients(field, times, smoothed)
    problem = matching.MatchProblem(field, *matching._points(times, smoothed))
    steps = torch.zeros_like(direct)
    for _ in range(5):
        steps = matching._first_order(problem, steps)
    assert torch.allclose(steps, direct, atol=1e-3)
    assert torch.allclose(field.build(direct)(times[..., None], path), slope, atol=1e-3)


# ---- the whole ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "solver"),
    [("masked", None), ("own grids", bo.ODESolver("dopri5", rtol=1e-6, atol=1e-7))],
)
def test_start_finds_the_truth_of_a_linear_field(kind: str, solver):
    train = seen(Matrix(), {"weights": TRUE}, kind)
    torch.manual_seed(15)
    threads = torch.get_num_threads()
    start = find_start(model_of(Matrix(), solver=solver), train)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert (start.values["field.weights"] - TRUE).abs().max() < 0.15
    x0 = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.5, -1.5]], dtype=DOUBLE)
    assert (start.values["x0"] - x0).abs().max() < 0.2
    noise = start.values["likelihood.noise_scale"]
    assert ((noise > 0.025) & (noise < 0.1)).all()
    for site, scale in start.scales.items():
        assert (scale > 0).all() and scale.isfinite().all(), site
    # the truth lies within a few posterior sds, as far as the diagonal tells them
    assert ((start.values["x0"] - x0).abs() / start.scales["x0"]).max() < 8


def test_start_solves_from_the_start_that_was_given():
    """Seen from 0.5 to 1 after the start: x0 taken at the first time is off by 40 %."""
    train = seen(Forced(), {"a": torch.tensor([1.5, -2.0], dtype=DOUBLE)}, "start", noise=1e-3)
    torch.manual_seed(16)
    start = find_start(model_of(Forced()), train)
    assert (start.values["field.a"] - torch.tensor([1.5, -2.0])).abs().max() < 0.05
    x0 = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.5, -1.5]])
    assert (start.values["x0"] - x0).abs().max() < 0.05


class Bare(nn.Module):
    """A likelihood that cannot say what a smoother may see."""

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        def law(path, mask):
            return observed_law(dist.Normal(path, 0.1), mask, event_dim=2, fill=0.0)

        return Observe(law, lambda path: path)


def test_a_likelihood_without_working_response_is_one_clear_error():
    train = seen(Matrix(), {"weights": TRUE})
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=Matrix(),
        likelihood=Bare(),
        solver=bo.FixedGridSolver("rk4", step=0.1),
    )
    with pytest.raises(bo.FitError, match=r"no working_response.*warm_start=False"):
        find_start(model, train)


def test_components_that_are_not_observed_are_one_clear_error():
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(3),
        field=bo.BayesianMLP(3, [2], 3),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.1),
    )
    with pytest.raises(bo.FitError, match=r"1 component.* not observed.*warm_start=False"):
        find_start(model, seen(Matrix(), {"weights": TRUE}))


def test_start_on_van_der_pol_reaches_the_noise():
    train = bo.datasets.van_der_pol(num_series=4, num_times=40).observed
    model, _ = bo.neural_ode(train, hidden=[8], verbose=False)
    torch.manual_seed(17)
    start = find_start(model, train)
    assert start.ratio < 1.3
    noise = start.values["likelihood.noise_scale"]
    assert ((noise > 0.08) & (noise < 0.13)).all()
    assert set(start.values) == {"field.weights", "likelihood.noise_scale", "x0"}
    for site, value in start.values.items():
        assert value.isfinite().all(), site
        assert (start.scales[site] > 0).all() and start.scales[site].isfinite().all(), site
