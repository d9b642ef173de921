"""The ODE-VAE as users have it, on rotating digits: parts, start, fits, predictions, refusals."""

from __future__ import annotations

import itertools
import math
import warnings

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import bayesode as bo
from bayesode.diagnostics import latent_account
from bayesode.inference import elbo
from bayesode.inference.calibration import calibrate_noise
from bayesode.inference.window_schemes import Window, prefix_ends

DOUBLE = torch.float64
FRAME = (1, 20, 20)
FRAMES = bo.datasets.rotating_digits(num_series=12, num_validation=2, num_test=3)
SMALL = {"dim_latent": 4, "hidden": (), "network": "none", "verbose": False}
STILL = {
    "locations": 1e-12,
    "log_scales": 1e-12,
    "networks": 1e-12,
}  # a fit that stays at its start


def changed(data: bo.Trajectories = FRAMES.train, **fields) -> bo.Trajectories:
    """The same frames with other fields."""
    known = {"times": data.times, "values": data.values, "series": data.series, "mask": data.mask}
    known |= fields
    return bo.Trajectories(known.pop("times"), known.pop("values"), **known)


def fitted(train: bo.Trajectories = FRAMES.train, *, fit=None, **options) -> bo.Posterior:
    """A short fit."""
    model, guide = bo.ode_vae(train, **(SMALL | options))
    settings = {"seed": 0, "num_steps": 3, "progress": False} | (fit or {})
    return bo.fit_svi(model, guide, train, **settings)


def signal(posterior: bo.Posterior, question: bo.Trajectories, num_draws: int = 4) -> Tensor:
    return posterior.predict(question, num_draws=num_draws, seed=0).signal


@pytest.fixture(scope="module")
def posterior() -> bo.Posterior:
    return fitted(fit={"num_steps": 20})


def small_double(**options) -> tuple[bo.DynamicalModel, bo.AmortizedGuide, bo.Trajectories]:
    """Few and cropped frames in float64, away from every special value."""
    some = FRAMES.train.rows([0, 1, 2]).until(4).to(dtype=DOUBLE)
    data = changed(some, values=some.values[..., 7:12, 7:12], mask=some.mask[..., 7:12, 7:12])
    model, guide = bo.ode_vae(data, **(SMALL | {"dim_latent": 3} | options))
    guide.warm_start(model, data)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in [*guide.parameters(), *model.parameters()]:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, guide, data


# ---- composition ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "sites"),
    [
        ({}, {"field.weights"}),
        ({"hidden": 4}, {"field.linear.weights", "field.network.weights"}),
        ({"dim_content": 2}, {"field.dynamics.weights"}),
        (
            {"dim_content": 2, "hidden": [4], "likelihood": "continuous_bernoulli"},
            {"field.dynamics.linear.weights", "field.dynamics.network.weights"},
        ),
        ({"likelihood": "gaussian", "network": "mlp"}, {"field.weights", "likelihood.noise_scale"}),
        (
            {"decoder": "bayesian", "network": "conv"},
            {"field.weights", "likelihood.decoder.weights"},
        ),
    ],
)
def test_parts_are_as_asked_and_a_fit_predicts_new_digits(options, sites):
    posterior = fitted(**options)
    assert set(posterior.model.global_priors()) == sites
    path = signal(posterior.condition(FRAMES.test.until(0)), FRAMES.test.at([0.0, 3.0, 20.0]))
    assert path.shape == (4, 3, 3, *FRAME) and path.isfinite().all() and path.dtype == torch.float32
    x0 = posterior.draws(2, seed=0)["x0"]
    assert x0.shape[-1] == 4 + options.get("dim_content", 0)


@pytest.mark.parametrize("shape", [(400,), (20, 20), FRAME])
@pytest.mark.parametrize("network", ["auto", "mlp", "none"])
def test_frames_of_any_shape_are_read(shape, network):
    flat = changed(values=FRAMES.train.values.unflatten(2, (1,)).reshape(12, 16, *shape), mask=None)
    assert signal(fitted(flat, network=network, fit={"num_steps": 1}), flat).shape[3:] == shape


