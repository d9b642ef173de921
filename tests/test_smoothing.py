"""The Gaussian-process smoother against dense formulas, known signals and degenerate data."""

import math

import pytest
import torch
from torch.func import jacrev, vmap

from bayesode import smoothing
from bayesode.smoothing import smooth

float64 = torch.float64


def matern(lag: torch.Tensor, lengthscale: torch.Tensor | float) -> torch.Tensor:
    """Matern 5/2, Rasmussen and Williams (2006), equation 4.17."""
    distance = (lag.square() + 1e-300).sqrt()
    x = math.sqrt(5) * distance / lengthscale
    return (1 + x + 5 * lag.square() / (3 * lengthscale**2)) * torch.exp(-x)


def irregular(num_series: int = 3, num_times: int = 25, seed: int = 0):
    """Irregular own times, noisy sines, a third of the entries missing."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.rand(num_series, num_times, generator=generator, dtype=float64) + 0.05
    times = times.cumsum(-1)
    noise = torch.randn(num_series, num_times, 2, generator=generator, dtype=float64)
    values = torch.stack([3 * torch.sin(times), 5 + torch.cos(2 * times)], -1) + 0.2 * noise
    mask = torch.rand(num_series, num_times, 2, generator=generator) > 0.3
    at = torch.cat([times, times + 0.03, times[:, :1] - 1.0], -1)
    return times, values, mask, at


def sine(num_series: int, num_times: int, noise_scale: float, seed: int):
    """Times, truth, derivative and noisy values of sin(2 t + phase) on [0, 10]."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.linspace(0, 10, num_times, dtype=float64).expand(num_series, num_times)
    angle = 2 * times + 2 * math.pi * torch.rand(num_series, 1, generator=generator, dtype=float64)
    noise = torch.randn(num_series, num_times, generator=generator, dtype=float64)
    columns = torch.sin(angle), 2 * torch.cos(angle), torch.sin(angle) + noise_scale * noise
    return times, *(column.unsqueeze(-1) for column in columns)


