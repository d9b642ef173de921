"""The data: what is refused, what is kept, and which points each method picks."""

import copy
import dataclasses

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs
from bayesode.trajectories import Trajectories

NAN, INF = float("nan"), float("inf")
TIMES = [0.0, 1.0, 2.0]
VALUES = torch.arange(12.0, dtype=torch.float64).view(2, 3, 2)
SECONDS = 1.6e9  # since 1970: float32 would round to multiples of 128


def make(**changes) -> Trajectories:
    """Four series with own grids of 4, 2, 3 and 4 times, starts before them, gaps and inputs."""
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(4, 4, generator=generator, dtype=torch.float64).add(0.1).cumsum(-1)
    values = torch.randn(4, 4, 2, generator=generator, dtype=torch.float64)
    values[0, 1, 0] = values[2, 0] = NAN
    arguments = {
        "mask": torch.rand(4, 4, 2, generator=generator) > 0.2,
        "series": ["a", "b", 7, "d"],
        "names": ["prey", "predator"],
        "start": [-1.0, 0.0, -0.5, 0.05],
        "inputs": Inputs([[1.0], [2.0], [3.0], [4.0]], ["dose"]),
        "num_times": [4, 2, 3, 4],
    }
    return Trajectories(times, values, **arguments | changes)


def shared() -> Trajectories:
    """Three series that share five times."""
    values = torch.arange(30.0, dtype=torch.float64).view(3, 5, 2)
    values[1, 2, 0] = NAN
    return Trajectories(torch.arange(5.0), values, series=["u", "v", "w"], start=-1.0)


def points(data: Trajectories) -> dict:
    """{label: {time: (value or None where masked, ...)}} of the real times."""
    found = {}
    for row, label in enumerate(data.series):
        count = int(data.num_times[row])
        rows = zip(data.grid[row, :count].tolist(), range(count), strict=True)
        found[label] = {
            t: tuple(
                v if seen else None
                for v, seen in zip(
                    data.values[row, k].flatten().tolist(),
                    data.mask[row, k].flatten().tolist(),
                    strict=True,
                )
            )
            for t, k in rows
        }
    return found


def assert_same_context(data: Trajectories, original: Trajectories):
    """Start, names and inputs of each series, found by its label, are those of the original."""
    rows = [original.series.index(label) for label in data.series]
    assert data.start.tolist() == original.start[rows].tolist()
    assert data.names == original.names
    if original.inputs is None:
        assert data.inputs is None
    else:
        assert data.inputs.static.tolist() == original.inputs.static[rows].tolist()
        assert data.inputs.names == original.inputs.names
    assert data.times.dtype == data.start.dtype == torch.float64
    padding = torch.arange(data.grid.shape[1]) >= data.num_times[:, None]
    last = data.grid.gather(1, data.num_times[:, None] - 1).expand_as(data.grid)
    assert torch.equal(data.grid[padding], last[padding])
    if data.mask is not None:
        assert not data.mask[padding].any()


# ---- what is kept --------------------------------------------------------------------------------
def test_missing_values_are_folded_into_the_mask_and_hidden_values_stay():
    values = VALUES.clone()
    values[0, 1, 0] = NAN
    mask = torch.ones(2, 3, 2).bool()
    mask[1, 2] = False
    data = Trajectories(TIMES, values, mask=mask)
    expected = mask.clone()
    expected[0, 1, 0] = False
    assert torch.equal(data.mask, expected)
    assert data.num_observed == 9
    assert torch.equal(data.values[1, 2], VALUES[1, 2])


def test_a_mask_per_time_covers_all_components():
    mask = torch.tensor([[True, False, True], [False, True, True]])
    for values in (VALUES, torch.rand(2, 3, 4, 5)):
        data = Trajectories(TIMES, values, mask=mask)
        assert torch.equal(data.mask, mask.view(2, 3, *[1] * (values.dim() - 2)).expand_as(values))
        assert torch.equal(Trajectories(TIMES, values, mask=mask.tolist()).mask, data.mask)


def test_infinity_is_refused_only_where_it_counts_as_observed():
    values = VALUES.clone()
    values[1, 2] = INF
    masked = Trajectories(TIMES, values, mask=torch.isfinite(values))
    padded = Trajectories(TIMES, values, num_times=[3, 2])
    assert masked.num_observed == padded.num_observed == 10