def test_the_solver_is_exact_for_linear_fields_and_answers_at_even_frames_alone():
    gap = torch.arange(16.0)
    uneven = changed(times=gap + 0.2 * (gap % 2))
    kinds = {
        (data is uneven, hidden): bo.ode_vae(data, **(SMALL | {"hidden": hidden}))[0].solver
        for data in (FRAMES.train, uneven)
        for hidden in ((), (4,))
    }
    for solver in (kinds[False, ()], kinds[False, (4,)]):
        assert isinstance(solver, bo.OnFrames) and solver.gap == 1.0
    assert isinstance(kinds[False, ()].solver, bo.MatrixExponentialSolver)
    assert isinstance(kinds[False, (4,)].solver, bo.FixedGridSolver)
    assert isinstance(kinds[True, ()], bo.FixedGridSolver)  # irregular: a motion is determined
    for data, gap in ((uneven, "auto"), (FRAMES.train, None)):
        ensemble = fitted(data, gap=gap).predict(data.at([2.5]), num_draws=2, seed=0)
        assert ensemble.mean.isfinite().all()
    halves = fitted(gap=0.5)
    assert signal(halves, FRAMES.train.at([2.5])).isfinite().all()
    with pytest.raises(bo.DataError, match=r"4\.5 frames after its start"):
        halves.predict(FRAMES.train.at([2.25]))


def test_what_was_composed_is_told(capsys):
    bo.ode_vae(FRAMES.train, dim_latent=4, hidden=[5], dim_content=2, likelihood="gaussian")
    told = capsys.readouterr().out
    for words in ("12 series of frames (1, 20, 20) every 1", "4 dynamic components, 2 constant"):
        assert words in told
    for words in ("network [5]", "network (conv)", "likelihood gaussian", "num_steps 1000"):
        assert words in told


# ---- the start -----------------------------------------------------------------------------------
MARGIN = 0.6  # of the angle mean's squared error; the start has .43, a random rotation 7


def hidden_error(posterior: bo.Posterior) -> float:
    """Mean squared error of the frames that are hidden in some of the sequences."""
    train = posterior.train
    is_hidden = ~train.mask[..., 0, 0, 0]
    is_hidden[:, 4] = False  # hidden in all of them: there is no mean to compare with
    mean = signal(posterior, train).mean(0)
    return (mean - train.values)[is_hidden].square().mean().item()


def test_the_start_alone_predicts_hidden_frames_better_than_the_mean_of_their_angle():
    train = bo.datasets.rotating_digits(num_series=40, num_validation=2, num_test=3).train
    start = fitted(train, dim_latent=24, fit={"num_steps": 1, "learning_rate": STILL})
    seen = torch.where(train.mask, train.values, torch.nan)
    is_hidden = ~train.mask[..., 0, 0, 0]
    is_hidden[:, 4] = False
    usual = (seen.nanmean(0) - train.values)[is_hidden].square().mean().item()
    assert hidden_error(start) < MARGIN * usual
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(24, 24, generator=generator)
    angle = start.guide.location("field.weights").norm() / (random - random.mT).norm()
    start.guide.set_site("field.weights", (angle * (random - random.mT)).flatten())
    assert hidden_error(start) > 2 * usual  # broken on purpose: another rotation, as fast


def test_frames_that_stand_still_are_predicted_to_stand_still():
    still = changed(values=FRAMES.train.values[:, :1].expand(-1, 16, -1, -1, -1))
    for options in ({}, {"hidden": [4]}):
        path = fitted(still, fit={"num_steps": 1}, **options).predict(still, seed=0).path
        drift = path[:, :, -1] - path[:, :, 0]  # the leading component has sd 1
        assert drift.square().mean().sqrt() < 0.2