def observed(values: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def lengthscale_grid(times: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    spans = [row[seen][-1] - row[seen][0] for row, seen in zip(times, mask, strict=True)]
    longest = max(spans)
    shortest = 1.5 * longest / mask.sum(-1).max()
    return shortest * (longest / shortest) ** torch.linspace(0, 1, 10, dtype=float64)


def profile(times, centred, mask, lengthscale, ratio):
    """-2 log marginal likelihood up to a constant, amplitude profiled out, and the amplitude."""
    quadratic = log_determinant = torch.tensor(0.0, dtype=float64)
    for row, seen in enumerate(mask):
        t, y = times[row, seen], centred[row, seen]
        covariance = matern(t[:, None] - t, lengthscale) + ratio**2 * torch.eye(len(t)).double()
        quadratic = quadratic + y @ torch.linalg.solve(covariance, y)
        log_determinant = log_determinant + torch.logdet(covariance)
    variance = quadratic / mask.sum()
    return mask.sum() * variance.log() + log_determinant, variance.sqrt()


# ---- closed forms --------------------------------------------------------------------------------
def test_path_derivative_and_its_sd_are_the_dense_posterior_of_the_observed_points():
    times, values, mask, at = irregular()
    found = smooth(times, values, mask, at)
    ratios = torch.logspace(math.log10(3e-3), 0, smoothing.NUM_NOISE_RATIOS, dtype=float64)
    for j in range(2):
        lengthscale, seen = found.lengthscale[j], mask[..., j]
        mean = values[..., j][seen].mean()
        centred = values[..., j] - mean
        # The noise estimate is the ratio of the grid times the amplitude that goes with it.
        amplitudes = [profile(times, centred, seen, lengthscale, ratio)[1] for ratio in ratios]
        misfit = torch.stack(amplitudes) * ratios / found.noise_scale[j] - 1
        best = int(misfit.abs().argmin())
        assert misfit[best].abs() < 1e-8
        variance, ratio = amplitudes[best] ** 2, ratios[best]
        for row in range(3):
            t, y = times[row, seen[row]], centred[row, seen[row]]
            eye = torch.eye(len(t), dtype=float64)
            inverse = torch.linalg.inv(
                matern(t[:, None] - t, lengthscale) + (ratio**2 + smoothing.JITTER) * eye
            )

            def cross(s, t=t, ls=lengthscale):
                return matern(s - t, ls)

            slopes = vmap(jacrev(cross))(at[row])
            expected = mean + vmap(cross)(at[row]) @ inverse @ y
            explained = (slopes @ inverse * slopes).sum(-1)
            sd = (variance * (5 / (3 * lengthscale**2) - explained)).sqrt()
            for mine, dense in (
                (found.path, expected),
                (found.derivative, slopes @ inverse @ y),
                (found.derivative_scale, sd),
            ):
                torch.testing.assert_close(mine[row, :, j], dense, rtol=1e-8, atol=1e-8)


def test_derivative_is_the_slope_of_the_path():
    times, values, mask, at = irregular()
    step = 1e-4
    ahead, behind = (smooth(times, values, mask, at + s).path for s in (step, -step))
    slope = (ahead - behind) / (2 * step)
    # error: step^2 / 6 of a third derivative below 1e3, and 1e-14 / step of rounding
    torch.testing.assert_close(smooth(times, values, mask, at).derivative, slope, rtol=0, atol=1e-5)


def test_hyperparameters_have_the_largest_marginal_likelihood_of_the_grid():
    times, values, mask, at = irregular()
    found = smooth(times, values, mask, at)
    ratios = torch.logspace(math.log10(3e-3), 0, smoothing.NUM_NOISE_RATIOS, dtype=float64)
    for j in range(2):
        seen = mask[..., j]
        centred = values[..., j] - values[..., j][seen].mean()
        grid = [
            (*profile(times, centred, seen, lengthscale, ratio), lengthscale, ratio)
            for lengthscale in lengthscale_grid(times, seen)
            for ratio in ratios
        ]
        _, amplitude, lengthscale, ratio = min(grid, key=lambda entry: float(entry[0]))
        torch.testing.assert_close(found.lengthscale[j], lengthscale, rtol=1e-10, atol=0)
        torch.testing.assert_close(found.noise_scale[j], amplitude * ratio, rtol=1e-8, atol=0)


def test_without_noise_a_sine_and_its_derivative_are_recovered():
    times, truth, slope, values = sine(2, 80, 0.0, seed=0)
    found = smooth(times, values, observed(values), times)
    inner = slice(4, -4)
    # Matern 5/2 interpolates with error lengthscale^2.5 (gap / lengthscale)^2.5: here 1e-3 or so.
    assert (found.path - truth)[:, inner].abs().max() < 3e-3
    assert (found.derivative - slope)[:, inner].abs().max() < 3e-2
    assert found.noise_scale.item() < 0.01


# ---- statistics ----------------------------------------------------------------------------------
def test_noise_estimate_is_the_true_noise():
    # 800 numbers: one estimate has a sd of 3 %; the mean of 16 then has .7 %. The grid of ratios
    # has steps of 20 %, so up to 2 % are granted to it: a false alarm at 5 standard errors.
    estimates = []
    for seed in range(16):
        times, _, _, values = sine(4, 200, 0.1, seed)
        mask = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) > 0.2
        estimates.append(smooth(times, values, mask, times[:, :1]).noise_scale / 0.1)
    estimates = torch.cat(estimates)
    standard_error = estimates.std() / len(estimates) ** 0.5
    assert standard_error < 0.012
    assert (estimates.mean() - 1).abs() < 0.02 + 5 * standard_error


def test_sd_of_the_derivative_is_that_of_its_error():
    # Paths from the prior itself, with a lengthscale that is on the grid. Per series the mean of
    # z^2 is 1; 32 series, 5 standard errors, and a tenth for hyper-parameters that are estimated.
    num_times, num_series = 60, 8
    times = torch.linspace(0, 10, num_times, dtype=float64).expand(num_series, num_times)
    scale = float(lengthscale_grid(times, torch.ones(num_series, num_times).bool())[4])
    lag = times[0][:, None] - times[0]
    by_first = vmap(vmap(jacrev(lambda r: matern(r, scale))))(lag)
    rate = math.sqrt(5) / scale
    x = rate * lag.abs()
    by_both = rate**2 / 3 * (1 + x - x * x) * torch.exp(-x)
    joint = torch.cat(
        [torch.cat([matern(lag, scale), -by_first], 1), torch.cat([by_first, by_both], 1)]
    )
    factor = torch.linalg.cholesky(joint + 1e-9 * torch.eye(2 * num_times, dtype=float64))
    squares = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(num_series, 2 * num_times, generator=generator, dtype=float64)
        path, slope = (2.0 * normal @ factor.T).unsqueeze(-1).split(num_times, 1)
        noise = torch.randn(path.shape, generator=generator, dtype=float64)
        found = smooth(times, path + 0.3 * noise, observed(path), times)
        squares.append(((found.derivative - slope) / found.derivative_scale).square().mean((1, 2)))
    squares = torch.cat(squares)
    assert (squares.mean() - 1).abs() < 0.1 + 5 * squares.std() / len(squares) ** 0.5


# ---- identities ----------------------------------------------------------------------------------
def same(first: smoothing.Smoothed, second: smoothing.Smoothed, tolerance: float = 0.0):
    for name in ("path", "derivative", "derivative_scale", "noise_scale", "lengthscale"):
        mine, other = getattr(first, name), getattr(second, name)
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance, msg=name)


