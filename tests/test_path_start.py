"""The start by least squares: lines, windows, field and encoder together, what is set."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import bayesode as bo
from bayesode.inference.encoders.line import lines
from bayesode.inference.latent_start import PathFit, PathStart, principal_components, time_unit_of
from bayesode.inference.latent_start.amortised import AmortisedProblem
from bayesode.inference.latent_start.line_components import LineComponents
from bayesode.inference.latent_start.path_fit import Sideways, noise_of, smoothed_states
from bayesode.inference.latent_start.path_start import _of_components
from bayesode.inference.latent_start.windows import Windows
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import Point, levenberg_marquardt
from bayesode.models.contracts import VectorField

close = torch.testing.assert_close
MIX = torch.linalg.qr(torch.arange(12.0, dtype=torch.float64).view(4, 3).sin())[0][:, :2]


def rotating(num_series: int = 5, num_times: int = 41, *, rate: float = 1.0) -> bo.Trajectories:
    """Points on circles of different size, seen through a mixing matrix and a shift."""
    generator = torch.Generator().manual_seed(0)
    times = torch.linspace(0, 8, num_times, dtype=torch.float64)
    phase = rate * times + 6 * torch.rand(num_series, 1, generator=generator, dtype=torch.float64)
    size = 0.5 + torch.rand(num_series, 1, 1, generator=generator, dtype=torch.float64)
    circle = size * torch.stack([phase.sin(), phase.cos()], -1)
    return bo.Trajectories(times, circle @ MIX.mT + torch.arange(4.0, dtype=torch.float64))


def changed(data: bo.Trajectories, **fields) -> bo.Trajectories:
    known = {"times": data.times, "values": data.values, "series": data.series, "mask": data.mask}
    known |= {"num_times": data.num_times} if data.times.dim() == 2 else {}
    known |= fields
    return bo.Trajectories(known.pop("times"), known.pop("values"), **known)


def system(train: bo.Trajectories, **options):
    settings = {"order": 1, "dim_latent": 2, "hidden": [3], "dim_style": 0, "verbose": False}
    model, guide = bo.ode2vae(train, **(settings | options))
    return model.double(), guide.double()


# ---- lines ---------------------------------------------------------------------------------------
def test_the_line_through_points_of_a_line_is_that_line():
    times = torch.tensor([[1.0, 1.5, 3.0], [0.0, 1.0, 1.1]], dtype=torch.float64)
    level, slope = torch.randn(2, 2, 4, dtype=torch.float64)
    values = level[:, None] + slope[:, None] * (times - times[:, :1])[..., None]
    close(lines(values, times), torch.cat([level, slope], -1))


def test_the_line_is_that_of_least_squares():
    times, values = torch.tensor([[0.0, 1.0, 4.0]]).double(), torch.randn(1, 3, 2).double()
    design = torch.stack([torch.ones(3), times[0]], -1).double()
    exact = torch.linalg.lstsq(design, values[0]).solution
    close(lines(values, times)[0], exact.flatten())


def test_a_line_encoder_reads_its_frames_and_no_later_one():
    data = rotating()
    encoder = bo.LineEncoder((4,), 2, num_frames=3).double()
    before = encoder(data).mean
    for frame, is_read in ((0, True), (2, True), (3, False)):
        values = data.values.clone()
        values[:, frame] += 1
        assert (encoder(changed(data, values=values)).mean == before).all() != is_read


def test_features_do_not_depend_on_units():
    data = rotating()
    other = changed(data, values=1e6 * data.values - 7e6, times=1e-3 * data.times)
    found = []
    for series, unit in ((data, 1.0), (other, 1e-3)):
        encoder = bo.LineEncoder((4,), 2, time_unit=unit).double()
        first, times = series.values[:, :3], (series.grid - series.grid[:, :1])[:, :3] / unit
        encoder.set_features(lines(first, times))
        found.append(encoder.features(series))
    close(*found, atol=1e-8, rtol=1e-6)
    close(found[0].std(0, correction=0), torch.ones(8).double())


def test_entries_that_stand_still_are_not_read_and_far_features_are_cut():
    encoder = bo.LineEncoder((2,), 1, clip=1.5).double()
    read = torch.tensor([[1.0, 5.0, 2.0, 0.0], [3.0, 5.0, 4.0, 0.0], [2.0, 5.0 + 1e-6, 3.0, 0.0]])
    encoder.set_features(read.double())
    far = encoder.standardised(torch.tensor([[100.0, 9.0, -100.0, 9.0]]).double())
    close(far, torch.tensor([[1.5, 0.0, -1.5, 0.0]]).double())


def test_a_map_of_lines_is_what_the_encoder_does():
    encoder, data = bo.LineEncoder((4,), 2, num_frames=3).double(), rotating()
    read = lines(data.values[:, :3], (data.grid - data.grid[:, :1])[:, :3])
    encoder.set_features(read)
    matrix, offset = torch.randn(2, 8).double(), torch.randn(2).double()
    encoder.set_affine(matrix, offset)
    close(encoder(data).mean, read @ matrix.mT + offset)


def test_a_map_of_components_is_a_map_of_lines():
    data = rotating()
    read = lines(data.values[:, :3], (data.grid - data.grid[:, :1])[:, :3])
    components = principal_components(data.values, data.mask, 2)
    line, matrix = LineComponents.of(components, read), torch.randn(3, 5).double()
    by_line, offset = line.affine(matrix)
    close(read @ by_line.mT + offset, line.features(read) @ matrix.mT)
    place, speed = line.own()
    states = components.encode(read[:, :4])
    close(line.features(read) @ place.mT, states)
    close(line.features(read) @ speed.mT, read[:, 4:] @ components.basis / components.scale)


# ---- windows -------------------------------------------------------------------------------------
def windows_of(data: bo.Trajectories, num_frames: int = 3) -> Windows:
    components = principal_components(data.values, data.mask, 2)
    return Windows.of(data, components, num_frames=num_frames, time_unit=2.0)


def test_a_window_holds_the_components_of_later_frames():
    data = rotating(num_times=65)
    found = windows_of(data)
    components = principal_components(data.values, data.mask, 2)
    assert found.stride == 2
    series = found.components
    for row in range(series.num_series):
        first = (data.times == series.start[row]).nonzero().item()
        real = series.times[row, : series.num_times[row]]
        close(real, data.times[first + 2 :: 2])
        encoded = components.encode(data.values[row % 5, first + 2 :: 2])
        close(series.values[row, : len(real)], encoded)
        assert series.mask[row].all(-1).sum() == len(real)
        given = slice(first, first + 3)
        since = (data.times[given] - data.times[first])[None] / 2
        close(found.lines[[row]], lines(data.values[[row % 5], given], since))
        assert found.row[row] == row % 5
        assert found.is_first[row] == (first == 0)


def test_windows_begin_where_their_first_frames_are_visible_and_hide_what_is_hidden():
    data = rotating()
    mask = data.mask.clone()
    mask[0, 1], mask[1, 30, 2], mask[2, :] = False, False, False
    hidden = changed(data, mask=mask, values=torch.where(mask, data.values, torch.nan))
    found = windows_of(hidden).components
    begins = [found.start[k].item() for k in range(found.num_series)]
    assert len(begins) < len(windows_of(data).components.series) and found.values.isfinite().all()
    assert begins.count(0.0) == 3  # of the series 1, 3 and 4
    is_seen = found.mask.all(-1)
    assert (~is_seen & (found.times == data.times[30])).any()


def test_series_of_different_length_have_windows_of_their_own_length():
    data = rotating()
    grid = data.grid.clone()
    short = bo.Trajectories(
        grid, data.values, num_times=torch.tensor([41, 41, 10, 41, 5]), series=data.series
    )
    found = windows_of(short).components
    assert found.num_series < windows_of(data).components.num_series
    assert found.times.diff(dim=-1).min() >= 0
    assert set(found.num_times.tolist()) >= {9, 4, 40}


def test_no_window_to_read_is_one_clear_error():
    data = rotating(num_times=9)
    mask = data.mask.clone()
    mask[:, ::2] = False
    with pytest.raises(bo.DataError, match="wholly visible frames in a row"):
        windows_of(changed(data, mask=mask))


# ---- field and encoder together ------------------------------------------------------------------
def problem_of(data: bo.Trajectories, **options) -> tuple[AmortisedProblem, Tensor]:
    """A problem with jitter of no kind, and a point off the optimum."""
    model, guide = system(data, dim_style=1, **options)
    view, windows = _of_components(model, 2), windows_of(data)
    for part in guide.encoder.children():
        part.set_features(windows.lines)
    line = LineComponents.of(principal_components(data.values, data.mask, 2), windows.lines)
    start = PathStart(PathFit(), constants=(0.1, 0.2), effects=(0.1, 0.1))
    heads = start._heads(guide, line, windows, data.num_series)
    fit = FitData.of(view, windows.components)
    torch.manual_seed(1)
    numbers = [0.3 * torch.randn_like(fit.field.mean), *(h.mean.flatten() for h in heads)]
    vector = torch.cat(numbers)
    vector = vector + 0.05 * torch.randn_like(vector)
    problem = AmortisedProblem(fit, vector, heads, 0.1 * torch.randn_like(fit.x0_mean))
    return replace(problem, noise=noise_of(problem, vector, 4.0)), vector


@pytest.mark.parametrize("order", [1, 2])
def test_the_slope_is_that_of_the_log_likelihood_by_backpropagation(order):
    problem, vector = problem_of(rotating(2, 7), order=order)
    slope = problem.information(vector)[1]
    place = vector.clone().requires_grad_()
    problem.data.measurement.log_prob(problem.path(place), problem.noise).backward()
    close(slope, place.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("order", [1, 2])
def test_the_matrix_is_that_of_the_jacobian_of_all_residuals(order):
    problem, vector = problem_of(rotating(2, 7), order=order)
    measurement = problem.data.measurement

    root = measurement.information(problem.path(vector), problem.noise).sqrt()

    def weighted(v: Tensor) -> Tensor:
        path = problem.path(v)
        return (root * path).flatten()

    jacobian = torch.func.jacrev(weighted)(vector)
    close(problem.information(vector)[0], jacobian.mT @ jacobian, rtol=1e-8, atol=1e-8)


def test_portions_of_series_add_up(monkeypatch):
    problem, vector = problem_of(rotating(2, 7))
    whole = problem.information(vector)
    monkeypatch.setattr("bayesode.inference.latent_start.amortised.MAX_NUMBERS", 1)
    for found, exact in zip(problem.information(vector), whole, strict=True):
        close(found, exact)


def test_the_prior_counts_in_cost_and_step():
    problem, vector = problem_of(rotating(2, 7))
    mean, _ = problem.prior
    none = vector.new_zeros(0, 1, 1)
    tight = replace(problem, heads=[replace(h, sd=h.sd / 1e3) for h in problem.heads])
    off = Point(vector, none)
    for one in (problem, tight):
        m, s = one.prior
        gap = ((vector - m) / s).square().sum()
        seen = one.data.measurement.log_prob(one.path(vector), one.noise)
        assert one.cost(off) == pytest.approx(float(2 * (one.best - seen) + gap))
    moved = levenberg_marquardt(tight, off, max_iterations=30, tolerance=1e-9).point.weights
    heads = slice(len(problem.data.field.mean), None)
    close(moved[heads], mean[heads], atol=2e-3, rtol=0)


def test_rotation_and_encoder_are_found_to_rounding():
    data = rotating()
    model, guide = system(data, hidden=[])
    start = PathStart(PathFit(temper=1e-6, jitter=0.0, progress=False), constants=(1e-6,))
    replace(start, effects=(1e-6,))(model, guide, data)
    values = {site: guide.location(site) for site in guide.supports}
    values |= {"likelihood.noise_scale": guide.location("likelihood.noise_scale").exp()}
    values["x0"] = guide.encoder(data).mean
    _, field, observe = model.build(values, data)
    found = observe.signal(model.solve(field, values, data).path)
    assert (found - data.values).abs().max() < 2e-3


def test_velocities_of_smoothed_states_are_their_rates_and_constants_stand_still():
    times = torch.linspace(0, 6, 60).double().expand(2, 60)
    states = torch.stack([times.sin(), (2 * times).cos()], -1)
    mask = torch.ones(2, 60, dtype=torch.bool)
    at, found = smoothed_states(times, states, mask, has_velocities=True, num_constants=1)
    inner = slice(10, -10)
    exact = torch.stack([at.cos(), -2 * (2 * at).sin(), -at.sin(), -4 * (2 * at).cos()], -1)
    close(found.path[:, inner, 2:4], exact[:, inner, :2], atol=0.03, rtol=0)
    close(found.derivative[:, inner, :4], exact[:, inner], atol=0.3, rtol=0)
    assert (found.path[..., 4] == 0).all() and (found.derivative[..., 4] == 0).all()


def test_jitter_goes_across_the_motion_and_leaves_constants_alone():
    torch.manual_seed(0)
    sd = torch.tensor([1.0, 0.5, 2.0, 0.0]).double()
    motion = torch.randn(4000, 4).double()
    noise = Sideways(sd, motion).draw()
    along = ((noise / sd) * (motion / sd))[:, :3].sum(-1)
    close(along, torch.zeros_like(along), atol=1e-12, rtol=0)
    assert (noise[:, 3] == 0).all()
    squares = (noise / sd)[:, :3].square().sum(-1)  # chi-square with 2 degrees of freedom
    assert (squares.mean() - 2).abs() < 5 * 2 / 4000**0.5
    still = Sideways(sd, torch.zeros_like(motion)).draw()
    assert (still[:, :3].std(0) / sd[:3] - 1).abs().max() < 5 / 8000**0.5


# ---- the unit of time, what is set ---------------------------------------------------------------
def test_the_unit_of_time_is_that_in_which_states_move_by_two_sds():
    for rate in (1.0, 3.0):
        assert time_unit_of(rotating(rate=rate), 2) == pytest.approx(2 / rate, rel=0.05)
    day = changed(rotating(), times=86400 * rotating().times)
    assert time_unit_of(day, 2) == pytest.approx(2 * 86400, rel=0.05)


def test_scales_of_weights_come_from_the_tempered_information_of_each_frame_once():
    data = rotating()
    found = {}
    for temper in (10.0, 40.0):
        model, guide = system(data, hidden=[], temper=temper, jitter=0.0)
        torch.manual_seed(0)
        guide.warm_start(model, data)
        found[temper] = guide.sites.moments("field.dynamics.paced.linear.weights")[1]
    ratio = found[40.0] / found[10.0]
    close(ratio, torch.full_like(ratio, 2.0), rtol=1e-3, atol=0)  # of a vague prior: the root


def test_a_state_of_another_size_than_the_encoder_is_one_clear_error():
    data = rotating()
    model, guide = system(data)
    with pytest.raises(bo.DataError, match="the encoder gives 2 components"):
        PathStart(PathFit(progress=False))(model, guide, data)


def test_a_field_in_another_pace_goes_through_the_same_states():
    spiral = bo.LinearField(2)
    field = bo.WithConstants(bo.Paced(spiral), 1)
    matrix = torch.tensor([-0.1, 2.0, -2.0, -0.1]).double()
    drawn: VectorField = field.build({"dynamics.paced.weights": matrix})
    solver = bo.FixedGridSolver("rk4", step=0.01)
    x0 = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, math.log(2.0)]]).double()
    times = torch.tensor([[2.0], [1.0]]).double()
    path = solver(drawn, x0, torch.zeros(2).double(), times)
    close(path[0, :, :2], path[1, :, :2], atol=1e-7, rtol=0)
    exact = torch.linalg.matrix_exp(2 * matrix.view(2, 2)) @ x0[0, :2]
    close(path[0, 0, :2], exact, atol=1e-7, rtol=0)
    assert (path[..., 2] == x0[:, None, 2]).all()


def test_a_pace_alone_is_no_state():
    drawn = bo.Paced(bo.LinearField(1)).build({"paced.weights": torch.ones(1)})
    with pytest.raises(bo.ShapeError, match="give x0 one more"):
        drawn(torch.zeros(()), torch.ones(2, 1))
    with pytest.raises(bo.DataError, match="no random part"):
        bo.Paced(torch.nn.Linear(2, 2))