# ---- fits ----------------------------------------------------------------------------------------
def test_a_fit_raises_the_elbo(posterior):
    start = fitted(fit={"num_steps": 1, "learning_rate": STILL})
    gains = torch.tensor(
        [
            posterior.elbo_terms(num_particles=4, seed=seed).elbo
            - start.elbo_terms(num_particles=4, seed=seed).elbo
            for seed in range(8)
        ]
    )
    # false alarm 6e-7; a fit that does not move gains nothing
    assert gains.mean() > 10 + 5 * gains.std() / math.sqrt(8)


def test_the_same_seed_gives_the_same_posterior_and_another_one_another():
    states = [fitted(hidden=[4], fit={"seed": s}).guide.state_dict() for s in (1, 1, 2)]
    first, same, other = states
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert any((value != other[name]).any() for name, value in first.items())


def test_a_fit_takes_what_the_guide_suggests_and_what_the_user_says_wins():
    model, guide = bo.ode_vae(FRAMES.train, **SMALL)
    suggested = {"num_steps": 1000, "num_particles": 1, "batch_size": 12}
    assert guide.defaults.items() >= suggested.items()
    guide.defaults |= {"num_steps": 2, "learning_rate": {"networks": 2e-4}}
    plain = bo.fit_svi(model, guide, FRAMES.train, seed=0, progress=False)
    assert len(plain.history.elbo) == 2
    assert (plain.settings["num_particles"], plain.settings["batch_size"]) == (1, 12)
    given = {"num_steps": 3, "num_particles": 2, "batch_size": 5, "learning_rate": 0.01}
    asked = bo.fit_svi(model, guide, FRAMES.train, seed=0, progress=False, **given)
    assert len(asked.history.elbo) == 3
    assert {name: asked.settings[name] for name in ("num_particles", "batch_size")} == {
        "num_particles": 2,
        "batch_size": 5,
    }
    rates = {"locations": 0.01, "networks": 2e-4}  # of what is not given, the suggestion
    assert asked.settings["learning_rate"].items() >= rates.items()
    rates = bo.fit_svi(
        model, guide, FRAMES.train, progress=False, learning_rate={"networks": 1e-3}
    ).settings["learning_rate"]
    assert rates["networks"] == 1e-3
    few = bo.fit_svi(model, guide, FRAMES.train.rows([0, 1]), seed=0, progress=False)
    assert few.settings["batch_size"] == 2


def test_the_engine_is_svi_and_the_fit_says_why():
    model, guide = bo.ode_vae(FRAMES.train, **SMALL)
    guide.defaults["num_steps"] = 1
    posterior = bo.fit(model, guide, FRAMES.train, seed=0, progress=False)
    assert posterior.settings["engine"] == "svi"
    assert "does not show the state in data space" in posterior.settings["reason"]


def test_validation_digits_choose_the_state(posterior):
    found = fitted(fit={"num_steps": 30, "validation": FRAMES.validation})
    assert [step for step, _ in found.history.validation] == [0, 25, 30]


def test_the_unit_of_time_changes_nothing():
    slow = changed(times=10 * FRAMES.train.times)
    for options in ({}, {"hidden": [4]}):
        one, ten = fitted(**options), fitted(slow, **options)
        a, b = signal(one, FRAMES.train.at([3.0, 16.0])), signal(ten, slow.at([30.0, 160.0]))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert ten.history.elbo == pytest.approx(one.history.elbo, rel=1e-6)


# ---- files ---------------------------------------------------------------------------------------
def assert_survives(posterior: bo.Posterior, folder) -> None:
    posterior.save(folder)
    again = bo.load(folder)
    question = posterior.train.at([0.0, 5.0, 17.0])
    one, other = (p.predict(question, num_draws=3, seed=1) for p in (posterior, again))
    assert torch.equal(one.path, other.path) and torch.equal(one.values, other.values)
    assert torch.equal(one.signal, other.signal)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": [4], "dim_content": 2, "network": "conv", "decoder": "bayesian"},
        {"likelihood": "continuous_bernoulli", "network": "mlp"},
    ],
)
def test_a_saved_run_predicts_the_same_to_the_last_digit(options, tmp_path):
    posterior = fitted(**options)
    assert_survives(posterior, tmp_path / "fit")
    frames = [0, 2, 5, 6]  # which do not tell the gap of the fit
    some = changed(FRAMES.test, times=frames, values=FRAMES.test.values[:, frames], mask=None)
    for name, new in {"first": FRAMES.test.until(0), "some": some}.items():
        assert_survives(posterior.condition(new, seed=0), tmp_path / name)


