"""When a fit ends: limits of a gain, cycles, the conjugate optimum, the cap."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import bayesode as bo
from bayesode.distributions import observed_law
from bayesode.inference import loop
from bayesode.inference.stopping import NUM_GROUPS, StopRule, paired_gain
from bayesode.models.contracts import Observe, VectorField, without_plate

DOUBLE = torch.float64
NOISE = 0.3


# ---- limits of a gain -------------------------------------------------------------------------
def normal(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE)


def heavy(shape: tuple[int, ...]) -> Tensor:
    return torch.distributions.StudentT(torch.tensor(2.0, dtype=DOUBLE)).sample(shape)


@pytest.mark.parametrize("noise", [normal, heavy])
def test_the_upper_limit_lies_below_the_true_gain_in_five_of_a_hundred_cases(noise):
    """False-alarm rate 1e-6 for the normal noise that the limit is exact for."""
    torch.manual_seed(0)
    num_cases, draws = 1000, 40 * normal((1000, NUM_GROUPS))
    after = draws + 1.0 + 3 * noise((num_cases, NUM_GROUPS))
    limits = [paired_gain(a, b).upper for a, b in zip(draws, after, strict=True)]
    share = sum(limit < 1.0 for limit in limits) / num_cases
    assert share < 0.05 + 5 * math.sqrt(0.05 * 0.95 / num_cases)
    assert share > 0.01  # nor are the limits of no use


def test_one_group_that_explodes_does_not_decide():
    torch.manual_seed(0)
    before = 40 * normal((NUM_GROUPS,))
    after = before + 0.1 * normal((NUM_GROUPS,))
    calm = paired_gain(before, after)
    after[3] -= 1e6
    wild = paired_gain(before, after)
    assert wild.upper == pytest.approx(calm.upper, abs=0.1)
    assert wild.lower == pytest.approx(calm.lower, abs=0.1)


def test_groups_without_a_number_are_left_out_and_most_of_them_decide_nothing():
    before = torch.zeros(NUM_GROUPS)
    after = torch.full((NUM_GROUPS,), 2.0)
    after[:10] = math.nan
    assert paired_gain(before, after).mean == 2.0
    after[10:20] = -math.inf
    assert paired_gain(before, after).upper == math.inf


# ---- the rule on traces of which all is known -------------------------------------------------
class Trace:
    """Estimates with a sd of 40 nats, of which .5 are of the parameters: a level and its noise."""

    def __init__(self) -> None:
        self.level, self.look = 0.0, 0

    def __call__(self) -> float:
        shared = 40 * torch.randn((), dtype=DOUBLE)  # same seeds, same draws
        generator = torch.Generator().manual_seed(self.look)
        self.look += 1
        own = 0.5 * torch.randn((), generator=generator, dtype=DOUBLE)
        return float(self.level + shared + own)


def test_a_flat_trace_ends_after_the_first_cycle():
    rule = StopRule(Trace())
    assert not rule.is_converged
    rule.end_cycle()
    assert rule.is_converged
    assert rule.gain_limit < 1


def test_a_trace_that_rises_never_ends_and_keeps_its_rate():
    trace = Trace()
    rule = StopRule(trace)
    for _ in range(20):
        trace.level += 3.0
        rule.end_cycle()
        assert not rule.is_converged
        assert rule.factor == 1.0
        assert rule.gain == pytest.approx(3.0, abs=1.0)


def test_a_trace_that_levels_out_lets_the_rate_fall_and_ends():
    trace, factors = Trace(), []
    rule = StopRule(trace)
    for gain in (9.0, 3.0, 0.8, 0.0):
        trace.level += gain
        rule.end_cycle()
        factors.append(rule.factor)
    assert factors == [1.0, 1.0, 0.5, 0.25]
    assert rule.is_converged


def test_the_rule_ends_too_early_in_at_most_five_of_a_hundred_looks():
    """Last gain 2 nats, of which the next cycle at half the rate would bring 1."""
    torch.manual_seed(1)
    num_cases, ended = 100, 0
    for case in range(num_cases):
        trace = Trace()
        trace.look = 1000 * case
        rule = StopRule(trace)
        trace.level += 2.0
        rule.end_cycle()
        ended += rule.is_converged
    assert ended / num_cases < 0.05 + 5 * math.sqrt(0.05 * 0.95 / num_cases)


# ---- a model whose mean-field optimum is known ------------------------------------------------
class Drift(nn.Module):
    """dz/ds = b, b ~ N(0, 1): paths are linear in b and x0."""

    def priors(self):
        return {"b": dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1)}

    def build(self, values, inputs=None):
        b = without_plate(values["b"]).unsqueeze(-2)
        return VectorField(lambda t, x: b + 0 * x, (b,))


class KnownNoise(nn.Module):
    def priors(self):
        return {}

    def build(self, values, inputs=None):
        def law(path, mask):
            return observed_law(dist.Normal(path, NOISE), mask, event_dim=2, fill=0.0)

        return Observe(law, lambda path: path)


def linear_problem(num_series: int = 4):
    torch.manual_seed(0)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=Drift(),
        likelihood=KnownNoise(),
        solver=bo.FixedGridSolver("rk4", step=1.0),
    ).double()
    times = torch.linspace(0.0, 3.0, 4, dtype=DOUBLE)
    values = torch.randn(num_series, 1, 2, dtype=DOUBLE)
    values = values + torch.tensor([0.5, -1.0]) * times[:, None]
    values = values + NOISE * torch.randn(values.shape, dtype=DOUBLE)
    train = bo.Trajectories(times, values)
    guide = bo.MeanFieldGuide(model, train)
    guide.set_site("field.b", torch.zeros(2), torch.full((2,), 0.1))
    guide.set_site("x0", train.values[:, 0], torch.full((num_series, 2), 0.3))
    return model, guide, train


def test_the_start_is_no_optimum():
    model, guide, train = linear_problem()
    start = bo.Posterior(model, guide, train, history=None, settings={})
    assert gap_to_the_optimum(start, train) > 20


@torch.no_grad()
def gap_to_the_optimum(posterior: bo.Posterior, train: bo.Trajectories) -> float:
    """ELBO of the best mean-field posterior minus that of this one, nats, in closed form."""
    size, times = train.num_series, train.times
    precision = torch.zeros(size + 1, size + 1, dtype=DOUBLE)
    precision.diagonal()[:size] = len(times) / NOISE**2 + 1 / 4.0
    precision[:size, -1] = precision[-1, :size] = times.sum() / NOISE**2
    precision[-1, -1] = size * times.square().sum() / NOISE**2 + 1.0
    by_time = (train.values * times[:, None]).sum((0, 1))
    pull = torch.cat([train.values.sum(1), by_time[None]]) / NOISE**2
    laws = posterior.guide.posteriors(train)
    mean = torch.cat([laws["x0"].mean, laws["field.b"].mean[None]])
    variance = torch.cat([laws["x0"].variance, laws["field.b"].variance[None]])
    away = mean - torch.linalg.solve(precision, pull)
    excess = variance * precision.diagonal()[:, None]
    return float((away * (precision @ away)).sum() / 2 + (excess - 1 - excess.log()).sum() / 2)


def fit(model, guide, train, **settings) -> bo.Posterior:
    settings = {"seed": 0, "warm_start": False, "progress": False} | settings
    return bo.fit_svi(model, guide, train, **settings)


@pytest.mark.parametrize("settings", [{}, {"batch_size": 2}])
def test_a_fit_ends_within_a_nat_of_the_exact_optimum(settings: dict):
    model, guide, train = linear_problem()
    posterior = fit(model, guide, train, learning_rate=0.1, **settings)
    history = posterior.history
    assert gap_to_the_optimum(posterior, train) < 1.0
    assert history.is_converged
    assert history.gain_limit < 1.0
    assert history.gain < history.gain_limit
    assert 100 < len(history.elbo) < 3000
    assert len(history.elbo) % 100 == 0
    assert posterior.settings["num_steps"] is None


def test_a_stock_guide_ends_by_the_same_rule():
    model, _, train = linear_problem()
    history = fit(model, AutoNormal(model), train, learning_rate=0.02).history
    assert history.is_converged
    assert history.gain_limit < 1.0


def test_looks_do_not_disturb_the_steps(monkeypatch):
    monkeypatch.setattr(loop, "MAX_STEPS", 100)
    model, guide, train = linear_problem()
    with pytest.warns(UserWarning, match="after 100 steps"):
        ruled = fit(model, guide, train)
    counted = fit(model, guide, train, num_steps=100, learning_rate=0.02)
    assert ruled.history.elbo == counted.history.elbo
    pairs = zip(ruled.guide.parameters(), counted.guide.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_a_fit_that_reaches_the_cap_says_so(monkeypatch):
    monkeypatch.setattr(loop, "MAX_STEPS", 200)
    model, guide, train = linear_problem()
    with pytest.warns(UserWarning, match=r"may still rise by .* after 200 steps: give num_steps"):
        history = fit(model, guide, train).history
    assert history.is_converged is False
    assert history.gain_limit > 1
    assert len(history.elbo) == 200


def test_steps_that_were_asked_for_are_not_judged():
    history = fit(*linear_problem(), num_steps=3).history
    assert (history.is_converged, history.gain, history.gain_limit) == (None, None, None)
    assert len(history.elbo) == 3