def test_padding_repeats_the_last_time_and_is_masked_whatever_it_held():
    times = [[0.0, 1.0, 2.0], [0.0, 1.0, -5.0], [0.0, NAN, INF]]
    data = Trajectories(times, torch.zeros(3, 3, 1), num_times=[3, 2, 1])
    assert data.times.tolist() == [[0.0, 1.0, 2.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    assert data.mask[..., 0].tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    ragged = Trajectories([0.0, 1.0, 2.0], torch.zeros(2, 3, 1), num_times=[2, 3])
    assert ragged.times.tolist() == [[0.0, 1.0, 1.0], [0.0, 1.0, 2.0]]
    short = Trajectories([0.0, 1.0, 2.0], torch.zeros(2, 3, 1), num_times=2)
    assert short.num_times.tolist() == [2, 2] and short.num_observed == 4


def test_wrong_times_among_the_real_ones_are_found_in_padded_series():
    with pytest.raises(DataError, match="series 'b' are not sorted"):
        Trajectories(
            [[0.0, 1.0, 2.0], [1.0, 0.0, 9.0]],
            VALUES,
            num_times=[3, 2],
            series=["a", "b"],
        )


def test_defaults_are_numbered_labels_and_names_and_each_series_first_time():
    data = Trajectories([[1.0, 2.0], [3.0, 4.0]], torch.zeros(2, 2, 3))
    assert data.series == (0, 1) and data.names == ("x1", "x2", "x3")
    assert data.start.tolist() == [1.0, 3.0]
    assert data.num_times.tolist() == [2, 2] and data.num_total == 2
    assert Trajectories(TIMES, None).series == (0,)
    assert Trajectories(TIMES, None, start=[0.0, -1.0]).num_series == 2
    assert Trajectories([TIMES] * 4, None).num_series == 4


def test_labels_become_plain_numbers_and_strings():
    for labels in (np.array([3, 4]), torch.tensor([3, 4]), [np.int64(3), np.int64(4)], range(3, 5)):
        data = Trajectories(TIMES, VALUES, series=labels)
        assert data.series == (3, 4) and all(type(label) is int for label in data.series)
    data = Trajectories(TIMES, VALUES, series=np.array(["a", "b"]), names=np.array(["p", "q"]))
    assert data.series == ("a", "b") and data.names == ("p", "q")
    assert all(type(label) is str for label in (*data.series, *data.names))


def test_times_since_1970_keep_their_differences_below_a_second():
    exact = [SECONDS, SECONDS + 0.001, SECONDS + 0.5]
    for times in (exact, tuple(exact), np.array(exact), torch.tensor(exact, dtype=torch.float64)):
        for start in (SECONDS - 0.25, [SECONDS - 0.25] * 2, np.array(SECONDS - 0.25)):
            data = Trajectories(times, VALUES, start=start)
            assert data.times.tolist() == exact
            assert data.start.tolist() == [SECONDS - 0.25] * 2
    asked = data.at([SECONDS + 0.003])
    assert asked.times.tolist() == [SECONDS + 0.003] and asked.start.equal(data.start)
    first, second = data.split(time=SECONDS + 0.001)
    assert first.times.tolist() == exact[:2] and second.times.tolist() == exact[2:]
    assert data.until(0.26).times.tolist() == exact[:2]
    with pytest.raises(DataError, match=r"1600000000\.001, before its start 1600000000\.0015"):
        Trajectories([SECONDS + 0.001], torch.ones(1, 1, 1), start=SECONDS + 0.0015)


def test_whole_times_become_float64():
    for times in ([0, 1, 2], np.array([0, 1, 2]), torch.tensor([0, 1, 2], dtype=torch.float32)):
        data = Trajectories(times, VALUES)
        assert data.times.dtype == torch.float64 and data.times.tolist() == TIMES


def test_the_object_never_changes():
    array, times, mask = VALUES.clone(), torch.tensor(TIMES), torch.ones(2, 3, 2).bool()
    start, static = torch.zeros(2, dtype=torch.float64), torch.ones(2, 1)
    count = torch.tensor([3, 3])
    arguments = {"mask": mask, "start": start, "num_times": count, "inputs": Inputs(static)}
    data = Trajectories(times, array, **arguments)
    times64 = torch.tensor(TIMES, dtype=torch.float64)
    from_float64 = Trajectories(times64, array.numpy())
    for mine in (array, times, mask, start, static, count, times64):
        mine.zero_()
    assert torch.equal(data.values, VALUES) and data.times.tolist() == TIMES
    assert data.mask.all() and data.inputs.static.all() and data.num_times.tolist() == [3, 3]
    assert from_float64.times.tolist() == TIMES and torch.equal(from_float64.values, VALUES)
    start.fill_(-1.0)
    assert data.start.tolist() == [0.0, 0.0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.values = array


def test_data_hold_no_gradient():
    data = Trajectories(TIMES, VALUES.clone().requires_grad_())
    assert not data.values.requires_grad
    assert torch.equal(copy.deepcopy(data).values, VALUES)


def test_methods_leave_the_original_as_it_was():
    data = make()
    before = copy.deepcopy(data)
    every = [data.at([9.0]), data.at(make()), data.rows([1]), data.batch([2, 0]), data.until(1.0)]
    every += [*data.split(time=1.3), *data.split(series=0.5), data.to(dtype=torch.float32)]
    every += [data.to_xarray(), data.plate(), data.positions(["b"]), repr(data), data.grid]
    for name in ("times", "start", "num_times", "mask", "index"):
        assert torch.equal(getattr(data, name), getattr(before, name)), name
    assert torch.equal(data.values.nan_to_num(9.0), before.values.nan_to_num(9.0))
    assert (data.series, data.names, data.num_total) == (before.series, before.names, 4)


def test_a_short_description_counts_series_times_and_observed_numbers():
    assert repr(shared()) == (
        "Trajectories(3 series x 5 times in [0, 4], 29 observed numbers, names=['x1', 'x2'])"
    )
    assert "question" in repr(shared().at([1.0]))


# ---- other times ---------------------------------------------------------------------------------
def test_a_question_keeps_series_starts_names_and_inputs():
    for data in (make(), shared()):
        asked = data.at([5.0, 6.0])
        assert asked.values is None and asked.mask is None
        assert asked.series == data.series and asked.times.tolist() == [5.0, 6.0]
        assert_same_context(asked, data)
        assert asked.event_shape == data.event_shape and asked.num_observed == 0


def test_a_question_may_have_own_times_with_padding():
    asked = shared().at([[1.0, 2.0], [3.0, NAN], [0.0, 9.0]], num_times=[2, 1, 2])
    assert asked.grid.tolist() == [[1.0, 2.0], [3.0, 3.0], [0.0, 9.0]]
    assert asked.num_times.tolist() == [2, 1, 2]


def test_a_question_at_other_trajectories_takes_their_times_and_series_and_own_starts():
    data, other = make(), make().rows([3, 1]).until(1.0)
    asked = data.at(other)
    assert asked.series == ("d", "b")
    assert torch.equal(asked.times, other.times) and torch.equal(asked.num_times, other.num_times)
    assert_same_context(asked, data)
    later = Trajectories([7.0], None, series=["b"], start=6.0)
    assert data.at(later).start.tolist() == [0.0]
    with pytest.raises(DataError, match="unknown series 'z'; the known ones are 'a', 'b', 7, 'd'"):
        data.at(Trajectories([7.0], None, series=["z"]))


def test_a_question_of_a_batch_stays_a_batch():
    asked = shared().batch([2, 0]).at([3.0])
    assert asked.index.tolist() == [2, 0] and asked.num_total == 3


def test_until_keeps_what_is_within_the_duration_after_each_start():
    data = make()
    for duration in (0.9, 1.4, 2.0, 50.0):
        kept = data.until(duration)
        assert kept.series == data.series
        assert_same_context(kept, data)
        for label, row in points(data).items():
            start = data.start[data.series.index(label)].item()
            early = {t: v for t, v in row.items() if t <= start + duration}
            if early:
                assert points(kept)[label] == early
            else:  # one point is left and masked
                assert list(points(kept)[label].values()) == [(None, None)]
    assert data.until(0.9).num_observed < data.until(1.4).num_observed < data.num_observed
    assert shared().until(2.0).times.tolist() == [0.0, 1.0]  # counted from start -1
    with pytest.raises(DataError, match=r"until\(0.5\) leaves no point"):
        shared().until(0.5)
    for wrong in (NAN, "long", None, [1.0, 2.0]):
        with pytest.raises(DataError, match="duration must be"):
            shared().until(wrong)


def test_until_of_a_batch_stays_a_batch():
    kept = make().batch([3, 0]).until(2.0)
    assert kept.index.tolist() == [3, 0] and kept.num_total == 4


@pytest.mark.parametrize("time", [0.5, 0.85, 1.2, 1.6])
def test_split_by_time_parts_the_points_and_keeps_the_starts(time):
    data = make()
    own = points(data)
    if all(any(t <= time for t in row) for row in own.values()):
        first, second = data.split(time=time)
    else:
        with pytest.warns(UserWarning, match="are not in the first part"):
            first, second = data.split(time=time)
    for part, is_first in ((first, True), (second, False)):
        expected = {
            label: {t: v for t, v in row.items() if (t <= time) == is_first}
            for label, row in own.items()
        }
        assert points(part) == {label: row for label, row in expected.items() if row}
        assert_same_context(part, data)
        assert part.index.tolist() == list(range(part.num_series))
        assert part.num_total == part.num_series


def test_split_by_time_names_the_series_that_the_first_part_lacks():
    data = Trajectories([[0.0, 3.0], [2.0, 3.0]], torch.ones(2, 2, 1), series=["early", "late"])
    with pytest.warns(UserWarning, match=r"up to 1.0 are not in the first part: \['late'\]"):
        first, second = data.split(time=1)
    assert first.series == ("early",) and second.series == ("early", "late")
    assert second.start.tolist() == [0.0, 2.0]


def test_split_by_time_includes_the_time_itself_and_shared_times_stay_shared():
    first, second = shared().split(time=2)
    assert first.times.tolist() == [0.0, 1.0, 2.0] and second.times.tolist() == [3.0, 4.0]
    assert torch.equal(first.values.nan_to_num(-1.0), shared().values[:, :3].nan_to_num(-1.0))
    assert torch.equal(second.values, shared().values[:, 3:])
    assert second.start.tolist() == [-1.0] * 3
    asked = first.at(second.times)
    assert asked.start.tolist() == [-1.0] * 3 and asked.times.tolist() == [3.0, 4.0]


def test_split_of_padded_series_does_not_count_padding():
    data = Trajectories([[0.0, 1.0, 1.0], [0.0, 1.0, 2.0]], torch.ones(2, 3, 1), num_times=[2, 3])
    first, second = data.split(time=1.0)
    assert first.num_times.tolist() == [2, 2] and first.num_observed == 4
    assert second.series == (1,) and second.num_observed == 1


def test_hidden_values_are_split_with_the_rest():
    mask = torch.ones(3, 5).bool()
    mask[:, 3:] = False
    data = Trajectories(torch.arange(5.0), shared().values, mask=mask)
    second = data.split(time=2.0)[1]
    assert second.num_observed == 0 and torch.equal(second.values, shared().values[:, 3:])


def test_a_question_refuses_a_mask_and_what_its_data_refuse():
    with pytest.raises(DataError, match="leave mask= out"):
        Trajectories(TIMES, None, mask=torch.ones(1, 3).bool())
    with pytest.raises(DataError, match="names must be unique"):
        Trajectories(TIMES, None, names=["a", "a"])
    with pytest.raises(DataError, match="before its start"):
        make().at([-0.75, 1.0])


# ---- other rows ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "index",
    [[2, 0], torch.tensor([2, 0]), np.array([2, 0]), (2, 0), [-2, 0], torch.tensor([2.0, 0.0])],
    ids=str,
)
def test_rows_are_picked_in_the_order_asked(index):
    data = make()
    for chosen in (data.rows(index), data.batch(index)):
        assert chosen.series == (7, "a")
        assert points(chosen) == {label: points(data)[label] for label in (7, "a")}
        assert_same_context(chosen, data)
    assert data.rows(index).index.tolist() == [0, 1] and data.rows(index).num_total == 2
    assert data.batch(index).index.tolist() == [2, 0] and data.batch(index).num_total == 4


def test_a_mask_picks_rows():
    mask = [True, False, True, False]
    for index in (mask, np.array(mask), torch.tensor(mask)):
        assert make().rows(index).series == ("a", 7)


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        ([4], DataError, "between 0 and 3"),
        ([-5], DataError, "between 0 and 3"),
        ([0, 0], DataError, "twice"),
        ([1, -3], DataError, "twice"),
        ([0.5], DataError, "whole numbers"),
        ("a", DataError, "real numbers"),
        ([True], DataError, "real numbers"),
        (slice(2), DataError, "real numbers"),
        ([], ShapeError, "an entry"),
        (0, ShapeError, r"\(series,\)"),
        ([[0]], ShapeError, r"\(series,\)"),
    ],
    ids=str,
)
def test_rows_that_are_not_there_are_refused(index, error, words):
    for method in (make().rows, make().batch):
        with pytest.raises(error, match=words):
            method(index)


