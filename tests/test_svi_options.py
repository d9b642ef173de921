"""What a fit does beyond the plain one: parameters, rates, windows, KL weights, validation."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from amortised import DOUBLE, Still, TinyGuide, plain_data, ragged_data, tiny_model
from pyro.infer.autoguide import AutoNormal
from torch import nn

import bayesode as bo
from bayesode.inference import objectives, validation
from bayesode.inference.window_schemes import GrowingWindows, Window, blocks, composite, prefix


def fit(model=None, guide=None, train=None, **settings) -> bo.Posterior:
    settings = {"seed": 0, "num_steps": 3, "warm_start": False, "progress": False} | settings
    train = plain_data() if train is None else train
    return bo.fit_svi(model or tiny_model(), guide or TinyGuide(), train, **settings)


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    old, new = before.state_dict(), after.state_dict()
    return {name for name in old if not torch.equal(old[name], new[name])}


# ---- parameters of the model that are not random ------------------------------------------------
def known_start() -> bo.DynamicalModel:
    """A model in which x0 is nearly 0 and b known, so that the shift is the mean residual."""
    model = tiny_model()
    model.initial.deviation.fill_(1e-4)
    model.field.sd.fill_(1e-4)
    return model


@pytest.mark.parametrize(
    ("kind", "batch_size"),
    [("tiny", None), ("mean field", None), ("mean field", 3), ("stock", None)],
)
def test_what_is_not_random_in_a_model_reaches_its_maximum(kind: str, batch_size: int | None):
    train, model = plain_data(shift=2.0), known_start()
    guide = {
        "tiny": lambda: TinyGuide(),
        "mean field": lambda: bo.MeanFieldGuide(model, train),
        "stock": lambda: AutoNormal(model),
    }[kind]()
    rates = {"locations": 0.02, "networks": 0.1}
    posterior = fit(
        model,
        guide,
        train,
        num_steps=200,
        learning_rate=0.05 if kind == "stock" else rates,
        batch_size=batch_size,
    )
    residual = train.values - train.times[:, None].square() / 40
    error = posterior.model.likelihood.shift - residual.mean((0, 1))
    assert error.abs().max() < 0.02
    assert torch.equal(model.likelihood.shift, torch.zeros(2, dtype=DOUBLE))
    assert model.likelihood.shift.grad is None


def test_frozen_parameters_stay():
    model = tiny_model()
    model.likelihood.shift.requires_grad_(False)
    assert changed(model, fit(model).model) == set()
    assert "likelihood.shift" in changed(model, fit().model)


def test_parameters_of_the_model_are_saved_and_loaded(tmp_path):
    train, model = plain_data(), tiny_model()
    guide = bo.MeanFieldGuide(model, train)
    posterior = fit(model, guide, train)
    posterior.save(tmp_path / "run")
    loaded = bo.load(tmp_path / "run", model=model, guide=guide)
    assert torch.equal(loaded.model.likelihood.shift, posterior.model.likelihood.shift)
    assert not torch.equal(loaded.model.likelihood.shift, torch.zeros(2, dtype=DOUBLE))


def test_gradients_reach_the_parameters_of_the_model():
    table = bo.check_gradients(tiny_model(), TinyGuide(), plain_data())
    assert "model.likelihood.shift" in {row["parameter"] for row in table.rows}
    assert table.worst < 1e-6


# ---- learning rates -----------------------------------------------------------------------------
def rates_of(guide=None, model=None, train=None, **settings) -> dict[int, float]:
    """Learning rate of each group in the first step, by the sizes of the group's parameters."""
    groups = []

    def make(parameters):
        groups.extend([(len(g["params"]), g["lr"]) for g in parameters])
        return torch.optim.Adam(parameters)

    fit(model, guide, train, num_steps=1, optimizer=make, **settings)
    return groups


def test_groups_of_a_guide_have_rates_of_their_own():
    assert rates_of() == [(1, 0.05), (2, 0.03), (2, 1e-3)]
    assert rates_of(learning_rate=0.1) == [(1, 0.1), (2, 0.03), (2, 1e-3)]
    named = {"networks": 0.2, "log_scales": 0.4}
    assert rates_of(learning_rate=named) == [(1, 0.05), (2, 0.4), (2, 0.2)]


def test_a_guide_without_groups_has_one_and_the_models_parameters_another():
    train, model = plain_data(), tiny_model()
    guide = bo.MeanFieldGuide(model, train)
    assert rates_of(guide, model, train, learning_rate=0.1) == [(4, 0.1), (1, 1e-3)]
    assert rates_of(guide, model, train, batch_size=2) == [(2, 0.05), (1, 1e-3)]  # rows: their own
    model.likelihood.shift.requires_grad_(False)
    assert rates_of(guide, model, train) == [(4, 0.05)]


