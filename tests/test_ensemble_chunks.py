"""Ensembles of images: computed block by block, with the numbers of the whole."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo
from bayesode import scores
from bayesode.diagnostics import score_table
from bayesode.distributions import observed_law
from bayesode.inference import blocks
from bayesode.inference.blocks import blocks_of
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.mixture import Mixture
from bayesode.inference.svi import History
from bayesode.models.contracts import Observe

DOUBLE = torch.float64
NUM_DRAWS, NUM_SERIES, NUM_TIMES, STATE, EVENT = 12, 5, 6, 2, (3, 4, 2)


class CountingDecoder(nn.Module):
    """States to images of any rank; remembers the largest batch that it was asked for."""

    def __init__(self, event: tuple[int, ...] = EVENT) -> None:
        super().__init__()
        self.event, self.linear = event, nn.Linear(STATE, math.prod(event))
        self.sizes: list[int] = []

    def forward(self, path):
        self.sizes.append(path[..., 0].numel())
        return torch.sigmoid(self.linear(path)).unflatten(-1, self.event)


class DecodedLikelihood(nn.Module):
    """Decoded paths plus normal noise of a drawn scale, shifted by what is known of a series."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def priors(self):
        return {"noise_scale": dist.LogNormal(torch.full((1,), -2.0), torch.ones(1)).to_event(1)}

    def build(self, values, inputs=None):
        event_dim = 1 + len(self.decoder.event)
        ones = (1,) * event_dim
        scale = values["noise_scale"].reshape(*values["noise_scale"].shape[:-1], *ones)
        shift = torch.zeros(1) if inputs is None else inputs.static[:, 0].view(-1, *ones)

        def signal(path):
            return self.decoder(path) + shift.to(path)

        def law(path, mask):
            normal = dist.Normal(signal(path), scale)
            return observed_law(normal, mask, event_dim=event_dim, fill=0.0)

        return Observe(law, signal)


def make_data(event=EVENT, **settings) -> bo.Trajectories:
    torch.manual_seed(1)
    values = torch.rand(NUM_SERIES, NUM_TIMES, *event, dtype=DOUBLE)
    mask = torch.rand(NUM_SERIES, NUM_TIMES) > 0.3
    mask[:, 0] = True
    return bo.Trajectories(torch.arange(NUM_TIMES), values, mask=mask, **settings)


def make_posterior(data: bo.Trajectories, event=EVENT) -> bo.Posterior:
    torch.manual_seed(0)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(STATE),
        field=bo.BayesianMLP(STATE, [3], STATE, prior_scale=0.3),
        likelihood=DecodedLikelihood(CountingDecoder(event)),
        solver=bo.FixedGridSolver("rk4", step=0.5),
    ).double()
    guide = bo.MeanFieldGuide(model, data)
    for parameter in guide.sites.log_scale.values():
        nn.init.constant_(parameter, -1.0)
    return bo.Posterior(model, guide, data, history=History(), settings={"engine": "svi"})


def make_ensemble(data: bo.Trajectories | None = None, event=EVENT, seed: int = 0) -> Ensemble:
    data = make_data(event) if data is None else data
    return make_posterior(data, event).predict(data, num_draws=NUM_DRAWS, seed=seed)


def mark_failed(ensemble: Ensemble) -> Ensemble:
    ensemble.failed = ensemble.failed.clone()
    ensemble.failed[2:5, 1] = ensemble.failed[0, 4] = True
    return ensemble


@pytest.fixture(params=["one series", "two times"])
def is_cut(request, monkeypatch) -> str:
    """Blocks of one series, or, where that is too much, of two times of one."""
    size = NUM_DRAWS * math.prod(EVENT)
    limit = NUM_TIMES * size if request.param == "one series" else 2 * size + 1
    monkeypatch.setattr(blocks, "MAX_NUMBERS", limit)
    return request.param