def test_masked_values_have_no_influence():
    times, values, mask, at = irregular()
    found = smooth(times, values, mask, at)
    for hidden in (0.0, 1e9, math.nan, math.inf):
        same(smooth(times, torch.where(mask, values, hidden), mask, at), found)


def test_times_of_masked_entries_have_no_influence():
    times, values, mask, at = irregular()
    both = mask.any(-1, keepdim=True).expand_as(mask)
    mask = torch.where(torch.arange(25)[:, None] < 20, mask, False) & both
    moved = times.clone()
    moved[:, 20:] += 50.0
    same(smooth(moved, values, mask, at), smooth(times, values, mask, at), 1e-12)


def test_padding_has_no_influence():
    times, values, mask, at = irregular()
    padded = torch.cat([times, times[:, -1:].expand(3, 7)], -1)
    more = torch.cat([values, torch.full((3, 7, 2), math.nan, dtype=float64)], 1)
    seen = torch.cat([mask, torch.zeros(3, 7, 2, dtype=torch.bool)], 1)
    same(smooth(padded, more, seen, at), smooth(times, values, mask, at), 1e-9)


def test_a_series_without_data_has_no_influence_and_gets_the_mean():
    times, values, mask, at = irregular()
    mask[1] = False
    found = smooth(times, values, mask, at)
    others = smooth(times[[0, 2]], values[[0, 2]], mask[[0, 2]], at[[0, 2]])
    torch.testing.assert_close(found.path[[0, 2]], others.path, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.noise_scale, others.noise_scale, rtol=1e-9, atol=0)
    mean = torch.stack([values[..., j][mask[..., j]].mean() for j in range(2)])
    torch.testing.assert_close(found.path[1], mean.expand_as(found.path[1]), rtol=1e-12, atol=0)
    assert not found.derivative[1].any()


def test_components_are_smoothed_one_by_one():
    times, values, mask, at = irregular()
    both = smooth(times, values, mask, at)
    second = smooth(times, values[..., 1:], mask[..., 1:], at)
    torch.testing.assert_close(second.path, both.path[..., 1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("time_unit", "value_unit"), [(1e9, 1e12), (1e-9, 1e-12), (86400.0, 1e-6)], ids=str
)
def test_result_scales_with_the_units_of_times_and_values(time_unit, value_unit):
    times, values, mask, at = irregular()
    found = smooth(times, values, mask, at)
    scaled = smooth(time_unit * times, value_unit * values, mask, time_unit * at)
    expected = smoothing.Smoothed(
        value_unit * found.path,
        value_unit / time_unit * found.derivative,
        value_unit / time_unit * found.derivative_scale,
        value_unit * found.noise_scale,
        time_unit * found.lengthscale,
    )
    for name in ("path", "derivative", "derivative_scale", "noise_scale", "lengthscale"):
        mine, other = getattr(scaled, name), getattr(expected, name)
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8 * float(other.abs().max()))


def test_result_does_not_depend_on_the_origin_of_time():
    times, values, mask, at = irregular()
    # Times since 1970 are rounded to 2e-7, and no path here moves faster than 10 per unit.
    shifted = smooth(times + 1.6e9, values, mask, at + 1.6e9)
    same(shifted, smooth(times, values, mask, at), 1e-5)


def test_single_precision_values_are_smoothed_in_double():
    times, values, mask, at = irregular()
    found = smooth(times, values.float(), mask, at)
    assert found.path.dtype == float64
    same(found, smooth(times, values.float().double(), mask, at))