def test_settings_tell_the_rates():
    assert fit().settings["learning_rate"] == {
        "locations": 0.05,
        "log_scales": 0.03,
        "networks": 1e-3,
    }


@pytest.mark.parametrize(
    ("learning_rate", "message"),
    [
        ({"weights": 0.1}, r"names the group 'weights'.*\['locations', 'log_scales', 'networks'\]"),
        ({"networks": 0.0}, "learning_rate of networks must be positive"),
        ({"networks": math.nan}, "learning_rate of networks must be positive"),
        (-1.0, "learning_rate of locations must be positive"),
    ],
)
def test_rates_that_cannot_be_are_named(learning_rate, message: str):
    with pytest.raises(bo.DataError, match=message):
        fit(learning_rate=learning_rate)


def test_groups_that_leave_a_parameter_out_are_one_clear_error():
    guide = TinyGuide()
    guide.forgotten = nn.Parameter(torch.zeros(2, dtype=DOUBLE))
    with pytest.raises(bo.FitError, match=r"leaves out \['forgotten'\]"):
        fit(guide=guide)
    guide.forgotten.requires_grad_(False)
    fit(guide=guide)


# ---- the largest gradient -----------------------------------------------------------------------
def test_gradients_are_clipped_at_a_nat_per_observed_number(monkeypatch):
    clip, seen = torch.nn.utils.clip_grad_norm_, []
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda p, size: seen.append(size) or clip(p, size)
    )
    fit(num_steps=1)
    fit(train=plain_data(num_series=200), num_steps=1)
    assert seen == [1000.0, 200 * 6 * 2]


# ---- KL weights ---------------------------------------------------------------------------------
def one_step(**settings) -> tuple[bo.Posterior, dict[str, torch.Tensor]]:
    """A step of gradient ascent at rate 1e-6, and by how much each parameter moved per rate."""
    guide, model = TinyGuide(Still), tiny_model()
    rate = {"locations": 1e-6, "log_scales": 1e-6, "networks": 1e-6}
    posterior = fit(
        model, guide, num_steps=1, optimizer=torch.optim.SGD, learning_rate=rate, **settings
    )
    old, new = dict(guide.named_parameters()), dict(posterior.guide.named_parameters())
    return posterior, {name: (new[name] - old[name]).detach() / 1e-6 for name in old}


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("is_function", [False, True])
def test_the_weight_of_the_kl_acts_on_the_gradient_alone(weight: float, is_function: bool):
    posterior, moved = one_step(kl_weight=(lambda fraction: weight) if is_function else weight)
    model, guide = tiny_model(), TinyGuide(Still)
    terms = bo.elbo_terms(model, guide, plain_data(), num_particles=4)
    target = terms.log_likelihood - weight * terms.total_kl
    names, parameters = zip(*guide.named_parameters(), strict=True)
    gradients = torch.autograd.grad(target, parameters, allow_unused=True)
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    assert norm < 1000  # nothing is clipped
    for name, gradient in zip(names, gradients, strict=True):
        expected = torch.zeros_like(moved[name]) if gradient is None else gradient
        torch.testing.assert_close(moved[name], expected, rtol=1e-5, atol=1e-6)
    assert posterior.history.elbo == [pytest.approx(terms.elbo.item(), rel=1e-12)]


def test_the_weight_of_the_kl_follows_the_fraction_of_the_fit():
    seen = []
    fit(num_steps=4, kl_weight=lambda fraction: seen.append(fraction) or 1.0)
    assert seen == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("weight", [-1.0, math.nan, lambda fraction: -1.0])
def test_a_weight_that_cannot_be_is_named(weight):
    with pytest.raises(bo.DataError, match="kl_weight must be a number from 0 on"):
        fit(kl_weight=weight)


# ---- windows ------------------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", [prefix, blocks, composite])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_fits_of_windows_come_to_the_optimum_of_whole_series(scheme, batch_size: int | None):
    """Windows of a path without surprises tell the same rate."""
    train = ragged_data()
    schedule = GrowingWindows(scheme, first=1.0)
    posterior = fit(train=train, num_steps=60, schedule=schedule, batch_size=batch_size)
    assert len(posterior.history.elbo) == 60
    assert all(math.isfinite(value) for value in posterior.history.elbo)
    assert posterior.train is train
    assert posterior.settings["schedule"] == schedule.config
    start = bo.elbo_terms(tiny_model(), TinyGuide(), train, num_particles=64).elbo
    assert posterior.elbo_terms().elbo > start