def test_so_does_a_calibrated_one(tmp_path):
    posterior = calibrate_noise(fitted(likelihood="gaussian"), FRAMES.validation, num_draws=8)
    assert_survives(posterior, tmp_path / "fit")
    assert_survives(posterior.condition(FRAMES.test.until(0), seed=0), tmp_path / "new")


# ---- predictions ---------------------------------------------------------------------------------
def test_new_digits_are_predicted_from_their_first_frame_alone(posterior):
    """Trap 39: scores on frames that the encoder has read are no scores of predictions."""
    values, asked = FRAMES.test.values.clone(), FRAMES.test.at([0.0, 4.0, 9.0])
    found = signal(posterior.condition(FRAMES.test.until(0)), asked)
    values[:, 1:] = torch.rand_like(values[:, 1:])
    for seen in (FRAMES.test, changed(FRAMES.test, values=values)):
        assert torch.equal(signal(posterior.condition(seen), asked), found)
    values[:, 0] = torch.rand_like(values[:, 0])
    other = signal(posterior.condition(changed(FRAMES.test, values=values)), asked)
    assert (other - found).abs().amax((0, 2, 3, 4, 5)).min() > 0.01  # of every sequence


def test_the_frames_of_training_digits_do_not_matter_to_their_predictions_either(posterior):
    asked = FRAMES.train.at(FRAMES.train.times)
    other = changed(values=torch.rand_like(FRAMES.train.values))
    assert torch.equal(signal(posterior, asked), signal(posterior, other))


def test_noise_is_not_calibrated_on_the_frame_that_was_read():
    """Trap 39: its error is smaller, so its coverage says nothing of predictions."""
    posterior, times = fitted(likelihood="gaussian"), torch.arange(16.0)
    factors = [
        calibrate_noise(posterior, FRAMES.validation, num_draws=8, at=at).settings[
            "calibrated_noise"
        ]["factor"]
        for at in (None, times[1:], times)
    ]
    assert factors[0] == factors[1] and factors[0] != factors[2]