# ---- degenerate data -----------------------------------------------------------------------------
@pytest.mark.parametrize("num_seen", [0, 1, 2, 3])
@pytest.mark.parametrize("num_times", [1, 2, 6])
def test_few_points_give_finite_results(num_times, num_seen):
    times = torch.arange(num_times, dtype=float64).expand(2, -1)
    values = (times + 1).square().unsqueeze(-1).clone()
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[0, :num_seen] = True
    found = smooth(times, torch.where(mask, values, math.nan), mask, times)
    for name in ("path", "derivative", "derivative_scale", "noise_scale", "lengthscale"):
        assert torch.isfinite(getattr(found, name)).all(), name
    if num_seen == 1:
        torch.testing.assert_close(found.path, torch.ones_like(found.path))


def test_constant_values_stay_constant():
    times = torch.linspace(0, 1, 20, dtype=float64).expand(2, -1)
    values = torch.full((2, 20, 1), 7.0, dtype=float64)
    found = smooth(times, values, observed(values), times)
    torch.testing.assert_close(found.path, values, rtol=1e-12, atol=0)
    assert found.derivative.abs().max() < 1e-10 and found.noise_scale.item() < 1e-10


# ---- long and many series ------------------------------------------------------------------------
@pytest.mark.parametrize("num_periods", [1, 10, 100])
@pytest.mark.parametrize("num_hidden", [0, 300])
def test_long_series_are_smoothed_whether_fast_or_slow_and_wherever_they_begin(
    num_periods, num_hidden
):
    generator = torch.Generator().manual_seed(0)
    times = torch.linspace(0, 1, 2000, dtype=float64)[None]
    angle = 2 * math.pi * num_periods * times + 1
    truth = torch.stack([angle.sin(), angle.cos()], -1)
    values = truth + 0.1 * torch.randn(truth.shape, generator=generator, dtype=float64)
    mask = torch.arange(2000)[None, :, None].expand(1, 2000, 2) >= num_hidden
    found = smooth(times, values, mask, times)
    # 1,700 numbers give the noise to 2 %; 20 points a period leave a third of them to the signal.
    assert (found.noise_scale / 0.1 - 1).abs().max() < 0.12
    error = (found.path - truth)[:, num_hidden:].square().mean().sqrt()
    assert error < 0.1 * {1: 0.15, 10: 0.3, 100: 0.65}[num_periods]


def test_blocks_of_a_long_series_agree_with_one_decomposition(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(2, 1000, generator=generator, dtype=float64).cumsum(-1)
    truth = torch.sin(times / 8).unsqueeze(-1)
    values = truth + 0.1 * torch.randn(truth.shape, generator=generator, dtype=float64)
    mask = torch.rand(values.shape, generator=generator) > 0.1
    mask[1, 400:600] = False
    at = torch.cat([times, times + 0.1], -1)  # not sorted
    blocks = smooth(times, values, mask, at)
    monkeypatch.setattr(smoothing, "BLOCK", 1000)
    dense = smooth(times, values, mask, at)
    assert torch.equal(blocks.noise_scale, dense.noise_scale)
    # The margin of 200 points is 25 lengthscales or more here: what lies beyond is not felt.
    torch.testing.assert_close(blocks.path, dense.path, rtol=0, atol=1e-5)
    torch.testing.assert_close(blocks.derivative, dense.derivative, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        blocks.derivative_scale, dense.derivative_scale, rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize(("num_series", "num_times"), [(500, 80), (3, 801), (2, 1200), (2, 5000)])
def test_portions_cover_every_grid_point_once_and_stay_small(num_series, num_times):
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(num_series, num_times, generator=generator, dtype=float64).cumsum(-1)
    mask = torch.rand(num_series, num_times, generator=generator) > 0.2
    mask[0], mask[-1] = True, False
    at = torch.cat([times[:, :1] - 1, times, times + 0.1], -1)  # also before and after the data
    visits = torch.zeros(at.shape, dtype=torch.long)
    for rows, seen, asked in smoothing._portions(times, mask, at):
        visits[rows, asked] += 1
        data, grid = times[rows, seen], at[rows, asked]
        size = max(data.shape[-1], grid.shape[-1])
        assert len(data) * data.shape[-1] * size <= smoothing.MAX_NUMBERS
    assert (visits == 1).all()


def test_many_series_share_hyperparameters_from_all_over_the_data():
    times, _, _, values = sine(40, 30, 0.1, seed=0)
    values = values.clone()
    values[20:] *= 5.0  # leading series alone would know nothing of these
    found = smooth(times, values, observed(values), times)
    assert 0.2 < found.noise_scale.item() < 0.6  # .1 and .5
