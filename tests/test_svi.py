"""fit_svi: what it reaches, units, minibatches, bad input, interrupts."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor, nn

import bayesode as bo
from bayesode.distributions import observed_law
from bayesode.inference import objectives
from bayesode.inference.warm_start import attempts as warm
from bayesode.models.contracts import Observe, VectorField, without_plate

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch):
    """The random starts of the warm start have tests of their own."""
    monkeypatch.setattr(warm, "MAX_ATTEMPTS", 1)


# ---- a model whose mean-field optimum is known ------------------------------------------------
class Drift(nn.Module):
    """dz/ds = b, b ~ N(0, 1): paths are linear in b and x0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(2, dtype=DOUBLE))

    def priors(self):
        return {"b": dist.Normal(torch.zeros_like(self.scale), self.scale).to_event(1)}

    def build(self, values, inputs=None):
        b = without_plate(values["b"]).unsqueeze(-2)
        return VectorField(lambda t, x: b + 0 * x, (b,))


class KnownNoise(nn.Module):
    """Normal noise of sd .3."""

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        def law(path, mask):
            return observed_law(dist.Normal(path, 0.3), mask, event_dim=2, fill=0.0)

        return Observe(law, lambda path: path)


class SmoothedNoise(KnownNoise):
    """The same, with what a warm start asks for."""

    def working_response(self, values):
        return values

    def fisher(self, path, values):
        return torch.full_like(path, 1 / 0.09)

    def starting_values(self, noise):
        return {}


def linear_problem(*, num_series: int = 4, likelihood: nn.Module | None = None, field=None):
    torch.manual_seed(0)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=field or Drift(),
        likelihood=likelihood or SmoothedNoise(),
        solver=bo.FixedGridSolver("rk4", step=1.0),
    ).double()
    times = torch.linspace(0.0, 3.0, 4, dtype=DOUBLE)
    x0 = torch.randn(num_series, 1, 2, dtype=DOUBLE)
    values = x0 + torch.tensor([0.5, -1.0]) * times[:, None]
    values = values + 0.3 * torch.randn(values.shape, dtype=DOUBLE)
    train = bo.Trajectories(times, values, series=[f"s{i}" for i in range(num_series)])
    return model, bo.MeanFieldGuide(model, train), train