def test_a_schedule_sees_the_fraction_of_the_fit_and_the_batch():
    seen = []

    def schedule(fraction, batch):
        seen.append((fraction, batch.num_series))
        return Window(batch, torch.zeros_like(batch.grid))

    posterior = fit(num_steps=2, batch_size=3, schedule=schedule)
    assert seen == [(0.0, 3), (0.5, 3)]
    assert posterior.history.elbo[0] > -100  # no value is scored: the KL alone
    assert posterior.settings["schedule"] == "schedule"


def test_a_table_of_initial_states_takes_prefixes_with_and_without_minibatches():
    train, model = ragged_data(), tiny_model()
    for size in (None, 2):
        posterior = fit(
            model,
            bo.MeanFieldGuide(model, train),
            train,
            batch_size=size,
            schedule=GrowingWindows(prefix, first=0.5),
        )
        assert math.isfinite(posterior.history.elbo[-1])


@pytest.mark.parametrize("scheme", [blocks, composite])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_table_of_initial_states_cannot_take_windows_that_are_series(scheme, batch_size):
    train, model = plain_data(), tiny_model()
    guide = bo.MeanFieldGuide(model, train)
    with pytest.raises(bo.DataError, match=r"MeanFieldGuide has no initial state.*AmortizedGuide"):
        fit(model, guide, train, schedule=GrowingWindows(scheme, first=0.5), batch_size=batch_size)


@pytest.mark.parametrize(
    "settings", [{"schedule": GrowingWindows(prefix, first=1.0)}, {"kl_weight": 0.5}]
)
def test_other_targets_need_a_number_of_steps_and_a_guide_that_tells_its_laws(settings: dict):
    with pytest.raises(bo.DataError, match="need num_steps"):
        fit(num_steps=None, **settings)
    model = tiny_model()
    with pytest.raises(bo.DataError, match="AutoNormal is a Pyro program"):
        fit(model, AutoNormal(model), **settings)


def test_a_schedule_must_give_a_window():
    with pytest.raises(bo.DataError, match="a schedule returns a Window"):
        fit(schedule=lambda fraction, batch: batch)


# ---- validation ---------------------------------------------------------------------------------
def bound(posterior: bo.Posterior, data: bo.Trajectories) -> float:
    return validation.validation_bound(posterior.model, posterior.guide, data, num_particles=4)


def held_out() -> bo.Trajectories:
    """Series whose rates the training data contradict: the longer a fit the worse."""
    data = plain_data(seed=1)
    return bo.Trajectories(data.times, data.values - 1.5 * data.times[:, None])


def spoiled(**settings) -> bo.Posterior:
    return fit(num_steps=200, learning_rate=0.1, validation=held_out(), **settings)


def test_the_best_state_on_validation_data_is_what_a_fit_returns():
    posterior = spoiled()
    looks = posterior.history.validation
    steps, values = zip(*looks, strict=True)
    assert steps == (0, 25, 50, 75, 100, 125, 150, 175, 200)
    assert values[-1] < max(values) - 1  # or the test would show nothing
    assert bound(posterior, held_out()) == pytest.approx(max(values), rel=1e-12)
    assert posterior.settings["validation"] == [0, 1, 2, 3, 4, 5]


def test_the_models_parameters_go_back_with_the_guides():
    rates = {"locations": 1e-9, "log_scales": 1e-9, "networks": 0.1}
    guide = TinyGuide()
    guide.weight.requires_grad_(False)
    posterior = fit(
        guide=guide,
        train=plain_data(shift=3.0),
        num_steps=50,
        learning_rate=rates,
        validation=plain_data(shift=-3.0),
    )
    assert posterior.history.validation[0][1] == max(v for _, v in posterior.history.validation)
    assert changed(tiny_model(), posterior.model) == set()
    assert changed(guide, posterior.guide) == set()


def test_patience_ends_a_fit_after_so_many_looks_without_a_better_one():
    posterior = spoiled(patience=2)
    looks = posterior.history.validation
    best = max(range(len(looks)), key=lambda k: looks[k][1])
    assert len(looks) == best + 3
    assert len(posterior.history.elbo) == looks[-1][0] < 200
    assert not posterior.history.is_interrupted


def test_looks_take_common_random_numbers_and_leave_the_steps_alone():
    plain = fit(num_steps=60)
    posterior = fit(num_steps=60, validation=held_out())
    assert posterior.history.elbo == plain.history.elbo
    assert [step for step, _ in posterior.history.validation] == [0, 25, 50, 60]
    assert bound(plain, held_out()) == bound(plain, held_out())


