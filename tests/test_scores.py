"""Scores of draws against closed forms, brute force and numpy."""

import math

import numpy as np
import pytest
import torch

from bayesode import scores
from bayesode.errors import DataError, ShapeError


def draws_and_values(num_draws=37, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(num_draws, 3, 5, 2, generator=generator, dtype=dtype)
    return draws, torch.randn(3, 5, 2, generator=generator, dtype=dtype)


def some_failed(draws):
    """Validity of draws (draws, series): series 0 all valid, 1 some, 2 one; junk where failed."""
    valid = torch.ones(draws.shape[:2], dtype=torch.bool)
    valid[::3, 1] = False
    valid[:, 2] = False
    valid[4, 2] = True
    junk = torch.tensor([math.nan, math.inf, -math.inf, 1e9], dtype=draws.dtype)
    spoiled = draws.clone()
    spoiled[~valid] = junk[torch.arange(int((~valid).sum())) % 4].view(-1, 1, 1)
    return spoiled, valid


def rows_alone(score, draws, values, valid):
    """The score of each series with its valid draws only."""
    return torch.stack(
        [
            score(draws[valid[:, row], row : row + 1], values[row : row + 1])[..., 0, :, :]
            for row in range(draws.shape[1])
        ],
        dim=-3,
    )


def test_crps_is_the_energy_form_over_all_pairs():
    draws, values = draws_and_values()
    pairs = (draws.unsqueeze(0) - draws.unsqueeze(1)).abs().mean((0, 1))
    expected = (draws - values).abs().mean(0) - pairs / 2
    torch.testing.assert_close(scores.crps(draws, values), expected, rtol=1e-12, atol=1e-12)


def test_crps_is_the_integrated_square_of_the_distance_between_distribution_functions():
    draws, values = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([2.0])
    # F is 1/3 on (0, 1), 2/3 on (1, 4); the value's step is at 2.
    expected = 1 / 9 + 4 / 9 * 1 + 1 / 9 * 2
    torch.testing.assert_close(scores.crps(draws, values), torch.tensor([expected]))


def test_crps_of_one_draw_is_the_absolute_error():
    draws, values = draws_and_values(num_draws=1)
    assert torch.equal(scores.crps(draws, values), (draws[0] - values).abs())


def test_crps_of_many_gaussian_draws_is_the_closed_form():
    generator = torch.Generator().manual_seed(1)
    num_draws, values = 4000, torch.linspace(-2, 5, 10, dtype=torch.float64)
    draws = 1.5 + 0.7 * torch.randn(num_draws, 10, generator=generator, dtype=torch.float64)
    exact = scores.gaussian_crps(torch.tensor(1.5), torch.tensor(0.7), values)
    bias = 0.7 / math.sqrt(math.pi) / num_draws  # E|X - X'| / (2 n), E|X - X'| = 2 sd / sqrt(pi)
    # To first order the error is a mean over draws of |X - y| - E|X - X'| (given X), and the
    # latter is the closed form at X up to a constant. 10 comparisons at 5 standard errors: a
    # false alarm in 2e5 seeds.
    at_draws = scores.gaussian_crps(torch.tensor(1.5), torch.tensor(0.7), draws)
    standard_error = ((draws - values).abs() - at_draws).std(0) / math.sqrt(num_draws)
    error = (scores.crps(draws, values) - bias - exact).abs()
    assert (error < 5 * standard_error).all()


def test_crps_keeps_its_digits_far_from_zero():
    draws, values = draws_and_values(num_draws=1000)
    near = scores.crps(draws.float(), values.float())
    far = scores.crps((draws.float() + 4096), (values.float() + 4096))
    torch.testing.assert_close(near.double(), scores.crps(draws, values), rtol=0, atol=1e-5)
    torch.testing.assert_close(far, near, rtol=0, atol=4096 * 2**-23)  # rounding of the data


def test_gaussian_crps_integrates_the_squared_distance():
    x = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    location, scale = torch.tensor(0.3), torch.tensor(1.7)
    for value in (-3.0, 0.3, 2.0):
        below = torch.special.ndtr((x - location) / scale)
        square = (below - (x >= value).double()).square()
        # the step costs at most one cell of width 1e-4
        expected = torch.trapezoid(square, x)
        closed = scores.gaussian_crps(location.double(), scale.double(), torch.tensor(value))
        torch.testing.assert_close(closed, expected, rtol=0, atol=1e-4)


def test_log_score_is_the_log_of_the_mean_density():
    log_prob, _ = draws_and_values()
    expected = log_prob.exp().mean(0).log()
    torch.testing.assert_close(scores.log_score(log_prob), expected, rtol=1e-13, atol=1e-13)


def test_log_score_survives_densities_that_underflow():
    log_prob = torch.tensor([[-2000.0], [-2000.0 + math.log(3)]], dtype=torch.float64)
    expected = torch.tensor([-2000 + math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(scores.log_score(log_prob), expected, rtol=1e-15, atol=0)
    impossible = torch.full((4, 1), -torch.inf)
    assert scores.log_score(impossible).item() == -math.inf


@pytest.mark.parametrize("num_draws", [1, 2, 37])
def test_quantile_is_that_of_numpy(num_draws):
    draws, _ = draws_and_values(num_draws)
    levels = [0.0, 0.05, 1 / 3, 0.5, 0.95, 1.0]
    expected = torch.from_numpy(np.quantile(draws.numpy(), levels, axis=0))
    torch.testing.assert_close(scores.quantile(draws, levels), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(scores.quantile(draws, 0.5)[0], expected[3], rtol=1e-13, atol=0)


def test_interval_covers_between_the_central_quantiles():
    draws = torch.arange(11.0).unsqueeze(-1).expand(11, 4)
    values = torch.tensor([0.99, 1.0, 9.0, 9.01])
    covered = scores.interval_covers(draws, values, level=0.8)
    assert covered.tolist() == [False, True, True, False]
    low, high = scores.quantile(draws, [0.25, 0.75])
    assert scores.interval_covers(draws, low, 0.5).all()
    assert scores.interval_covers(draws, high, 0.5).all()
    assert not scores.interval_covers(draws, high + 1e-4, 0.5).any()


def test_interval_of_the_true_law_covers_at_its_level():
    generator = torch.Generator().manual_seed(2)
    num_draws, num_values = 399, 20_000
    draws = torch.randn(num_draws, num_values, generator=generator)
    values = torch.randn(num_values, generator=generator)
    # Type 7 quantiles lie at order statistics .05 (n - 1) + 1 = 20.9 and 379.1, so the interval
    # holds 358.2 of n + 1 = 400 spacings in expectation, up to curvature below .001.
    # Independent values: 5 standard errors, a false alarm in 2e6 seeds.
    covered = scores.interval_covers(draws, values, 0.9).double().mean()
    error = math.sqrt(0.9 * 0.1 / num_values)
    assert abs(covered - 358.2 / 400) < 5 * error + 0.001


@pytest.mark.parametrize(
    "score",
    [
        lambda draws, values, **valid: scores.log_score(draws, **valid),
        scores.crps,
        lambda draws, values, **valid: scores.quantile(draws, [0.1, 0.5, 1.0], **valid),
        lambda draws, values, **valid: scores.interval_covers(draws, values, 0.5, **valid),
    ],
    ids=["log_score", "crps", "quantile", "interval_covers"],
)
def test_failed_draws_are_left_out_of_every_score(score):
    draws, values = draws_and_values()
    spoiled, valid = some_failed(draws)
    expected = rows_alone(score, draws, values, valid)
    found = score(spoiled, values, valid=valid)
    if found.dtype == torch.bool:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_order_of_the_draws_does_not_matter():
    draws, values = draws_and_values()
    other = draws[torch.randperm(len(draws), generator=torch.Generator().manual_seed(3))]
    for score in (scores.crps, scores.interval_covers):
        torch.testing.assert_close(score(draws, values), score(other, values))


def test_series_without_a_valid_draw_scores_nan_and_the_others_do_not():
    draws, values = draws_and_values()
    valid = torch.ones(37, 3, dtype=torch.bool)
    valid[:, 1] = False
    found = [
        scores.log_score(draws, valid),
        scores.crps(draws, values, valid),
        *scores.quantile(draws, [0.0, 0.7], valid),
    ]
    for score in found:
        assert score[1].isnan().all() and score[[0, 2]].isfinite().all()
    assert not scores.interval_covers(draws, values, 0.9, valid)[1].any()


def test_a_draw_that_is_nan_without_having_failed_is_never_hidden():
    draws, values = draws_and_values()
    draws[5, 0, 0, 0] = math.nan
    valid = torch.ones(37, 3, dtype=torch.bool)
    valid[7] = False
    for is_valid in (None, valid):
        quantiles = scores.quantile(draws, [0.0, 0.5], is_valid)
        for score in (*quantiles, scores.crps(draws, values, is_valid)):
            assert score[0, 0, 0].isnan() and score.isnan().sum() == 1
        assert not scores.interval_covers(draws, values, 0.9, is_valid)[0, 0, 0]


def test_scores_keep_dtype_and_take_any_event_shape():
    for shape in ((3,), (3, 4), (3, 4, 2, 2)):
        draws = torch.randn(6, *shape, generator=torch.Generator().manual_seed(4))
        assert scores.crps(draws, draws[0]).shape == shape
        assert scores.log_score(draws).shape == shape
        assert scores.quantile(draws, [0.1, 0.9]).shape == (2, *shape)
        assert scores.crps(draws, draws[0]).dtype == torch.float32
        assert scores.quantile(draws.double(), 0.5).dtype == torch.float64


def test_wrong_shapes_and_levels_are_refused():
    draws, values = draws_and_values()
    with pytest.raises(ShapeError, match=r"need values of shape \(3, 5, 2\)"):
        scores.crps(draws, values[:2])
    with pytest.raises(ShapeError, match="values of shape"):
        scores.interval_covers(draws, draws)
    with pytest.raises(ShapeError, match=r"\(draws, series\) = \(37, 3\)"):
        scores.log_score(draws, torch.ones(37, dtype=torch.bool))
    with pytest.raises(ShapeError, match="booleans"):
        scores.log_score(draws, torch.ones(37, 3))
    for empty in (draws[:0], draws[:, 0, 0, 0]):
        with pytest.raises(ShapeError, match="draws need the shape"):
            scores.log_score(empty)
    for level in (-0.1, 1.1, math.nan):
        with pytest.raises(DataError, match="probabilities"):
            scores.quantile(draws, [0.5, level])
