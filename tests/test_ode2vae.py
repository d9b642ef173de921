"""Latent dynamics that a few frames start, as users have them: fits, forecasts, units, refusals."""

from __future__ import annotations

import itertools
import warnings

import pyro
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

import bayesode as bo
from bayesode.inference.encoders.seen import most_frames
from bayesode.inference.objectives import objective_for

DOUBLE = torch.float64
NUM_FRAMES = 50
SMALL = {"dim_latent": 3, "hidden": [6], "num_frames": 3, "verbose": False}
SITE = "field.dynamics.paced.acceleration.linear.weights"
QUICK = {"num_steps": 2, "progress": False, "seed": 0}


def walks(
    num_series: int = 6, *, seed: int = 0, noise: float = 0.0, num_frames: int = NUM_FRAMES
) -> bo.Trajectories:
    """Five channels of one cycle, entered at any phase; the last channel stands still."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.arange(num_frames, dtype=DOUBLE) * 0.2
    phase = times + 6.28 * torch.rand(num_series, 1, generator=generator, dtype=DOUBLE)
    parts = [phase.sin(), 2 * phase.cos(), (2 * phase).sin(), phase.sin() + phase.cos() / 2]
    values = torch.stack([*parts, torch.full_like(phase, 7.0)], -1)
    values = values + noise * torch.randn(values.shape, generator=generator, dtype=DOUBLE)
    names = ["hip", "knee", "ankle", "toe", "root"]
    labels = [f"walk {seed}.{k}" for k in range(num_series)]
    return bo.Trajectories(times, values, series=labels, names=names)


def changed(data: bo.Trajectories, **fields) -> bo.Trajectories:
    known = {"times": data.times, "values": data.values, "mask": data.mask}
    known |= {"series": data.series, "names": data.names} | fields
    return bo.Trajectories(known.pop("times"), known.pop("values"), **known)


def fitted(train: bo.Trajectories, *, fit=None, **options) -> bo.Posterior:
    model, guide = bo.ode2vae(train, **(SMALL | options))
    return bo.fit_svi(model, guide, train, **(QUICK | (fit or {})))


def forecast(posterior: bo.Posterior, data: bo.Trajectories, num_draws: int = 8) -> Tensor:
    """Mean prediction of series of which three frames are read."""
    new = posterior.condition(data.until(0.45 * (data.times[-1] / 9.8).item()))
    return new.predict(data, num_draws=num_draws, seed=0).signal.mean(0)


@pytest.fixture(scope="module", params=[1, 2])
def posterior(request) -> bo.Posterior:
    return fitted(walks(), order=request.param)


# ---- fits ----------------------------------------------------------------------------------------
def test_new_series_are_forecast_from_three_frames(posterior):
    new = walks(4, seed=1)
    error = (forecast(posterior, new) - new.values)[:, 3:].square().mean().sqrt()
    spread = (new.values - new.values.mean((0, 1)))[..., :4].square().mean().sqrt()
    assert error < 0.15 * spread


def test_forecasts_go_on_beyond_the_data(posterior):
    longer = walks(4, seed=1, num_frames=2 * NUM_FRAMES)
    new = posterior.condition(longer.until(0.45))
    found = new.predict(longer, num_draws=8, seed=0).signal.mean(0)
    error = (found - longer.values)[:, NUM_FRAMES:, :4].square().mean().sqrt()
    assert error < 0.5


def test_what_stands_still_is_predicted_to_stand_still(posterior):
    assert (forecast(posterior, walks(2, seed=1))[..., 4] - 7).abs().max() < 0.02


def test_velocities_are_rates_of_positions():
    posterior = fitted(walks(), order=2)
    question = posterior.train.at(torch.linspace(1, 4, 301, dtype=DOUBLE))
    ensemble = posterior.predict(question, num_draws=3, seed=0)
    unit = posterior.model.units.time_unit
    pace = ensemble.path[..., -1:].exp()
    rate = (ensemble.path[:, :, 2:, :3] - ensemble.path[:, :, :-2, :3]) / (0.02 / unit)
    torch.testing.assert_close(
        rate, (pace * ensemble.path[..., 3:6])[:, :, 1:-1], atol=2e-3, rtol=1e-3
    )


def test_constants_stand_still_along_a_series(posterior):
    path = posterior.predict(posterior.train, num_draws=2, seed=0).path
    size = 3 * (2 if posterior.model.recipe["arguments"]["order"] == 2 else 1)
    assert path.shape[-1] == size + 1 + posterior.model.recipe["arguments"]["dim_style"]
    assert torch.equal(path[..., size:], path[:, :, :1, size:].expand_as(path[..., size:]))


def test_units_of_values_and_times_come_back_in_predictions():
    data, scale, day = walks(), 1e6, 86400.0
    other = changed(data, times=data.times * day, values=data.values * scale)
    one, two = (fitted(d, fit={"num_steps": 1, "learning_rate": 1e-9}) for d in (data, other))
    new = walks(2, seed=1)
    found = forecast(one, new)
    moved = changed(new, times=new.times * day, values=new.values * scale)
    torch.testing.assert_close(forecast(two, moved) / scale, found, atol=1e-3, rtol=0)


def test_tiny_and_huge_numbers_are_fitted():
    for scale in (1e-9, 1e9):
        data = changed(walks(), values=scale * walks().values)
        posterior = fitted(data, fit={"num_steps": 5})
        error = (forecast(posterior, data) - data.values).square().mean().sqrt()
        assert error < 0.3 * scale


def test_hidden_frames_and_entries_are_not_read():
    data = walks()
    mask = torch.rand(data.values.shape, generator=torch.Generator().manual_seed(0)) < 0.98
    mask[:, :3], mask[0, 20:30] = True, False
    values = torch.where(mask, data.values, 1e6)
    found = forecast(fitted(changed(data, mask=mask, values=values)), walks(2, seed=1))
    hidden = torch.where(mask, data.values, -1e6)
    again = forecast(fitted(changed(data, mask=mask, values=hidden)), walks(2, seed=1))
    assert torch.equal(found, again)


def test_a_saved_fit_comes_back(posterior, tmp_path):
    folder = posterior.save(tmp_path / "run")
    again = bo.load(folder)
    new = walks(2, seed=1)
    assert torch.equal(forecast(again, new), forecast(posterior, new))


def test_a_posterior_of_the_fewest_frames_comes_back(posterior, tmp_path):
    new = walks(2, seed=1)
    three = posterior.condition(new.until(0.45))
    again = bo.load(three.save(tmp_path / "run"))
    one, two = (p.predict(new, num_draws=2, seed=0).signal for p in (three, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize("order", [1, 2])
def test_the_bound_is_that_of_pyro(order):
    data = walks(3, num_frames=8)
    model, guide = bo.ode2vae(data, **(SMALL | {"order": order, "dim_latent": 2}))
    guide.warm_start(model, data)
    torch.manual_seed(1)
    ours = -bo.elbo_terms(model, guide, data, num_particles=2).elbo
    torch.manual_seed(1)
    way = TraceMeanField_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    with pyro.get_param_store().scope():
        theirs = way.differentiable_loss(model, guide, data)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)


def test_the_path_objective_is_a_looser_bound_of_it():
    data = walks(3, num_frames=8)
    model, guide = bo.ode2vae(data, **(SMALL | {"dim_latent": 2, "dim_style": 0}))
    guide.warm_start(model, data)
    plain = bo.elbo_terms(model, guide, data, num_particles=20).elbo
    both = bo.path_objective(model, guide, gamma=0.1)
    assert bo.elbo_terms(*both, data, num_particles=20).elbo < plain


def test_encoders_tell_how_many_frames_they_read():
    for network in ("none", "mlp"):
        guide = bo.ode2vae(walks(), **(SMALL | {"network": network}))[1]
        assert most_frames([guide.encoder]) == 3


def test_a_start_is_the_same_for_the_same_seed_and_leaves_no_trace():
    train, new = walks(3, num_frames=25), walks(2, seed=1)
    model, guide = bo.ode2vae(train, **SMALL)
    state, before = torch.get_rng_state(), guide.location(SITE)
    fits = [bo.fit_svi(model, guide, train, **(QUICK | {"seed": seed})) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(guide.location(SITE), before)
    one, two, other = (forecast(fit, new) for fit in fits)
    assert torch.equal(one, two) and not torch.equal(one, other)


# ---- what series have of their own ---------------------------------------------------------------
def paced(rates: list[float], seed: int) -> bo.Trajectories:
    """Walks at different paces."""
    base = walks(len(rates), seed=seed, num_frames=400)
    at = torch.tensor(rates, dtype=DOUBLE)[:, None] * torch.arange(NUM_FRAMES) * 4
    index = at.round().long()
    values = base.values[torch.arange(len(rates))[:, None], index]
    return changed(
        base, times=torch.arange(NUM_FRAMES, dtype=DOUBLE) * 0.2, values=values, mask=None
    )


def constants(posterior: bo.Posterior, data: bo.Trajectories) -> tuple[Tensor, Tensor]:
    """Location and scale of the log pace of each series."""
    law = posterior.guide.encoder(data).base_dist
    return law.loc[:, -1].detach(), law.scale[:, -1].detach()


@pytest.mark.parametrize("order", [1, 2])
def test_paces_of_the_series_are_found_and_new_ones_get_the_median_and_the_spread(order):
    rates = [0.25, 0.25, 0.25, 0.27, 0.235, 0.25, 0.26, 0.24]
    train = paced(rates, 0)
    posterior = fitted(train, order=order)
    found, scale = constants(posterior, train)
    exact = torch.tensor(rates, dtype=DOUBLE).log()
    assert ((found - found.median()) - (exact - exact.median())).abs().max() < 0.015
    new, width = constants(posterior, paced([0.25] * 3, 5))
    torch.testing.assert_close(new, found.median().expand(3), atol=2e-3, rtol=0)
    assert (width > 2 * scale.median()).all() and (width < 0.1).all()
    typical = fitted(train, order=order, spread=0.0)
    assert (constants(typical, paced([0.25] * 3, 5))[1] < width / 2).all()


def test_constants_that_are_read_are_no_property_of_a_series_of_the_fit():
    train = paced([0.25, 0.27, 0.23, 0.25], 0)
    posterior = fitted(train, order=1, constants="read")
    other = changed(train, series=["a", "b", "c", "d"])
    found = [constants(posterior, data) for data in (train, other)]
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=0)


def test_a_label_alone_does_not_make_a_series_one_of_the_fit():
    train = paced([0.25, 0.25, 0.3, 0.25], 0)
    posterior = fitted(train)
    other = changed(paced([0.25] * 4, 3), series=train.series)
    found = constants(posterior, other)[0]
    assert found.std() < 1e-3 < constants(posterior, train)[0].std()
    same = changed(train, series=["a", "b", "c", "d"])
    assert constants(posterior, same)[0].std() < 1e-3


def test_effects_go_by_label_whatever_series_are_fitted():
    train = paced([0.25, 0.25, 0.3, 0.27], 0)
    model, guide = bo.ode2vae(train, **(SMALL | {"dim_latent": 2, "hidden": []}))
    some = train.rows([3, 2, 0])
    part = bo.fit_svi(model, guide, some, **QUICK).guide.encoder.constants
    law = part(some).base_dist
    assert torch.equal(law.scale, part.log_scale[[3, 2, 0]].exp())
    assert part.seen[1].isnan().all() and part.effect[1] == 0
    with pytest.raises(bo.DataError, match="'a' is none of those whose effects"):
        bo.fit_svi(model, guide, changed(some, series=list("abc")), **QUICK)


def test_effects_have_moments_of_their_own_per_row_in_minibatches():
    train = walks(4, num_frames=8)
    model, guide = bo.ode2vae(train, **(SMALL | {"dim_latent": 2}))
    rates = dict.fromkeys(("locations", "log_scales", "networks"), 0.1)
    optimizers = objective_for(model, guide, is_minibatch=True).optimizers(torch.optim.Adam, rates)
    constants, sparse = guide.encoder.constants, optimizers[-1]
    own = {id(p) for group in sparse.param_groups for p in group["params"]}
    assert isinstance(sparse, torch.optim.SparseAdam)
    assert own == {id(constants.effect), id(constants.log_scale)}
    batch = train.rows([2, 0, 1])
    assert guide.rows(batch).tolist() == [2, 0, 1]
    assert guide.rows(changed(batch, series=["a", *batch.series[1:]])).tolist() == [0, 1]


def test_a_series_of_which_nothing_is_predicted_keeps_the_scale_of_the_prior():
    data = walks(4, num_frames=60)
    ends = torch.tensor([60, 60, 60, 3])
    grid = data.times.expand(4, -1)
    short = bo.Trajectories(grid, data.values, num_times=ends, series=data.series, names=data.names)
    guide = fitted(short, dim_latent=2, hidden=[]).guide
    scale = guide.encoder(short).base_dist.scale[:, -1]
    assert scale[3] > 3 * scale[:3].max() and scale[3] < 0.05


def test_effects_refuse_what_they_cannot_be():
    line = bo.LineEncoder((3,), 1)
    for make in (
        lambda: bo.SeriesEffects(line, []),
        lambda: bo.SeriesEffects(line, ["a", "a"]),
        lambda: bo.SeriesEffects(bo.LinearEncoder((3,), 1), ["a"]),
        lambda: bo.SeriesEffects(line, ["a"], share=-1.0),
    ):
        with pytest.raises(bo.DataError):
            make()


# ---- composition ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "dim"),
    [
        ({"order": 1}, 3 + 1),
        ({"order": 2}, 6 + 1),
        ({"order": 1, "dim_style": 2}, 3 + 2 + 1),
        ({"order": 2, "dim_style": 2}, 6 + 2 + 1),
        ({"hidden": []}, 6 + 1),
        ({"order": 1, "dim_style": 1, "constants": "read"}, 3 + 1 + 1),
        ({"network": "mlp", "decoder": "bayesian"}, 6 + 1),
        ({"num_frames": 2}, 6 + 1),
    ],
)
def test_parts_are_as_asked(options, dim):
    posterior = fitted(walks(4, num_frames=20), **options)
    assert posterior.draws(2, seed=0)["x0"].shape[-1] == dim
    assert forecast(posterior, walks(2, seed=1)).isfinite().all()


@pytest.mark.parametrize("likelihood", ["gaussian", "clipped_gaussian", "bernoulli"])
def test_videos_are_read_by_convolutions(likelihood):
    video = bo.datasets.pendulum_video(
        num_series=5, num_validation=1, num_test=1, num_frames=12, size=16
    )
    options = {"dim_latent": 2, "network": "auto", "likelihood": likelihood}
    posterior = fitted(video.train, **options)
    new = posterior.condition(video.test.until(2 * 0.25))
    frames = new.predict(video.test, num_draws=3, seed=0).signal
    assert frames.shape == (3, 1, 12, 1, 16, 16) and frames.isfinite().all()


def test_what_was_composed_is_told(capsys):
    bo.ode2vae(walks(), order=1, dim_latent=2, hidden=[5], dim_style=2)
    told = capsys.readouterr().out
    for words in ("order 1 of 6 series", "2 components, 2 constants of style, 1 pace"):
        assert words in told
    for words in ("network [5]", "of 3 frames", "likelihood gaussian", "KL weight"):
        assert words in told


# ---- data of every kind --------------------------------------------------------------------------
def of_unequal_lengths(data: bo.Trajectories) -> bo.Trajectories:
    count = torch.tensor([30, 20, 12, 30, 25, 4])
    place = torch.minimum(torch.arange(30), count[:, None] - 1)
    values = data.values[torch.arange(6)[:, None], place]
    return changed(data, times=data.times[place], values=values, mask=None, num_times=count)


def with_missing_frames(data: bo.Trajectories) -> bo.Trajectories:
    values = data.values.clone()
    values[2, 10:14], values[3, 15, 2] = torch.nan, torch.nan
    return changed(data, values=values, mask=None)


@pytest.mark.parametrize(
    "prepare",
    [
        of_unequal_lengths,
        with_missing_frames,
        lambda data: changed(data, values=data.values.float()),
        lambda data: changed(data, values=(100 * data.values).round().long()),
        lambda data: changed(data, times=torch.arange(30)),
    ],
    ids=["unequal lengths", "missing frames", "float32", "whole", "whole times"],
)
def test_series_of_the_fit_are_predicted_from_their_first_frames_whatever_they_are(prepare):
    data = prepare(walks(num_frames=30))
    posterior = fitted(data, dim_latent=2, hidden=[4])
    given = data.until(2.25 * (data.grid[0, 1] - data.grid[0, 0]).item())
    found = posterior.condition(given).predict(data, num_draws=4, seed=0).signal.mean(0)
    error = torch.where(data.mask, found - data.values, 0.0)[:, 3:]
    scale = data.values[0].max() / 7  # the largest number is that of the channel that stands still
    plain = walks(num_frames=30).values
    spread = scale * (plain - plain.mean((0, 1))).square().mean().sqrt()
    assert error.square().mean().sqrt() < 0.5 * spread


# ---- bad input -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": 3}, "order must be one of"),
        ({"order": [2]}, "order must be one of"),
        ({"order": 2.0}, "order must be a positive whole number"),
        ({"order": True}, "order must be a positive whole number"),
        ({"dim_latent": 0}, "dim_latent must be a positive whole number"),
        ({"dim_latent": 4}, "vary in 3 directions"),
        ({"dim_style": -1}, "dim_style must be a positive whole number"),
        ({"hidden": [0]}, r"hidden\[0\] must be"),
        ({"num_frames": 1}, "velocities need two frames"),
        ({"num_frames": 2.5}, "num_frames must be a positive whole number"),
        ({"num_frames": "3"}, "num_frames must be a positive whole number"),
        ({"num_frames": NUM_FRAMES}, "one more has to be predicted"),
        ({"likelihood": "poisson"}, "likelihood must be one of"),
        ({"network": "lstm"}, "network must be one of"),
        ({"decoder": "none"}, "decoder must be one of"),
        ({"constants": "none"}, "constants must be one of"),
        ({"temper": 0.0}, "temper must be a positive number"),
        ({"jitter": -0.1}, "jitter must be"),
    ],
)
def test_bad_settings_are_one_clear_error(options, words):
    with pytest.raises(bo.DataError, match=words):
        bo.ode2vae(walks(), **(SMALL | options))


def test_bad_data_are_one_clear_error():
    data = walks()
    with pytest.raises(bo.DataError, match="needs observed frames"):
        bo.ode2vae(data.at([1.0]), **SMALL)
    for value in (1.0, 0.1):  # the mean of many .1 is not .1
        still = changed(data, values=torch.full_like(data.values, value))
        with pytest.raises(bo.DataError, match="visible frames are the same"):
            bo.ode2vae(still, **SMALL)
    with pytest.raises(bo.ShapeError, match="needs images"):
        bo.ode2vae(data, **(SMALL | {"network": "conv"}))


def test_a_fit_of_other_series_than_a_model_was_composed_for_is_one_clear_error():
    data = walks(num_frames=12)
    model, guide = bo.ode2vae(data, **SMALL)
    other = changed(data, series=[f"b{k}" for k in range(6)])
    with pytest.raises(bo.DataError, match="'b0' is none of those whose effects are kept"):
        bo.fit_svi(model, guide, other, **QUICK)


def test_fewer_frames_than_the_encoder_reads_is_one_clear_error(posterior):
    with pytest.raises(bo.DataError, match="reads the first 3 frames"):
        posterior.condition(walks(2, seed=1).until(0.25))


def test_no_warning_comes_from_a_fit_of_few_series():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for order, num in itertools.product((1, 2), (2, 3)):
            data = walks(num, num_frames=20)
            assert forecast(fitted(data, order=order, hidden=[]), walks(1, seed=1)).isfinite().all()
