"""Other ways to a trajectory fit: a horizon that grows, and windows with first-order steps."""

import dataclasses

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo
from bayesode.errors import FitError
from bayesode.inference.warm_start import attempts, shooting
from bayesode.inference.warm_start import start as starts
from bayesode.inference.warm_start.first_order import descend
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import Point, levenberg_marquardt
from bayesode.inference.warm_start.problem import PathProblem
from bayesode.inference.warm_start.shooting import WINDOW, _windowed, fit_windows
from bayesode.models.contracts import VectorField, without_plate

DOUBLE = torch.float64
NOISE = torch.full((2,), 0.05, dtype=DOUBLE)


class Matrix(nn.Module):
    """dx/dt = A x with all entries of A random."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sd", torch.ones(4, dtype=DOUBLE))

    def priors(self):
        return {"entries": dist.Normal(torch.zeros_like(self.sd), self.sd).to_event(1)}

    def build(self, values, inputs=None):
        entries = without_plate(values["entries"]).unflatten(-1, (2, 2))
        return VectorField(lambda t, x: x @ entries.mT, (entries,))


TRUE = torch.tensor([0.0, 1.0, -2.0, -0.1], dtype=DOUBLE)
X0 = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.5, -1.5]], dtype=DOUBLE)


@pytest.fixture
def fit():
    """Three noisy series of 21 own times, a fifth of the values missing, model and data."""
    generator = torch.Generator().manual_seed(3)
    times = torch.rand(3, 21, generator=generator, dtype=DOUBLE).sort(1).values * 6
    values = torch.stack(
        [(torch.linalg.matrix_exp(t * TRUE.view(2, 2)) @ X0[n]) for n in range(3) for t in times[n]]
    ).view(3, 21, 2)
    values += 0.05 * torch.randn(values.shape, generator=generator, dtype=DOUBLE)
    mask = torch.rand(values.shape, generator=generator) > 0.2
    train = bo.Trajectories(times, values, mask=mask, start=torch.zeros(3, dtype=DOUBLE))
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=Matrix(),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.4),
    ).double()
    return model, train


@pytest.fixture
def data(fit):
    return FitData.of(*fit)


def best(data):
    """The optimum by Levenberg-Marquardt from the truth."""
    begin = Point(TRUE, X0.unsqueeze(1))
    with torch.no_grad():
        return levenberg_marquardt(
            PathProblem(data, NOISE.log()), begin, max_iterations=50, tolerance=1e-13
        )


def test_horizons_grow_to_the_whole():
    assert attempts.horizons(50) == [7, 11, 17, 26, 40, 50]
    assert attempts.horizons(1) == [1]
    for number in range(1, 40):
        lengths = attempts.horizons(number)
        assert lengths[-1] == number and lengths == sorted(lengths)


def test_a_shorter_horizon_has_the_same_path_and_data(data):
    part, point = data.until(8), Point(TRUE, X0.unsqueeze(1))
    torch.testing.assert_close(part.path(point), data.path(point)[:, :9])
    noise = NOISE.log()
    whole = data.measurement.pull(data.path(point), noise)[:, :9]
    torch.testing.assert_close(part.measurement.pull(part.path(point), noise), whole)


def test_one_series_alone_has_the_same_sensitivities(data):
    point = Point(TRUE, X0.unsqueeze(1))
    alone = data.rows(slice(1, 2)).sensitivities(Point(TRUE, X0[1:2].unsqueeze(1)))
    for own, all_ in zip(alone, data.sensitivities(point), strict=True):
        torch.testing.assert_close(own[0], all_[1])


def test_a_growing_horizon_reaches_the_optimum_from_afar(data):
    begin = Point(torch.zeros(4, dtype=DOUBLE), torch.zeros(3, 22, 2, dtype=DOUBLE))
    with torch.no_grad():
        found = attempts.fit_growing(data, begin, NOISE.log())
    assert found.cost == pytest.approx(best(data).cost, rel=1e-2)


def test_the_diagonal_of_many_series_is_that_of_the_normal_equations(data):
    point = Point(TRUE, X0.unsqueeze(1))
    by_weights, by_x0 = starts.information_diagonal(data, point, NOISE.log())
    system = PathProblem(data, NOISE.log()).linearise(point)
    torch.testing.assert_close(by_weights, system.corner.diagonal())
    torch.testing.assert_close(by_x0, system.diagonal[:, 0].diagonal(dim1=-2, dim2=-1))


def test_windows_that_begin_on_a_path_are_the_path_and_miss_nothing(data):
    """21 intervals in windows of 8: the last one is padded."""
    path = data.path(Point(TRUE, X0.unsqueeze(1)))
    assert path.shape[1] - 1 > 2 * WINDOW
    whole, miss = _windowed(data, TRUE, path[:, :-1:WINDOW])
    torch.testing.assert_close(whole, path)
    assert miss.shape == (3, 2, 2)
    assert miss.abs().max() < 1e-12
    moved = path[:, :-1:WINDOW].clone()
    moved[:, 1] += 0.5
    _, miss = _windowed(data, TRUE, moved)
    torch.testing.assert_close(miss[:, 0], torch.full((3, 2), 0.5, dtype=DOUBLE))


@pytest.fixture
def few_steps(monkeypatch):
    """A linear field needs no more."""
    monkeypatch.setattr(shooting, "NUM_WINDOW_STEPS", 200)
    monkeypatch.setattr(shooting, "NUM_PATH_STEPS", 200)
    monkeypatch.setattr(shooting, "WINDOW_RATE", 3e-2)
    monkeypatch.setattr(shooting, "PATH_RATE", 1e-2)


def test_first_order_windows_reach_the_optimum(data, few_steps):
    torch.manual_seed(0)
    path = data.path(Point(TRUE, X0.unsqueeze(1)))  # a smoother's would be as near
    states = path + 0.1 * torch.randn(path.shape, dtype=DOUBLE)
    point = fit_windows(data, Point(torch.zeros(4).double(), states), NOISE.log(), NOISE.mean())
    assert point.states.shape == (3, 1, 2)
    assert not point.weights.requires_grad
    exact = best(data).point
    assert (point.weights - exact.weights).abs().max() < 0.02
    assert (point.states - exact.states).abs().max() < 0.05


def test_a_field_with_many_numbers_starts_at_a_fit(fit, few_steps, monkeypatch):
    model, train = fit
    monkeypatch.setattr(starts, "MAX_WEIGHTS", 3)
    torch.manual_seed(0)
    start = starts.find_start(model, train)
    assert start.ratio < 1.5
    assert (start.values["field.entries"] - TRUE).abs().max() < 0.1
    assert all((scale > 0).all() for scale in start.scales.values())


def test_a_start_that_leads_nowhere_does_not_end_a_fit(fit, monkeypatch):
    model, train = fit
    original, count = attempts.fit_noise, [0]

    def failing(*arguments, **settings):
        count[0] += 1
        if count[0] <= failures:
            raise FitError("the curvature of the fit is not positive")
        return original(*arguments, **settings)

    monkeypatch.setattr(attempts, "fit_noise", failing)
    failures = 1
    posterior = bo.fit_laplace(model, train, seed=0, progress=False)
    assert len(posterior.history.log_evidence) == count[0] - 1
    failures = 1000
    with pytest.raises(FitError, match="not positive"):
        bo.fit_laplace(model, train, seed=0, progress=False)


def test_steps_without_a_finite_gradient_are_left_out():
    x = torch.ones(1, dtype=DOUBLE)

    def cost(share):
        return x.square().sum() if share > 0.5 else (x * torch.nan).sum()

    descend([x], cost, num_steps=400, rate=0.05)
    assert x.abs().item() < 0.1
    assert not x.requires_grad


def test_a_fit_that_is_not_reached_says_so(fit, monkeypatch):
    """Four starts that end far from the data and do not agree."""
    model, train = fit
    original, far = attempts.fit_noise, iter([9.0, 7.0, 8.0, 6.0])

    def lost(data, point, noise, **settings):
        found = original(data, point, noise, **settings)
        shifted = Point(found.point.weights, found.point.states + next(far))
        return dataclasses.replace(found, point=shifted)

    monkeypatch.setattr(attempts, "fit_noise", lost)
    monkeypatch.setattr(attempts, "LITTLE_DATA", 50)
    with pytest.warns(UserWarning, match=r"no trajectory fit: from 4 starts.*diagnose"):
        bo.fit_laplace(model, train, seed=0, progress=False)
