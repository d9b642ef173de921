"""The panel of channels shows the channels, bands and frames that it claims to show."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection

import bayesode as bo
from bayesode.diagnostics import channel_panel
from bayesode.diagnostics.plots.style import LINE, TEST
from bayesode.models.contracts import Observe

DOUBLE = torch.float64
NUM_DRAWS, NUM_TIMES = 40, 25
SCALES = (3.0, 0.0, 0.5, 8.0, 2.0, 0.0, 1.0, 4.0, 0.2)  # of 9 channels: two are constant
NAMES = tuple(f"channel {k}" for k in range(len(SCALES)))
LABELS = ("a", "b", "c", 7)


@pytest.fixture(autouse=True)
def matplotlib_is_left_alone():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def make(scales=SCALES, *, failed=None, num_times=None, **changed):
    """Waves of several heights around 100, and draws that come too early or too late."""
    generator = torch.Generator().manual_seed(0)
    times = torch.linspace(0, 3, NUM_TIMES, dtype=DOUBLE)
    phase = torch.rand(len(LABELS), 1, len(scales), generator=generator, dtype=DOUBLE)
    late = 0.2 * torch.randn(NUM_DRAWS, len(LABELS), 1, 1, generator=generator, dtype=DOUBLE)

    def waves(phase):
        return 100 + torch.tensor(scales).double() * (3 * times[:, None] + 6 * phase).sin()

    names = NAMES if len(scales) == len(NAMES) else ()
    settings = {"series": LABELS, "names": names, "num_times": num_times}
    truth = bo.Trajectories(times, waves(phase), **settings | changed)
    signal = waves(phase + late)
    noise = 0.1 * torch.randn(signal.shape, generator=generator, dtype=DOUBLE)
    ensemble = bo.Ensemble(
        trajectories=truth.at(times, num_times),
        path=signal,
        observe=Observe(lambda path, mask: None, lambda path: path),
        values=signal + noise,
        failed=torch.zeros(signal.shape[:2], dtype=torch.bool) if failed is None else failed,
        units=bo.Units(),
        train=truth,
        solver_error=lambda: 0.0,
    )
    return ensemble, truth


def panels_of(figure, num_columns):
    return np.reshape(figure.axes, (-1, num_columns))


def named(panel, label):
    return next(line for line in panel.lines if line.get_label() == label)


def edges(panel):
    """Lower and upper ends of the bands, from wide to narrow, (band, 2, time)."""
    found = [c for c in panel.collections if isinstance(c, PolyCollection)]
    ends = []
    for band in found:
        x, y = band.get_paths()[0].vertices.T
        ends.append([[y[x == t].min() for t in sorted(set(x))]])
        ends[-1].append([y[x == t].max() for t in sorted(set(x))])
    return np.array(ends)


# ---- which channels and series -------------------------------------------------------------------
def test_six_channels_that_vary_most_and_three_series_are_shown():
    ensemble, truth = make()
    panels = panels_of(channel_panel(ensemble, truth), 3)
    assert [row[0].get_ylabel() for row in panels] == [NAMES[k] for k in (0, 2, 3, 4, 6, 7)]
    assert [panel.get_title() for panel in panels[0]] == ["a", "b", "c"]
    assert [panel.get_xlabel() for panel in panels[-1]] == ["time"] * 3


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_constant_channels_are_never_chosen(offset):
    ensemble, truth = make((3.0, 0.0, 0.5, 8.0, 2.0, 0.0, 0.0, 0.0, 0.0))
    rounding = 1e-6 * torch.randn(truth.values.shape, generator=torch.Generator().manual_seed(1))
    values = truth.values - 100 + offset + rounding  # as in files that were written twice
    twice = bo.Trajectories(truth.times, values, series=LABELS, names=NAMES)
    panels = panels_of(channel_panel(ensemble, twice, series=[7]), 1)
    shown = [row[0].get_ylabel() for row in panels]
    assert shown == [NAMES[k] for k in (0, 2, 3, 4)]


def test_fewer_channels_vary_than_fit():
    ensemble, truth = make((1.0, 0.0, 2.0))
    panels = panels_of(channel_panel(ensemble, truth, series=["a"]), 1)
    assert [row[0].get_ylabel() for row in panels] == ["x1", "x3"]
    with pytest.raises(bo.DataError, match="no channel varies"):
        channel_panel(*make((0.0, 0.0)))


def test_hidden_values_decide_nothing():
    ensemble, truth = make()
    values, mask = truth.values.clone(), torch.ones_like(truth.values, dtype=torch.bool)
    values[:, ::2, 1], mask[:, ::2, 1] = 1e6, False  # of a constant channel
    hidden = bo.Trajectories(truth.times, values, mask=mask, series=LABELS, names=NAMES)
    figure = channel_panel(ensemble, hidden)
    assert "channel 1" not in [panel.get_ylabel() for panel in figure.axes]


def test_channels_and_series_come_as_asked_by_name_or_position():
    ensemble, truth = make()
    figure = channel_panel(ensemble, truth, channels=["channel 5", 2], series=[7, "b"])
    panels = panels_of(figure, 2)
    assert [row[0].get_ylabel() for row in panels] == ["channel 5", "channel 2"]
    assert [panel.get_title() for panel in panels[0]] == ["series 7", "b"]
    line = named(panels[1, 0], "truth").get_ydata()
    np.testing.assert_array_equal(line, truth.values[3, :, 2].numpy())
    assert len(channel_panel(ensemble, truth, channels="channel 3", series="a").axes) == 1


# ---- what is drawn -------------------------------------------------------------------------------
def test_bands_mean_and_truth_are_the_numbers():
    failed = torch.zeros(NUM_DRAWS, len(LABELS), dtype=torch.bool)
    failed[:4, 1] = True
    ensemble, truth = make(failed=failed)
    panels = panels_of(channel_panel(ensemble, truth, level=0.8), 3)
    for column in range(3):
        panel, valid = panels[2, column], ~failed[:, column]
        draws, signal = ensemble.values[valid, column, :, 3], ensemble.signal[valid, column, :, 3]
        levels = torch.tensor([[0.1, 0.9], [0.25, 0.75]], dtype=DOUBLE)
        exact = [torch.quantile(draws, pair, dim=0).numpy() for pair in levels]
        np.testing.assert_allclose(edges(panel), exact, rtol=1e-12)
        mean, line = named(panel, "mean"), named(panel, "truth")
        np.testing.assert_allclose(mean.get_ydata(), signal.mean(0).numpy(), rtol=1e-12)
        np.testing.assert_array_equal(line.get_ydata(), truth.values[column, :, 3].numpy())
        np.testing.assert_array_equal(mean.get_xdata(), truth.times.numpy())
        assert (mean.get_color(), line.get_color()) == (LINE, TEST["c"])
    assert panels[0, 1].get_title() == "b\n10 % of draws failed"


def test_given_frames_are_dots_and_only_if_asked():
    ensemble, truth = make()
    panel = channel_panel(ensemble, truth, given=3).axes[0]
    dots = named(panel, "given frames")
    np.testing.assert_array_equal(dots.get_xdata(), truth.times[:3].numpy())
    np.testing.assert_array_equal(dots.get_ydata(), truth.values[0, :3, 0].numpy())
    assert dots.get_linestyle() == "None" and dots.get_marker() == "o"
    assert not any(
        len(line.get_xdata()) == 3 for line in channel_panel(ensemble, truth).axes[0].lines
    )


def test_axes_are_shared_and_the_legend_is_there_once():
    ensemble, truth = make()
    figure = channel_panel(ensemble, truth, given=3)
    panels = panels_of(figure, 3)
    assert len({panel.get_xlim() for panel in panels.flat}) == 1
    for row, scale in zip(panels, (3.0, 0.5, 8.0), strict=False):
        assert len({panel.get_ylim() for panel in row}) == 1
        low, high = row[0].get_ylim()
        assert low < 100 - 0.9 * scale and 100 + 0.9 * scale < high < 100 + 3 * scale  # raw units
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["90 % interval", "50 % interval", "mean", "truth", "given frames"]
    assert len(figure.legends) == 1 and not any(panel.get_legend() for panel in panels.flat)
    figure.draw_without_rendering()
    extents = [panel.get_window_extent() for panel in figure.axes]
    for k, one in enumerate(extents):
        assert not any(one.overlaps(other) for other in extents[k + 1 :])


def test_the_narrow_band_alone_is_drawn_once():
    ensemble, truth = make()
    assert edges(channel_panel(ensemble, truth, level=0.5).axes[0]).shape == (1, 2, NUM_TIMES)


def test_lines_break_where_nothing_was_seen_and_a_lone_value_is_a_dot():
    ensemble, truth = make()
    values = truth.values.clone()
    values[0, [4, 6, 7], 3] = torch.nan
    panel = channel_panel(
        ensemble, bo.Trajectories(truth.times, values, series=LABELS, names=NAMES), channels=[3]
    ).axes[0]
    line = named(panel, "truth")
    assert np.isnan(line.get_ydata()).nonzero()[0].tolist() == [4, 6, 7]
    dots = [other.get_xdata().tolist() for other in panel.lines if other.get_marker() == "o"]
    assert dots == [[truth.times[5].item()]]


def test_padding_is_not_drawn_and_the_truth_may_have_other_times():
    ensemble, truth = make(num_times=torch.tensor([25, 20, 25, 25]))
    panel = channel_panel(ensemble, truth.until(2.0), series=["b"]).axes[0]
    assert len(named(panel, "mean").get_xdata()) == 20
    assert np.nanmax(named(panel, "truth").get_xdata()) == 2.0


# ---- errors --------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [["channel 3", "knee"], [9], [-1], [], [["channel 3"]]])
def test_channels_that_do_not_exist_are_one_clear_error(channels):
    with pytest.raises(bo.DataError, match=r"no channel .*the 9 channels are 'channel 0', "):
        channel_panel(*make(), channels=channels)


def test_requests_that_cannot_be_drawn_are_clear_errors():
    ensemble, truth = make()
    with pytest.raises(bo.DataError, match="unknown series 'z'"):
        channel_panel(ensemble, truth, series=["z"])
    with pytest.raises(bo.DataError, match="series is empty"):
        channel_panel(ensemble, truth, series=[])
    with pytest.raises(bo.DataError, match="question without values"):
        channel_panel(ensemble, truth.at([0.0]))
    with pytest.raises(bo.ShapeError, match=r"9 channels are predicted, the truth has .*25, 3"):
        channel_panel(ensemble, make((1.0, 2.0, 3.0))[1])
    for level in (0.0, 1.0, 90):
        with pytest.raises(bo.DataError, match="level is a probability"):
            channel_panel(ensemble, truth, level=level)
    for given in (0, 1.5):
        with pytest.raises(bo.DataError, match="given must be a positive whole number"):
            channel_panel(ensemble, truth, given=given)
    with pytest.raises(bo.DataError, match="given=26 frames were read, and the truth has 25"):
        channel_panel(ensemble, truth, given=26)


def test_images_are_sent_to_their_own_picture():
    ensemble, truth = make()
    ensemble.values = ensemble.values.reshape(NUM_DRAWS, 4, NUM_TIMES, 1, 3, 3)
    with pytest.raises(bo.ShapeError, match=r"frame_rows\(ensemble, data\)"):
        channel_panel(ensemble, truth)
