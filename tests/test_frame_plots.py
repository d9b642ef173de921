"""Pictures of videos and latent paths show the numbers that they claim to show."""

from __future__ import annotations

import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

import bayesode as bo
from bayesode.diagnostics import frame_rows, latent_paths
from bayesode.diagnostics.plots.style import FOLLOWED, TEST
from bayesode.distributions import observed_law
from bayesode.inference import blocks
from bayesode.models.contracts import Observe

DOUBLE = torch.float64
NUM_DRAWS, NUM_TIMES, LAST_SEEN = 9, 8, 5  # frames 6 and 7 are forecast
LABELS = ("a", "b", 3)
HIDDEN = {"a": [2, 4], "b": [4], 3: []}


@pytest.fixture(autouse=True)
def matplotlib_is_left_alone():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def blob(size, channels, states):
    """Images of a spot at the first two states, (..., *event)."""
    grid = torch.linspace(-1, 1, size, dtype=DOUBLE)
    x, y = states[..., 0, None, None], states[..., 1, None, None]
    image = torch.exp(-8 * ((grid - 0.6 * x).square() + (grid[:, None] - 0.6 * y).square()))
    if channels is None:
        return image
    return torch.stack([image * 0.5**k for k in range(channels)], -3)


def make(size=8, channels=1, *, times=None, num_times=None, decoded=None):
    """A spot that goes round, its data with hidden frames, and an ensemble that lags a little."""
    torch.manual_seed(0)
    times = torch.arange(NUM_TIMES).double() if times is None else times
    grid = times.expand(len(LABELS), -1)
    angle = grid * 2 * math.pi / NUM_TIMES + torch.arange(3)[:, None]
    values = blob(size, channels, torch.stack([angle.cos(), angle.sin()], -1))
    mask = torch.ones(values.shape[:2], dtype=torch.bool)
    for row, label in enumerate(LABELS):
        mask[row, HIDDEN[label]] = False
    values[1, 1] = torch.nan
    settings = {"series": LABELS, "num_times": num_times}
    data = bo.Trajectories(times, values, mask=mask, **settings)
    off = angle + 0.2 * torch.randn(NUM_DRAWS, 3, 1, dtype=DOUBLE)
    path = torch.stack([off.cos(), off.sin(), 0.1 * torch.randn(off.shape).double()], -1)

    def signal(path):
        if decoded is not None:
            decoded.append(path.shape)
        return blob(size, channels, path)

    def law(path, mask):
        event_dim = values.dim() - 1
        return observed_law(dist.Normal(signal(path), 0.05), mask, event_dim=event_dim, fill=0.0)

    failed = torch.zeros(NUM_DRAWS, 3, dtype=torch.bool)
    failed[0, 2] = True
    ensemble = bo.Ensemble(
        trajectories=data.at(times, num_times),
        path=path,
        observe=Observe(law, signal),
        failed=failed,
        units=bo.Units(),
        train=data.until(LAST_SEEN),
        solver_error=lambda: 0.0,
    )
    return ensemble, data


def panels_of(figure):
    return np.reshape(figure.axes[:-1], (-1, 3))