def exact_optimum(train: bo.Trajectories) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean-field optimum of a Gaussian posterior: its mean, and 1 / sqrt of the precision."""
    count, times, num_series = 4, train.times, train.num_series
    precision = torch.zeros(num_series + 1, num_series + 1, dtype=DOUBLE)
    for row in range(num_series):
        precision[row, row] = count / 0.09 + 1 / 4.0
        precision[row, -1] = precision[-1, row] = times.sum() / 0.09
    precision[-1, -1] = num_series * times.square().sum() / 0.09 + 1.0
    pull = (
        torch.cat([train.values.sum(1), (train.values * times[:, None]).sum((0, 1))[None]]) / 0.09
    )
    mean, sd = torch.linalg.solve(precision, pull), precision.diagonal().rsqrt()
    return {
        "x0": (mean[:-1], sd[:-1, None].expand(-1, 2)),
        "field.b": (mean[-1], sd[-1:].expand(2)),
    }


@pytest.mark.parametrize("settings", [{}, {"batch_size": 2}])
def test_fit_reaches_the_exact_mean_field_optimum(settings: dict):
    model, guide, train = linear_problem()
    posterior = bo.fit_svi(
        model,
        guide,
        train,
        seed=0,
        num_steps=400,
        num_particles=16,
        learning_rate=0.1,
        progress=False,
        **settings,
    )
    for site, (mean, sd) in exact_optimum(train).items():
        location, scale = posterior.guide.sites.moments(site)
        assert ((location - mean) / sd).abs().max() < 0.25, site
        assert (scale / sd).log().abs().max() < 0.15, site
    assert len(posterior.history.elbo) == 400
    assert posterior.history.num_skipped == 0


def test_warm_start_alone_is_at_the_mode_with_the_right_scales():
    model, guide, train = linear_problem()
    posterior = bo.fit_svi(
        model, guide, train, seed=0, num_steps=1, learning_rate=1e-9, progress=False
    )
    for site, (mean, sd) in exact_optimum(train).items():
        location, scale = posterior.guide.sites.moments(site)
        # the noise is estimated there, and pulls the prior's share along
        assert ((location - mean) / sd).abs().max() < 0.3, site
        assert (scale / sd).log().abs().max() < 0.4, site
    assert posterior.history.start_ratio > 0


def test_warm_start_finds_the_rows_of_a_guide_in_another_order():
    model, _, train = linear_problem()
    guide = bo.MeanFieldGuide(model, train.rows(torch.tensor([2, 0, 3, 1])))
    posterior = bo.fit_svi(
        model, guide, train, seed=0, num_steps=1, learning_rate=1e-9, progress=False
    )
    mean, _ = exact_optimum(train)["x0"]
    found = posterior.guide.posteriors(train)["x0"].mean
    assert (found - mean).abs().max() < 0.1


@pytest.mark.parametrize("stock", [AutoNormal, AutoMultivariateNormal, AutoDelta])
def test_warm_start_sets_stock_guides_too(stock: type):
    model, _, train = linear_problem()
    settings = {"seed": 0, "num_steps": 1, "learning_rate": 1e-12, "progress": False}
    posterior = bo.fit_svi(model, stock(model), train, **settings)
    median = posterior.draws(400, seed=0)
    for site, (mean, sd) in exact_optimum(train).items():
        assert ((median[site].mean(0) - mean) / sd).abs().max() < 0.5, site


def test_warm_start_is_asked_of_the_users_own_guide_in_vain():
    model, _, train = linear_problem()

    def guide(data):
        b = pyro.param("b", torch.zeros(2, dtype=DOUBLE))
        x0 = pyro.param("start", torch.zeros(4, 2, dtype=DOUBLE))
        pyro.sample("field.b", dist.Normal(b, 0.1).to_event(1))
        with data.plate():
            pyro.sample("x0", dist.Normal(x0[data.index], 0.1).to_event(1))

    posterior = bo.fit_svi(
        model, guide, train, seed=0, num_steps=300, learning_rate=0.05, progress=False
    )
    assert posterior.history.start_ratio is None
    for name, site in (("b", "field.b"), ("start", "x0")):
        mean, _ = exact_optimum(train)[site]
        assert (posterior.state["params"][name] - mean).abs().max() < 0.2


def test_one_parameter_under_two_names_is_optimised_once():
    class Twice(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.location = nn.Parameter(torch.zeros(2, dtype=DOUBLE))
            self.again = nn.Module()
            self.again.location = self.location

        def forward(self, data):
            pyro.module("twice", self.again)
            pyro.sample("field.b", dist.Normal(self.location, 0.1).to_event(1))
            with data.plate():
                pyro.sample("x0", dist.Normal(torch.zeros(2, dtype=DOUBLE), 0.1).to_event(1))

    model, _, train = linear_problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bo.fit_svi(model, Twice(), train, seed=0, num_steps=2, progress=False)


# ---- minibatches ------------------------------------------------------------------------------
def fast(model, guide, train, **settings):
    settings = {"seed": 0, "num_steps": 3, "warm_start": False, "progress": False} | settings
    return bo.fit_svi(model, guide, train, **settings)


@pytest.mark.parametrize("learning_rate", [0.05, 5.0])
def test_rows_that_no_batch_visits_do_not_move_by_a_bit(learning_rate: float):
    model, guide, train = linear_problem(num_series=9)
    visited = set()
    batch = bo.Trajectories.batch

    def spy(self, index):
        visited.update(index.tolist())
        return batch(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bo.Trajectories, "batch", spy)
        posterior = fast(
            model, guide, train, batch_size=2, num_steps=2, learning_rate=learning_rate
        )
    # the batch that the guide is first looked at with may be among those that were asked for
    before, after = guide.row_parameters(), posterior.guide.row_parameters()
    moved = [bool((a[r] != b[r]).any()) for r in range(9) for a, b in [(before[0], after[0])]]
    assert 2 <= sum(moved) <= 4
    for old, new in zip(before, after, strict=True):
        for row in range(9):
            assert torch.equal(old[row], new[row]) != moved[row]
    assert {row for row in range(9) if moved[row]} <= visited
    assert not torch.equal(guide.sites.offset["field__b"], posterior.guide.sites.offset["field__b"])


def test_a_row_is_left_alone_by_the_momentum_of_its_visits():
    """Rows visited in the first step alone stay where that step took them."""
    model, guide, train = linear_problem(num_series=9)
    short = fast(model, guide, train, batch_size=1, num_steps=1, learning_rate=0.1)
    # a constant learning rate: the schedule depends on the number of steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.optim.lr_scheduler,
            "CosineAnnealingLR",
            lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0),
        )
        short = fast(model, guide, train, batch_size=1, num_steps=1, learning_rate=0.1)
        long = fast(model, guide, train, batch_size=1, num_steps=9, learning_rate=0.1)
    start, first = guide.sites.offset["x0"], short.guide.sites.offset["x0"]
    (row,) = (first != start).any(-1).nonzero().flatten().tolist()
    assert torch.equal(long.guide.sites.offset["x0"][row], first[row])
    assert (long.guide.sites.offset["x0"] != start).any(-1).all()


def test_every_series_is_visited_once_in_an_epoch():
    model, guide, train = linear_problem(num_series=6)
    posterior = fast(model, guide, train, batch_size=2, num_steps=3)
    moved = (posterior.guide.sites.offset["x0"] != guide.sites.offset["x0"]).any(-1)
    assert moved.all()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("stock", [AutoNormal, AutoDelta])
def test_stock_guides_that_draw_rows_of_their_own_are_refused(stock: type, seed: int):
    """Of two series one is drawn: half of all first looks agree by chance."""
    model, _, train = linear_problem(num_series=2)
    with pytest.raises(bo.FitError, match="create_plates"):
        fast(model, stock(model), train, batch_size=1, seed=seed)
    fast(model, stock(model), train, seed=seed)


@pytest.mark.parametrize("stock", [AutoNormal, AutoDelta])
def test_stock_guides_with_the_models_plate_are_accepted(stock: type):
    model, _, train = linear_problem()
    guide = stock(model, create_plates=lambda data: data.plate())
    posterior = fast(model, guide, train, batch_size=2, num_steps=200, learning_rate=0.04)
    mean, _ = exact_optimum(train)["x0"]
    assert (posterior.draws(200, seed=0)["x0"].mean(0) - mean).abs().max() < 0.4


@pytest.mark.parametrize(
    "stock", [AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoDiagonalNormal]
)
def test_joint_guides_are_refused_in_minibatches_and_accepted_without(stock: type):
    model, _, train = linear_problem()
    with pytest.raises(bo.FitError, match=r"one joint law.*batch_size"):
        fast(model, stock(model), train, batch_size=2)
    fast(model, stock(model), train)


def test_own_guides_must_take_the_batchs_plate():
    model, _, train = linear_problem()

    def without_a_plate(data):
        location = pyro.param("location", torch.zeros(4, 2, dtype=DOUBLE))
        pyro.sample("field.b", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
        pyro.sample("x0", dist.Normal(location[data.index], 0.1).to_event(2))

    def another_plate(data):
        location = pyro.param("location", torch.zeros(4, 2, dtype=DOUBLE))
        pyro.sample("field.b", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
        with pyro.plate("trajectories", 4, subsample_size=len(data.index), dim=-1) as rows:
            pyro.sample("x0", dist.Normal(location[rows], 0.1).to_event(1))

    for guide in (without_a_plate, another_plate):
        with pytest.raises(bo.FitError, match=r"data\.plate\(\)"):
            fast(model, guide, train, batch_size=2)


# ---- units ------------------------------------------------------------------------------------
def small_fit(train: bo.Trajectories, **settings) -> bo.Posterior:
    plan = replace(bo.plan(train), hidden=(2,))
    plan = replace(plan, step=3 * plan.step)
    model, guide = bo.neural_ode(train, plan=plan, verbose=False)
    settings = {"seed": 0, "num_steps": 15, "num_particles": 2, "progress": False} | settings
    return bo.fit_svi(model, guide, train, **settings)


def small_data() -> bo.Trajectories:
    data = bo.datasets.van_der_pol(num_series=3, num_times=8, horizon=4.0, missing=0.1, seed=2)
    return data.observed.to(dtype=DOUBLE)


def in_other_units(data: bo.Trajectories, a, b, c=0.0, d=0.0) -> bo.Trajectories:
    return bo.Trajectories(
        data.times * b + d,
        data.values * a + c,
        series=data.series,
        names=data.names,
        start=data.start * b + d,
    )


@pytest.mark.parametrize(
    ("a", "b", "c", "d"),
    [
        (1000.0, 365.0, 0.0, 0.0),
        (1000.0, 365.0, 5000.0, -2000.0),
        (1e-9, 1.0, 0.0, 0.0),
        (1.0, 86400.0, 0.0, 1.6e9),
    ],
)
def test_other_units_give_the_same_posterior(a: float, b: float, c: float, d: float):
    data = small_data()
    later = torch.tensor([1.0, 5.0], dtype=DOUBLE)
    plain = small_fit(data)
    scaled = small_fit(in_other_units(data, a, b, c, d))
    ensemble = plain.predict(data.at(later), num_draws=20, seed=1)
    other = scaled.predict(scaled.train.at(later * b + d), num_draws=20, seed=1)
    size = data.values[data.mask].std()
    for mine, theirs in ((ensemble.values, other.values), (ensemble.states, other.states)):
        torch.testing.assert_close((theirs - c) / a, mine, rtol=0.0, atol=1e-6 * float(size))
    draws, others = ensemble.draws, other.draws
    torch.testing.assert_close(
        others["likelihood.noise_scale"] / a, draws["likelihood.noise_scale"], rtol=1e-6, atol=0.0
    )
    torch.testing.assert_close(
        others["field.weights"], draws["field.weights"], rtol=1e-6, atol=1e-6
    )
    change = torch.tensor(plain.history.elbo) - torch.tensor(scaled.history.elbo)
    exact = torch.full_like(change, data.num_observed * math.log(a))
    torch.testing.assert_close(change, exact, rtol=1e-5, atol=1e-5 * abs(plain.history.elbo[0]))


def test_single_precision_data_in_seconds_since_1970_are_fitted():
    data = in_other_units(small_data(), 1.0, 86400.0, 0.0, 1.7e9).to(dtype=torch.float32)
    assert data.times.dtype == DOUBLE
    posterior = small_fit(data)
    ensemble = posterior.predict(data, num_draws=20, seed=0)
    near = (ensemble.mean - data.values)[data.mask].square().mean().sqrt()
    assert near < 0.5
    assert ensemble.share_failed == 0


def test_raw_pelts_without_units_are_one_clear_error():
    train = bo.datasets.lynx_hare()
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.BayesianMLP(2, [3], 2),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.5),
    )
    with pytest.raises(bo.FitError, match=r"reach 77.4 .*Units\.from_data\(train\)"):
        bo.fit_svi(model, bo.MeanFieldGuide(model, train), train, progress=False)


# ---- bad input --------------------------------------------------------------------------------
def test_a_question_cannot_be_fitted():
    model, guide, train = linear_problem()
    with pytest.raises(bo.DataError, match="nothing to fit"):
        fast(model, guide, train.at([1.0, 2.0]))
    hidden = bo.Trajectories(
        train.times, train.values, series=train.series, mask=torch.zeros(4, 4, dtype=torch.bool)
    )
    with pytest.raises(bo.DataError, match="nothing to fit"):
        fast(model, guide, hidden)


def test_single_times_cannot_be_fitted():
    model, guide, train = linear_problem()
    one = bo.Trajectories(train.times[:1], train.values[:, :1], series=train.series)
    with pytest.raises(bo.DataError, match="single time"):
        fast(model, guide, one)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 2] = True
    masked = bo.Trajectories(train.times, train.values, series=train.series, mask=mask)
    with pytest.raises(bo.DataError, match="single time"):
        fast(model, guide, masked)


@pytest.mark.parametrize("value", [0.0, -1.5])
def test_impossible_values_are_named(value: float):
    model, guide, train = linear_problem(likelihood=bo.LogNormalLikelihood(2))
    values = train.values.abs() + 0.1
    values[2, 1, 0] = value
    wrong = bo.Trajectories(train.times, values, series=train.series)
    with pytest.raises(bo.DataError, match=rf"{value:g} of series 's2' is impossible"):
        fast(model, guide, wrong)
    values[2, 1, 0] = math.nan
    missing = bo.Trajectories(train.times, values, series=train.series)
    assert math.isfinite(fast(model, guide, missing).history.elbo[-1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", 0),
        ("num_steps", -1),
        ("num_particles", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("batch_size", 0),
        ("batch_size", 5),
    ],
)
def test_settings_out_of_range_are_named(name: str, value):
    with pytest.raises(bo.DataError, match=name):
        fast(*linear_problem(), **{name: value})


def test_a_likelihood_without_working_response_needs_warm_start_off():
    model, guide, train = linear_problem(likelihood=KnownNoise())
    with pytest.raises(bo.FitError, match=r"no working_response.*warm_start=False"):
        bo.fit_svi(model, guide, train, progress=False)
    assert math.isfinite(fast(model, guide, train).history.elbo[-1])


def test_a_guide_of_other_series_is_one_clear_error():
    model, guide, train = linear_problem()
    part = train.rows(torch.tensor([0, 1]))
    for wrong, data in ((guide, part), (bo.MeanFieldGuide(model, part), train)):
        with pytest.raises(bo.DataError, match="build it on these data"):
            fast(model, wrong, data)


def test_a_guide_without_parameters_is_one_clear_error():
    model, _, train = linear_problem()

    def guide(data):
        pyro.sample("field.b", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
        with data.plate():
            pyro.sample("x0", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))

    with pytest.raises(bo.FitError, match="no parameters"):
        fast(model, guide, train)


def test_guides_of_another_model_are_one_clear_error():
    """A site that a Pyro guide forgets would be drawn from its prior, and miss in predictions."""
    model, _, train = linear_problem(likelihood=bo.GaussianLikelihood(2))
    other, guide, _ = linear_problem()

    def forgetful(data):
        location = pyro.param("location", torch.zeros(2, dtype=DOUBLE))
        pyro.sample("field.b", dist.Normal(location, 1.0).to_event(1))
        with data.plate():
            pyro.sample("x0", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))

    for wrong in (guide, AutoNormal(other), forgetful):
        for warm_start in (False, True):
            with pytest.raises(bo.FitError, match=r"does not draw \['likelihood\.noise_scale'\]"):
                fast(model, wrong, train, warm_start=warm_start)
    for too_much in (bo.MeanFieldGuide(model, train), AutoNormal(model)):
        with pytest.raises(bo.FitError, match="draws the unknown"):
            fast(other, too_much, train)
    with pytest.raises(bo.FitError, match="cannot be called"):
        fast(model, "mean-field", train)


@pytest.mark.parametrize("dim", [1, 3])
def test_data_of_another_shape_than_the_likelihoods_are_one_clear_error(dim: int):
    """One component would broadcast against two, and give a fit of something else."""
    model, guide, train = linear_problem()
    values = train.values[..., :1].expand(-1, -1, dim)
    other = bo.Trajectories(train.times, values, series=train.series)
    with pytest.raises(bo.ShapeError, match=r"\(4, 2\) for \(time, \*event\)"):
        fast(model, guide, other)


@pytest.mark.parametrize(
    "solver",
    [
        bo.ODESolver("dopri5", rtol=1e-6, atol=1e-7),
        bo.ODESolver("dopri5", rtol=1e-6, atol=1e-7, gradient="adjoint"),
        bo.ODESolver("rk4", step_size=1.0),
    ],
)
def test_every_solver_can_be_fitted_through(solver):
    model, guide, train = linear_problem()
    other = bo.DynamicalModel(
        initial=model.initial, field=model.field, likelihood=model.likelihood, solver=solver
    )
    pair = zip(
        fast(model, guide, train, num_steps=5).guide.parameters(),
        fast(other, guide, train, num_steps=5).guide.parameters(),
        strict=True,
    )
    for mine, theirs in pair:
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


# ---- draws that explode, steps that are not finite --------------------------------------------
class Cubic(nn.Module):
    """dz/ds = a z^3: explodes for a > 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1, dtype=DOUBLE))

    def priors(self):
        return {"a": dist.Normal(0 * self.scale, 3 * self.scale).to_event(1)}

    def build(self, values, inputs=None):
        a = without_plate(values["a"]).unsqueeze(-2)
        return VectorField(lambda t, x: a * x**3, (a,))