def test_a_batch_of_a_batch_knows_its_rows_in_all_the_data():
    batch = make().batch([3, 1, 0]).batch([2, 0])
    assert batch.series == ("a", "d") and batch.index.tolist() == [0, 3] and batch.num_total == 4


def test_the_plate_of_a_batch_has_its_rows_and_scales_by_all_over_batch():
    def model(data):
        with data.plate() as rows:
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([data.num_series]))
        return rows

    data = make()
    for chosen, scale in ((data, 1.0), (data.batch([3, 1, 0]), 4 / 3), (data.rows([3]), 1.0)):
        trace = pyro.poutine.trace(model).get_trace(chosen)
        site = trace.nodes["x"]
        assert float(site["scale"]) == pytest.approx(scale, rel=1e-15)
        assert trace.nodes["_RETURN"]["value"].tolist() == chosen.index.tolist()
        (frame,) = site["cond_indep_stack"]
        assert (frame.name, frame.dim, frame.size) == ("trajectories", -1, chosen.num_series)
    assert data.plate().size == data.batch([2]).plate().size == 4


def test_positions_follow_the_labels():
    data = make()
    assert data.positions(["d", 7]).tolist() == [3, 2]
    assert data.positions("b").tolist() == [1] and data.positions(np.array([7])).tolist() == [2]
    assert data.positions([]).dtype == torch.int64
    for unknown in (["z"], "z", [["a"]], [None]):
        with pytest.raises(DataError, match=r"unknown series .*; the known ones are 'a', 'b'"):
            data.positions(unknown)
    many = Trajectories([0.0], None, series=list(range(20)))
    with pytest.raises(DataError, match=r"known ones are 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\."):
        many.positions([20])