def frames_in(panel, size, width=None):
    """The frames of a strip, (time, height, width, ...), and the gaps between them."""
    (image,) = panel.images
    strip, width = np.ma.filled(image.get_array().astype(float), np.nan), width or size
    pitch = width + max(1, round(0.1 * width))
    pieces = np.split(strip, strip.shape[1] // pitch, axis=1)
    return np.stack([p[:, :width] for p in pieces]), np.stack([p[:, width:] for p in pieces])


def boxes(panel, colour):
    """First and last frame in each box of a colour."""
    found = [p for p in panel.patches if isinstance(p, Rectangle)]
    size = panel.images[0].get_array().shape[0]
    pitch = size + max(1, round(0.1 * size))
    spans = [
        (p.get_x(), p.get_x() + p.get_width())
        for p in found
        if to_hex(p.get_edgecolor()) == to_hex(colour)
    ]
    return [
        (round((left + 0.5) / pitch), round((right + 0.5) / pitch) - 1) for left, right in spans
    ]


# ---- frame rows ----------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [8, 28, 64])
@pytest.mark.parametrize("channels", [None, 1])
def test_strips_hold_data_mean_and_sd(size: int, channels: int | None):
    ensemble, data = make(size, channels)
    panels = panels_of(frame_rows(ensemble, data))
    shape = (NUM_TIMES, size, size)
    expected = [part.reshape(3, *shape) for part in (data.values, ensemble.mean, ensemble.sd())]
    for row, group in enumerate(panels):
        assert [panel.get_ylabel() for panel in group] == ["data", "mean", "sd"]
        for panel, part in zip(group, expected, strict=True):
            frames, gaps = frames_in(panel, size)
            np.testing.assert_allclose(frames, part[row].numpy(), rtol=1e-12)
            assert np.isnan(gaps).all()


def test_missing_frames_are_blank():
    ensemble, data = make()
    frames, _ = frames_in(panels_of(frame_rows(ensemble, data))[1, 0], 8)
    is_blank = np.isnan(frames).all((1, 2))
    assert is_blank.tolist() == [k == 1 for k in range(NUM_TIMES)]


def test_frames_that_the_data_do_not_have_are_blank():
    ensemble, data = make()
    frames, _ = frames_in(panels_of(frame_rows(ensemble, data.until(LAST_SEEN)))[0, 0], 8)
    assert np.isnan(frames).all((1, 2)).tolist() == [k > LAST_SEEN for k in range(NUM_TIMES)]
    only_b = frame_rows(ensemble, data.rows([1]), series=["a"])
    assert np.isnan(frames_in(panels_of(only_b)[0, 0], 8)[0]).all()


def test_hidden_frames_and_the_forecast_are_boxed():
    ensemble, data = make()
    for label, group in zip(LABELS, panels_of(frame_rows(ensemble, data)), strict=True):
        hidden = [(k, k) for k in HIDDEN[label]]
        assert [boxes(panel, TEST["c"]) for panel in group] == [hidden, hidden, []]
        ahead = [(LAST_SEEN + 1, NUM_TIMES - 1)]
        assert [boxes(panel, FOLLOWED) for panel in group] == [[], ahead, []]


def test_a_new_sequence_is_forecast_after_the_last_frame_of_training():
    ensemble, data = make()
    ensemble.train = data.rows([0]).until(3.0)
    panels = panels_of(frame_rows(ensemble, data, series=[3]))
    assert boxes(panels[0, 1], FOLLOWED) == [(4, NUM_TIMES - 1)]


def test_every_second_frame_keeps_times_and_boxes():
    ensemble, data = make()
    figure = frame_rows(ensemble, data, series=["a"], every=2)
    (group,) = panels_of(figure)
    frames, _ = frames_in(group[0], 8)
    np.testing.assert_allclose(frames, data.values[0, ::2, 0].numpy())
    assert boxes(group[0], TEST["c"]) == [(1, 1), (2, 2)]
    assert boxes(group[1], FOLLOWED) == [(3, 3)]
    assert [label.get_text() for label in group[2].get_xticklabels()] == ["0", "2", "4", "6"]


def test_three_channels_are_colours_with_one_sd():
    ensemble, data = make(8, 3)
    group = panels_of(frame_rows(ensemble, data, series=["b"]))[0]
    painted, gaps = frames_in(group[1], 8)
    exact = ensemble.mean[1].movedim(1, -1).clamp(0, 1).numpy()
    np.testing.assert_allclose(painted[..., :3], exact)
    assert (painted[..., 3] == 1).all() and (gaps[..., 3] == 0).all()
    assert (frames_in(group[0], 8)[0][1, ..., 3] == 0).all()  # the missing one is transparent
    sd = ensemble.sd()[1].square().mean(1).sqrt().numpy()
    np.testing.assert_allclose(frames_in(group[2], 8)[0], sd)


def test_sd_of_the_signal_has_no_noise_and_the_bar_says_so():
    ensemble, data = make()
    figure = frame_rows(ensemble, data, series=["a"], of="signal")
    sd = ensemble.sd(of="signal")[0, :, 0].numpy()
    np.testing.assert_allclose(frames_in(panels_of(figure)[0, 2], 8)[0], sd)
    assert figure.axes[-1].get_ylabel() == "sd of a pixel, without noise"
    assert sd.max() < ensemble.sd()[0].max()


def test_all_rows_of_a_kind_share_their_colours():
    ensemble, data = make()
    panels = panels_of(frame_rows(ensemble, data))
    for column in range(2):
        assert {panel.images[0].get_clim() for panel in panels[:, column]} == {(0.0, 1.0)}
    top = ensemble.sd().max().item()
    for panel in panels[:, 2]:
        assert panel.images[0].get_clim() == pytest.approx((0.0, top))


def test_values_beyond_intensities_set_the_grey_scale():
    ensemble, data = make()
    data.values.mul_(100)
    panels = panels_of(frame_rows(ensemble, data, series=["a"]))
    low, high = panels[0, 0].images[0].get_clim()
    assert low == 0 and high == pytest.approx(data.values[0].max().item())


def test_titles_legend_and_layout():
    ensemble, data = make(12)
    figure = frame_rows(ensemble, data)
    titles = [group[0].get_title(loc="left") for group in panels_of(figure)]
    assert titles == ["a", "b", "series 3\n11.1 % of draws failed"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["hidden from the fit", "forecast"]
    figure.draw_without_rendering()
    extents = [panel.get_window_extent() for panel in figure.axes]
    for k, one in enumerate(extents):
        assert not any(one.overlaps(other) for other in extents[k + 1 :])
    assert panels_of(figure)[-1, 2].get_xlabel() == "time"


def test_many_frames_have_few_time_labels():
    ensemble, data = make(times=torch.arange(40).double())
    panel = panels_of(frame_rows(ensemble, data, series=["a"]))[0, 2]
    assert len(panel.get_xticklabels()) == 14


def test_series_with_times_of_their_own_have_labels_of_their_own():
    times = torch.arange(6.0).double() * torch.tensor([[1.0], [2.0], [0.5]])
    ensemble, data = make(times=times, num_times=[6, 4, 6])
    panels = panels_of(frame_rows(ensemble, data))
    texts = [[tick.get_text() for tick in group[2].get_xticklabels()] for group in panels]
    assert texts[1] == ["0", "2", "4", "6"] and texts[2][1] == "0.5"
    assert len({panel.get_xlim() for panel in panels.flat}) == 1  # one scale for all
    assert len(frames_in(panels[1, 1], 8)[0]) == 4


def test_only_the_shown_series_are_decoded(monkeypatch):
    monkeypatch.setattr(blocks, "MAX_NUMBERS", NUM_DRAWS * NUM_TIMES * 64)
    decoded: list = []
    ensemble, data = make(decoded=decoded)
    assert len(ensemble.blocks) == 3
    decoded.clear()
    panels = panels_of(frame_rows(ensemble, data, series=["b"]))
    assert [shape[1] for shape in decoded] == [1, 1]  # the signal and the values of one series
    np.testing.assert_allclose(frames_in(panels[0, 2], 8)[0], ensemble.sd()[1, :, 0].numpy())


def test_requests_that_cannot_be_drawn_are_clear_errors():
    ensemble, data = make()
    with pytest.raises(bo.DataError, match="unknown series"):
        frame_rows(ensemble, data, series=["z"])
    for wrong in ({"every": 0}, {"num_series": 0}):
        with pytest.raises(bo.DataError, match="positive"):
            frame_rows(ensemble, data, **wrong)
    with pytest.raises(bo.DataError, match="no sequence"):
        frame_rows(ensemble, data, series=[])
    with pytest.raises(bo.DataError, match="question"):
        frame_rows(ensemble, data.at([0.0]))
    with pytest.raises(bo.ShapeError, match=r"\(1, 8, 8\)"):
        frame_rows(ensemble, make(9)[1])
    with pytest.raises(bo.ShapeError, match="fan_chart"):
        frame_rows(*make(8, 2))
    with pytest.raises(bo.DataError, match="of= must be"):
        frame_rows(ensemble, data, of="velocity")


# ---- latent paths --------------------------------------------------------------------------------
def thick(figure):
    return [
        line
        for line in figure.axes[0].lines
        if line.get_linewidth() == 1.2 and len(line.get_xdata())
    ]


def test_two_latent_dimensions_are_only_turned():
    ensemble, _ = make()
    ensemble.path = ensemble.path[..., :2].clone()
    figure = latent_paths(ensemble, num_paths=NUM_DRAWS)
    thin = [line for line in figure.axes[0].lines if line.get_linewidth() == 0.4]
    shown = torch.stack([torch.as_tensor(line.get_xydata()) for line in thin])
    kept = torch.cat([ensemble.path[~ensemble.failed[:, k], k] for k in range(3)])
    assert len(shown) == 3 * NUM_DRAWS - 1
    torch.testing.assert_close(
        torch.cdist(shown.flatten(0, 1), shown.flatten(0, 1)),
        torch.cdist(kept.flatten(0, 1), kept.flatten(0, 1)),
    )
    shares = [figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()]
    parts = [int(text.split("(")[1].split("%")[0]) for text in shares]
    assert sum(parts) in (99, 100, 101) and parts[0] >= parts[1]


def test_the_plane_is_that_of_the_leading_components_block_by_block(monkeypatch):
    ensemble, _ = make()
    whole = latent_paths(ensemble).axes[0]
    kept = torch.cat([ensemble.path[~ensemble.failed[:, k], k] for k in range(3)]).flatten(0, 1)
    values = torch.linalg.eigvalsh(kept.T.cov(correction=0)).flip(0)
    share = values[0] / values.sum()
    assert whole.get_xlabel() == f"component 1 ({share:.0%} of the variance)"
    monkeypatch.setattr(blocks, "MAX_NUMBERS", 2 * NUM_DRAWS * 64)
    cut, _ = make()
    assert len(cut.blocks) == 12
    again = latent_paths(cut).axes[0]
    for one, other in zip(whole.lines, again.lines, strict=True):
        np.testing.assert_allclose(one.get_xydata(), other.get_xydata(), atol=1e-12)


def test_means_are_dashed_after_the_last_seen_frame():
    ensemble, _ = make()
    lines = thick(latent_paths(ensemble, series=["a"]))
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    seen, ahead = (line.get_xydata() for line in lines)
    assert (len(seen), len(ahead)) == (LAST_SEEN + 1, NUM_TIMES - LAST_SEEN)
    np.testing.assert_array_equal(seen[-1], ahead[0])
    labels = [text.get_text() for text in latent_paths(ensemble).legends[0].get_texts()]
    assert labels == ["a", "b", "series 3, 11.1 % of draws failed", "begin", "forecast"]


def test_latent_paths_draws_in_the_users_axes():
    ensemble, _ = make()
    figure = matplotlib.figure.Figure()
    panel = figure.subplots()
    assert latent_paths(ensemble, axes=panel) is figure
    assert panel.get_legend() is not None and panel.lines


def test_latent_paths_that_cannot_be_drawn_are_clear_errors():
    ensemble, _ = make()
    with pytest.raises(bo.DataError, match="unknown series"):
        latent_paths(ensemble, series=["z"])
    with pytest.raises(bo.DataError, match="a series or more"):
        latent_paths(ensemble, series=[])
    ensemble.failed = torch.ones_like(ensemble.failed)
    with pytest.raises(bo.DataError, match="every draw failed"):
        latent_paths(ensemble)
    ensemble.path = ensemble.path[..., :1]
    with pytest.raises(bo.ShapeError, match="two latent dimensions"):
        latent_paths(ensemble)