@pytest.mark.parametrize("warm_start", [False, True])
def test_a_field_that_explodes_gives_a_posterior(warm_start: bool):
    model, guide, train = linear_problem(field=Cubic(), likelihood=bo.GaussianLikelihood(2))
    posterior = fast(model, guide, train, num_steps=40, warm_start=warm_start)
    assert math.isfinite(posterior.history.elbo[-1])
    assert all(parameter.isfinite().all() for parameter in posterior.guide.parameters())


class Undefined(nn.Module):
    """dz/ds = sqrt(a - 9): NaN, and so are all gradients."""

    def priors(self):
        return {"a": dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)}

    def build(self, values, inputs=None):
        a = without_plate(values["a"]).unsqueeze(-2)
        return VectorField(lambda t, x: (a - 9).sqrt() + x, (a,))


def test_gradients_that_are_never_finite_are_one_clear_error():
    model, guide, train = linear_problem(field=Undefined())
    with pytest.raises(bo.FitError, match="not finite in 50 steps in a row"):
        fast(model, guide, train, num_steps=100)


def test_single_steps_without_a_finite_gradient_are_skipped(monkeypatch):
    model, guide, train = linear_problem()
    loss, calls = objectives.TermsObjective.loss, [0]

    def sometimes(self, batch, num_particles):
        calls[0] += 1
        return loss(self, batch, num_particles) * (math.nan if calls[0] % 3 == 0 else 1.0)

    monkeypatch.setattr(objectives.TermsObjective, "loss", sometimes)
    posterior = fast(model, guide, train, num_steps=10)
    assert posterior.history.num_skipped == 3
    assert len(posterior.history.elbo) == 10
    assert all(parameter.isfinite().all() for parameter in posterior.guide.parameters())


