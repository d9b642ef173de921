"""Baselines against the published lynx-hare numbers, closed forms and identities."""

import math

import numpy as np
import pytest
import torch

from bayesode import scores
from bayesode.baselines import baselines
from bayesode.datasets import lynx_hare
from bayesode.errors import DataError, ShapeError
from bayesode.trajectories import Trajectories

NAMES = ["climatology", "random_walk", "ar2"]
# Measured when the package was designed, same protocol: mean log score, CRPS of logs, coverage.
ROLLING = {
    "climatology": (-4.365, 0.472, 0.80),  # printed -4.37: -4.3647 here, -4.394 with sd (n)
    "random_walk": (-4.52, 0.605, 0.84),
    "ar2": (-3.90, 0.335, 0.83),
}
AR2_BY_HORIZON = [-3.29, -3.76, -4.11, -4.20, -4.16, -4.02]


def regular(num_series=3, num_times=12, dim=2, seed=0, step=0.5):
    """Smooth random series on one regular grid, float64."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_series, num_times, dim, generator=generator, dtype=torch.float64)
    return Trajectories(step * torch.arange(num_times), values.cumsum(1) + 3)


def test_lynx_hare_scores_from_1914_are_the_published_ones():
    train, test = lynx_hare().split(time=1914)
    laws = baselines(train, test, transform="log")
    found = {name: law.log_prob(test.values).sum().item() for name, law in laws.items()}
    for name, expected in {"climatology": -52.4, "random_walk": -60.0, "ar2": -43.0}.items():
        assert abs(found[name] - expected) <= 0.05


def rolling_scores(name):
    """Log score, CRPS of logs and coverage of all points, (score, origin, horizon, component)."""
    data, points = lynx_hare(), torch.full((3, 10, 6, 2), math.nan, dtype=torch.float64)
    for row, origin in enumerate(range(1908, 1918)):
        train, later = data.split(time=origin)
        test = later.until(origin + 6 - 1900)
        law = baselines(train, test, transform="log")[name]
        crps = scores.gaussian_crps(law.loc, law.scale, test.values.log())
        covered = (law.cdf(test.values) - 0.5).abs() < 0.45
        found = torch.stack([law.log_prob(test.values), crps, covered])
        points[:, row, : test.times.numel()] = found[:, 0].double()
    return points


@pytest.mark.parametrize("name", NAMES)
def test_lynx_hare_scores_over_rolling_origins_are_the_published_ones(name):
    points = rolling_scores(name)
    assert points[0].isfinite().sum() == 108
    means = points.nanmean((1, 2, 3))
    for mean, expected, digit in zip(means, ROLLING[name], (0.01, 0.001, 0.01), strict=True):
        assert abs(mean - expected) <= digit / 2


def test_lynx_hare_ar2_scores_by_horizon_are_the_published_ones():
    found = rolling_scores("ar2")[0].nanmean((0, 2))
    expected = torch.tensor(AR2_BY_HORIZON, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.005)


def test_climatology_is_the_mean_and_sd_of_what_was_observed():
    values = torch.tensor([[[1.0, 5.0], [math.nan, 7.0]], [[2.0, 9.0], [6.0, math.nan]]])
    train = Trajectories([0.0, 1.0], values.double(), series=["a", "b"])
    law = baselines(train, train.at([3.0]))["climatology"]
    expected = torch.tensor([[3.0, 7.0], [math.sqrt(7.0), 2.0]], dtype=torch.float64)
    torch.testing.assert_close(law.loc, expected[0].expand(2, 1, 2))
    torch.testing.assert_close(law.scale, expected[1].expand(2, 1, 2))


def test_random_walk_steps_over_missing_values_and_grows_with_elapsed_time():
    nan = math.nan
    # Component 1: squared increment / elapsed = 1/1, 4/2 and, in the second series, 9/1.
    # Component 2: 16/3 and 2/2; its last observed times differ from those of component 1.
    values = [
        [[0.0, 1.0], [1.0, nan], [nan, nan], [3.0, 5.0]],
        [[nan, 2.0], [4.0, nan], [7.0, 2.0 + math.sqrt(2)], [nan, nan]],
    ]
    train = Trajectories([0.0, 1.0, 2.0, 3.0], torch.tensor(values, dtype=torch.float64))
    law = baselines(train, train.at([4.0, 6.5]))["random_walk"]
    last = torch.tensor([[3.0, 5.0], [7.0, 2 + math.sqrt(2)]], dtype=torch.float64)
    torch.testing.assert_close(law.loc, last[:, None].expand(2, 2, 2))
    rate = torch.tensor([12 / 3, (16 / 3 + 1) / 2], dtype=torch.float64)
    elapsed = torch.tensor([[[1.0], [3.5]], [[2.0], [4.5]]], dtype=torch.float64)
    torch.testing.assert_close(law.variance, rate * elapsed)


def ar2_by_companion_matrix(paths, horizon):
    """Mean and variance of each path 1 ... horizon steps ahead, (horizon, path); numpy only."""
    triples = np.concatenate([np.stack([y[2:], y[1:-1], y[:-2]], -1) for y in paths])
    design = np.column_stack([np.ones(len(triples)), triples[:, 1:]])
    (c, a, b), rss, *_ = np.linalg.lstsq(design, triples[:, 0], rcond=None)
    step = np.array([[a, b, c], [1, 0, 0], [0, 0, 1]])
    shock = np.diag([rss[0] / (len(triples) - 3), 0, 0])
    covariance, means, variances = np.zeros((3, 3)), [], []
    state = np.stack([[y[-1] for y in paths], [y[-2] for y in paths], np.ones(len(paths))])
    for _ in range(horizon):
        state, covariance = step @ state, step @ covariance @ step.T + shock
        means.append(state[0])
        variances.append(covariance[0, 0])
    return np.stack(means), np.array(variances)


def test_ar2_is_the_power_of_the_companion_matrix():
    train = regular()
    law = baselines(train, train.at(0.5 * torch.arange(12, 20)))["ar2"]
    for component in range(2):
        mean, variance = ar2_by_companion_matrix(train.values[..., component].numpy(), 8)
        np.testing.assert_allclose(law.loc[..., component], mean.T, rtol=1e-9)
        np.testing.assert_allclose(law.variance[0, :, component], variance, rtol=1e-9)
        assert torch.equal(law.variance[0], law.variance[2])


@pytest.mark.parametrize("name", NAMES)
def test_log_laws_are_the_normal_laws_of_logs_with_their_jacobian(name):
    data = regular()
    raw = Trajectories(data.times, data.values.exp())
    train, test = data.split(time=4.0)
    raw_train, raw_test = raw.split(time=4.0)
    normal = baselines(train, test)[name].log_prob(test.values) - test.values
    lognormal = baselines(raw_train, raw_test, transform="log")[name].log_prob(raw_test.values)
    torch.testing.assert_close(lognormal, normal, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_other_units_of_values_and_time_change_nothing_else(name):
    data = regular()
    other = Trajectories(data.times * 365.25 + 1900, data.values * 1000 - 7)
    law = baselines(*data.split(time=4.0))[name]
    scaled = baselines(*other.split(time=4.0 * 365.25 + 1900))[name]
    torch.testing.assert_close(scaled.loc, law.loc * 1000 - 7, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scaled.scale, law.scale * 1000, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_forecast_of_a_time_does_not_depend_on_the_other_times_and_series_asked(name):
    train, test = regular().split(time=3.0)
    law = baselines(train, test)[name]
    part = train.at(test).rows(torch.tensor([2, 0])).at(test.times[[1, 4]])
    alone = baselines(train, part)[name]
    torch.testing.assert_close(alone.loc, law.loc[[2, 0]][:, [1, 4]], rtol=1e-12, atol=0)
    torch.testing.assert_close(alone.scale, law.scale[[2, 0]][:, [1, 4]], rtol=1e-12, atol=0)


def test_random_walk_covers_brownian_paths_at_its_level():
    generator = torch.Generator().manual_seed(5)
    num_series, times = 2000, torch.rand(2000, 12, generator=generator, dtype=torch.float64)
    times = times.sort(-1).values * 10
    shocks = torch.randn(num_series, 11, 2, generator=generator, dtype=torch.float64)
    path = (shocks * times.diff(dim=1).sqrt().unsqueeze(-1)).cumsum(1)
    path = torch.nn.functional.pad(path, (0, 0, 1, 0)) * torch.tensor([0.3, 5.0])
    data = Trajectories(times, path)
    train = Trajectories(times[:, :9], path[:, :9])
    law = baselines(train, train.at(times[:, 9:]))["random_walk"]
    covered = ((law.cdf(data.values[:, 9:]) - 0.5).abs() < 0.45).double().mean(0)
    # 6 comparisons (3 horizons, 2 components) at 5 standard errors: a false alarm in 3e5 seeds.
    # The rate comes from 16,000 increments: .6 % of the sd, .002 of the coverage.
    assert (covered - 0.9).abs().max() < 5 * math.sqrt(0.09 / num_series) + 0.003
    expected = torch.tensor([0.3, 5.0], dtype=torch.float64).square()
    rate = law.variance[0, 0] / (times[0, 9] - times[0, 8])
    assert (rate / expected - 1).abs().max() < 5 * math.sqrt(2 / (8 * num_series))


def test_ar2_covers_its_own_process_at_its_level():
    generator = torch.Generator().manual_seed(6)
    num_series, values = 2000, [torch.zeros(2000, 1, dtype=torch.float64)] * 2
    for _ in range(60):
        shock = torch.randn(num_series, 1, generator=generator, dtype=torch.float64)
        values.append(0.5 + 1.2 * values[-1] - 0.6 * values[-2] + 0.4 * shock)
    data = Trajectories(torch.arange(30), torch.stack(values[-30:], 1))
    train, test = data.split(time=23.0)
    law = baselines(train, test)["ar2"]
    # 6 comparisons at 5 standard errors: a false alarm in 3e5 seeds; 44,000 triples fit 4 numbers
    covered = ((law.cdf(test.values) - 0.5).abs() < 0.45).double().mean((0, 2))
    assert (covered - 0.9).abs().max() < 5 * math.sqrt(0.09 / num_series) + 0.003
    error = ((test.values - law.loc) / law.scale).square().mean((0, 2))
    assert (error - 1).abs().max() < 5 * math.sqrt(2 / num_series) + 0.005


def without_a_value(train):
    values = train.values.clone()
    values[0, 3, 0] = math.nan
    return Trajectories(train.times, values)


def without_a_component(train):
    values = train.values.clone()
    values[1, :, 0] = math.nan
    return Trajectories(train.times, values)


def shaken(train):
    times = train.times.clone()
    times[4] += 0.05 * 0.5
    return Trajectories(times, train.values)


def constant(train):
    values = train.values.clone()
    values[..., 1] = 0.1
    return Trajectories(train.times, values)


@pytest.mark.parametrize(
    ("spoil", "times", "expected"),
    [
        (lambda train: train, [6.0, 6.5], NAMES),
        (lambda train: train, [6.0, 6.01], NAMES[:2]),
        (lambda train: train, [5.5, 6.0], NAMES[:1]),
        (lambda train: train, [2.0, 6.0], NAMES[:1]),
        (without_a_value, [6.0], NAMES[:2]),
        (without_a_component, [6.0], NAMES[:1]),
        (shaken, [6.0], NAMES[:2]),
        (constant, [6.0], []),
        (lambda train: train.until(1.0), [6.0], NAMES[:2]),
        (lambda train: train.until(0.0), [6.0], NAMES[:1]),
        (lambda train: train.until(0.0).rows(torch.tensor([1])), [6.0], []),
    ],
    ids=[
        "all",
        "off the grid",
        "at the last training time",
        "inside training",
        "missing value",
        "missing component",
        "irregular",
        "constant",
        "three times",
        "one time",
        "one number",
    ],
)
def test_baselines_that_do_not_apply_are_left_out(spoil, times, expected):
    train = spoil(regular())
    assert list(baselines(train, train.at(times))) == expected


def test_regular_times_that_were_rounded_are_still_regular():
    times = (0.1 * torch.arange(40, dtype=torch.float32)).double()
    train = Trajectories(times, regular(num_times=40).values)
    ahead = (0.1 * torch.arange(40, 60, dtype=torch.float32)).double()
    exact = Trajectories(0.1 * torch.arange(40, dtype=torch.float64), train.values)
    expected = baselines(exact, exact.at(0.1 * torch.arange(40, 60, dtype=torch.float64)))["ar2"]
    torch.testing.assert_close(baselines(train, train.at(ahead))["ar2"].loc, expected.loc)


def test_series_unknown_to_train_have_only_a_climatology():
    train, test = regular().split(series=[1])
    assert list(baselines(train, test)) == ["climatology"]
    assert baselines(train, test)["climatology"].batch_shape == test.values.shape


def test_series_of_different_lengths_are_forecast_from_their_own_ends():
    data = regular(num_series=2, num_times=10)
    padded = Trajectories(data.times.expand(2, 10), data.values, num_times=[10, 7])
    laws = baselines(padded, padded.at([[5.0, 6.0], [3.5, 4.5]]))
    last = torch.stack([data.values[0, 9], data.values[1, 6]])
    torch.testing.assert_close(laws["random_walk"].loc[:, 0], last)
    torch.testing.assert_close(laws["random_walk"].scale[0], laws["random_walk"].scale[1])
    for component in range(2):
        first, second = data.values[..., component].numpy()
        mean, variance = ar2_by_companion_matrix([first, second[:7]], 3)
        np.testing.assert_allclose(laws["ar2"].loc[..., component], mean[[0, 2]].T, rtol=1e-9)
        found = laws["ar2"].variance[1, :, component]
        np.testing.assert_allclose(found, variance[[0, 2]], rtol=1e-9)
    single = Trajectories(data.times.expand(2, 10), data.values, num_times=[10, 1])
    assert list(baselines(single, single.at([5.0]))) == NAMES[:2]


def test_masked_training_values_and_test_values_are_not_read():
    data = regular(num_times=10)
    mask = torch.rand(data.values.shape, generator=torch.Generator().manual_seed(8)) < 0.7
    for transform in ("identity", "log"):
        hidden = Trajectories(data.times, data.values.exp(), mask=mask)
        junk = Trajectories(data.times, torch.where(mask, data.values.exp(), -1e30), mask=mask)
        question = hidden.at([7.0, 8.0])
        test = Trajectories([7.0, 8.0], torch.full((3, 2, 2), math.nan))
        expected = baselines(hidden, question, transform=transform)
        found = baselines(junk, test, transform=transform)
        assert list(found) == list(expected) == NAMES[:2]
        for name, law in expected.items():
            assert torch.equal(found[name].loc, law.loc)
            assert torch.equal(found[name].scale, law.scale)


def test_forecasts_that_overflow_are_left_out():
    growth = 10.0 ** torch.arange(8.0, dtype=torch.float64)
    wiggle = 1 + 0.01 * torch.tensor([1, -1, 1, 1, -1, 1, -1, -1])
    train = Trajectories(torch.arange(8), (growth * wiggle).view(1, 8, 1).float())
    assert "ar2" in baselines(train, train.at([10.0]))
    assert "ar2" not in baselines(train, train.at([60.0]))
    wild = Trajectories(torch.arange(4), torch.tensor([1e38, -1e38, 1e38, -1e38]).view(1, 4, 1))
    assert list(baselines(wild, wild.at([4.0]))) == NAMES[:2]
    assert list(baselines(wild, wild.at([100.0]))) == NAMES[:1]  # finite location, infinite sd


def test_laws_have_the_shape_and_dtype_of_the_data():
    train, test = lynx_hare().split(time=1914)
    for transform in ("identity", "log"):
        for law in baselines(train, test, transform=transform).values():
            assert law.batch_shape == test.values.shape and law.event_shape == ()
            assert law.loc.dtype == law.scale.dtype == torch.float32
    assert baselines(regular(), regular().at([9.0]))["ar2"].loc.dtype == torch.float64


def test_data_that_cannot_be_used_are_refused():
    train = regular()
    with pytest.raises(DataError, match="question"):
        baselines(train.at([1.0]), train)
    with pytest.raises(DataError, match="transform must be one of"):
        baselines(train, train, transform="sqrt")
    negative = Trajectories(train.times, train.values - 100)
    with pytest.raises(DataError, match="use transform='identity'"):
        baselines(negative, train, transform="log")
    images = Trajectories([0.0, 1.0], torch.rand(3, 2, 4, 4))
    with pytest.raises(ShapeError, match="flatten"):
        baselines(images, images)
