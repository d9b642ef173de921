"""Pictures show the numbers that they claim to show, and leave nothing behind."""

import io
import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure

from bayesode.diagnostics.plots import fan_chart, vector_field
from bayesode.errors import DataError, ShapeError
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.posterior import Posterior
from bayesode.models.contracts import Observe
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.fields import BayesianMLP
from bayesode.models.initial import NormalInitial
from bayesode.models.likelihoods import GaussianLikelihood, LogNormalLikelihood
from bayesode.models.solvers import FixedGridSolver
from bayesode.trajectories import Trajectories
from bayesode.units import Units


@pytest.fixture(autouse=True)
def matplotlib_is_left_alone():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def ensemble_of(
    question,
    train,
    *,
    scale=0.3,
    transform="identity",
    num_draws=60,
    failed=None,
    seed=0,
    path_sd=0.5,
):
    """Draws 2 + sin t + slope t per draw, with noise, without any model."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_draws, *question.grid.shape, len(train.names))
    slope = scale * torch.randn(num_draws, 1, 1, shape[-1], generator=generator).double()
    times = question.grid.unsqueeze(-1)
    signal = 2 + times.sin() + slope * times
    values = signal + 0.2 * torch.randn(shape, generator=generator)
    is_log = transform == "log"
    return Ensemble(
        trajectories=question,
        path=signal.exp() if is_log else signal,
        observe=Observe(lambda path, mask: dist.Delta(path), lambda path: path),
        failed=torch.zeros(shape[:2], dtype=torch.bool) if failed is None else failed,
        values=values.exp() if is_log else values,
        units=Units(transform=transform),
        train=train,
        solver_error=lambda: 0.0,
        path_sd=lambda: torch.as_tensor(path_sd).expand(shape[1:]),
    )


def training_data(num_series=2, num_components=2, positive=False, **arguments):
    times = torch.linspace(0, 4, 9).double()
    values = (2 + times.sin()).view(1, -1, 1).repeat(num_series, 1, num_components)
    return Trajectories(times, values.exp() if positive else values, **arguments)


def panels_of(figure, num_columns):
    return np.reshape(figure.axes, (-1, num_columns))


def edges_of(collection):
    """Lower and upper edge of a polygon that fill_between drew."""
    (path,) = collection.get_paths()
    num_times = (len(path.vertices) - 3) // 2
    return path.vertices[1 : num_times + 1], path.vertices[num_times + 2 : -1][::-1]


def bands_of(panel):
    return [c for c in panel.collections if isinstance(c, PolyCollection)]


def line_of(panel, label):
    (line,) = [line for line in panel.lines if line.get_label() == label]
    return line


def labels_of(panel):
    return {artist.get_label() for artist in [*panel.lines, *panel.collections]}


# ---- fan charts ----------------------------------------------------------------------------------
def test_bands_and_median_are_those_of_the_ensemble():
    train = training_data(3, series=["a", "b", "c"])
    failed = torch.zeros(60, 3, dtype=torch.bool)
    failed[:7, 2] = True
    ensemble = ensemble_of(train.at(torch.linspace(0, 6, 31)), train, failed=failed)
    ensemble.values[:7, 2] = 1e6  # what failed draws hold must not count
    panels = panels_of(fan_chart(ensemble, series=["c", "a"], levels=(0.5, 0.95, 0.8)), 2)
    assert panels.shape == (2, 2)
    for component in range(2):
        for column, row in enumerate([2, 0]):
            panel = panels[component, column]
            for band, level in zip(bands_of(panel), (0.95, 0.8, 0.5), strict=True):
                assert band.get_label() == f"{100 * level:g} % interval"
                for edge, exact in zip(edges_of(band), ensemble.interval(level), strict=True):
                    np.testing.assert_allclose(edge[:, 0], ensemble.times)
                    np.testing.assert_allclose(edge[:, 1], exact[row, :, component])
            median = line_of(panel, "median")
            np.testing.assert_allclose(median.get_ydata(), ensemble.median[row, :, component])


def test_thin_lines_are_valid_draws_of_the_signal():
    train = training_data(1)
    failed = torch.zeros(60, 1, dtype=torch.bool)
    failed[:50] = True
    ensemble = ensemble_of(train.at(torch.linspace(0, 6, 31)), train, failed=failed)
    for num_paths, expected in ((4, 4), (20, 10), (0, 0)):
        panel = fan_chart(ensemble, num_paths=num_paths).axes[1]
        drawn = [line.get_ydata() for line in panel.lines if line.get_linewidth() < 0.5]
        drawn = [line_of(panel, "one draw").get_ydata(), *drawn] if expected else drawn
        assert len(drawn) == expected
        for line, path in zip(drawn, ensemble.signal[50:, 0, :, 1], strict=False):
            np.testing.assert_allclose(line, path)
        assert ("draws of the signal" in labels_of(panel)) == (num_paths > 0)


def test_data_are_where_they_were_observed_and_the_line_is_where_training_ends():
    values = torch.arange(24.0).view(2, 6, 2)
    values[0, 4:] = math.nan  # training of the first series ends early
    values[1, 2, 0] = math.nan
    mask = torch.ones(2, 6, 2, dtype=torch.bool)
    mask[1, 4, 1] = False  # hidden, but still in the object
    labels = {"series": ["a", "b"], "names": ["prey", "predator"]}
    data = Trajectories(torch.arange(6.0), values, mask=mask, **labels)
    later = Trajectories([7.0, 8.0], torch.ones(1, 2, 2), series=["b"], start=[0.0])
    question = data.at(torch.linspace(0, 9, 10))
    panels = panels_of(fan_chart(ensemble_of(question, data), test=later), 2)
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["prey", "predator"]
    assert [panel.get_title() for panel in panels[0]] == ["a", "b"]
    for row, end in enumerate([3.0, 5.0]):
        for component, panel in enumerate(panels[:, row]):
            dots = line_of(panel, "training data").get_xydata()
            seen = data.mask[row, :, component]
            np.testing.assert_array_equal(dots[np.isfinite(dots[:, 1]), 0], data.times[seen])
            np.testing.assert_array_equal(
                dots[np.isfinite(dots[:, 1]), 1], values[row, seen, component]
            )
            assert line_of(panel, "end of training").get_xdata()[0] == end
    held_out = line_of(panels[0, 1], "held-out data")
    np.testing.assert_array_equal(held_out.get_xydata(), [[7, 1], [8, 1]])
    assert held_out.get_markerfacecolor() != line_of(panels[0, 1], "training data").get_color()
    assert "held-out data" not in labels_of(panels[0, 0])


def test_there_is_no_end_of_training_inside_training():
    train = training_data()
    figure = fan_chart(ensemble_of(train.at(torch.linspace(0, 4, 21)), train))
    assert all("end of training" not in labels_of(panel) for panel in figure.axes)


def test_padding_of_own_grids_is_not_drawn():
    times = torch.tensor([[0.0, 1.0, 2.5, 4.0], [0.0, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]])
    train = training_data(3, 1, start=[0.0] * 3)
    question = train.at(times, num_times=[4, 2, 1])
    ensemble = ensemble_of(question, train)
    figure = fan_chart(ensemble)
    assert [len(line_of(p, "median").get_xdata()) for p in figure.axes] == [4, 2, 1]
    # one time has bars in place of bands
    bars = [c for c in figure.axes[2].collections if isinstance(c, LineCollection)]
    for bar, level in zip(bars, (0.9, 0.5), strict=True):
        ends = [end[2, 0, 0] for end in ensemble.interval(level)]
        np.testing.assert_allclose(bar.get_segments()[0], [[1.0, ends[0]], [1.0, ends[1]]])


def test_axis_is_logarithmic_for_positive_data_under_the_log_transform():
    train = training_data(positive=True)
    question = train.at(torch.linspace(0, 6, 31))
    for transform, scale in (("identity", "linear"), ("log", "log")):
        figure = fan_chart(ensemble_of(question, train, transform=transform))
        assert {panel.get_yscale() for panel in figure.axes} == {scale}
    values = train.values.clone()
    values[1, 3, 0] = 0.0
    spoiled = Trajectories(train.times, values)
    panels = panels_of(fan_chart(ensemble_of(question, train, transform="log"), spoiled), 2)
    assert [p.get_yscale() for p in panels[:, 0]] == ["linear", "log"]  # all dots are seen


@pytest.mark.parametrize("transform", ["identity", "log"])
@pytest.mark.parametrize("scale", [0.01, 20.0])
def test_limits_hold_all_data_whatever_the_bands_do(transform, scale):
    is_log = transform == "log"
    train = training_data(2, 1, positive=is_log)
    question = train.at(torch.linspace(0, 6, 31))
    ensemble = ensemble_of(question, train, scale=scale, transform=transform)
    figure = fan_chart(ensemble)
    figure.savefig(io.BytesIO(), format="png")
    scaled = np.log if is_log else np.asarray
    low, high = scaled(figure.axes[0].get_ylim())
    data = scaled(train.values.numpy())
    share = (data.max() - data.min()) / (high - low)
    assert low < data.min() and high > data.max()
    assert (share > 0.2) and (share < 0.24 if scale == 20 else share > 0.5)
    assert {panel.get_ylim() for panel in figure.axes} == {figure.axes[0].get_ylim()}


def test_share_of_failed_draws_is_told_per_series():
    train = training_data(3)
    failed = torch.zeros(60, 3, dtype=torch.bool)
    failed[:3, 1] = True
    failed[:, 2] = True
    ensemble = ensemble_of(train.at(torch.linspace(0, 6, 31)), train, failed=failed)
    figure = fan_chart(ensemble)
    figure.savefig(io.BytesIO(), format="png")
    assert [panel.get_title() for panel in panels_of(figure, 3)[0]] == [
        "series 0",
        "series 1\n5 % of draws failed",
        "series 2\n100 % of draws failed",
    ]


@pytest.mark.parametrize(("num_series", "path_sd"), [(1, 0.0), (1, 2.0), (6, 0.0), (6, 2.0)])
def test_first_four_series_are_shown_and_one_legend_stands_above_them(num_series, path_sd):
    train = training_data(num_series)
    question = train.at(torch.linspace(0, 6, 31))
    figure = fan_chart(ensemble_of(question, train, path_sd=path_sd), test=train)
    assert len(figure.axes) == 2 * min(num_series, 4) and all(
        panel.get_legend() is None for panel in figure.axes
    )
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == len(set(texts)) == 8 + (path_sd > 1)
    figure.savefig(io.BytesIO(), format="png")
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    assert all(not box.overlaps(panel.get_tightbbox()) for panel in figure.axes)


def test_users_axes_are_drawn_in():
    figure = Figure()
    axes = figure.subplots(2, 1)
    train = training_data(2, 1)
    ensemble = ensemble_of(train.at(torch.linspace(0, 6, 31)), train)
    size = axes[0].title.get_fontsize()
    assert fan_chart(ensemble, axes=axes) is figure
    assert axes[0].title.get_fontsize() == size and len(bands_of(axes[1])) == 2
    assert figure.legends == [] and axes[1].get_legend() is not None
    with pytest.raises(ShapeError, match="1 x 1 axes, not 2"):
        fan_chart(ensemble, series=[1], axes=axes)


def test_wrong_requests_for_a_fan_are_refused():
    train = training_data(2)
    ensemble = ensemble_of(train.at(torch.linspace(0, 6, 31)), train)
    with pytest.raises(DataError, match="unknown series 5"):
        fan_chart(ensemble, series=[0, 5])
    for wrong in ({"levels": (0.5, 90)}, {"levels": ()}, {"series": []}, {"num_paths": -1}):
        with pytest.raises(DataError, match="levels between 0 and 1"):
            fan_chart(ensemble, **wrong)
    with pytest.raises(DataError, match="question without values"):
        fan_chart(ensemble, test=train.at([5.0]))
    with pytest.raises(ShapeError, match="2 components"):
        fan_chart(ensemble, training_data(2, 1))
    ensemble.values = ensemble.values.unsqueeze(-1)
    with pytest.raises(ShapeError, match="draws, series, time, component"):
        fan_chart(ensemble)


def spans_of(panel):
    """Ends of the grey stretches."""
    ends = [p.get_path().transformed(p.get_patch_transform()).vertices[:, 0] for p in panel.patches]
    return [[x.min(), x.max()] for x in ends]


def test_stretches_that_the_data_do_not_determine_are_grey():
    train = training_data(2)
    times = torch.tensor([0.0, 1.0, 2.0, 4.0, 5.0, 7.0])
    sd = torch.zeros(2, 6, 2)
    sd[0, 3:, 0] = 1.1
    sd[0, :, 1] = torch.tensor([1.1, 0.0, torch.inf, 0.0, 1.0, torch.nan])
    figure = fan_chart(ensemble_of(train.at(times), train, path_sd=sd))
    panels = panels_of(figure, 2)
    assert spans_of(panels[0, 0]) == [[3.0, 7.0]]
    assert spans_of(panels[1, 0]) == [[0.0, 0.5], [1.5, 3.0], [6.0, 7.0]]
    assert spans_of(panels[0, 1]) == spans_of(panels[1, 1]) == []
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts.count("not determined by the data") == 1
    clean = fan_chart(ensemble_of(train.at(times), train))
    assert "not determined by the data" not in {t.get_text() for t in clean.legends[0].get_texts()}


def test_values_with_more_components_than_the_state_are_grey_where_any_of_it_is_open():
    train = training_data(1, 2)
    ensemble = ensemble_of(train.at(torch.linspace(0, 6, 4)), train)
    ensemble.undetermined = torch.tensor([[[False], [True], [True], [False]]])
    panels = fan_chart(ensemble).axes
    assert spans_of(panels[0]) == spans_of(panels[1]) == [[1.0, 5.0]]


# ---- fields --------------------------------------------------------------------------------------
class KnownGuide:
    """Independent normal weights of an affine field, and whatever else a model needs."""

    def __init__(self, weights, scale):
        self.weights, self.scale = weights, scale

    def posteriors(self, trajectories):
        dim = trajectories.values.shape[-1]
        return {
            "field.weights": dist.Normal(self.weights, self.scale).to_event(1),
            "likelihood.noise_scale": dist.LogNormal(torch.zeros(dim).double(), 1.0).to_event(1),
            "x0": dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1),
        }


def known_posterior(*, transform="identity", dim=2, scale=0.3, seed=0):
    """The exact posterior of z' = A z + b with normal A and b, in units that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 12, dim, generator=generator).double()
    values[0, 4, 0] = math.nan
    train = Trajectories(
        torch.arange(12.0),
        values.exp() if transform == "log" else values,
        names=["u", "v", "w"][:dim],
    )
    units = Units([0.5, -1.0, 2.0][:dim], [2.0, 0.5, 3.0][:dim], time_unit=4.0, transform=transform)
    likelihood = LogNormalLikelihood if transform == "log" else GaussianLikelihood
    field = BayesianMLP(dim, [], dim)
    model = DynamicalModel(
        initial=NormalInitial(dim),
        field=field,
        likelihood=likelihood(dim),
        solver=FixedGridSolver("rk4", step=0.1),
        units=units,
    ).double()
    weights = torch.randn(field.num_weights, generator=generator).double()
    guide = KnownGuide(weights, torch.full_like(weights, scale))
    return Posterior(model, guide, train, history=None, settings={"engine": "exact"})


