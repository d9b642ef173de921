"""The benchmarks of process noise: rolling origins, random paths, what is accepted."""

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torchsde

import bayesode as bo
from bayesode import scores
from benchmarks import (
    lynx_hare,
    lynx_hare_tables,
    process_noise,
    process_noise_cases,
    process_noise_tables,
    records,
    rivals,
    scoring,
    sde_speed,
    tasks,
)


# ---- lynx and hare -------------------------------------------------------------------------------
def rows_of(model, origin, log_score, num_horizons=6):
    run = lynx_hare.Run(model, 0, origin)._asdict()
    own = dict.fromkeys(lynx_hare.NUMBERS, math.nan) | {"log_score_per_point": log_score}
    rows = [run | own | {"horizon": k + 1, "num_points": 2} for k in range(num_horizons)]
    return [row | {"error": None} for row in rows]


def test_baselines_of_the_rolling_origins_are_those_of_an_earlier_study(tmp_path, capsys):
    path = tmp_path / "records.json"
    models = ["ar2", "climatology", "random-walk"]
    lynx_hare.main(["--models", ",".join(models), "--json", str(path)])
    known = records.flat(records.read(path, lynx_hare.Run, lynx_hare.NUMBERS))
    table = lynx_hare_tables.by_model(known).loc[models]
    assert (table["numbers"] == 108).all()
    assert table["log score"].tolist() == pytest.approx([-3.90, -4.37, -4.52], abs=0.006)
    assert table["crps"].round(3).tolist() == [0.335, 0.472, 0.605]
    assert table["cover 90"].round(2).tolist() == [0.83, 0.80, 0.84]
    by_horizon = lynx_hare_tables.by_horizon(known)
    assert by_horizon.loc["ar2"].round(2).tolist() == [-3.29, -3.76, -4.11, -4.20, -4.16, -4.02]
    assert "climatology - ar2: -0.451 ± 0.096 (mean over 10 origins)" in capsys.readouterr().out


def test_draws_of_a_law_score_as_the_law_does():
    train, test = lynx_hare.halves(1915)
    assert test.times.tolist() == [1916.0, 1917.0, 1918.0, 1919.0, 1920.0]
    law = torch.distributions.LogNormal(2.9, 0.6)
    levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    draws = law.icdf(levels).view(-1, 1, 1, 1).expand(-1, 1, 5, 2)
    ensemble = SimpleNamespace(
        values=draws,
        failed=torch.zeros(len(draws), 1, dtype=torch.bool),
        log_prob=lambda test: law.log_prob(test.values).expand(len(draws), -1, -1, -1),
    )
    scales = {"likelihood.noise_scale": torch.tensor([[0.1, 0.2]])}
    posterior = SimpleNamespace(
        train=train,
        predict=lambda question, num_draws, seed: ensemble,
        draws=lambda num_draws, seed: scales,
        settings={"engine": "svi"},
    )
    points = lynx_hare.of_posterior(posterior, test, len(draws), 0, 1.0)
    values = test.values[0]
    torch.testing.assert_close(points.log_score, law.log_prob(values))
    exact = scores.gaussian_crps(torch.tensor(2.9), torch.tensor(0.6), values.log())
    torch.testing.assert_close(points.crps, exact, rtol=1e-3, atol=1e-3, check_dtype=False)
    assert points.covers.tolist() == ((law.cdf(values) - 0.5).abs() <= 0.45).tolist()
    assert points.facts == {"seconds": 1.0, "noise_scale": pytest.approx(0.15)}


def test_difference_to_ar2_counts_every_origin_once():
    rows = [r for o, s in ((1916, -4.0), (1917, -3.0)) for r in rows_of("ar2", o, s, 1920 - o)]
    rows += rows_of("black-box", 1916, -3.5, 4) + rows_of("black-box", 1917, -3.2, 3)
    mean, error, count = lynx_hare_tables.differences(rows)["black-box"]
    assert (mean, count) == (pytest.approx((0.5 - 0.2) / 2), 2)
    assert error == pytest.approx(0.35)  # half the distance of .5 and -.2


def test_forecast_that_fails_is_recorded_and_not_left_out_of_the_mean(monkeypatch):
    def broken(train, test, seed, is_smoke):
        raise ValueError("no luck")

    monkeypatch.setitem(lynx_hare.MODELS, "ar2", lynx_hare.Model("baseline", None, broken))
    failed = lynx_hare.records_of(lynx_hare.Run("ar2", 0, 1917))
    assert [r["horizon"] for r in failed] == [1, 2, 3]
    assert all(r["error"] == "ValueError: no luck" for r in failed)
    table = lynx_hare_tables.by_model(failed + rows_of("ar2", 1916, -3.5))
    assert math.isnan(table.loc["ar2", "log score"])