# ---- the end of a fit -------------------------------------------------------------------------
def test_ctrl_c_returns_what_was_reached(monkeypatch):
    model, guide, train = linear_problem()
    loss, calls = objectives.TermsObjective.loss, [0]

    def interrupted(self, batch, num_particles):
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return loss(self, batch, num_particles)

    monkeypatch.setattr(objectives.TermsObjective, "loss", interrupted)
    with pytest.warns(UserWarning, match="stopped by the user after 5 of 20 steps"):
        posterior = fast(model, guide, train, num_steps=20)
    assert posterior.history.is_interrupted
    assert len(posterior.history.elbo) == 5
    assert not torch.equal(posterior.guide.sites.offset["x0"], guide.sites.offset["x0"])
    assert posterior.predict(train, num_draws=3, seed=0).values.isfinite().all()


def test_ctrl_c_keeps_the_parameters_of_a_stock_guide(monkeypatch):
    model, _, train = linear_problem()
    loss, calls = objectives.PyroObjective.loss, [0]

    def interrupted(self, batch, num_particles):
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return loss(self, batch, num_particles)

    monkeypatch.setattr(objectives.PyroObjective, "loss", interrupted)
    with pytest.warns(UserWarning, match="stopped by the user after 3 of 20 steps"):
        posterior = fast(model, AutoNormal(model), train, num_steps=20)
    assert posterior.predict(train, num_draws=3, seed=0).values.isfinite().all()
    assert len(posterior.state["params"]) == 4
    assert not list(pyro.get_param_store().keys())