def shade_of(panel):
    (image,) = panel.images
    return np.asarray(image.get_array())


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_shade_is_the_relative_uncertainty_of_the_drawn_fields(transform):
    posterior = known_posterior(transform=transform)
    figure = vector_field(posterior, num_draws=50, resolution=5, seed=3)
    panel, bar = figure.axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("u", "v")
    assert bar.get_ylabel() == "sd / mean length"
    assert panel.get_xscale() == panel.get_yscale() == ("log" if transform == "log" else "linear")
    # On the scale of the axes the field is scale * (A z + b) / time_unit, under both transforms.
    scaled = np.log if transform == "log" else np.asarray
    units, ends = posterior.model.units, scaled([panel.get_xlim(), panel.get_ylim()])
    x, y = (np.linspace(low, high, 5) for low, high in ends)
    points = torch.tensor(np.stack(np.meshgrid(x, y), -1))
    matrix, bias = posterior.model.field.layout.unpack(posterior.draws(50, seed=3)["field.weights"])
    z = ((points - units.location) / units.scale).flatten(0, 1)
    speed = (z @ matrix + bias) * units.scale / units.time_unit / torch.tensor(np.ptp(ends, axis=1))
    expected = speed.var(0).sum(-1).sqrt() / speed.norm(dim=-1).mean(0)
    np.testing.assert_allclose(shade_of(panel).ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_streamlines_follow_the_mean_field(transform):
    posterior = known_posterior(transform=transform)
    posterior.guide.weights *= torch.tensor([0.0] * 4 + [1.0] * 2)  # a constant drift
    posterior.guide.scale = torch.full((6,), 1e-9).double()
    panel = vector_field(posterior).axes[0]
    scaled = np.log if transform == "log" else np.asarray
    ranges = np.ptp(scaled([panel.get_xlim(), panel.get_ylim()]), axis=1)
    drift = (posterior.guide.weights[4:] * posterior.model.units.scale).numpy() / ranges
    (streams,) = [c for c in panel.collections if isinstance(c, LineCollection)]
    steps = np.array([s[1] - s[0] for s in streams.get_segments()])
    steps = steps[np.hypot(*steps.T) > 1e-6]
    directions = steps / np.hypot(*steps.T)[:, None]
    assert len(steps) > 100
    np.testing.assert_allclose(directions - drift / np.hypot(*drift), 0, atol=1e-3)


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_panel_of_the_truth_has_the_error_of_the_mean_as_its_shade(transform):
    posterior = known_posterior(transform=transform, scale=1e-9)

    def truth(states):  # two thirds of the field that the posterior is sure of
        return posterior.field(states, num_draws=1, seed=0)[0] / 1.5

    figure = vector_field(posterior, truth=truth)
    left, right, bar = figure.axes
    assert (left.get_title(), right.get_title()) == ("posterior mean", "truth")
    assert bar.get_ylabel() == "sd (left), error (right) / mean length"
    assert shade_of(left).max() < 1e-6
    np.testing.assert_allclose(shade_of(right), 1 / 3, rtol=1e-6)
    assert right.get_xlim() == left.get_xlim() and right.get_ylim() == left.get_ylim()
    same = vector_field(posterior, truth=lambda states: truth(states).numpy())
    np.testing.assert_array_equal(shade_of(same.axes[1]), shade_of(right))
    with pytest.raises(ShapeError, match=r"must return \(441, 2\), not \(441, 1\)"):
        vector_field(posterior, truth=lambda states: states[:, :1])


def test_other_components_are_held_at_the_mean_of_the_data():
    posterior = known_posterior(transform="log", dim=3)
    asked = []
    figure = vector_field(
        posterior, components=(2, 0), truth=lambda x: asked.append(x.clone()) or x, resolution=4
    )
    (states,) = asked
    panel = figure.axes[0]
    exact = posterior.train.values[..., 1].log().mean().exp()
    np.testing.assert_allclose(states[:, 1], exact)
    assert panel.get_title() == f"posterior mean\nv = {exact:.3g}"
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("w", "u")
    corners = [states[:, 2].min(), states[:, 2].max()], [states[:, 0].min(), states[:, 0].max()]
    np.testing.assert_allclose(panel.get_xlim(), corners[0])
    np.testing.assert_allclose(panel.get_ylim(), corners[1])
    dots = line_of(panel, "training data").get_xydata()
    np.testing.assert_array_equal(dots[0], posterior.train.values[0, 0, [2, 0]])
    assert np.isnan(dots).any(-1).sum() == 1  # the point whose u is missing


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_field_is_grey_where_its_sd_exceeds_the_speed_of_the_data(transform):
    posterior = known_posterior(transform=transform, scale=0.9)
    num, settings = 15, {"num_draws": 60, "seed": 3}
    figure = vector_field(posterior, resolution=num, **settings)
    (grey,) = [c for c in figure.axes[0].collections if isinstance(c, ContourSet)]
    (legend,) = figure.legends
    assert any("not determined" in text.get_text() for text in legend.get_texts())
    scaled, unscaled = (np.log, np.exp) if transform == "log" else (np.asarray, np.asarray)
    ends = scaled([figure.axes[0].get_xlim(), figure.axes[0].get_ylim()])
    plane = np.stack(np.meshgrid(*(np.linspace(*pair, num) for pair in ends)), -1).reshape(-1, 2)
    train = posterior.train.values.flatten(0, 1)

    def speeds(states):  # in ranges of the axes
        rates = posterior.field(torch.as_tensor(states), **settings)
        unit = np.ptp(ends, axis=1) * (states if transform == "log" else 1.0)
        return rates / torch.as_tensor(unit)

    seen = torch.where(train.isnan(), train.nanmean(0), train)
    limit = speeds(seen.numpy()).mean(0).square().sum(-1).mean().sqrt()
    ratio = (speeds(unscaled(plane)).var(0).sum(-1).sqrt() / limit).numpy()
    unit_square = (plane - ends[:, 0]) / np.ptp(ends, axis=1)
    inside = np.logical_or.reduce([p.contains_points(unit_square) for p in grey.get_paths()])
    is_clear = (np.abs(np.log(ratio)) > 0.1) & ((unit_square % 1) > 0).all(-1)  # off the edges
    assert 20 < inside.sum() < 200
    np.testing.assert_array_equal(inside[is_clear], (ratio > 1)[is_clear])
    sure = vector_field(known_posterior(transform=transform, scale=1e-3), resolution=5)
    assert not [c for c in sure.axes[0].collections if isinstance(c, ContourSet)]


def test_field_can_be_drawn_in_users_axes_and_saved():
    figure = Figure()
    axes = figure.subplots(1, 2)
    posterior = known_posterior()
    assert vector_field(posterior, truth=lambda x: 0 * x, resolution=2, axes=axes) is figure
    figure.savefig(io.BytesIO(), format="pdf")
    with pytest.raises(ShapeError, match="1 x 1 axes, not 2"):
        vector_field(posterior, axes=axes)


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_field_of_one_component_is_a_curve_with_the_bands_of_its_draws(transform):
    posterior = known_posterior(dim=1, transform=transform)
    (panel,) = vector_field(posterior, num_draws=40, seed=3, truth=lambda x: 2 * x).axes
    median = line_of(panel, "median")
    states = torch.as_tensor(median.get_xdata()).unsqueeze(-1)
    draws = posterior.field(states, num_draws=40, seed=3)[..., 0]
    np.testing.assert_allclose(median.get_ydata(), draws.quantile(0.5, 0))
    for band, level in zip(bands_of(panel), (0.9, 0.5), strict=True):
        for edge, at in zip(edges_of(band), ((1 - level) / 2, (1 + level) / 2), strict=True):
            np.testing.assert_allclose(edge[:, 1], draws.quantile(at, 0), atol=1e-12)
    truth = line_of(panel, "truth")
    np.testing.assert_allclose(truth.get_ydata(), 2 * states[:, 0])
    assert panel.get_xscale() == ("log" if transform == "log" else "linear")
    ticks, seen = line_of(panel, "training data").get_xdata(), posterior.train.values.flatten()
    np.testing.assert_array_equal(ticks, seen)
    low, high = panel.get_xlim()
    assert low < np.nanmin(ticks) and np.nanmax(ticks) < high


def test_curve_is_grey_where_its_sd_exceeds_the_speed_of_the_data():
    def grey(scale):
        panel = vector_field(known_posterior(dim=1, scale=scale)).axes[0]
        return "not determined by the data" in {patch.get_label() for patch in panel.patches}

    assert grey(30.0) and not grey(1e-3)


def test_wrong_requests_for_a_field_are_refused():
    posterior = known_posterior()
    for components in ((0, 2), (0, 0), (0,), (-1, 0), (0, 1, 1)):
        with pytest.raises(DataError, match="two of 0 to 1"):
            vector_field(posterior, components=components)
    for wrong in ({"num_draws": 1}, {"resolution": 1}):
        with pytest.raises(DataError, match="2 draws and points or more"):
            vector_field(posterior, **wrong)
    with pytest.raises(DataError, match="2 draws and points or more"):
        vector_field(known_posterior(dim=1), num_draws=1)
    for train in (None, posterior.train.at([0.0])):
        posterior.train = train
        with pytest.raises(DataError, match="needs training data"):
            vector_field(posterior)


def test_random_state_is_left_alone():
    posterior = known_posterior()
    before = torch.random.get_rng_state()
    first, second = (shade_of(vector_field(posterior, num_draws=5).axes[0]) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(first, second)