def test_conditioning_leaves_no_sequence_out(posterior):
    new = posterior.condition(FRAMES.test)
    ensemble = new.predict(FRAMES.test, num_draws=4, seed=0)
    assert ensemble.trajectories.series == FRAMES.test.series == new.train.series
    assert ensemble.mean.isfinite().all()
    alone = posterior.condition(FRAMES.test.rows([2])).train.series
    assert alone == FRAMES.test.series[2:]
    with pytest.raises(bo.DataError, match="was not in the fit"):
        posterior.predict(FRAMES.test)
    mask = torch.ones(3, 16, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(bo.DataError, match=rf"series {FRAMES.test.series[1]} has no visible value"):
        posterior.condition(changed(FRAMES.test, mask=mask))


def test_a_second_turn_can_be_asked_for_and_times_between_frames_cannot(posterior):
    ensemble = posterior.predict(FRAMES.train.at(torch.arange(16.0, 32.0)), num_draws=4, seed=0)
    assert ensemble.mean.shape == (12, 16, *FRAME) and ensemble.mean.isfinite().all()
    with pytest.raises(bo.DataError, match=r"2\.5 frames after its start.*do not determine"):
        posterior.predict(FRAMES.train.at([1.0, 2.5]))
    with pytest.raises(bo.DataError, match="before its start"):
        posterior.predict(FRAMES.train.at([-1.0]))


def test_a_recurrent_encoder_imputes_from_any_frames_and_reads_no_hidden_one():
    model, _ = bo.ode_vae(FRAMES.train, **SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = bo.GRUEncoder(FRAME, 4, hidden=8)
    guide = bo.AmortizedGuide(model, encoder)
    mask = torch.rand(12, 16, generator=torch.Generator().manual_seed(1)) > 0.6
    mask[:, 0], mask[:, 7] = False, True
    train = changed(mask=mask)
    posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=3, progress=False)
    seen = torch.zeros(3, 16, *FRAME, dtype=torch.bool)
    seen[0, 3], seen[1, [2, 9]], seen[2, 15, :, :12] = True, True, True  # of the last, a part
    asked = FRAMES.test.at(FRAMES.test.times)
    found = signal(posterior.condition(changed(FRAMES.test, mask=seen)), asked)
    assert found.shape == (4, 3, 16, *FRAME) and found.isfinite().all()
    for fill in (0.9, math.nan):
        hidden = torch.where(seen, FRAMES.test.values, fill)
        new = changed(FRAMES.test, values=hidden, mask=seen)
        assert torch.equal(signal(posterior.condition(new), asked), found)
    more = seen.clone()
    more[0, 5] = True
    other = signal(posterior.condition(changed(FRAMES.test, mask=more)), asked)
    assert (other[:, 0] != found[:, 0]).any()
    assert torch.equal(other[:, 1:], found[:, 1:])


def test_arviz_has_states_and_frames(posterior):
    data = posterior.to_arviz(num_draws=3)
    assert data["posterior"]["x0"].shape == (1, 3, 12, 4)
    assert data["posterior_predictive"]["values"].shape == (1, 3, 12, 16, *FRAME)


# ---- the account ---------------------------------------------------------------------------------
def test_a_fit_that_uses_its_encoder_has_no_warning(posterior):
    account = latent_account(posterior, num_particles=4)
    assert account.num_active == 4 and account.warning is None
    assert int(account.num_frames.sum()) == 12 * 12  # visible ones
    assert account.elbo == pytest.approx(account.nats_per_frame * 144, rel=1e-6)


def test_a_collapsed_fit_is_named():
    """Collapsed on purpose: a KL of 10,000 times its weight makes all initial states the prior."""
    rates = {"networks": 0.05, "log_scales": 0.1}
    heavy = fitted(fit={"num_steps": 60, "kl_weight": 1e4, "learning_rate": rates})
    account = latent_account(heavy, num_particles=2)
    assert account.num_active == 0 and account.is_encoder_ignored
    assert "the encoder is ignored" in account.warning and account.warning in str(account)


# ---- the ELBO, in float64 ------------------------------------------------------------------------
@pytest.fixture
def empty_store():
    with pyro.get_param_store().scope():
        yield


KINDS = [
    {"hidden": [2], "network": "mlp"},
    {"likelihood": "gaussian", "decoder": "bayesian"},
    {"likelihood": "continuous_bernoulli", "dim_content": 1, "hidden": [2]},
]


UNUSED = "guide.encoder.residual.heads.log_scale"  # a sum has the scale of its linear part


def pyro_elbo(way: type, num_particles: int) -> Trace_ELBO:
    return way(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("is_minibatch", [False, True])
def test_all_ways_to_the_elbo_agree(options, is_minibatch, empty_store):
    """Draw by draw under the mean-field one with all gradients; on average, 5 se, under Trace."""
    model, guide, data = small_double(**options)
    batch = data.batch([2, 0]) if is_minibatch else data
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ours = -bo.elbo_terms(model, guide, batch, num_particles=3).elbo
        torch.manual_seed(1)
        way = pyro_elbo(TraceMeanField_ELBO, 3)
        theirs = way.differentiable_loss(model, guide, batch)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0.0)
        parameters = [
            *(p for name, p in guide.named_parameters() if not f"guide.{name}".startswith(UNUSED)),
            *model.parameters(),
        ]
        pairs = [torch.autograd.grad(loss, parameters) for loss in (ours, theirs)]
        for one, other in zip(*pairs, strict=True):
            assert (one - other).norm() <= 1e-9 * other.norm() and other.norm() > 0
        with torch.no_grad():
            found = torch.tensor(
                [
                    [float(estimate()) for _ in range(20)]
                    for estimate in (
                        lambda: bo.elbo_terms(model, guide, batch, num_particles=50).elbo,
                        lambda: -pyro_elbo(Trace_ELBO, 50).loss(model, guide, batch),
                    )
                ],
                dtype=DOUBLE,
            )
    error = found.std(-1).square().sum().div(20).sqrt()
    assert (found[0] - found[1]).mean().abs() < 5 * error


@pytest.mark.parametrize("options", KINDS)
def test_gradients_reach_every_part_and_are_those_of_finite_differences(options):
    model, guide, data = small_double(**options)
    named = {f"guide.{n}": p for n, p in guide.named_parameters()}
    named |= {f"model.{n}": p for n, p in model.named_parameters()}

    def loss() -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return -bo.elbo_terms(model, guide, data, num_particles=2).elbo

    found = torch.autograd.grad(loss(), list(named.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    for (name, parameter), gradient in zip(named.items(), found, strict=True):
        if name.startswith(UNUSED):
            assert gradient is None
            continue
        start = parameter.detach().clone()
        direction = torch.randn(start.shape, generator=generator, dtype=DOUBLE)
        direction /= direction.norm()
        with torch.no_grad():
            ends = []
            for step in (1e-4, -1e-4, 2e-4, -2e-4):
                parameter.copy_(start + step * direction)
                ends.append(loss())
            parameter.copy_(start)
        slope = (8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / 12e-4  # to fourth order
        assert gradient.norm() > 0, name
        error = (slope - (gradient * direction).sum()).abs()
        assert error < 1e-6 * gradient.norm() + 1e-6, name


# ---- windows, with the encoder of an ODE-VAE -----------------------------------------------------
@pytest.fixture
def conditioned(monkeypatch):
    """An ODE-VAE of which every latent is at its posterior mean, and the ELBO of a window."""
    monkeypatch.setattr(elbo, "_draw", lambda law: law.mean)
    model, guide, data = small_double(hidden=[2])

    def bound(window: Window) -> Tensor:
        terms = bo.elbo_terms(model, guide, window.trajectories, time_weights=window.weights)
        return terms.elbo.detach()

    return model, guide, data, bound


def test_the_mean_over_all_prefixes_is_the_elbo_of_whole_sequences(conditioned):
    *_, data, bound = conditioned
    ends = prefix_ends(data, 1.0).tolist()
    assert len(ends) > 2
    mean = torch.stack([bound(bo.prefix(data, 1.0, end=end)) for end in ends]).mean()
    torch.testing.assert_close(mean, bound(Window(data)), rtol=1e-10, atol=0.0)
    plain = [bound(Window(bo.prefix(data, 1.0, end=end).trajectories)) for end in ends]
    assert (torch.stack(plain).mean() - mean).abs() > 1  # without weights: biased


@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0])
def test_blocks_are_the_elbo_of_windows_as_sequences_for_every_offset(conditioned, offset):
    """By hand: every window encoded and solved alone; trap 38."""
    model, guide, data, bound = conditioned
    length, total, shared = 2.0, 0.0, None
    for row in range(data.num_series):
        seen = [k for k in range(5) if data.mask[row, k].all()]
        for _, columns in itertools.groupby(seen, lambda k: math.floor((k - offset) / length)):
            places = list(columns)
            one = bo.Trajectories(
                data.times[places], data.values[row : row + 1, places], series=["window"]
            )
            terms = bo.elbo_terms(model, guide, one)
            total += (terms.log_likelihood - terms.kl["x0"]).item()
            shared = sum(v.item() for site, v in terms.kl.items() if site != "x0")
    found = bound(bo.blocks(data, length, offset=offset)).item()
    assert found == pytest.approx(total - shared, rel=1e-10)
    assert found != pytest.approx(bound(Window(data)).item(), rel=1e-3)  # another model's


def test_a_composite_is_the_mean_of_its_cuts(conditioned):
    *_, data, bound = conditioned
    cuts = torch.stack([bound(bo.blocks(data, 2.0, offset=offset)) for offset in (0.5, 1.5)])
    both = bound(bo.composite(data, 2.0, offset=0.5))
    torch.testing.assert_close(both, cuts.mean(), rtol=1e-10, atol=0.0)
    assert (cuts[0] - cuts[1]).abs() > 1


@pytest.mark.parametrize("scheme", [bo.prefix, bo.blocks, bo.composite])
def test_fits_grow_their_windows(scheme):
    schedule = bo.GrowingWindows(scheme, first=3.0)
    found = fitted(fit={"num_steps": 6, "schedule": schedule, "batch_size": 4})
    assert len(found.history.elbo) == 6 and all(map(math.isfinite, found.history.elbo))


# ---- refusals ------------------------------------------------------------------------------------
def masked(row: int, frame) -> bo.Trajectories:
    mask = FRAMES.train.mask.clone()
    mask[row, frame] = False
    return changed(mask=mask)


COLOUR = changed(FRAMES.test, values=FRAMES.test.values.expand(-1, -1, 3, -1, -1), mask=None)
CROPPED = changed(FRAMES.test, values=FRAMES.test.values[..., :18, :18], mask=None)
BYTES = (FRAMES.train.values * 255).to(torch.uint8)


@pytest.mark.parametrize("values", [BYTES, 2 * FRAMES.train.values, FRAMES.train.values - 0.1])
@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli"])
def test_pixels_outside_zero_and_one_are_refused_with_the_mend(likelihood, values):
    words = r"values from 0 to 1 \(divide pixels from 0 to 255 by 255\)"
    with pytest.raises(bo.DataError, match=words):
        fitted(changed(values=values), likelihood=likelihood)


def test_a_gaussian_takes_any_pixels_of_ordinary_size():
    shifted = changed(values=3 * FRAMES.train.values - 1)
    assert signal(fitted(shifted, likelihood="gaussian"), shifted).isfinite().all()
    for values in (BYTES, FRAMES.train.values / 100):
        with pytest.raises(bo.DataError, match="divide pixels from 0 to 255 by 255, and other"):
            fitted(changed(values=values), likelihood="gaussian")


@pytest.mark.parametrize(
    ("new", "error", "words"),
    [
        (COLOUR, bo.BayesODEError, r"3, 20, 20\)"),
        (CROPPED, bo.BayesODEError, r"1, 18, 18\)"),
        (changed(FRAMES.test, values=2 * FRAMES.test.values), bo.DataError, "from 0 to 1"),
        (masked(3, 0), bo.DataError, "frame 0 of series 45 is hidden.*GRUEncoder"),
        (masked(3, slice(None)), bo.DataError, "series 45 has no visible value"),
    ],
)
def test_other_frames_are_refused_as_new_and_as_validation_data(posterior, new, error, words):
    with pytest.raises(error, match=words):
        posterior.condition(new)
    with pytest.raises(error, match=words):
        fitted(fit={"validation": new})


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (masked(3, 0), "frame 0 of series 45 is hidden.*GRUEncoder"),
        (masked(3, slice(None)), "series 45 has no visible value"),
        (changed(values=torch.full((12, 16, *FRAME), 0.5)), "there is no motion"),
        (FRAMES.train.until(0), "single time"),
    ],
)
def test_frames_that_tell_nothing_are_refused(train, words):
    with pytest.raises(bo.DataError, match=words):
        fitted(train)