def test_without_progress_nothing_is_printed(capfd):
    model, guide, train = linear_problem()
    fast(model, guide, train, num_steps=30)
    assert capfd.readouterr() == ("", "")


def test_history_and_settings_tell_what_was_done():
    model, guide, train = linear_problem()
    posterior = fast(model, guide, train, num_steps=4, batch_size=3, learning_rate=0.02, seed=17)
    assert posterior.settings == {
        "engine": "svi",
        "seed": 17,
        "num_steps": 4,
        "learning_rate": 0.02,
        "num_particles": 4,
        "batch_size": 3,
        "warm_start": False,
        "prior_scale": "fixed",
    }
    assert posterior.history.seconds > 0
    assert not posterior.history.is_interrupted


def test_any_torch_optimiser_can_be_given():
    model, guide, train = linear_problem()
    groups = []

    def make(parameters):
        groups.extend(dict(group) for group in parameters)
        return torch.optim.SGD(parameters, momentum=0.5)

    posterior = fast(model, guide, train, optimizer=make, learning_rate=1e-4, num_steps=30)
    assert [group["lr"] for group in groups] == [1e-4]
    assert posterior.history.elbo[-1] > posterior.history.elbo[0]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_dtype_is_that_of_the_data(dtype: torch.dtype):
    model, guide, train = linear_problem()
    posterior = fast(model, guide, train.to(dtype=dtype))
    assert {parameter.dtype for parameter in posterior.guide.parameters()} == {dtype}
    assert posterior.predict(train.to(dtype=dtype), num_draws=2, seed=0).path.dtype == dtype
    assert {parameter.dtype for parameter in guide.parameters()} == {DOUBLE}


def test_a_law_of_x0_that_differs_between_series_is_fitted():
    class PerSeries(nn.Module):
        def priors(self):
            return {}

        def build(self, values, inputs=None):
            mean = inputs.static.expand(-1, 2)
            return dist.Normal(mean, torch.full_like(mean, 0.5)).to_event(1)

    _, _, plain = linear_problem(num_series=3)  # another number than that of the times
    train = bo.Trajectories(
        plain.times,
        plain.values,
        series=plain.series,
        inputs=bo.Inputs(torch.tensor([[-1.0], [0.0], [5.0]], dtype=DOUBLE)),
    )
    model = bo.DynamicalModel(
        initial=PerSeries(),
        field=Drift(),
        likelihood=SmoothedNoise(),
        solver=bo.FixedGridSolver("rk4", step=1.0),
    )
    guide = bo.MeanFieldGuide(model, train)
    assert guide.location("x0").tolist() == [[-1.0, -1.0], [0.0, 0.0], [5.0, 5.0]]
    for settings in ({"warm_start": True}, {"batch_size": 2}):
        assert math.isfinite(fast(model, guide, train, **settings).history.elbo[-1])
