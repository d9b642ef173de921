"""The benchmark on motion capture without models: scores by hand, baselines, the real walks."""

import json
import math
import os
from pathlib import Path

import pytest
import scipy.stats
import torch

import bayesode as bo
from bayesode.errors import ShapeError
from benchmarks import motion_capture_baselines as module
from benchmarks import motion_capture_protocol as protocol
from benchmarks import records
from benchmarks.motion_capture_baselines import BASELINES, baseline_records

SHARED = Path(
    os.environ.get("BAYESODE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
needs_walks = pytest.mark.skipif(
    not all((SHARED / "mocap" / f"mocap35.{file}").is_file() for file in ("npz", "mat")),
    reason=f"no mocap in {SHARED}; set BAYESODE_DATA to the folder that has mocap/mocap35.npz",
)
NUM_FRAMES = 220


@pytest.fixture(scope="module")
def data():
    """Sums of two waves of a common cycle of 105 to 120 frames, float64, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(2, 50, generator=generator).double()

    def part(name, num):
        speed = 2 * math.pi / torch.linspace(105, 120, num).double()[:, None, None]
        shift = 6 * torch.rand(num, 1, 1, generator=generator).double()
        phase = speed * torch.arange(NUM_FRAMES)[:, None] + shift
        values = phase.cos() * shape[0] + (2 * phase).sin() * shape[1]
        values += 0.01 * torch.randn(values.shape, generator=generator).double()
        return bo.Trajectories(
            torch.arange(NUM_FRAMES) / 120, values, series=[f"{name} {k}" for k in range(num)]
        )

    return bo.datasets.MotionCapture(part("train", 10), part("validation", 3), part("test", 4))


# ---- scores --------------------------------------------------------------------------------------
def test_errors_of_draws_and_of_their_mean_are_two_numbers(data):
    truth = data.test.values
    offset = torch.tensor([1.0, -1.0, 3.0]).double()[:, None, None, None]
    numbers = protocol.scores(protocol.squared_errors(truth + offset, data.test))
    assert numbers["mse"] == pytest.approx((1 + 1 + 9) / 3)
    assert numbers["mse_mean"] == pytest.approx(1)
    low, high = scipy.stats.t.interval(0.95, 2, loc=11 / 3, scale=scipy.stats.sem([1, 1, 9]))
    assert (numbers["mse_low"], numbers["mse_high"]) == pytest.approx((low, high))
    assert numbers["mse_by_walk"] == pytest.approx([11 / 3] * 4)
    assert numbers["mse_standard_error"] == pytest.approx(0, abs=1e-10)


def test_given_frames_do_not_count_and_each_walk_and_third_sees_its_own(data):
    truth = data.test.values

    def shifted(walk, frames):
        wrong = truth.clone()
        wrong[walk, frames] += 1
        return protocol.scores(protocol.squared_errors(wrong[None], data.test))

    assert shifted(1, slice(0, 3))["mse"] == 0
    numbers = shifted(1, slice(3, None))
    assert numbers["mse"] == pytest.approx(0.25) and math.isnan(numbers["mse_low"])
    assert numbers["mse_by_walk"] == pytest.approx([0, 1, 0, 0])
    assert numbers["mse_standard_error"] == pytest.approx(scipy.stats.sem([0, 1, 0, 0]))
    assert numbers["mse_mean_standard_error"] == pytest.approx(0.25)
    last = shifted(slice(None), slice(-72, None))  # 217 frames are predicted: 73, 72, 72
    assert last["mse_by_horizon"] == pytest.approx([0, 0, 1])
    assert last["mse_mean_by_horizon"] == pytest.approx([0, 0, 1])


def test_draws_of_other_walks_are_refused(data):
    with pytest.raises(ShapeError, match=r"draws need \(draws, \*\[4, 220, 50\]\)"):
        protocol.squared_errors(data.test.values[None, :1], data.test)
    with pytest.raises(ShapeError, match="draws need"):
        protocol.squared_errors(data.test.values, data.test)


def test_bands_and_densities_leave_out_given_frames_and_constant_channels(data):
    truth = data.test.values
    low, high, log_score = truth - 1, truth + 1, torch.full_like(truth, -2.0)
    for rows in (slice(0, 3), slice(None)):
        channels = slice(None) if rows.stop else list(protocol.CONSTANT_CHANNELS)
        low[:, rows, channels], log_score[:, rows, channels] = math.inf, math.inf
    low[:, -72:, 0] = math.inf
    numbers = protocol.predictive_scores(low, high, log_score, data.test)
    assert numbers["log_score"] == -2
    assert numbers["coverage_by_horizon"] == pytest.approx([1, 1, 45 / 46])
    assert numbers["coverage_90"] == pytest.approx(1 - 72 / 217 / 46)


# ---- cross-validation ----------------------------------------------------------------------------
def test_each_walk_is_held_out_once_and_no_test_walk_is_seen(data):
    walks = protocol.development(data)
    assert walks.series == (*data.train.series, *data.validation.series)
    splits = list(protocol.folds(data))
    assert len(splits) == 5 and {out.num_series for _, out in splits} == {2, 3}
    for train, out in splits:
        assert not set(train.series) & set(out.series)
        assert sorted(train.series + out.series) == sorted(walks.series)
        assert torch.equal(out.values, walks.values[walks.positions(out.series)])
    assert sorted(x for _, out in splits for x in out.series) == sorted(walks.series)
    again, other = (next(iter(protocol.folds(data, seed=seed)))[1].series for seed in (0, 1))
    assert again == splits[0][1].series != other


def test_cross_validated_errors_stand_by_walk_whatever_the_folds(data):
    def parts():
        for _, out in protocol.folds(data):
            offset = torch.tensor([10 * (x[0] == "v") + int(x.split()[1]) for x in out.series])
            draws = out.values + offset.double().sqrt()[:, None, None]
            yield out, protocol.squared_errors(draws.expand(2, -1, -1, -1), out)

    numbers = protocol.cross_validation_scores(list(parts()), data)
    expected = [*range(10), 10, 11, 12]
    assert numbers["mse_by_walk"] == pytest.approx(expected)
    assert numbers["mse"] == pytest.approx(4.5) and numbers["mse_all_walks"] == pytest.approx(6)
    assert numbers["mse_standard_error"] == pytest.approx(scipy.stats.sem(range(10)))
    assert numbers["mse_standard_error_all_walks"] == pytest.approx(scipy.stats.sem(expected))
    with pytest.raises(ShapeError, match="held out once"):
        protocol.cross_validation_scores(list(parts())[1:], data)


# ---- baselines -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BASELINES)
def test_baselines_read_given_frames_alone_unless_they_say_so(data, name):
    values = data.test.values.clone()
    values[:, 3:] = 0.0
    blind = bo.Trajectories(data.test.times, values)
    predict = BASELINES[name].predict
    is_same = torch.equal(predict(data.train, data.test), predict(data.train, blind))
    assert is_same == (not BASELINES[name].reads_future)


def test_simple_baselines_are_what_they_are_called(data):
    train, test = data.train.values, data.test.values
    torch.testing.assert_close(
        module.train_mean(data.train, data.test)[2, 9], train.flatten(0, 1).mean(0)
    )
    assert torch.equal(module.persistence(data.train, data.test)[:, 7], test[:, 2])
    found = module.nearest_walk(data.train, data.test)
    for row in range(4):
        distance = (train[:, :3] - test[row, :3]).square().sum((1, 2))
        assert torch.equal(found[row], train[distance.argmin()])
    assert torch.equal(module.nearest_walk(data.train, data.train), train)


@pytest.mark.parametrize("num", [1, 3])
def test_aligned_walks_are_those_of_a_plain_search(data, num):
    train, test = data.train.values, data.test.values
    found = module.aligned_walks(data.train, data.test, num=num)
    for row in range(4):
        candidates = []
        for walk in train:
            endless, period = list(walk), module.cycle(walk)
            while len(endless) < 2 * NUM_FRAMES:
                endless.append(endless[-period])
            for shift in range(NUM_FRAMES - 2):
                distance = (walk[shift : shift + 3] - test[row, :3]).square().sum().item()
                candidates.append((distance, shift, torch.stack(endless[shift:][:NUM_FRAMES])))
        starts = range(0, len(candidates), NUM_FRAMES - 2)
        best = [min(candidates[k : k + NUM_FRAMES - 2], key=lambda c: c[0]) for k in starts]
        paths = [path for _, _, path in sorted(best, key=lambda c: c[0])[:num]]
        torch.testing.assert_close(found[row], torch.stack(paths).mean(0))


def test_cycles_are_found_and_alignment_needs_one(data):
    assert [module.cycle(walk) for walk in data.train.values[[0, -1]]] == [105, 120]
    short = bo.Trajectories(data.train.times[:60], data.train.values[:, :60])
    record = baseline_records(bo.datasets.MotionCapture(short, short, short), "npz", "split")[3]
    assert record["error"].startswith("DataError: a cycle takes more than 90 frames")


def test_alignment_finds_the_phase(data):
    """The walks are one motion at other phases and nearly the same speed."""
    errors = {record["method"]: record["mse"] for record in baseline_records(data, "x", "split")}
    assert errors["time-aligned nearest walk"] < errors["nearest walk"] < errors["train mean"]


def test_a_floor_is_the_least_error_of_so_many_components(data):
    """The basis is that of its own walks: nothing linear of that rank is better."""
    train = data.train.values.flatten(0, 1)
    lost = torch.linalg.svdvals(train - train.mean(0))[3:].square().sum() / train.numel()
    rest = (module.components(data.train, data.train, num=3) - data.train.values).square().mean()
    torch.testing.assert_close(rest, lost)


# ---- records -------------------------------------------------------------------------------------
def test_records_are_flat_and_a_failure_is_told(data, monkeypatch, tmp_path):
    monkeypatch.setitem(BASELINES, "none", module.Baseline(lambda train, walks: 1 / 0))
    rows = [r for p in module.PROTOCOLS for r in baseline_records(data, "npz", p)]
    rows += module.published_records()
    fields = {"system", "method", "file", "seed", "protocol", "error", *module.LISTS}
    assert all(row.keys() >= fields | set(module.NUMBERS) for row in rows)
    failed = [row for row in rows if row["method"] == "none"]
    assert len(failed) == 3 and all(math.isnan(row["mse"]) for row in failed)
    assert all(row["error"].startswith("ZeroDivisionError") for row in failed)
    assert not any(row["error"] for row in rows if row["method"] != "none")
    assert all(row["source"] for row in rows if row["system"] == "published")
    records.write(rows, tmp_path / "rows.json")  # strict JSON
    assert len(json.loads((tmp_path / "rows.json").read_text())) == len(rows)


def test_validation_walks_are_fitted_where_it_says_so(data):
    train, walks = data.train, protocol.development(data)
    by_name = {p: baseline_records(data, "npz", p)[0]["mse"] for p in ("split", "split-19")}
    for name, fitted in (("split", train), ("split-19", walks)):
        rest = data.test.values[:, 3:] - fitted.values.mean((0, 1))
        assert by_name[name] == pytest.approx(rest.square().mean().item())


@needs_walks
def test_real_walks_have_the_known_errors():
    """Numbers of another implementation."""
    rows = {
        (file, row["method"]): row
        for file in ("npz", "mat")
        for row in baseline_records(bo.datasets.motion_capture(SHARED, file=file), file, "split")
    }
    known = {
        ("npz", "train mean"): 35.16,
        ("npz", "persistence"): 61.33,
        ("mat", "train mean"): 33.67,
        ("mat", "persistence"): 61.33,
        ("mat", "nearest walk"): 23.08,
        ("mat", "PCA floor, q = 3"): 4.42,
        ("mat", "PCA floor, q = 4"): 2.09,
        ("mat", "PCA floor, q = 6"): 1.22,
    }
    for key, value in known.items():
        assert rows[key]["mse"] == pytest.approx(value, abs=0.006), key
        assert rows[key]["mse_mean"] == pytest.approx(rows[key]["mse"])


@needs_walks
def test_held_out_real_walks_have_the_documented_order():
    data = bo.datasets.motion_capture(SHARED)
    rows = {r["method"]: r for r in baseline_records(data, "npz", "cross-validation")}
    assert [len(row["mse_by_walk"]) for row in rows.values()] == [19] * len(rows)
    mean, nearest, one, eight = (rows[name]["mse"] for name in list(BASELINES)[1:5])
    assert mean > nearest > one > eight
    assert (one, eight) == pytest.approx((6.72, 3.87), abs=0.01)  # of NUM_ALIGNED's comment