def test_missing_pixels_are_left_out_and_one_in_the_first_frame_is_refused():
    values = FRAMES.train.values.clone()
    values[2, 3, 0, 4, 5] = values[5, 7, 0, :10] = math.nan
    partly = changed(values=values, mask=None)
    assert signal(fitted(partly), partly).isfinite().all()
    values[1, 0, 0, 3, 3] = math.nan
    with pytest.raises(bo.DataError, match="hidden, wholly or in part"):
        fitted(changed(values=values, mask=None))


@pytest.mark.parametrize("rows", [[0], [0, 1]])
def test_a_sequence_or_two_are_enough(rows):
    few = FRAMES.train.rows(rows)
    assert signal(fitted(few), few).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, DOUBLE])
def test_every_floating_dtype_is_taken(dtype):
    frames = changed(values=FRAMES.train.values.to(dtype))
    wanted = DOUBLE if dtype == DOUBLE else torch.float32
    assert signal(fitted(frames, network="mlp", hidden=[3]), frames).dtype == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim_latent": 0}, "dim_latent must be a positive whole number, not 0"),
        ({"dim_latent": 1.5}, r"dim_latent must be a positive whole number, not 1\.5"),
        ({"dim_latent": "8"}, "dim_latent must be a positive whole number, not '8'"),
        ({"dim_content": -1}, "dim_content must be"),
        ({"hidden": (0,)}, r"hidden\[0\] must be"),
        ({"likelihood": "poisson"}, r"likelihood must be one of \['bernoulli', .* not 'poisson'"),
        ({"network": ["conv"]}, r"network must be one of \['auto', .* not \['conv'\]"),
        ({"gap": 0.0}, "gap must be a positive number"),
        ({"gap": "even"}, "gap must be a positive number"),
        ({"decoder": None}, r"decoder must be one of \['deterministic', .* not None"),
    ],
)
def test_settings_that_cannot_be_are_named(options, words):
    with pytest.raises(bo.DataError, match=words):
        bo.ode_vae(FRAMES.train, **(SMALL | options))


