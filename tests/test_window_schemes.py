"""Windows of the data: what each scheme makes a fit maximise, by enumeration."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pyro.distributions as dist
import pytest
import torch
from amortised import DOUBLE, NOISE, Still, TinyGuide, plain_data, ragged_data, tiny_model
from torch import Tensor

import bayesode as bo
from bayesode.inference.window_schemes import (
    GrowingWindows,
    Window,
    blocks,
    composite,
    prefix,
    prefix_ends,
)

LENGTHS = [0.4, 1.3, 2.5, 50.0]


@pytest.fixture(autouse=True)
def same_random_numbers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def conditioned():
    """Model and guide of which every latent is at its mean."""
    return tiny_model(), TinyGuide(Still)


def elbo(window: Window) -> Tensor:
    model, guide = conditioned()
    return bo.elbo_terms(model, guide, window.trajectories, time_weights=window.weights).elbo


# ---- the same by hand: loops over numbers, closed forms -----------------------------------------
@dataclass
class Piece:
    """Some times of one row, and the time at which x0 holds."""

    row: int
    columns: list[int]
    start: float


def normal_kl(mean: Tensor, sd: Tensor, prior_sd: float) -> float:
    ratio = sd / prior_sd
    return float(((ratio**2 + (mean / prior_sd) ** 2 - 1) / 2 - ratio.log()).sum())


@torch.no_grad()
def by_hand(data: bo.Trajectories, piece: Piece, columns: list[int]) -> tuple[Tensor, float]:
    """Log likelihood of each column of a piece, (columns,), and the KL of its x0."""
    guide = TinyGuide()
    x0 = guide.weight @ data.values[piece.row, piece.columns[0]]
    kl, found = normal_kl(x0, guide.log_scale_x0.exp(), 2.0), []
    for k in columns:
        t, s = data.grid[piece.row, k], piece.start
        path = x0 + guide.location * (t - s) + (t**2 - s**2) / 40
        score = dist.Normal(path, NOISE).log_prob(data.values[piece.row, k])
        found.append(score[data.mask[piece.row, k]].sum())
    return torch.stack(found), kl


def global_kl() -> float:
    guide = TinyGuide()
    return normal_kl(guide.location.detach(), guide.log_scale.exp().detach(), 1.0)


def seen_columns(data: bo.Trajectories, row: int) -> list[int]:
    return [k for k in range(data.grid.shape[1]) if data.mask[row, k].any()]


def cut_by_hand(data: bo.Trajectories, length: float, offset: Tensor) -> list[Piece]:
    pieces = []
    for row in range(data.num_series):
        groups: dict[int, list[int]] = {}
        for k in seen_columns(data, row):
            elapsed = (data.grid[row, k] - data.start[row]).item()
            groups.setdefault(math.floor((elapsed - offset[row].item()) / length), []).append(k)
        pieces += [Piece(row, c, data.grid[row, c[0]].item()) for c in groups.values()]
    return pieces


# ---- prefix: the ELBO of whole series, in expectation -------------------------------------------
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["ragged", "plain", "minibatch"])
def test_the_mean_over_all_ends_of_a_prefix_is_the_whole_elbo(kind: str, length: float):
    data = plain_data() if kind == "plain" else ragged_data()
    data = data.batch([2, 0]) if kind == "minibatch" else data
    ends = prefix_ends(data, length)
    mean = torch.stack([elbo(prefix(data, length, end=end)) for end in ends.tolist()]).mean()
    torch.testing.assert_close(mean, elbo(Window(data)), rtol=1e-10, atol=0.0)
    assert len(ends) > 1 or length >= 2.5


def test_a_prefix_without_its_weights_is_biased():
    data = ragged_data()
    ends = prefix_ends(data, 0.4).tolist()
    plain = [elbo(replace(prefix(data, 0.4, end=end), weights=None)) for end in ends]
    assert (torch.stack(plain).mean() - elbo(Window(data))).abs() > 10


def test_prefixes_are_as_likely_as_their_weights_say():
    """False-alarm rate of a chi-squared statistic above 5 sds: about 1e-5."""
    data, length, num_draws = plain_data(), 0.4, 400
    ends = prefix_ends(data, length)
    drawn = [prefix(data, length).trajectories.times.shape[-1] for _ in range(num_draws)]
    sizes = [prefix(data, length, end=end).trajectories.times.shape[-1] for end in ends.tolist()]
    expected = num_draws / len(ends)
    statistic = sum((drawn.count(size) - expected) ** 2 / expected for size in sizes)
    assert statistic < len(ends) - 1 + 5 * math.sqrt(2 * (len(ends) - 1))


def test_a_prefix_keeps_labels_starts_and_scale():
    data = ragged_data().batch([3, 1])
    window = prefix(data, 0.4)
    assert window.trajectories.series == data.series
    assert torch.equal(window.trajectories.start, data.start)
    assert (window.trajectories.num_total, window.trajectories.num_series) == (4, 2)
    assert window.weights.shape == window.trajectories.grid.shape
    assert window.weights.isfinite().all()


def test_a_prefix_longer_than_the_data_is_the_data():
    data = ragged_data()
    window = prefix(data, 50.0)
    assert torch.equal(window.trajectories.mask, data.mask[:, : window.trajectories.mask.shape[1]])
    seen = window.trajectories.mask.any(-1)
    assert (window.weights[seen] == 1).all()


# ---- blocks: the exact ELBO of the model of windows ---------------------------------------------
OFFSETS = [0.0, 0.2, 0.7, 1.1]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_blocks_give_the_elbo_of_the_model_of_windows_for_every_offset(
    length: float, offset: float
):
    data = ragged_data()
    offsets = torch.tensor([0.0, 0.3, -0.2, 0.1], dtype=DOUBLE) + offset
    expected = -global_kl()
    for piece in cut_by_hand(data, length, offsets):
        scores, kl = by_hand(data, piece, piece.columns)
        expected += float(scores.sum()) - kl
    found = elbo(blocks(data, length, offset=offsets))
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_every_observation_is_in_one_block():
    data = ragged_data()
    for _ in range(20):
        window = blocks(data, 1.0).trajectories
        assert window.num_observed == data.num_observed
        assert torch.equal(
            window.values[window.mask].sort().values, data.values[data.mask].sort().values
        )


def broken_starts(window: Window, data: bo.Trajectories) -> bo.Trajectories:
    """Trap 38: t is not reset, x0 is taken for the state at the start of the series."""
    rows = [data.series.index(label.split("'")[1]) for label in window.trajectories.series]
    cut = window.trajectories
    return bo.Trajectories(
        cut.times,
        cut.values,
        mask=cut.mask,
        start=data.start[rows],
        series=cut.series,
        num_times=cut.num_times,
    )


def rescaled(window: Window, num_total: float) -> bo.Trajectories:
    return window.trajectories.batch(range(window.trajectories.num_series))._set(
        num_total=num_total
    )


@pytest.mark.parametrize("broken", ["starts", "a KL per series", "scale by times", "by batches"])
def test_published_mistakes_give_other_numbers(broken: str):
    """Traps 33 and 38: minibatches of two of four series, seven times, two batches."""
    data = ragged_data()
    batch = data.batch([0, 2])
    window = blocks(batch, 1.0, offset=0.3)
    right, count = elbo(window), window.trajectories.num_series
    wrong = {
        "starts": lambda: broken_starts(window, data)._set(num_total=2 * count),
        "a KL per series": lambda: rescaled(window, data.num_series),
        "scale by times": lambda: rescaled(window, count * 7 / 4),
        "by batches": lambda: rescaled(window, count / 2),
    }[broken]()
    assert window.trajectories.num_total == 2 * count
    assert (elbo(Window(wrong)) - right).abs() > 1


@pytest.mark.parametrize("scheme", [blocks, composite])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_minibatches_of_windows_are_unbiased(scheme, size: int):
    """Trap 33: the scale is series over series of the batch, however many windows each has."""
    data = ragged_data()
    offsets = torch.tensor([0.0, 0.3, 0.2, 0.1], dtype=DOUBLE)
    batches = [list(rows) for rows in itertools.combinations(range(4), size)]
    found = [elbo(scheme(data.batch(rows), 1.0, offset=offsets[rows])) for rows in batches]
    exact = elbo(scheme(data, 1.0, offset=offsets))
    torch.testing.assert_close(torch.stack(found).mean(), exact, rtol=1e-10, atol=0.0)


def test_the_kl_of_the_weights_counts_once_and_that_of_x0_once_per_window():
    data = ragged_data()
    model, guide = conditioned()
    window = blocks(data, 1.0, offset=0.3).trajectories
    terms = bo.elbo_terms(model, guide, window)
    assert terms.kl["field.b"].item() == pytest.approx(global_kl(), rel=1e-12)
    alone = [bo.elbo_terms(model, guide, window.rows([k])) for k in range(window.num_series)]
    assert window.num_series > 2 * data.num_series
    assert terms.kl["x0"].item() == pytest.approx(sum(t.kl["x0"].item() for t in alone), rel=1e-12)


def test_windows_begin_and_end_where_something_is_observed_and_start_there():
    data = ragged_data()
    for scheme in (blocks, composite):
        window = scheme(data, 1.5).trajectories
        assert torch.equal(window.start, window.grid[:, 0])
        assert window.mask[:, 0].any(-1).all()
        last = window.num_times - 1
        assert window.mask[torch.arange(window.num_series), last].any(-1).all()
        assert len(set(window.series)) == window.num_series
        assert not set(window.series) & set(data.series)


def test_blocks_longer_than_the_data_are_the_series_from_their_first_observation():
    data = ragged_data()
    window = blocks(data, 50.0, offset=0.0).trajectories
    first = [data.grid[row, seen_columns(data, row)[0]].item() for row in range(4)]
    assert window.start.tolist() == first
    assert window.num_total == 4


def test_windows_keep_inputs_names_dtype_and_images():
    times, values = torch.arange(5.0), torch.rand(2, 5, 1, 4, 4)
    static = bo.Inputs([[1.0], [2.0]], ["weight"])
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 2] = False
    data = bo.Trajectories(times, values, mask=mask, inputs=static)
    window = composite(data, 2.0, offset=1.0).trajectories
    rows = torch.tensor([int(label[0]) for label in window.series])
    assert torch.equal(window.inputs.static, static.static[rows])
    assert window.values.dtype == torch.float32
    assert window.event_shape == (1, 4, 4)
    weighted = prefix(data, 1.0, end=prefix_ends(data, 1.0)[1].item())
    assert weighted.weights.dtype == torch.float32
    assert weighted.weights[0].tolist() == [1.0, 1.0, pytest.approx(4 / 3)]
    named = bo.Trajectories(times, values[:, :, 0, 0, :2], names=["a", "b"])
    assert blocks(named, 2.0).trajectories.names == ("a", "b")


def test_a_batch_without_an_observation_stays_as_it_is():
    values = torch.zeros(2, 3, 1, dtype=DOUBLE)
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1] = False
    batch = bo.Trajectories(torch.arange(3.0), values, mask=mask).batch([1])
    for scheme in (blocks, composite):
        assert scheme(batch, 1.0).trajectories is batch
    assert torch.equal(prefix(batch, 1.0).trajectories.mask, batch.mask)


# ---- composite: each observation once -----------------------------------------------------------
@pytest.mark.parametrize("overlap", [1, 2, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_in_a_composite_each_observation_and_each_window_counts_one_over_the_overlap(
    length: float, overlap: int
):
    data, offset = ragged_data(), torch.tensor([0.0, 0.3, 0.2, 0.1], dtype=DOUBLE)
    pieces = []
    for k in range(overlap):
        pieces += cut_by_hand(data, length, offset + k * length / overlap)
    counts = {(row, k): 0 for row in range(4) for k in seen_columns(data, row)}
    for piece in pieces:
        for k in piece.columns:
            counts[piece.row, k] += 1
    expected = -global_kl()
    for piece in pieces:
        scores, kl = by_hand(data, piece, piece.columns)
        shares = torch.tensor([1 / counts[piece.row, k] for k in piece.columns], dtype=DOUBLE)
        expected += float((scores * shares).sum()) - kl / overlap
    assert set(counts.values()) == {overlap}
    window = composite(data, length, offset=offset, overlap=overlap)
    assert elbo(window).item() == pytest.approx(expected, rel=1e-10)


def test_a_composite_is_the_mean_of_its_cuts_which_is_the_elbo_of_none():
    data = ragged_data()
    both = elbo(composite(data, 1.0, offset=0.2))
    cuts = [elbo(blocks(data, 1.0, offset=offset)) for offset in (0.2, 0.7)]
    torch.testing.assert_close(both, (cuts[0] + cuts[1]) / 2, rtol=1e-10, atol=0.0)
    assert (cuts[0] - cuts[1]).abs() > 1


# ---- weights of times ---------------------------------------------------------------------------
def test_weights_of_times_multiply_the_pointwise_log_likelihood():
    data = ragged_data()
    model, guide = conditioned()
    plain = bo.elbo_terms(model, guide, data)
    ones = torch.ones_like(data.grid)
    same = bo.elbo_terms(model, guide, data, time_weights=ones)
    torch.testing.assert_close(plain.elbo, same.elbo, rtol=1e-12, atol=0.0)
    by_time = []
    for k in range(7):
        one = torch.zeros_like(ones)
        one[:, k] = 1.0
        by_time.append(bo.elbo_terms(model, guide, data, time_weights=one).log_likelihood)
    total = torch.stack(by_time).sum()
    torch.testing.assert_close(total, plain.log_likelihood, rtol=1e-12, atol=0.0)
    with pytest.raises(bo.ShapeError, match=r"time_weights have the shape \(4, 6\)"):
        bo.elbo_terms(model, guide, data, time_weights=ones[:, 1:])


# ---- growing windows ----------------------------------------------------------------------------
def test_windows_grow_linearly_over_the_first_share_of_a_fit():
    data = plain_data()  # 2.5 long
    schedule = GrowingWindows(blocks, first=0.5, share=0.4)
    lengths = [schedule.length(fraction, data) for fraction in (0.0, 0.1, 0.2, 0.4, 1.0)]
    assert lengths == pytest.approx([0.5, 1.0, 1.5, 2.5, 2.5])
    assert schedule(0.2, data).trajectories.num_series > data.num_series
    assert schedule(0.4, data).trajectories is data  # whole and uncut from there on
    fixed = GrowingWindows(blocks, first=1.0, last=1.0)
    assert fixed.length(0.0, data) == fixed.length(0.9, data) == 1.0
    assert fixed(0.9, data).trajectories is not data
    assert fixed.config == {"scheme": "blocks", "first": 1.0, "last": 1.0, "share": 0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first": 0.0}, "first, the length"),
        ({"first": math.nan}, "first, the length"),
        ({"first": 2.0, "last": 1.0}, "windows grow"),
        ({"first": 2.0, "share": 0.0}, "share must lie"),
        ({"first": 2.0, "share": 1.5}, "share must lie"),
    ],
)
def test_schedules_that_cannot_be_are_named(settings: dict, message: str):
    with pytest.raises(bo.DataError, match=message):
        GrowingWindows(blocks, **settings)


def test_windows_that_cannot_be_are_named():
    data = plain_data()
    with pytest.raises(bo.DataError, match="positive length"):
        blocks(data, 0.0)
    with pytest.raises(bo.DataError, match="overlap must be at least 1"):
        composite(data, 1.0, overlap=0)
    with pytest.raises(bo.DataError, match="observed data"):
        blocks(data.at([1.0, 2.0]), 1.0)
