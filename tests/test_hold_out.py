"""What held-out times say of a forecast, and how its variance is inflated."""

import math
from types import SimpleNamespace

import pytest
import torch

import bayesode as bo
from bayesode.inference.hold_out import HoldOut, hold_out, inflated, two_parts
from bayesode.inference.mixture import Mixture
from bayesode.trajectories import Trajectories


def walk(num_series: int = 1, **changes) -> Trajectories:
    times = torch.arange(15, dtype=torch.float64)
    values = torch.stack([torch.sin(0.7 * times), torch.cos(0.7 * times)], -1)
    return Trajectories(times, values.expand(num_series, -1, -1), names=["x", "y"], **changes)


class Law:
    """A posterior that forecasts independent normal values of known mean and sd."""

    def __init__(self, mean: float, sd: float, transform: str = "identity") -> None:
        self.mean, self.sd, self.transform = mean, sd, transform

    def predict(self, question, *, num_draws, seed):
        shape = (question.num_series, question.times.shape[-1], 2)
        levels = ((torch.arange(num_draws) + 0.5) / num_draws).double()
        law = torch.distributions.Normal(self.mean, self.sd)
        values = law.icdf(levels).view(-1, 1, 1, 1).expand(-1, *shape)
        if self.transform == "log":
            values = values.exp()

        def log_prob(test):
            scaled = test.values.log() if self.transform == "log" else test.values
            return law.log_prob(scaled).expand(num_draws, *shape)

        failed = torch.zeros(num_draws, question.num_series, dtype=torch.bool)
        return SimpleNamespace(
            values=values, failed=failed, log_prob=log_prob, transform=self.transform
        )


# ---- parts ---------------------------------------------------------------------------------------
def test_two_thirds_of_the_times_are_fitted():
    first, last = two_parts(walk())
    assert first.times.tolist() == list(range(10)) and last.times.tolist() == list(range(10, 15))


def test_series_with_other_starts_are_cut_at_the_same_time_since_their_start():
    times = torch.arange(15.0).double() + torch.tensor([[0.0], [100.0]])
    first, last = two_parts(Trajectories(times, walk(2).values))
    assert first.grid.tolist() == [list(range(10))] * 2
    assert last.start.tolist() == [0.0, 0.0]


def test_series_that_end_before_the_cut_are_not_scored():
    data = walk(2, num_times=[15, 3])
    first, last = two_parts(data)
    assert first.num_series == 2 and last.series == (0,)


# ---- inflation -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("sd", "transform"), [(0.1, "identity"), (0.2, "log"), (50.0, "identity")])
def test_inflation_is_four_plus_squares_over_four_plus_points(sd, transform):
    data = walk()
    if transform == "log":
        data = Trajectories(data.times, data.values.exp(), names=data.names)
    seen = []

    def fit(first):
        seen.append(first.times[-1].item())
        return Law(0.3, sd, transform)

    found = hold_out(data, fit, seed=0)
    values = walk().values[0, 10:]
    squares = ((values - 0.3) / sd).square().sum().item()
    assert found.inflation == pytest.approx(max(1.0, (4 + squares) / (4 + 10)), rel=0.01)
    assert seen == [9.0] and found.num_points == 10  # the held-out third is not fitted


def test_hold_out_scores_are_those_of_the_laws():
    data = walk(2)
    noise = torch.randn(data.values.shape, generator=torch.Generator().manual_seed(0))
    data = Trajectories(data.times, data.values + 0.1 * noise, names=data.names)
    found = hold_out(data, lambda first: Law(0.3, 0.5), seed=0)
    first, last = data.split(time=9)
    law = torch.distributions.Normal(0.3, 0.5)
    assert found.log_score == pytest.approx(law.log_prob(last.values).mean().item())
    assert set(found.baselines) == {"ar2", "climatology"}
    seen = first.values
    climate = torch.distributions.Normal(seen.mean((0, 1)), seen.flatten(0, 1).std(0))
    expected = climate.log_prob(last.values).mean().item()
    assert found.baselines["climatology"] == pytest.approx(expected)


def test_words_say_who_won():
    won = HoldOut(1.0, 10, -1.0, {"ar2": -2.0, "climatology": -3.0})
    assert won.is_won and "NOT" not in str(won) and "nothing is inflated" in str(won)
    lost = HoldOut(1.84, 10, -2.5, {"ar2": -2.0, "climatology": -3.0})
    assert not lost.is_won and "does NOT beat AR(2)" in str(lost)
    assert "inflated x1.8 by hold-out" in str(lost)
    alone = HoldOut(1.0, 10, -2.5, {})
    assert alone.is_won and alone.best_baseline is None


def test_inflated_paths_give_values_of_the_variance_that_was_asked_for():
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(400, 2, 3, 2, generator=generator, dtype=torch.float64)
    path = path * torch.tensor([0.5, 2.0]) + 1
    failed = torch.zeros(400, 2, dtype=torch.bool)
    failed[:50, 1] = True
    path[:50, 1] = 1e6  # must not count
    information = torch.full((400, 2, 3, 1), 4.0, dtype=torch.float64)  # second state: not observed
    wide = inflated(path, failed, information, 3.0)
    for row, first in ((0, 0), (1, 50)):
        before, after = path[first:, row], wide[first:, row]
        assert torch.allclose(after.mean(0), before.mean(0), atol=1e-9)
        noise = torch.tensor([0.25, 0.0], dtype=torch.float64)
        total = before.var(0, correction=0) + noise
        assert torch.allclose(after.var(0, correction=0) + noise, 3 * total)
    assert torch.allclose(inflated(path, failed, information, 1.0), path)


# ---- mixtures ------------------------------------------------------------------------------------
def test_inflation_acts_on_forecasts_alone():
    data = bo.datasets.van_der_pol(num_series=3, num_times=30, seed=1).observed
    train, _ = data.split(time=7.0)
    model, _ = bo.neural_ode(train, hidden=[2], verbose=False)
    fits = [bo.fit_laplace(model, train, seed=0, progress=False, prior_scale="fixed")]
    factor = 4.0
    found = HoldOut(factor, 10, -3.0, {"ar2": -2.0})
    plain, wide = (
        Mixture(fits, hold_out=each).predict(train.at(data.times), num_draws=4000, seed=0)
        for each in (None, found)
    )
    is_past = data.times <= 7.0
    assert torch.equal(plain.path[:, :, is_past], wide.path[:, :, is_past])
    before, after = (e.values.var(0)[:, ~is_past] for e in (plain, wide))
    # relative sd of a variance of 4,000 heavy-tailed values, averaged over 9 times: below 5 %
    ratio = (after / before).mean().item()
    assert ratio == pytest.approx(factor, rel=0.2)
    assert math.isfinite(wide.log_prob(data).sum().item())