def test_data_that_are_none_and_convolutions_of_vectors_are_refused():
    hidden = changed(mask=torch.zeros(12, 16, dtype=torch.bool))
    for data in (None, FRAMES, FRAMES.train.values, FRAMES.train.at([0.0, 1.0]), hidden):
        with pytest.raises(bo.DataError, match="an ODE-VAE needs observed frames"):
            bo.ode_vae(data, verbose=False)
    flat = changed(values=FRAMES.train.values.flatten(2), mask=None)
    with pytest.raises(bo.ShapeError, match=r'network="conv" needs images.*take "mlp"'):
        bo.ode_vae(flat, network="conv", verbose=False)


def test_more_components_than_the_frames_have_and_larger_batches_are_refused():
    with pytest.raises(bo.DataError, match="vary in 143 directions: take a latent dimension"):
        fitted(dim_latent=144)
    with pytest.raises(bo.DataError, match="batch_size must lie between 1 and 12"):
        fitted(fit={"batch_size": 10**6})


def test_engines_and_systems_of_data_space_name_what_takes_frames():
    model, _ = bo.ode_vae(FRAMES.train, **SMALL)
    with pytest.raises(bo.FitError, match=r"fit_svi\(model, AmortizedGuide"):
        bo.fit_laplace(model, FRAMES.train)
    for system in (bo.plan, bo.neural_ode, bo.neural_sde):
        with pytest.raises(bo.ShapeError, match=r"for images.*take ode_vae\(train\)"):
            system(FRAMES.train)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.Dropout()])
def test_an_encoder_that_differs_between_training_and_prediction_is_refused(layer):
    """Traps 5 and 43."""
    model, _ = bo.ode_vae(FRAMES.train, **SMALL)
    encoder = bo.MLPEncoder(FRAME, 4, hidden=[8])
    encoder.body.append(layer)
    with pytest.raises(bo.DataError, match=r"layer 'body\.3' is"):
        bo.AmortizedGuide(model, encoder)


def test_nothing_is_warned_of_in_an_ordinary_fit():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fitted(hidden=[4])
        found.condition(FRAMES.test.until(0)).predict(FRAMES.test, num_draws=3, seed=0).interval()