# ---- process noise -------------------------------------------------------------------------------
def fit_record(part, case, seed, method, **numbers):
    run = process_noise.Run(part, case, seed, method)._asdict()
    return run | dict.fromkeys(process_noise.ALL_NUMBERS, math.nan) | numbers | {"error": None}


def test_random_paths_go_on_in_the_forecast_and_are_seen_through_the_noise_that_is_meant():
    case = process_noise_cases.PARTS["stochastic"]["10 x 50"]
    task = tasks.task_of(case.system, case.variant, seed=1)
    path, new = task.target.truth, task.target.new
    assert task.train.values.shape == (10, 50, 2) and task.train.times[-1] == 6
    assert path.shape == (10, 99, 2) and new.times[-1] == 12
    assert task.data.parameters["sigma"] == 0.1 and task.noise_scale.tolist() == [0.1, 0.1]
    residual = task.train.values - path[:, :50]
    assert residual.std().item() == pytest.approx(0.1, abs=5 * 0.1 / 2000**0.5)
    log = path.log()  # d log x = (f/x - sigma^2/2) dt + sigma dW, and f/x is linear in the other
    gap = new.times.diff()[0]
    middle = (path[:, 1:] + path[:, :-1]) / 2
    rate = torch.stack([1.5 - middle[..., 1], middle[..., 0] - 3.0], -1)
    kicks = (log.diff(dim=1) - gap * rate) / gap.sqrt()
    for half in (kicks[:, :49], kicks[:, 49:]):  # 980 numbers; the quadrature adds a little
        assert half.std().item() == pytest.approx(0.1, rel=0.2)
    scale = case.process_scale(task)
    torch.testing.assert_close(scale, 0.1 * path[:, :50].mean((0, 1)))


def test_task_in_sample_asks_nothing_later():
    whole = tasks.make_task("van_der_pol", "smoke", 2)
    task = tasks.in_sample(whole)
    torch.testing.assert_close(task.target.truth, whole.target.truth[:, :20])
    torch.testing.assert_close(task.target.new.values, whole.target.new.values[:, :20])
    torch.testing.assert_close(task.target.new.grid, task.train.grid)
    scored = scoring.score_members(
        task.target.truth[None], task.noise_scale.expand(1, -1), task.target, scoring.Size(10)
    )
    numbers = scoring.numbers_of(scoring.Outcome(0.0, scored), task)
    assert numbers["rmse_in"] < 1e-9 and math.isnan(numbers["rmse_forecast"])


def test_ar2_forecasts_what_the_baseline_says_and_nothing_in_sample():
    task = tasks.make_task("lotka_volterra", "smoke", 1)
    path = rivals.ar2(task, scoring.USUAL).path
    law = bo.baselines.baselines(task.train, task.train.at(task.target.new.times[20:]))["ar2"]
    assert path.mean[:, :20].isnan().all()
    torch.testing.assert_close(path.mean[:, 20:], law.loc.double())
    exact = law.log_prob(task.target.new.values[:, 20:]).double()
    torch.testing.assert_close(path.log_score[:, 20:], exact, rtol=1e-4, atol=1e-4)


def test_zeros_of_a_drift_and_both_wells_are_found():
    grid = process_noise.GRID
    true = process_noise.zeros_of(4 * grid * (1 - grid**2), grid)
    assert [x for x, _ in true] == pytest.approx([-1, 0, 1], abs=1e-6)
    assert [is_stable for _, is_stable in true] == [True, False, True]
    numbers = process_noise.well_numbers((grid + 0.9) * (0.1 - grid) * (grid - 1.2), grid)
    zeros = [numbers[name] for name in process_noise.ZEROS]
    assert zeros == pytest.approx([-0.9, 0.1, 1.2], abs=1e-3) and numbers["both_wells"] == 1
    single = process_noise.well_numbers(-grid - 1, grid)
    assert single["zero_left"] == pytest.approx(-1) and math.isnan(single["zero_right"])
    assert single["both_wells"] == 0
    turned = process_noise.well_numbers(-4 * grid * (1 - grid**2), grid)
    assert math.isnan(turned["zero_middle"]) and turned["both_wells"] == 0


def test_process_noise_is_compared_with_the_truth_and_with_what_is_seen():
    task = tasks.make_task("lotka_volterra", "smoke", 1)  # 20 times over 6 units, noise .1
    truth, scale = torch.tensor([0.2, 0.4]).double(), torch.tensor([0.1, 0.3]).double()
    numbers = process_noise.process_numbers(scale, truth, task)
    assert numbers["process_scale"] == pytest.approx(0.2)
    assert numbers["process_ratio"] == pytest.approx((0.5 + 0.75) / 2)
    assert numbers["process_per_gap"] == pytest.approx(2 * (6 / 19) ** 0.5)
    assert "process_ratio" not in process_noise.process_numbers(scale, 0 * truth, task)


