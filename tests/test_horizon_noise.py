"""Noise from held-out series: its size, where it applies, what intervals it gives."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesode as bo
from bayesode.distributions import observed_law
from bayesode.errors import DataError
from bayesode.inference import blocks
from bayesode.models.contracts import Observe

DOUBLE = torch.float64
SDS = torch.tensor([[0.3, 1.0], [0.6, 3.0], [2.0, 0.5]], dtype=DOUBLE)  # part, entry


def ensemble_of(question: bo.Trajectories, path: Tensor, failed: Tensor | None = None):
    """Draws that are seen as they are, with unit noise."""

    def law(path: Tensor, mask: Tensor | None):
        return observed_law(dist.Normal(path, 1.0), mask, event_dim=2, fill=0.0)

    return bo.Ensemble(
        trajectories=question,
        path=path,
        observe=Observe(law, lambda path: path),
        failed=torch.zeros(path.shape[:2], dtype=torch.bool) if failed is None else failed,
        units=bo.Units(),
        train=question,
        solver_error=lambda: 0.0,
        noise_seed=1,
    )


def synthetic(
    num_series: int = 30,
    num_times: int = 31,
    *,
    num_draws: int = 100,
    seed: int = 0,
    first: int = 1,
) -> bo.HeldOut:
    """Truth and draws from one law around unknown centres, and noise that grows by thirds.

    Times before `first` are given; series start at times of their own.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, 2, generator=generator, dtype=DOUBLE)

    start = 5 * torch.rand(num_series, 1, generator=generator, dtype=DOUBLE)
    times = start + 0.1 * torch.arange(num_times, dtype=DOUBLE)
    centre = 4 * normal(num_series, num_times)
    path = centre + 0.7 * normal(num_draws, num_series, num_times)
    step = (torch.arange(num_times) - first).clamp_min(0)
    sd = SDS[3 * step // (num_times - first)]
    values = centre + 0.7 * normal(num_series, num_times) + sd * normal(num_series, num_times)
    mask = (torch.arange(num_times) >= first).expand(num_series, -1)
    truth = bo.Trajectories(times, values, mask=mask)
    return bo.HeldOut(truth, ensemble_of(truth, path))


# ---- how large it is ----------------------------------------------------------------------------
def test_the_scale_is_that_of_the_errors_beyond_the_spread_of_the_draws():
    held = synthetic(num_times=32, first=1)  # 31 predicted times
    noise = bo.HorizonNoise.of([held], num_parts=3)
    draws, truth = held.ensemble.path, held.truth.values
    excess = (truth - draws.mean(0)).square() - draws.var(0)
    # elapsed .1 to 3.1 with edges at 1.1 and 2.1, which close the part before
    for part, steps in enumerate([slice(1, 12), slice(12, 22), slice(22, 32)]):
        expected = excess[:, steps].mean((0, 1)).sqrt()
        torch.testing.assert_close(noise.scale[part], expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(noise.edges, torch.tensor([1.1, 2.1], dtype=DOUBLE))


def test_the_scale_is_found_again_within_its_standard_error():
    held = synthetic(num_series=200)
    noise = bo.HorizonNoise.of([held])
    # mean of n squared normals of variance v: v sqrt(2 / n); the mean of 100 draws adds .7^2 / 100
    spread = SDS.square() + 0.7**2
    error = spread * math.sqrt(2 / (200 * 10)) + 0.7**2 / 100
    assert ((noise.scale.square() - SDS.square()).abs() < 5 * error).all()


def test_folds_count_together():
    one, two = synthetic(seed=0), synthetic(seed=1)
    joint = bo.HorizonNoise.of([one, two]).scale.square()
    each = [bo.HorizonNoise.of([fold]).scale.square() for fold in (one, two)]
    torch.testing.assert_close(joint, (each[0] + each[1]) / 2)


def test_failed_draws_and_series_without_any_other_are_left_out():
    held = synthetic(num_series=6)
    clean = bo.HorizonNoise.of([bo.HeldOut(held.truth.rows(range(1, 6)), some(held, range(1, 6)))])
    path, failed = held.ensemble.path.clone(), held.ensemble.failed.clone()
    more = torch.cat([path, torch.full_like(path[:3], 1e6)])
    failed = torch.cat([failed, torch.ones_like(failed[:3])])
    failed[:, 0] = True  # no draw of the first series is left
    spoilt = ensemble_of(held.truth, more, failed)
    found = bo.HorizonNoise.of([bo.HeldOut(held.truth, spoilt)])
    torch.testing.assert_close(found.scale, clean.scale)


def some(held: bo.HeldOut, rows) -> bo.Ensemble:
    return ensemble_of(held.truth.rows(rows), held.ensemble.path[:, list(rows)])


def test_noise_is_never_less_than_a_hundredth_of_the_sd_of_an_entry():
    held = synthetic()
    values = held.ensemble.mean.clone()  # no error at all
    values[..., 1] = 7.0  # constant, and known
    path = held.ensemble.path.clone()
    path[..., 1] = 7.0
    truth = bo.Trajectories(held.truth.times, values, mask=held.truth.mask)
    noise = bo.HorizonNoise.of([bo.HeldOut(truth, ensemble_of(truth, path))])
    sd = values[:, 1:, 0].std(correction=0)
    expected = 0.01 * torch.stack([sd, 0.01 * sd / 2**0.5]).expand(3, 2)
    torch.testing.assert_close(noise.scale, expected, rtol=1e-10, atol=0)


def test_constant_data_that_are_predicted_exactly_still_have_a_positive_noise():
    for value in (0.0, 3.0):
        truth = bo.Trajectories(torch.arange(4.0), torch.full((2, 4, 2), value, dtype=DOUBLE))
        path = truth.values.expand(5, -1, -1, -1).clone()
        noise = bo.HorizonNoise.of([bo.HeldOut(truth, ensemble_of(truth, path))])
        assert (noise.scale > 0).all() and (noise.scale < 1e-2).all()


def test_a_part_without_an_observation_has_the_noise_of_all_parts():
    held = synthetic()
    mask = held.truth.mask.clone()
    mask[:, 11:21, 1] = False  # the second third of the second entry
    truth = bo.Trajectories(held.truth.times, held.truth.values, mask=mask)
    noise = bo.HorizonNoise.of([bo.HeldOut(truth, held.ensemble)])
    whole = bo.HorizonNoise.of([held])
    rest = whole.scale[[0, 2], 1].square().mean().sqrt()
    torch.testing.assert_close(noise.scale[1, 1], rest)
    torch.testing.assert_close(noise.scale[:, 0], whole.scale[:, 0])


# ---- where it applies ---------------------------------------------------------------------------
NOISE = bo.HorizonNoise(torch.tensor([1.0, 2.0], dtype=DOUBLE), SDS)


@pytest.mark.parametrize("is_shared", [True, False])
def test_noise_follows_the_time_since_each_series_own_start(is_shared: bool):
    elapsed = torch.tensor([0.0, 0.4, 1.0, 1.01, 2.0, 2.5, 99.0], dtype=DOUBLE)
    parts = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    start = torch.tensor([3.0, 3.0 if is_shared else 7.3, 3.0], dtype=DOUBLE)
    times = 3.0 + elapsed if is_shared else start[:, None] + elapsed
    question = bo.Trajectories(times, None, series=list("abc"), names=["x", "y"], start=start)
    torch.testing.assert_close(NOISE.at(question), SDS[parts].expand(3, -1, -1))


def test_padding_and_late_first_times_do_not_move_the_parts():
    times = torch.tensor([[4.5, 5.5, 6.5], [4.5, 4.6, 9.0]], dtype=DOUBLE)
    question = bo.Trajectories(
        times, None, series=["a", "b"], names=["x", "y"], start=4.0, num_times=[3, 2]
    )
    parts = torch.tensor([[0, 1, 2], [0, 0, 0]])
    torch.testing.assert_close(NOISE.at(question), SDS[parts])


def test_each_draw_gets_normal_noise_around_its_signal_and_the_paths_stay():
    held = synthetic()
    applied = NOISE.applied(held.ensemble)
    assert torch.equal(applied.path, held.ensemble.path)
    assert torch.equal(applied.mean, held.ensemble.mean)
    law = dist.Normal(held.ensemble.path, NOISE.at(held.truth))
    found, seen = applied.log_prob(held.truth), held.truth.mask
    torch.testing.assert_close(found[:, seen], law.log_prob(held.truth.values)[:, seen])
    residual = (applied.values - law.loc) / law.scale
    assert abs(residual.std() - 1) < 5 * (0.5 / residual.numel()) ** 0.5
    assert held.ensemble.log_score(held.truth).nanmean() != applied.log_score(held.truth).nanmean()


@pytest.mark.parametrize("num_numbers", [100 * 2 * 31 * 2, 100 * 2 * 4])
def test_blocks_of_series_and_of_times_have_the_noise_of_their_place(num_numbers, monkeypatch):
    held = synthetic(num_series=5)
    whole = NOISE.applied(held.ensemble)
    expected = whole.log_score(held.truth)
    monkeypatch.setattr(blocks, "MAX_NUMBERS", num_numbers)
    cut = NOISE.applied(ensemble_of(held.truth, held.ensemble.path))
    assert len(cut.blocks) > 2
    torch.testing.assert_close(cut.log_score(held.truth), expected, equal_nan=True)
    sd = (whole.path.var(0) + NOISE.at(held.truth).square()).sqrt()
    assert ((cut.sd() / sd - 1).abs() < 6 / math.sqrt(2 * 100)).all()  # of 100 draws


# ---- what it is for -----------------------------------------------------------------------------
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_of_other_series_cover_what_they_say(level: float):
    noise = bo.HorizonNoise.of([synthetic(num_series=300, seed=0)])
    new = synthetic(num_series=60, seed=1, num_draws=1000)
    covered = noise.applied(new.ensemble).covers(new.truth, level)[:, 1:].double()
    assert covered.shape == (60, 30, 2)
    for part in covered.split(10, dim=1):
        for entry in part.unbind(-1):
            error = math.sqrt(level * (1 - level) / entry.numel())
            assert abs(entry.mean() - level) < 5 * error
    plain = new.ensemble.covers(new.truth, level)[:, 1:].double()
    assert abs(plain[:, :10, 0].mean() - level) > 0.05  # its own noise is wrong everywhere


# ---- what is refused ----------------------------------------------------------------------------
def test_what_gives_no_noise_is_refused():
    held = synthetic(num_series=3)
    with pytest.raises(DataError, match="there are no held-out series"):
        bo.HorizonNoise.of([])
    with pytest.raises(DataError, match="num_parts must be a positive whole number"):
        bo.HorizonNoise.of([held], num_parts=0)
    mask = held.truth.mask.clone()
    mask[..., 1] = False
    truth = bo.Trajectories(held.truth.times, held.truth.values, mask=mask)
    with pytest.raises(DataError, match="entry 1 of the held-out series is observed at no"):
        bo.HorizonNoise.of([bo.HeldOut(truth, held.ensemble)])
    other = bo.HorizonNoise(NOISE.edges, torch.ones(3, 4))
    with pytest.raises(DataError, match=r"of shape \(4,\), these predictions of \(2,\)"):
        other.applied(held.ensemble)
