"""The benchmark of dynamics: its data, its scores, its rivals with a closed form, its file."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch.distributions import Normal

import bayesode as bo
from bayesode import scores
from bayesode.tabular import frame
from benchmarks import (
    dynamics,
    equations,
    plain,
    records,
    rivals,
    scoring,
    tables,
    tasks,
)

VARIANTS = [name for name in tasks.VARIANTS if "200" not in name]


# ---- data ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", VARIANTS)
def test_first_half_is_fitted_and_new_series_begin_with_what_is_given(variant):
    task = tasks.make_task("van_der_pol", variant, seed=5)
    grid, past = task.target.new.grid, slice(task.num_train)
    torch.testing.assert_close(task.train.grid, grid[:, past])
    assert (grid[:, past] <= 10 + 1e-9).all() and (grid[:, task.num_train :] > 10).all()
    residual = (task.train.values - task.target.truth[:, past])[task.train.mask]
    assert residual.std() / task.noise_scale[0] == pytest.approx(1, abs=5 / len(residual) ** 0.5)
    given = task.given
    assert given.grid.shape == (tasks.NUM_NEW_SERIES, tasks.NUM_GIVEN)
    torch.testing.assert_close(task.new_series.new.grid[:, : tasks.NUM_GIVEN], given.grid)
    error = (given.values - task.new_series.truth[:, : tasks.NUM_GIVEN])[given.mask]
    assert error.abs().max() < 5 * task.noise_scale[0]
    assert not set(given.series) & set(task.train.series)
    distance = torch.cdist(task.new_series.truth[:, 0], task.target.truth[:, 0])
    assert distance.min() > 1e-3  # other initial states than in the fit


def test_variants_do_what_they_say():
    usual = tasks.make_task("lotka_volterra", "default", 1)
    share = tasks.make_task("lotka_volterra", "irregular+missing", 1).train
    assert usual.train.mask.all() and usual.train.times.dim() == 1
    assert 0.6 < share.mask.double().mean() < 0.8 and share.times.dim() == 2
    assert tasks.make_task("lotka_volterra", "noise=0.3", 1).noise_scale.tolist() == [0.3, 0.3]
    assert tasks.make_task("lotka_volterra", "series=30", 1).train.num_series == 30


# ---- scores --------------------------------------------------------------------------------------
def test_oracle_has_no_error_and_scores_zero():
    task = tasks.make_task("damped_pendulum", "smoke", 3)
    noise = task.noise_scale.expand(1, -1)
    path = scoring.score_members(task.target.truth[None], noise, task.target, scoring.Size(2000))
    rates = task.data.field(task.visited)[None]
    outcome = scoring.Outcome(0.0, path, rates=rates, noise_scale=task.noise_scale)
    numbers = scoring.numbers_of(outcome, task)
    for name in ("rmse_in", "rmse_forecast", "crps_in", "log_score_forecast", "field_rmse"):
        assert numbers[name] == pytest.approx(0, abs=1e-9), name
    assert numbers["noise_ratio"] == pytest.approx(1)
    # 4 x 20 x 2 values: a standard error of .024
    assert numbers["coverage_observed_in"] == pytest.approx(0.9, abs=0.12)
    assert math.isnan(numbers["coverage_latent_in"]) and math.isnan(numbers["coverage_field"])
    assert math.isnan(numbers["rmse_new_series"]) and math.isnan(numbers["seconds_lm"])


def test_errors_and_crps_are_in_noise_scales():
    task = tasks.make_task("damped_pendulum", "smoke", 3)
    off = (task.target.truth + 3 * task.noise_scale)[None]
    noise = task.noise_scale.expand(1, -1)
    path = scoring.score_members(off, noise, task.target, scoring.Size(10))
    numbers = scoring.numbers_of(scoring.Outcome(0.0, path), task)
    assert numbers["rmse_forecast"] == pytest.approx(3) == numbers["crps_in"]
    late = off.clone()
    late[:, :, : task.num_train] = task.target.truth[:, : task.num_train]
    path = scoring.score_members(late, noise, task.target, scoring.Size(10))
    later = scoring.numbers_of(scoring.Outcome(0.0, path), task)
    assert later["rmse_in"] < 1e-9 and later["rmse_forecast"] == pytest.approx(3)
    z = (task.target.new.values - task.target.truth) / task.noise_scale
    loss = (0.5 * (z.square() - (z - 3).square()))[:, : task.num_train].mean()
    assert numbers["log_score_in"] == pytest.approx(loss.item())


def test_members_are_an_equal_mixture():
    task = tasks.make_task("damped_pendulum", "smoke", 3)
    truth, noise = task.target.truth, torch.stack([task.noise_scale, 2 * task.noise_scale])
    paths = torch.stack([truth - 0.02, truth + 0.04])
    scored = scoring.score_members(paths, noise, task.target, scoring.Size(40))
    values = task.target.new.values
    laws = [Normal(p, s).log_prob(values).exp() for p, s in zip(paths, noise, strict=True)]
    torch.testing.assert_close(scored.log_score, ((laws[0] + laws[1]) / 2).log())
    torch.testing.assert_close(scored.mean, truth + 0.01)
    torch.testing.assert_close(scored.crps, scores.crps(paths, truth))
    assert scored.covers_latent.all()  # .01 beside 1.64 x .042


def test_draws_that_are_not_finite_are_left_out():
    task = tasks.make_task("damped_pendulum", "smoke", 3)
    truth = task.target.truth
    paths = torch.stack([truth, truth.where(truth < truth.max(), torch.inf), truth])
    noise = task.noise_scale.expand(3, -1)
    scored = scoring.score_noisy(paths, noise, task.target, seed=0)
    torch.testing.assert_close(scored.mean, truth)
    assert scored.log_score.isfinite().all()


# ---- rivals --------------------------------------------------------------------------------------
def rotation(x, y, *, decay, turn):
    return -decay * x - turn * y, turn * x - decay * y


def test_solver_of_the_right_equations_is_exact_and_so_are_its_derivatives():
    known = equations.Equations(rotation, ("decay", "turn"), substep=0.02)
    constants, x0 = np.array([0.3, 1.7]), np.array([[1.0, -0.5], [0.2, 2.0]])
    times = np.array([[0.0, 0.4, 1.0], [0.1, 0.5, 1.3]])
    path, by_own = known.sensitivities(constants, x0, times)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    for row, col in np.ndindex(2, 3):
        t = times[row, col]
        flow = expm(t * (1.7 * turn - 0.3 * np.eye(2)))
        exact = flow @ x0[row]
        np.testing.assert_allclose(path[row, col], exact, rtol=1e-7)
        slope = np.column_stack([-t * exact, t * turn @ exact, flow])
        np.testing.assert_allclose(by_own[row, col], slope, rtol=1e-6, atol=1e-8)


def test_right_equations_find_constants_within_their_errors():
    # z of 4 runs x 2 constants beyond 4: once in 2,000; its noise beyond 4: once in 4,000
    for seed in range(4):
        task = tasks.make_task("damped_pendulum", "smoke", seed)
        known = equations.Equations(task.data.derivative, ("stiffness", "damping"), 0.02)
        data = equations._data(task.train)
        x0 = task.target.truth[:, 0].numpy()
        found = equations.fit(known, data, (np.array([1.6, 0.3]), x0))
        z = (found.constants - [2.0, 0.1]) / np.sqrt(np.diag(found.covariance)[:2])
        assert np.abs(z).max() < 4
        spread = 1 / math.sqrt(2 * found.freedom)
        assert found.noise_scale / 0.05 == pytest.approx(1, abs=4 * spread)


def test_smoothers_sd_is_that_of_the_dense_formula():
    task = tasks.make_task("damped_pendulum", "missing", 2)
    train, length, noise = task.train, torch.tensor([1.5, 1.2]).double(), torch.tensor([0.05, 0.06])
    sd = rivals._sd_of_smooth(train, length, noise.double())
    ratios = []
    for row, column in ((0, 0), (3, 0), (6, 0)):
        seen = train.mask[row, :, column]
        lag = (train.times[:, None] - train.times).abs() * 5**0.5 / length[column]
        kernel = (1 + lag + lag.square() / 3) * (-lag).exp()

        def variance(amplitude, kernel=kernel, seen=seen):
            whole = amplitude**2 * kernel
            gram = whole[seen][:, seen] + 0.05**2 * torch.eye(int(seen.sum()))
            return (whole - whole[:, seen] @ torch.linalg.solve(gram, whole[seen])).diagonal()

        best = min(0.05 * rivals.AMPLITUDES, key=lambda a: _mismatch(variance(a), sd[row, :, 0]))
        torch.testing.assert_close(variance(best).sqrt(), sd[row, :, 0], rtol=1e-5, atol=1e-7)
        ratios.append(best)
    assert len(set(map(float, ratios))) == 1  # one amplitude for all series


def _mismatch(variance, sd):
    return (variance.sqrt() - sd).abs().max()


def test_plain_script_knows_its_network_when_draws_are_batched():
    train = bo.datasets.lotka_volterra(num_series=3, num_times=6).observed
    program, generator = plain.PlainScript(train, (4, 5)), torch.Generator().manual_seed(0)
    shapes = {"weight0": (2, 4), "weight1": (4, 5), "weight2": (5, 2)}
    shapes |= {"bias0": (4,), "bias1": (5,), "bias2": (2,)}
    draws = {s: torch.randn(7, *shape, generator=generator) for s, shape in shapes.items()}
    x0 = torch.randn(7, 3, 2, generator=generator)
    together = plain.solve(program.layers_of(draws), x0, train.times)
    single = [(draws[f"weight{i}"][4], draws[f"bias{i}"][4]) for i in range(3)]
    torch.testing.assert_close(together[4], plain.solve(single, x0[4], train.times))


# ---- tables and files ----------------------------------------------------------------------------
def test_cell_marks_what_is_not_accepted_and_hides_no_failure():
    values = frame([{"a": 0.5, "b": 1.0}, {"a": 0.7, "b": math.nan}])
    assert tables.cell(values["a"], (0.0, 1.0)) == "0.600±0.1"
    assert tables.cell(values["a"], (0.7, 1.0)) == "0.600±0.1 !"
    assert tables.cell(values["b"], tables.NO) == "-"
    assert tables.cell(values["b"], (0.0, 2.0)) == "- !"


def test_seeds_are_lists_and_ranges():
    assert records.seeds("1-3,7") == [1, 2, 3, 7]


def test_file_comes_back_as_it_was_and_runs_go_on_behind_it(tmp_path, monkeypatch, capsys):
    path = tmp_path / "records.json"
    arguments = ["dynamics", "--smoke", "--methods", "mean,persistence", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    dynamics.main()
    first = json.loads(path.read_text())
    assert [r["method"] for r in first] == ["mean", "persistence"]
    assert first[0]["rmse_in"] > 0 and first[1]["rmse_in"] is None
    assert set(first[0]) == {"system", "variant", "seed", "method", "error", *scoring.NUMBERS}
    known = records.read(path, dynamics.Run, scoring.NUMBERS)
    (record,) = known[dynamics.Run("van_der_pol", "smoke", 1, "persistence")]
    assert math.isnan(record["rmse_in"])
    monkeypatch.setattr(sys, "argv", [*arguments[:3], "mean,gp-smoother", *arguments[4:]])
    dynamics.main()
    second = json.loads(path.read_text())
    assert second[:2] == first and [r["method"] for r in second[2:]] == ["gp-smoother"]
    assert "gp-smoother" in capsys.readouterr().out


def test_method_that_fails_is_recorded_with_its_reason(monkeypatch):
    def broken(task, size):
        raise ValueError("no luck")

    monkeypatch.setitem(dynamics.METHODS, "mean", broken)
    (record,) = dynamics.records_of(dynamics.Run("van_der_pol", "smoke", 1, "mean"))
    assert record["error"] == "ValueError: no luck" and math.isnan(record["rmse_in"])
