"""The baselines of the benchmark on rotating MNIST: by hand, and on the real images."""

import math
import os
from pathlib import Path

import pytest
import torch

import bayesode as bo
from benchmarks import rotating_mnist_baselines as module
from benchmarks.rotating_mnist_baselines import BASELINES, Predictions, baseline_records, errors

SHARED = Path(
    os.environ.get("BAYESODE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
HIDDEN = module.HIDDEN_FRAME


@pytest.fixture(scope="module")
def frames():
    """Random frames of one pixel by two, float64: 5 training sequences, 3 test sequences."""
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.rand(n, 8, 1, 1, 2, generator=generator).double() for n in (5, 3))
    mask = torch.rand(5, 8, generator=generator) > 0.3
    mask[:, HIDDEN], mask[:, 0] = False, True
    steps = torch.arange(8)
    return bo.datasets.RotatingFrames(
        bo.Trajectories(steps, train, mask=mask),
        bo.Trajectories(steps, test),
        bo.Trajectories(steps, test, series=["a", "b", "c"]),
    )


def other_hidden(frames):
    """The same with other numbers in the hidden frames."""
    train = frames.train
    values = torch.where(train.mask, train.values, 0.5)
    return frames._replace(train=bo.Trajectories(train.times, values, mask=train.mask))


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_read_hidden_frames_only_where_they_say_so(frames, name):
    before = BASELINES[name].predict(frames).test
    after = BASELINES[name].predict(other_hidden(frames)).test
    is_same = torch.equal(before, after)
    # A blend reads the sequence that is asked about, which is no training sequence here.
    assert is_same == (not BASELINES[name].reads_hidden or name == "neighbour blend")


def test_means_are_those_of_the_visible_frames(frames):
    train, mask = frames.train.values, frames.train.mask[:, :, 0, 0, 0]
    everything = torch.stack([train[i, k] for i in range(5) for k in range(8) if mask[i, k]])
    predicted = module.global_mean(frames)
    torch.testing.assert_close(predicted.test[2, 5], everything.mean(0))
    assert predicted.training_digits.shape == train.shape
    means = [train[mask[:, k], k].mean(0) for k in range(8)]
    means[HIDDEN] = (means[HIDDEN - 1] + means[HIDDEN + 1]) / 2
    torch.testing.assert_close(module.visible_angle_mean(frames).test[1], torch.stack(means))
    torch.testing.assert_close(module.angle_mean(frames).test[1], train.mean(0))


def test_nearest_digit_is_another_one(frames):
    values = frames.train.values
    first = values[:, 0].flatten(1)
    found = module.nearest_digit(frames)
    for row in range(5):
        distance = (first - first[row]).square().sum(1)
        distance[row] = math.inf
        assert torch.equal(found.training_digits[row], values[distance.argmin()])
    itself = module.nearest_digit(frames._replace(test=frames.train))
    assert torch.equal(itself.test, values)


def test_a_blend_is_the_mean_of_the_frames_beside(frames):
    blend, test = module.neighbour_blend(frames).test, frames.test.values
    torch.testing.assert_close(blend[:, HIDDEN], (test[:, HIDDEN - 1] + test[:, HIDDEN + 1]) / 2)
    torch.testing.assert_close(blend[:, 7], (test[:, 6] + test[:, 0]) / 2)  # round the circle


def test_errors_are_zero_for_the_truth_and_each_sees_its_own_frames(frames):
    test, train = frames.test.values.repeat(1, 2, 1, 1, 1), frames.train.values
    assert set(errors(Predictions(test, train), frames).values()) == {0.0}

    def shifted(frame):
        wrong = test.clone()
        wrong[:, frame] += 0.5
        return {k: v for k, v in errors(Predictions(wrong, train), frames).items() if v}

    one, eighth = pytest.approx(0.25), pytest.approx(0.25 / 8)
    hidden = {"mse_hidden": one, "mse_hidden_single_draw": one, "mse_all": eighth}
    assert shifted(HIDDEN) == hidden
    assert shifted(1) == {"mse_all": eighth}
    assert shifted(8 + HIDDEN) == {"mse_second_turn": eighth}
    own = errors(Predictions(test, train + 0.5), frames)
    assert {k for k, v in own.items() if v} == {"mse_hidden_training_digits"}
    draws = torch.stack([test + 0.1, test - 0.1])
    of_draws = errors(Predictions(draws.mean(0), train), frames, draws)
    assert of_draws["mse_hidden_single_draw"] == pytest.approx(0.01)
    assert of_draws["mse_hidden"] == pytest.approx(0, abs=1e-12)


def test_records_are_flat_and_a_failure_is_told(frames, monkeypatch):
    monkeypatch.setitem(BASELINES, "none", module.Baseline(lambda frames: 1 / 0, False))
    records = {record["method"]: record for record in baseline_records(frames, seed=7)}
    assert records["none"]["error"].startswith("ZeroDivisionError")
    assert math.isnan(records["none"]["mse_all"])
    record = records["angle mean"]
    assert record["seed"] == 7 and record["likelihood"] is None and record["error"] is None
    assert record["mse_second_turn"] == record["mse_all"] and math.isnan(record["coverage_90"])
    for published in module.published_records():
        assert math.isnan(published["mse_hidden"]) and published["source"]
        assert published.keys() >= record.keys() - {"reads_hidden"}


@pytest.mark.skipif(
    not (SHARED / "MNIST" / "raw").is_dir(),
    reason=f"no MNIST in {SHARED}; set BAYESODE_DATA to the folder that has MNIST/raw",
)
def test_real_threes_have_the_known_errors():
    """Numbers of another implementation, whose frames scipy turned, with nothing hidden."""
    frames = bo.datasets.rotating_mnist(SHARED, hidden_frame=None, num_hidden=0)
    records = {record["method"]: record for record in baseline_records(frames)}
    known = {
        ("global mean", "mse_hidden"): 0.0774,
        ("global mean", "mse_all"): 0.0685,
        ("angle mean", "mse_all"): 0.0500,
        ("nearest digit", "mse_hidden"): 0.0440,
        ("nearest digit", "mse_all"): 0.0351,
        ("neighbour blend", "mse_hidden"): 0.0471,
    }
    for (method, name), value in known.items():
        assert records[method][name] == pytest.approx(value, abs=1e-4), (method, name)
