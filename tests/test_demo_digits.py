"""The demo of rotating digits: what it leaves, what it says, and that it reads one frame."""

import contextlib
import io
import json
import re

import pytest
import torch

import bayesode as bo
from bayesode.cli import main
from bayesode.demos import rotating_digits as demo
from benchmarks.rotating_mnist_baselines import baseline_records

METHODS = {"ODE-VAE", "its start", "a single draw", "mean of an angle", "nearest digit"}
COLUMNS = {"hidden_frame", "first_turn", "second_turn"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("demo"), io.StringIO()
    state = torch.get_rng_state()
    with contextlib.redirect_stdout(said):
        assert main(["demo", "rotating-digits", "--quick", "--seed", "2", "--out", str(out)]) == 0
    assert torch.equal(state, torch.get_rng_state())
    return out, said.getvalue()


@pytest.fixture(scope="module")
def scores(run):
    return json.loads((run[0] / "scores.json").read_text())


@pytest.fixture(scope="module")
def frames():
    return bo.datasets.rotating_digits(num_series=24, num_validation=4, num_test=6, seed=2)


def test_demo_leaves_its_files(run):
    folder, _ = run
    names = {path.name for path in folder.iterdir()}
    assert names == {"scores.json", "frames.png", "latent.png", "posterior.nc", "run"}
    assert all((folder / f"{name}.png").stat().st_size > 10_000 for name in ("frames", "latent"))


def test_scores_have_the_documented_keys(scores):
    assert set(scores["errors"]) == METHODS
    assert all(set(row) == COLUMNS for row in scores["errors"].values())
    assert scores["quick"] and scores["seed"] == 2 and scores["latent_dimensions"] == 8
    assert scores["nats_per_frame"] == pytest.approx(scores["elbo"] / (24 * 12), rel=1e-6)
    assert scores["spread_ratio"] > 0 and abs(scores["rank_correlation"]) <= 1


def test_baselines_are_those_of_the_benchmark(scores, frames):
    known = {record["method"]: record for record in baseline_records(frames)}
    for name, other in (
        ("mean of an angle", known["angle mean of visible"]),
        ("nearest digit", known["nearest digit"]),
    ):
        own = scores["errors"][name]
        assert own["hidden_frame"] == pytest.approx(other["mse_hidden"], rel=1e-5)
        assert own["second_turn"] == pytest.approx(other["mse_second_turn"], rel=1e-5)


def test_saved_run_gives_the_errors_again_from_the_first_frames_alone(run, scores, frames):
    posterior, test = bo.load(run[0] / "run"), frames.test
    noise = torch.rand(test.values[:, 1:].shape)
    other = bo.Trajectories(test.times, torch.cat([test.values[:, :1], noise], 1))
    ensemble = demo._second_turn(posterior, other, demo.QUICK, seed=2)
    found = demo._errors({"ODE-VAE": ensemble}, frames)
    for name in ("ODE-VAE", "a single draw"):
        assert found[name] == pytest.approx(scores["errors"][name], rel=1e-5)


def test_demo_says_plainly_whether_the_predictions_are_any_good(run, scores):
    own, nearest = (scores["errors"][name] for name in ("ODE-VAE", "nearest digit"))
    wins = sum(own[name] < nearest[name] for name in ("hidden_frame", "second_turn"))
    said = " ".join(run[1].split())
    assert len(re.findall("ODE-VAE beats the nearest", said)) == wins
    assert len(re.findall("ODE-VAE does NOT beat the nearest", said)) == 2 - wins
    for words in ("Active dimensions of x0", "per frame", "linear map", "at frames only", *METHODS):
        assert words in said


def test_arviz_file_has_states_and_weights_and_no_pixels(run):
    arviz = pytest.importorskip("arviz")
    data = arviz.from_netcdf(run[0] / "posterior.nc")
    posterior = data["posterior"]
    assert {"x0", "path", "field.linear.weights"} <= set(posterior.data_vars)
    assert posterior["path"].shape == (1, demo.QUICK.num_draws, demo.NUM_KEPT, 16, 8)
    assert (run[0] / "posterior.nc").stat().st_size < 1_000_000


def test_shown_digits_are_the_best_the_median_and_the_worst(run, frames):
    test = frames.test
    ensemble = demo._second_turn(bo.load(run[0] / "run"), test, demo.QUICK, seed=2)
    error = (ensemble.mean[:, :16] - test.values).square().mean((1, 2, 3, 4))
    shown = demo._shown(ensemble, test)
    order = [test.series.index(int(name.split()[-1])) for name in shown.series]
    assert order[0] == error.argmin() and order[2] == error.argmax()
    assert sum(error < error[order[1]]) == 3
    torch.testing.assert_close(shown.values, test.values[order])
