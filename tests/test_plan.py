"""Settings by arithmetic on the data, and the systems that are composed from them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import bayesode as bo
from bayesode import systems
from bayesode.errors import DataError, ShapeError
from bayesode.inference.warm_start.flat import MAX_WEIGHTS
from bayesode.plan import (
    LARGEST_STEP,
    MAX_LAPLACE_WEIGHTS,
    MAX_SUBSTEPS,
    choose_engine,
    count_weights,
)
from bayesode.trajectories import Trajectories


def sine(num_times: int = 30, num_series: int = 1, horizon: float = 6.0, **changes) -> Trajectories:
    """Noise-free sin t and cos t: sd 1/sqrt(2) and speed sqrt(2) sd, so about one unit of time."""
    times = torch.linspace(0, horizon, num_times, dtype=torch.float64)
    values = torch.stack([torch.sin(times), torch.cos(times)], -1).expand(num_series, -1, -1)
    return Trajectories(times, values, **{"names": ["x", "y"]} | changes)


# ---- engines -------------------------------------------------------------------------------------
def test_engine_follows_the_number_of_weights():
    for num_weights in (10, MAX_LAPLACE_WEIGHTS, MAX_LAPLACE_WEIGHTS + 1):
        engine, reason = choose_engine(num_weights)
        assert engine == ("laplace" if num_weights <= MAX_LAPLACE_WEIGHTS else "svi")
        assert str(num_weights) in reason
    assert MAX_LAPLACE_WEIGHTS == MAX_WEIGHTS  # of the engine itself


def test_weights_are_counted_as_the_network_counts_them():
    for dim, hidden in ((2, [16]), (3, [5, 4]), (1, [])):
        assert count_weights(dim, hidden) == bo.BayesianMLP(dim, hidden, dim).num_weights


def test_engine_is_laplace_for_few_components_and_svi_for_wide_networks():
    assert bo.plan(sine(50, 4)).engine == "laplace"
    chosen = bo.plan(sine(50, 4), width=500)
    assert chosen.engine == "svi" and chosen.hidden == (500,)
    assert "2502 random numbers" in chosen.reasons["engine"]
    assert bo.plan(sine(50, 4), width=500, engine="laplace").engine == "laplace"


def test_a_state_of_many_components_gets_svi_and_its_width():
    times = torch.linspace(0, 6, 40, dtype=torch.float64)
    values = torch.stack([torch.sin(times + k) for k in range(40)], -1)[None]
    chosen = bo.plan(Trajectories(times, values))  # 41 * 32 + 33 * 40 weights
    assert chosen.engine == "svi" and chosen.hidden == (8,)


@pytest.mark.parametrize("engine", ["nuts", "", None, ["svi"]], ids=str)
def test_unknown_engines_are_refused(engine):
    with pytest.raises(DataError, match="engine must be one of"):
        bo.plan(sine(), engine=engine)
    with pytest.raises(DataError, match="engine must be one of"):
        bo.neural_ode(sine(), engine=engine, verbose=False)
    with pytest.raises(DataError, match="engine must be one of"):
        bo.neural_ode(sine(), plan=replace(bo.plan(sine()), engine=engine), verbose=False)


def test_another_engine_than_the_plans_is_refused():
    with pytest.raises(DataError, match="the plan says 'laplace', and its width is for that"):
        bo.neural_ode(sine(), plan=bo.plan(sine()), engine="svi", verbose=False)


def test_engine_of_neural_ode_gives_its_width_and_is_in_the_recipe():
    for engine, width in (("auto", 16), ("laplace", 16), ("svi", 32)):
        model, _ = bo.neural_ode(sine(50, 10), engine=engine, verbose=False)
        assert model.field.config["hidden"] == [width]
        planned = model.recipe["arguments"]["plan"]["engine"]
        assert planned == ("laplace" if engine == "auto" else engine)


def test_widths_that_are_asked_for_decide_the_engine_unless_it_was_asked_for():
    cases = [({"hidden": [500]}, "svi"), ({"hidden": [500], "engine": "laplace"}, "laplace")]
    cases += [({"hidden": [4], "engine": "svi"}, "svi"), ({"hidden": [4]}, "laplace")]
    for arguments, engine in cases:
        model, _ = bo.neural_ode(sine(50, 4), **arguments, verbose=False)
        assert model.recipe["arguments"]["plan"]["engine"] == engine
    planned = replace(bo.plan(sine(50, 4)), engine="svi")
    model, _ = bo.neural_ode(sine(50, 4), plan=planned, hidden=[4], verbose=False)
    assert model.recipe["arguments"]["plan"]["engine"] == "svi"


# ---- widths by evidence --------------------------------------------------------------------------
@pytest.mark.parametrize("width", ["wide", 0, -3, 2.5, True, None, [8]], ids=str)
def test_unknown_width_rules_are_refused(width):
    with pytest.raises(DataError, match="width must be 'rule', 'evidence' or a positive number"):
        bo.plan(sine(), width=width)


def test_evidence_needs_the_engine_that_gives_one():
    with pytest.raises(DataError, match="width='evidence' is Laplace's"):
        bo.plan(sine(), width="evidence", engine="svi")


def test_a_plan_by_evidence_only_records_the_candidates():
    large, small = (bo.plan(sine(50, n), width="evidence") for n in (4, 1))
    assert large.candidates == (4, 8, 16, 32) and large.engine == "laplace"
    assert "one of 4, 8, 16, 32" in str(large)
    assert bo.plan(sine(30), width="evidence").candidates == (3, 4, 6, 8)
    assert small.candidates == (4, 8, 16, 32)  # 100 numbers are not few
    assert bo.plan(sine()).candidates == ()


@pytest.mark.parametrize(
    ("num_series", "evidence", "width"),
    [
        (4, {4: 1.0, 8: 3.0, 16: 2.0, 32: 0.0}, 16),  # twice the winner
        (4, {4: 5.0, 8: 3.0, 16: 2.0, 32: 0.0}, 8),
        (4, {2: 5.0, 3: 3.0}, 8),  # never below 8
        (1, {3: 1.0, 4: 2.0, 6: 0.0, 8: 0.0}, 4),  # little data: the winner itself
    ],
)
def test_the_evidence_decides_the_width(monkeypatch, num_series, evidence, width):
    data = sine(40, num_series)

    def fit(model, train, **settings):
        return SimpleNamespace(log_evidence=evidence[model.field.config["hidden"][0]])

    monkeypatch.setattr(systems.data_space, "fit_laplace", fit)
    asked = replace(bo.plan(data, width="evidence"), candidates=tuple(evidence))
    chosen = systems.plan_by_evidence(data, asked)
    assert chosen.hidden == (width,) and chosen.candidates == ()
    assert all(f"{h}: {nats:.1f}" in chosen.reasons["hidden"] for h, nats in evidence.items())
    model, _ = bo.neural_ode(data, plan=asked, verbose=False)
    assert model.field.config["hidden"] == [width]
    again, _ = systems.rebuild(model.recipe, data)  # nothing is fitted anew
    assert again.recipe == model.recipe


# ---- widths and steps ----------------------------------------------------------------------------
@pytest.mark.parametrize("num_series", [4, 10, 40])
def test_laplace_gets_sixteen_units_or_thirty_two_for_three_components(num_series):
    data = sine(50, num_series)
    assert bo.plan(data).hidden == (16,)
    third = torch.cat([data.values, data.values[..., :1] * 2], -1)
    assert bo.plan(Trajectories(data.times, third)).hidden == (32,)


@pytest.mark.parametrize(
    ("num_series", "num_times", "width"),
    [
        (1, 5, 3),  # 10 numbers: never below 3
        (1, 49, 3),  # 98 numbers: (98 / 6 - 2) / 5 = 2.9
        (1, 50, 8),  # from 100 numbers on, 8
        (5, 40, 13),  # (400 / 6 - 2) / 5 = 12.9
        (10, 50, 32),  # (1000 / 6 - 2) / 5 = 32.9, never above 32
        (40, 50, 32),
    ],
)
def test_width_gives_about_one_weight_for_six_observed_numbers(num_series, num_times, width):
    chosen = bo.plan(sine(num_times, num_series), engine="svi")
    assert chosen.hidden == (width,)
    assert f"{2 * num_series * num_times} observed numbers" in chosen.reasons["hidden"]


def test_missing_values_do_not_count_for_the_width():
    mask = torch.ones(5, 40, dtype=torch.bool)
    mask[:, 1::2] = False
    chosen = bo.plan(sine(40, 5, mask=mask), engine="svi")  # (200 / 6 - 2) / 5 = 6.3, so 8
    assert chosen.hidden == (8,)
    assert "200 observed numbers" in chosen.reasons["hidden"]


@pytest.mark.parametrize("num_times", [8, 20, 30, 60, 300])
def test_step_cuts_a_gap_into_the_fewest_equal_parts_below_the_bound(num_times):
    data = sine(num_times)
    chosen = bo.plan(data)
    gap = 6.0 / (num_times - 1) / chosen.units["time_unit"]
    count = gap / chosen.step
    assert count == pytest.approx(round(count), abs=1e-9)
    assert chosen.step <= LARGEST_STEP * (1 + 1e-9)
    assert round(count) == 1 or gap / (round(count) - 1) > LARGEST_STEP
    assert f"{round(count)} in a long gap" in chosen.reasons["step"]


def test_rare_gaps_do_not_decide_the_step():
    times = torch.linspace(0, 6, 300, dtype=torch.float64)
    times = torch.cat([times, times[-1:] + 20.0])
    chosen = bo.plan(Trajectories(times, torch.stack([times.sin(), times.cos()], -1)[None]))
    assert chosen.step == pytest.approx(6 / 299 / chosen.units["time_unit"], rel=1e-9)


def test_few_times_get_forty_steps_even_if_the_smoother_sees_no_movement():
    data = bo.datasets.van_der_pol(num_series=25, num_times=5).observed
    chosen = bo.plan(data)
    unit = chosen.units["time_unit"]
    assert unit > 3  # a guess: the true speed gives .87
    assert 10 / unit / chosen.step == pytest.approx(40)
    assert "40 in all" in chosen.reasons["step"]


def test_long_gaps_are_cut_into_no_more_than_so_many_parts_and_the_plan_says_so():
    times = torch.cat([torch.linspace(0, 6, 60), 6 + 9 * torch.arange(1, 11)]).double()
    chosen = bo.plan(Trajectories(times, torch.stack([times.sin(), times.cos()], -1)[None]))
    gap = 9.0 / chosen.units["time_unit"]
    assert gap > 1.1 * MAX_SUBSTEPS * LARGEST_STEP
    assert chosen.step == pytest.approx(gap / MAX_SUBSTEPS, rel=1e-9)
    assert f"{MAX_SUBSTEPS} in a long gap" in chosen.reasons["step"]
    assert "the most that are taken" in chosen.reasons["step"]
    assert "the most" not in bo.plan(sine()).reasons["step"]


def test_padding_and_shared_times_give_the_same_plan():
    data = sine(30, 2)
    padded = Trajectories(
        torch.cat([data.grid, data.grid[:, -1:].expand(2, 5)], -1),
        torch.cat([data.values, torch.zeros(2, 5, 2, dtype=torch.float64)], 1),
        names=data.names,
        num_times=[30, 30],
    )
    first, second = bo.plan(data), bo.plan(padded)
    assert second.step == pytest.approx(first.step, rel=1e-9)
    assert (second.hidden, second.reasons) == (first.hidden, first.reasons)


def test_padding_of_many_short_series_does_not_decide_the_step():
    times = torch.full((61, 200), 1.0, dtype=torch.float64)
    times[:, 0], times[0] = 0.0, torch.linspace(0, 6, 200)
    count = torch.tensor([200] + [2] * 60)
    values = torch.stack([times.sin(), times.cos()], -1)
    chosen = bo.plan(Trajectories(times, values, num_times=count))
    # 60 gaps of 1 beside 199 of .03, and 12,000 of 0 in the padding
    parts = 1.0 / chosen.units["time_unit"] / chosen.step
    assert parts == pytest.approx(round(parts), rel=1e-9)
    assert chosen.step > 0.1


def test_series_that_start_at_different_times_get_the_step_of_series_that_start_together():
    data = sine(30, 2)
    times = data.grid + torch.tensor([[0.0], [50.0]])
    apart = Trajectories(times, data.values, names=data.names)
    assert bo.plan(apart).step == pytest.approx(bo.plan(data).step, rel=1e-9)


def test_plan_scales_with_the_users_units():
    data = sine(30, 2)
    other = Trajectories(86400 * data.times + 1.6e9, 1e-6 * data.values, names=data.names)
    first, second = bo.plan(data), bo.plan(other)
    assert second.step == pytest.approx(first.step, rel=1e-6)  # times since 1970 are rounded
    assert second.hidden == first.hidden
    assert second.units["time_unit"] == pytest.approx(86400 * first.units["time_unit"], rel=1e-6)


# ---- what a plan shows ---------------------------------------------------------------------------
def test_every_setting_has_a_reason():
    chosen = bo.plan(sine())
    settings = {"likelihood", "units", "engine", "hidden", "step", "prior_scale"}
    assert set(chosen.reasons) == settings
    assert all(isinstance(reason, str) and reason for reason in chosen.reasons.values())


def test_printed_plan_has_a_line_per_setting_with_reasons_in_one_column():
    for data, likelihood in ((sine(), "gaussian"), (bo.datasets.lynx_hare(), "lognormal")):
        chosen = bo.plan(data, likelihood)
        title, *lines = str(chosen).splitlines()
        assert title == "Plan"
        assert [line.split()[0] for line in lines] == list(chosen.reasons)
        columns = [
            line.index(reason) for line, reason in zip(lines, chosen.reasons.values(), strict=True)
        ]
        assert len(set(columns)) == 1
        assert all(line[columns[0] - 2 : columns[0]] == "  " for line in lines)
        assert likelihood in lines[0] and chosen.units["transform"] in lines[1]
        assert f"{chosen.units['time_unit']:.4g}" in lines[1]
        assert f" {chosen.engine} " in lines[2]
        assert f" {chosen.hidden[0]} " in lines[3] and f"{chosen.step:.3g}" in lines[4]
        assert max(map(len, lines)) <= 120


def test_printed_plan_shows_what_was_edited():
    text = str(replace(bo.plan(sine()), hidden=(16, 8), prior_scale=1.5, reasons={}))
    assert "16x8" in text and "1.5" in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "none" in str(replace(bo.plan(sine()), hidden=()))


def test_config_is_plain_and_rebuilds_the_plan():
    chosen = bo.plan(sine())
    settings = json.loads(json.dumps(chosen.config))
    assert bo.FitPlan.from_config(settings) == chosen


def test_plans_that_were_saved_before_there_were_engines_still_load():
    old = {k: v for k, v in bo.plan(sine()).config.items() if k not in ("engine", "candidates")}
    loaded = bo.FitPlan.from_config(json.loads(json.dumps(old)))
    assert loaded.engine == "auto" and loaded.candidates == ()
    bo.neural_ode(sine(), plan=loaded, verbose=False)


def test_planning_and_composing_change_neither_data_nor_random_state():
    data = sine()
    values, state = data.values.clone(), torch.random.get_rng_state()
    bo.neural_ode(data, verbose=False)
    assert torch.equal(data.values, values)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---- what is refused -----------------------------------------------------------------------------
@pytest.mark.parametrize("likelihood", ["binomial", "Gaussian", "", None, ["gaussian"]], ids=str)
def test_unknown_likelihoods_are_refused(likelihood):
    words = r"likelihood must be one of \['gaussian', 'lognormal', 'poisson', 'student_t'\]"
    with pytest.raises(DataError, match=words):
        bo.plan(sine(), likelihood)
    with pytest.raises(DataError, match=words):
        bo.neural_ode(sine(), likelihood=likelihood, verbose=False)
    with pytest.raises(DataError, match=words):
        edited = replace(bo.plan(sine()), likelihood=likelihood)
        bo.neural_ode(sine(), plan=edited, verbose=False)


def test_data_that_cannot_be_planned_for_are_refused():
    with pytest.raises(DataError, match="needs positive values"):
        bo.plan(sine(), "lognormal")
    with pytest.raises(DataError, match="question without values"):
        bo.plan(sine().at([9.0]))
    with pytest.raises(DataError, match="'y' is constant"):
        still = sine().values * torch.tensor([1.0, 0.0])
        bo.plan(Trajectories(sine().times, still, names=["x", "y"]))
    with pytest.raises(DataError, match=r"of simulated data: .observed"):
        bo.plan(bo.datasets.van_der_pol(num_series=1, num_times=3))
    with pytest.raises(ShapeError, match="for images"):
        bo.plan(Trajectories([0.0, 1.0, 2.0], torch.rand(2, 3, 4, 4)))


def test_a_plan_for_other_data_is_refused():
    chosen, data = bo.plan(sine()), sine()
    others = Trajectories(data.times, data.values, names=["y", "x"])
    with pytest.raises(ShapeError, match=r"plan is for components \['x', 'y'\]"):
        bo.neural_ode(others, plan=chosen, verbose=False)
    with pytest.raises(DataError, match="question without values"):
        bo.neural_ode(data.at([9.0]), plan=chosen, verbose=False)
    with pytest.raises(DataError, match=r"the plan says 'gaussian'; make it by bayesode.plan"):
        bo.neural_ode(data, likelihood="lognormal", plan=chosen, verbose=False)


@pytest.mark.parametrize("hidden", [[0], [-3], [2.5], ["8"], [None], "wide"], ids=str)
def test_widths_that_are_no_counts_are_refused(hidden):
    with pytest.raises(DataError, match="hidden must be positive whole numbers"):
        bo.neural_ode(sine(), hidden=hidden, verbose=False)
    with pytest.raises(DataError, match="hidden must be positive whole numbers"):
        edited = replace(bo.plan(sine()), hidden=tuple(hidden))
        bo.neural_ode(sine(), plan=edited, verbose=False)


# ---- systems -------------------------------------------------------------------------------------
def test_neural_ode_follows_the_plan():
    chosen = bo.plan(sine())
    model, guide = bo.neural_ode(sine(), verbose=False)
    assert model.field.config["hidden"] == list(chosen.hidden)
    assert model.field.config["prior_scale"] == chosen.prior_scale
    assert model.solver == bo.FixedGridSolver("rk4", step=chosen.step)
    assert model.units.config == chosen.units
    assert isinstance(model.likelihood, bo.GaussianLikelihood)
    assert isinstance(guide, bo.MeanFieldGuide) and guide.series == (0,)


def test_an_edited_plan_goes_back_into_neural_ode():
    edited = replace(bo.plan(sine()), hidden=(5, 4), step=0.07, prior_scale=1.0)
    model, _ = bo.neural_ode(sine(), plan=edited, verbose=False)
    assert model.field.config["hidden"] == [5, 4]
    assert model.solver.step == 0.07 and model.field.config["prior_scale"] == 1.0
    weights = (2 + 1) * 5 + (5 + 1) * 4 + (4 + 1) * 2
    assert model.field.num_weights == weights
    lognormal = bo.plan(bo.datasets.lynx_hare(), "lognormal")
    model, _ = bo.neural_ode(bo.datasets.lynx_hare(), plan=lognormal, verbose=False)
    assert isinstance(model.likelihood, bo.LogNormalLikelihood)
    assert model.units.transform == "log"


def test_hidden_widths_may_be_asked_for():
    for hidden in ([7], (7,), 7, torch.tensor([7])):
        model, _ = bo.neural_ode(sine(), hidden=hidden, verbose=False)
        assert model.field.config["hidden"] == [7]
    assert model.recipe["arguments"]["plan"]["reasons"]["hidden"] == "as asked"
    affine, _ = bo.neural_ode(sine(), hidden=[], verbose=False)
    assert affine.field.num_weights == 6


def test_the_plan_is_printed_unless_told_not_to(capsys):
    bo.neural_ode(sine())
    assert capsys.readouterr().out == f"{bo.plan(sine())}\n"
    bo.neural_ode(sine(), verbose=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_model_and_guide_have_the_dtype_of_the_data_and_units_stay_float64(dtype):
    model, guide = bo.neural_ode(sine().to(dtype=dtype), verbose=False)
    parameters = [*guide.parameters(), model.field.prior_sd, model.initial.mean]
    assert {tensor.dtype for tensor in parameters} == {dtype}
    assert model.units.scale.dtype == torch.float64


def test_the_recipe_of_a_model_rebuilds_it():
    data = sine()
    model, guide = bo.neural_ode(data, hidden=[4], verbose=False)
    recipe = json.loads(json.dumps(model.recipe))
    again, other = systems.rebuild(recipe, data)
    assert again.recipe == model.recipe
    for mine, its in ((again, model), (other, guide)):
        assert {k: v.shape for k, v in mine.state_dict().items()} == {
            k: v.shape for k, v in its.state_dict().items()
        }
    assert again.units.config == model.units.config