def test_split_by_labels_puts_them_in_the_second_part():
    data = make()
    for labels in (["d", "b"], ("b", "d"), np.array(["b", "d"])):
        first, second = data.split(series=labels)
        assert first.series == ("a", 7) and second.series == ("b", "d")
        for part in (first, second):
            assert points(part) == {label: points(data)[label] for label in part.series}
            assert_same_context(part, data)
            assert part.num_total == 2 and part.index.tolist() == [0, 1]
    assert data.split(series=7)[1].series == (7,) and data.split(series="a")[1].series == ("a",)


def test_split_by_a_fraction_is_decided_by_the_seed():
    data = Trajectories([0.0], None, series=list(range(10)))
    for fraction, size in ((0.3, 3), (0.01, 1), (0.99, 9), (0.5, 5)):
        first, second = data.split(series=fraction, seed=3)
        assert second.num_series == size
        assert sorted(first.series + second.series) == list(range(10))
    parts = {seed: data.split(series=0.3, seed=seed)[1].series for seed in range(20)}
    assert parts[3] == data.split(series=0.3, seed=3)[1].series
    assert len(set(parts.values())) > 10
    state = torch.random.get_rng_state()
    data.split(series=0.3)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either time= or series="),
        ({"time": 1.0, "series": ["a"]}, "either time= or series="),
        ({"time": 100.0}, "leaves one part without a point"),
        ({"time": -100.0}, "leaves one part without a point"),
        ({"time": NAN}, "time must be one number"),
        ({"time": "noon"}, "time must be real numbers"),
        ({"time": [1.0, 2.0]}, "time must be one number"),
        ({"series": ["z"]}, "unknown series 'z'"),
        ({"series": []}, "leaves one part without a series"),
        ({"series": ["a", "b", 7, "d"]}, "leaves one part without a series"),
        ({"series": 0.0}, "between 0 and 1"),
        ({"series": 1.0}, "between 0 and 1"),
        ({"series": NAN}, "between 0 and 1"),
    ],
    ids=str,
)
def test_splits_that_cannot_be_made_are_refused(arguments, words):
    with pytest.raises(DataError, match=words):
        make().split(**arguments)


def test_one_series_cannot_be_split_by_series():
    with pytest.raises(DataError, match="leaves one part without a series"):
        make().rows([0]).split(series=0.5)


def test_values_change_their_dtype_and_times_stay_float64():
    data = make()
    single = data.to(dtype=torch.float32)
    assert single.values.dtype == single.inputs.static.dtype == torch.float32
    assert single.times.dtype == single.start.dtype == torch.float64
    assert single.mask.dtype == torch.bool and single.num_times.dtype == torch.int64
    assert torch.equal(single.values.nan_to_num(9.0), data.values.float().nan_to_num(9.0))
    assert_same_context(single, data)
    assert data.to("cpu").values.dtype == torch.float64
    assert data.batch([1]).to(dtype=torch.float32).num_total == 4
    for wrong in ({"device": torch.float64}, {"dtype": torch.int64}):
        with pytest.raises(DataError, match="floating"):
            data.to(**wrong)