# ---- blocks --------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [1, 7, 60, 200, 1000, 10_000])
def test_blocks_cover_every_series_and_time_once_and_fit(limit: int, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_NUMBERS", limit)
    shape = (3, 5, 7, 2)
    found = blocks_of(shape, seed=0)
    count = torch.zeros(shape[1:3])
    for block in found:
        block.at(count).add_(1)
        assert block.at(count).numel() * 6 <= max(limit, 6)
    assert (count == 1).all()
    assert len({block.seed for block in found}) == len(found)
    assert len(found) == {1: 35, 7: 35, 60: 5, 200: 2, 1000: 1, 10_000: 1}[limit]


def test_small_data_are_one_block_and_keep_what_was_drawn():
    ensemble = make_ensemble()
    (block,) = ensemble.blocks
    assert ensemble.draws_in(block) is not None
    assert ensemble.draws_in(block).data_ptr() == ensemble.values.data_ptr()


# ---- the same numbers ----------------------------------------------------------------------------
def test_summaries_of_blocks_are_those_of_the_whole(is_cut):
    ensemble, whole = mark_failed(make_ensemble()), mark_failed(make_ensemble())
    assert len(ensemble.blocks) == (5 if is_cut == "one series" else 15)
    values, signal, valid = whole.values, whole.signal, ~whole.failed
    assert not {"values", "signal", "states"} & vars(ensemble).keys()
    torch.testing.assert_close(ensemble.mean, scores.mean(signal, valid))
    torch.testing.assert_close(ensemble.median, scores.quantile(values, 0.5, valid)[0])
    for of in ("values", "signal", "states", "path"):
        draws = getattr(whole, of)
        torch.testing.assert_close(ensemble.sd(of=of), scores.sd(draws, valid))
        low, high = ensemble.interval(0.8, of=of)
        exact = scores.quantile(draws, [0.1, 0.9], valid)
        torch.testing.assert_close(torch.stack([low, high]), exact)
    assert torch.equal(ensemble.undetermined, ~(scores.sd(whole.path, valid) <= 1))
    assert not {"values", "signal", "states"} & vars(ensemble).keys()  # never in one piece


def test_scores_of_blocks_are_those_of_the_whole(is_cut):
    data = make_data()
    ensemble, whole = mark_failed(make_ensemble(data)), mark_failed(make_ensemble(data))
    valid, mask = ~whole.failed, data.mask
    law = whole.observe(whole.path, mask)
    exact = law.base_dist.log_prob(data.values)
    torch.testing.assert_close(ensemble.log_prob(data), exact)
    pairs = [
        (ensemble.log_score(data), scores.log_score(exact, valid)),
        (ensemble.crps(data), scores.crps(whole.values, data.values, valid)),
        (
            ensemble.covers(data, 0.7),
            scores.interval_covers(whole.values, data.values, 0.7, valid),
        ),
    ]
    for found, expected in pairs:
        torch.testing.assert_close(found[mask], expected[mask])
    for found, _ in pairs[:2]:
        assert found[~mask].isnan().all()
    assert not ensemble.covers(data)[~mask].any()
    assert "values" not in vars(ensemble)


def test_a_failing_series_is_nan_in_blocks_too(is_cut):
    ensemble = make_ensemble()
    ensemble.failed = ensemble.failed.clone()
    ensemble.failed[:, 2] = True
    for found in (ensemble.mean, ensemble.sd(), ensemble.quantile(0.5)[0]):
        assert found[2].isnan().all() and not found[[0, 1, 3, 4]].isnan().any()
    assert ensemble.undetermined[2].all()


def test_variance_parts_of_blocks_are_those_of_the_whole(is_cut, monkeypatch):
    ensemble = make_ensemble()
    found = ensemble.variance_parts()
    monkeypatch.setattr(blocks, "MAX_NUMBERS", 10**9)
    whole = make_ensemble()
    assert len(whole.blocks) == 1
    for one, other in zip(found.all, whole.variance_parts().all, strict=True):
        assert one.shape == (NUM_SERIES, NUM_TIMES, *EVENT)
        torch.testing.assert_close(one, other)


# ---- the same draws ------------------------------------------------------------------------------
def test_values_do_not_depend_on_what_was_asked_before(is_cut):
    first, second = make_ensemble(), make_ensemble()
    torch.manual_seed(5)
    second.mean, second.interval(0.9)
    torch.randn(3)
    assert torch.equal(first.values, second.values)
    exact = scores.quantile(first.values, [0.05, 0.95], ~first.failed)
    torch.testing.assert_close(torch.stack(second.interval(0.9)), exact)


def test_another_seed_gives_other_noise_and_the_global_generator_stays(is_cut):
    ensemble, other = make_ensemble(), make_ensemble(seed=1)
    state = torch.get_rng_state()
    noise = [one.values - one.signal for one in (ensemble, other)]
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(*noise)
    flat = noise[0].flatten(2).transpose(0, 1).flatten(1)  # (series, ...): blocks are not copies
    assert flat.corrcoef().fill_diagonal_(0).abs().max() < 5 / math.sqrt(flat.shape[1])


def test_nothing_that_was_decoded_records_gradients(is_cut):
    ensemble = make_ensemble()
    assert not (ensemble.signal.requires_grad or ensemble.values.requires_grad)
    assert not ensemble.mean.requires_grad


def test_inputs_of_a_series_reach_its_block(is_cut):
    inputs = bo.Inputs(torch.arange(NUM_SERIES).double()[:, None] * 100, ["shift"])
    ensemble = make_ensemble(make_data(inputs=inputs))
    levels = ensemble.mean.flatten(1).mean(-1)
    assert ((levels - 100 * torch.arange(NUM_SERIES)).abs() <= 1).all()
    torch.testing.assert_close(ensemble.mean, ensemble.observe.signal(ensemble.path).mean(0))


# ---- memory --------------------------------------------------------------------------------------
def test_the_decoder_is_never_asked_for_more_than_one_block(monkeypatch):
    """A fifth of the images at once, whatever is asked for."""
    monkeypatch.setattr(blocks, "MAX_NUMBERS", NUM_TIMES * NUM_DRAWS * math.prod(EVENT))
    data = make_data()
    posterior = make_posterior(data)
    ensemble = posterior.predict(data, num_draws=NUM_DRAWS, seed=0)
    decoder = posterior.model.likelihood.decoder
    decoder.sizes.clear()
    ensemble.mean, ensemble.sd(), ensemble.interval(0.9)
    ensemble.crps(data), ensemble.covers(data), ensemble.log_score(data)
    ensemble.variance_parts(), score_table(ensemble, data)
    assert max(decoder.sizes) == NUM_DRAWS * NUM_TIMES
    decoder.sizes.clear()
    assert ensemble.values.shape == (NUM_DRAWS, NUM_SERIES, NUM_TIMES, *EVENT)
    assert max(decoder.sizes) == NUM_DRAWS * NUM_TIMES  # piece by piece into one array


def test_predicting_decodes_nothing_until_it_is_asked():
    data = make_data()
    posterior = make_posterior(data)
    posterior.predict(data, num_draws=NUM_DRAWS, seed=0)
    assert posterior.model.likelihood.decoder.sizes == []


# ---- events of any rank --------------------------------------------------------------------------
RANKS = {
    (3,): ["component"],
    (3, 4): ["row", "column"],
    (1, 3, 4): ["channel", "row", "column"],
    (2, 1, 2, 3): ["event0", "event1", "event2", "event3"],
}


@pytest.mark.parametrize("event", RANKS)
def test_events_of_any_rank_are_summarised_and_scored(event):
    data = make_data(event)
    ensemble = make_ensemble(data, event)
    assert ensemble.event_shape == event
    shape = (NUM_SERIES, NUM_TIMES, *event)
    found = [ensemble.mean, ensemble.median, ensemble.sd(), *ensemble.interval(0.9)]
    found += [ensemble.crps(data), ensemble.log_score(data), ensemble.covers(data)]
    found += ensemble.variance_parts().all
    assert all(one.shape == shape for one in found)
    assert ensemble.undetermined.shape == (NUM_SERIES, NUM_TIMES, STATE)
    table = score_table(ensemble, data)
    row = table.loc["ensemble"]
    crps = ensemble.crps(data)[data.mask].mean().item()
    assert row["crps"] == pytest.approx(crps, rel=1e-12)
    score = ensemble.log_score(data)[data.mask].mean().item()
    assert row["log_score_per_point"] == pytest.approx(score, rel=1e-12)
    coverage = ensemble.covers(data)[data.mask].double().mean().item()
    assert row["coverage_90"] == pytest.approx(coverage, rel=1e-12)
    assert row["num_points"] == data.num_observed
    assert "climatology" in table.index  # of the numbers as vectors


@pytest.mark.parametrize("event", RANKS)
def test_arviz_names_the_axes_of_images(event):
    data = make_data(event)
    found = make_posterior(data, event).to_arviz(num_draws=4)
    dims = RANKS[event]
    assert found.posterior_predictive["values"].dims[4:] == tuple(dims)
    assert found.posterior_predictive["signal"].dims[4:] == tuple(dims)
    assert found.observed_data["values"].dims == ("series", "time", *dims)
    place = data.mask.nonzero()[7].tolist()
    for axis, dim in enumerate(dims, start=2):
        label = found.log_likelihood[f"obs_{dim}"].values[7]
        assert label == (data.names[place[axis]] if data.names else place[axis])


def test_draws_of_several_decoders_are_computed_in_blocks_too(is_cut):
    data = make_data()
    mixture = Mixture([make_posterior(data), make_posterior(data)])
    ensemble = mixture.predict(data, num_draws=NUM_DRAWS, seed=0)
    assert len(ensemble.blocks) > 1
    whole = scores.mean(ensemble.signal)
    torch.testing.assert_close(ensemble.mean, whole, rtol=1e-12, atol=0)
    assert ensemble.log_score(data)[data.mask].isfinite().all()