def test_the_bound_of_validation_data_leaves_out_what_belongs_to_the_training_data():
    model, guide, data = tiny_model(), TinyGuide(Still), ragged_data()
    terms = bo.elbo_terms(model, guide, data)
    expected = (terms.log_likelihood - terms.kl["x0"]).item() / 4
    found = validation.validation_bound(model, guide, data, num_particles=3)
    assert found == pytest.approx(expected, rel=1e-12)
    part = validation.validation_bound(model, guide, data.batch([0, 1, 2, 3]), num_particles=3)
    assert part == pytest.approx(expected, rel=1e-12)


def test_without_a_number_of_steps_every_cycle_is_looked_at(monkeypatch):
    monkeypatch.setattr("bayesode.inference.loop.MAX_STEPS", 300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        posterior = fit(num_steps=None, validation=held_out(), patience=1)
    assert [step for step, _ in posterior.history.validation][:2] == [0, 100]
    assert len(posterior.history.elbo) % 100 == 0


def test_ctrl_c_returns_the_best_state_that_was_looked_at(monkeypatch):
    loss, calls = objectives.TermsObjective.loss, [0]

    def interrupted(self, window, num_particles):
        calls[0] += 1
        if calls[0] == 171:
            raise KeyboardInterrupt
        return loss(self, window, num_particles)

    monkeypatch.setattr(objectives.TermsObjective, "loss", interrupted)
    with pytest.warns(UserWarning, match="stopped by the user after 170 of 200 steps"):
        posterior = spoiled()
    assert posterior.history.is_interrupted
    best = max(value for _, value in posterior.history.validation)
    assert bound(posterior, held_out()) == pytest.approx(best, rel=1e-12)


def test_validation_needs_a_guide_that_encodes():
    model, train = tiny_model(), plain_data()
    for guide in (bo.MeanFieldGuide(model, train), AutoNormal(model)):
        with pytest.raises(bo.DataError, match=r"reads x0 off new series.*AmortizedGuide"):
            fit(model, guide, train, validation=held_out())


def test_validation_data_are_checked_as_training_data_are():
    with pytest.raises(bo.DataError, match="nothing to fit"):
        fit(validation=plain_data().at([1.0, 2.0]))
    wide = bo.Trajectories(torch.arange(6.0), torch.zeros(2, 6, 3))
    with pytest.raises(bo.ShapeError, match="is of values"):
        fit(validation=wide)


def test_patience_needs_validation_data_and_a_positive_number():
    with pytest.raises(bo.DataError, match="give validation= too"):
        fit(patience=3)
    with pytest.raises(bo.DataError, match="patience must be positive"):
        fit(patience=0, validation=held_out())


# ---- callbacks ----------------------------------------------------------------------------------
def test_a_callback_sees_every_step_and_the_looks():
    seen = []

    def callback(step, history):
        seen.append((step, len(history.elbo), len(history.validation)))

    fit(num_steps=26, callback=callback, validation=held_out())
    assert [step for step, _, _ in seen] == list(range(1, 27))
    assert all(step == size for step, size, _ in seen)
    assert [looks for _, _, looks in seen][-3:] == [1, 2, 3]


@pytest.mark.parametrize("num_steps", [20, None])
def test_a_callback_ends_a_fit_as_asked_without_a_warning(num_steps: int | None):
    posterior = fit(num_steps=num_steps, callback=lambda step, history: step == 7)
    assert len(posterior.history.elbo) == 7
    assert not posterior.history.is_interrupted
    assert posterior.history.is_converged is None


def test_a_plain_fit_is_what_it_was():
    """Options at their defaults do not change a step."""
    plain = fit(num_steps=5)
    spelled = fit(
        num_steps=5,
        schedule=lambda fraction, batch: Window(batch, torch.ones_like(batch.grid)),
        kl_weight=lambda fraction: 1.0,
        callback=lambda step, history: None,
    )
    assert spelled.history.elbo == pytest.approx(plain.history.elbo, rel=1e-12)


def test_options_survive_saving(tmp_path):
    train, model = plain_data(), tiny_model()
    guide = bo.MeanFieldGuide(model, train)
    posterior = fit(
        model,
        guide,
        train,
        schedule=GrowingWindows(prefix, first=1.0),
        kl_weight=lambda fraction: fraction,
        learning_rate={"networks": 0.1},
    )
    posterior.save(tmp_path / "run")
    loaded = bo.load(tmp_path / "run", model=copy.deepcopy(model), guide=guide)
    assert loaded.settings == posterior.settings