def test_gates_say_what_is_won_and_a_failure_is_no_success():
    rows = []
    for seed, gain in ((1, 0.5), (2, 0.3), (3, -0.2)):
        bands = {"coverage_latent_in": 0.9, "coverage_latent_forecast": 0.9}
        own = {"rmse_in": 0.6, "log_score_forecast": gain - 3} | bands
        for method, numbers in (
            ("neural-sde", own),
            ("neural-ode", {"rmse_in": 1.5, "log_score_forecast": -3.0}),
            ("ar2", {"log_score_forecast": -4.0}),
        ):
            rows.append(fit_record("stochastic", "3 x 40", seed, method, **numbers))
    ratio, ode, ar2 = process_noise_tables.gates_of(rows)[1:]
    assert ratio.value == pytest.approx(0.4) and ratio.high == 0.62 and ratio.is_accepted
    assert (ode.value, ode.low, ode.is_accepted) == (2, 3, False)  # .7 of 3 is not 2
    assert (ar2.value, ar2.is_accepted) == (3, True)
    rows[0]["rmse_in"] = rows[0]["coverage_latent_forecast"] = math.nan
    assert not any(gate.is_accepted for gate in process_noise_tables.gates_of(rows)[:2])


def test_clean_large_and_double_well_data_have_gates_of_their_own(capsys):
    band = {"coverage_latent_in": 0.9, "coverage_latent_forecast": 0.9}
    rows = [fit_record("clean", "glycolysis", 1, "neural-sde", log_score_forecast=-0.15, **band)]
    rows += [fit_record("clean", "glycolysis", 1, "neural-ode", log_score_forecast=-0.12)]
    wells = {"process_ratio": 1.1, "both_wells": 0.0, "coverage_latent_in": 0.9}
    rows += [fit_record("double-well", "20 x 100", 1, "neural-sde", **wells)]
    for count, seconds in ((50, 2.0), (1000, 40.0)):
        case = f"van_der_pol {count}"
        more = {"seconds": seconds, "num_times": count}
        rows += [fit_record("large", case, 1, "neural-sde", **more)]
    process_noise_tables.show(rows)
    lines = [row for row in capsys.readouterr().out.splitlines() if row.startswith(("ok", "NOT"))]
    assert len(lines) == 8
    assert lines[2].startswith("NOT  clean, glycolysis: log score lost to the ODE: 0.030")
    assert lines[5].startswith("NOT  double-well, 20 x 100: data sets with both wells, of 1: 0")
    assert lines[6].startswith("ok   van_der_pol: 2.0 s for 50, 40.0 s for 1000 times")
    assert "1.000 (at most 1.2)" in lines[6] and lines[7].startswith("ok ")


def test_methods_are_added_to_a_file_of_process_noise(tmp_path, monkeypatch, capsys):
    def broken(task, size):
        raise ValueError("no luck")

    path = tmp_path / "records.json"
    arguments = ["--smoke", "--parts", "stochastic", "--json", str(path), "--methods"]
    process_noise.main([*arguments, "ar2"])
    monkeypatch.setitem(process_noise.METHODS, "neural-sde", broken)
    process_noise.main([*arguments, "neural-sde"])
    first, second = json.loads(path.read_text())
    assert first["log_score_forecast"] < 0 and first["error"] is None
    assert second["log_score_forecast"] is None and second["error"] == "ValueError: no luck"
    assert "failed: stochastic, smoke, 1, neural-sde" in capsys.readouterr().out


# ---- speed ---------------------------------------------------------------------------------------
def test_ways_that_are_timed_solve_the_same_equation_in_the_same_steps():
    grid = sde_speed.Grid(1.0, 5, 0.125)
    problem = sde_speed.Problem(grid)
    motion = sde_speed.motion_of(problem, seed=3)
    knots = torch.arange(9, dtype=torch.float64) * grid.step
    kicks = torch.stack([motion(a, b) for a, b in pairwise(knots)], 1)
    noise = (kicks / grid.step**0.5).view(sde_speed.NUM_DRAWS, sde_speed.NUM_SERIES, 8, 2)
    own = sde_speed.ours(problem, "euler", noise)
    x0, times = problem.flat_x0, problem.times
    theirs = torchsde.sdeint(problem, x0, times, bm=motion, method="euler", dt=grid.step)
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)
    parameters = list(problem.parameters())
    gradients = [torch.autograd.grad(p.square().mean(), parameters) for p in (own, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_all_ways_of_the_speed_table_run():
    names = [row["way"] for row in sde_speed.step_table("t", sde_speed.Grid(1.0, 3, 0.25), 1)]
    assert names == list(sde_speed.ways(sde_speed.Problem(sde_speed.Grid(1.0, 3, 0.25))))
