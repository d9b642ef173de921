"""The score table with a stand-in ensemble whose scores are known in closed form."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from bayesode import scores
from bayesode.baselines import baselines
from bayesode.datasets import lynx_hare
from bayesode.diagnostics.score_table import score_table
from bayesode.errors import DataError, ShapeError
from bayesode.inference.blocks import blocks_of
from bayesode.trajectories import Trajectories

SPREAD, NOISE = 0.6, 0.8  # sd of the path over draws and of the noise: together 1
TOTAL = math.hypot(SPREAD, NOISE)


@dataclass
class GaussianEnsemble:
    """Draws of a path N(location, SPREAD^2) with noise NOISE, on the scale of the transform."""

    paths: torch.Tensor
    noise: torch.Tensor
    location: torch.Tensor
    failed: torch.Tensor
    train: Trajectories
    transform: str

    @property
    def values(self):
        drawn = self.paths + NOISE * self.noise
        return drawn.exp() if self.transform == "log" else drawn

    @property
    def median(self):
        return scores.quantile(self.values, 0.5)[0]

    @property
    def path(self):
        return self.paths

    @property
    def event_shape(self):
        return self.paths.shape[3:]

    @property
    def blocks(self):
        return blocks_of(self.paths.shape, seed=0)

    def draws_in(self, block):
        return block.of(self.values)

    def log_prob_in(self, block, test):
        return block.of(self.log_prob(test))

    def log_prob(self, test):
        names = {"log": "LogNormal", "identity": "Normal"}
        family = getattr(torch.distributions, names[self.transform])
        return family(self.paths, NOISE, validate_args=False).log_prob(test.values)


def gaussian_ensemble(train, test, num_draws=4000, transform="log", seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_draws, *test.values.shape)
    location = torch.linspace(2.0, 4.0, test.values[..., 0].numel(), dtype=torch.float64)
    location = location.view(*test.values.shape[:2], 1).expand(test.values.shape)
    paths, noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    failed = torch.zeros(num_draws, test.num_series, dtype=torch.bool)
    return GaussianEnsemble(location + SPREAD * paths, noise, location, failed, train, transform)


def held_out(transform="log"):
    """Lynx-hare's split, with test values at known distances from the ensemble's location."""
    train, test = lynx_hare().split(time=1914)
    train, test = train.to(dtype=torch.float64), test.to(dtype=torch.float64)
    ensemble = gaussian_ensemble(train, test, transform=transform)
    distance = torch.tensor([-2.5, -1.0, 0.0, 0.5, 1.2, 2.0]).view(1, 6, 1).expand(1, 6, 2)
    values = ensemble.location + TOTAL * distance
    values = values.exp() if transform == "log" else values
    return ensemble, Trajectories(
        test.times, values, series=test.series, names=test.names, start=test.start
    )


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_ensemble_row_agrees_with_closed_forms(transform):
    ensemble, test = held_out(transform)
    row = score_table(ensemble, test).loc["ensemble"]
    scaled = test.values.log() if transform == "log" else test.values
    jacobian = -scaled if transform == "log" else 0.0
    law = torch.distributions.Normal(ensemble.location, TOTAL)
    num_draws = len(ensemble.paths)

    exact = (law.log_prob(scaled) + jacobian).mean()
    density = ensemble.log_prob(test).exp()
    relative = density.std(0) / density.mean(0) / math.sqrt(num_draws)
    error = relative.square().sum().sqrt() / 12  # points have independent draws here
    assert abs(row["log_score_per_point"] - exact) < 5 * error

    exact = scores.gaussian_crps(ensemble.location, torch.tensor(TOTAL), scaled).mean()
    # See test_scores: per draw |X - y| - E|X - X'|, whose derivative is at most 2: sd <= 2 TOTAL.
    # With the log score 4 comparisons at 5 standard errors: a false alarm in 4e5 seeds.
    assert abs(row["crps"] - exact) < 5 * 2 * TOTAL / math.sqrt(num_draws * 12)

    assert row["coverage_90"] == pytest.approx(4 / 6)  # |distance| of 2.5 and 2 are out of 1.645
    rmse = (ensemble.median - test.values).square().mean().sqrt().item()
    assert row["rmse"] == pytest.approx(rmse, rel=1e-12)
    assert row["num_points"] == 12


@pytest.mark.parametrize("transform", ["identity", "log"])
def test_baseline_rows_are_the_scores_of_their_laws(transform):
    ensemble, test = held_out(transform)
    table = score_table(ensemble, test)
    laws = baselines(ensemble.train, test, transform=transform)
    assert list(table.index) == ["ensemble", *laws] and len(laws) == 3
    assert table.attrs["transform"] == transform
    scaled = test.values.log() if transform == "log" else test.values
    for name, law in laws.items():
        row = table.loc[name]
        distance = ((scaled - law.loc) / law.scale).abs()
        median = law.loc.exp() if transform == "log" else law.loc
        expected = {
            "log_score_per_point": law.log_prob(test.values).mean(),
            "crps": scores.gaussian_crps(law.loc, law.scale, scaled).mean(),
            "coverage_90": (distance <= 1.6448536).double().mean(),
            "rmse": (median - test.values).square().mean().sqrt(),
            "num_points": 12,
        }
        assert dict(row) == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-9)


def test_lynx_hare_baselines_are_the_published_ones():
    train, test = lynx_hare().split(time=1914)
    table = score_table(gaussian_ensemble(train, test, num_draws=10), test)
    sums = table["log_score_per_point"] * table["num_points"]
    for name, expected in {"climatology": -52.4, "random_walk": -60.0, "ar2": -43.0}.items():
        assert abs(sums[name] - expected) <= 0.05


def test_failed_draws_are_left_out():
    ensemble, test = held_out()
    failed = torch.zeros(4000, 1, dtype=torch.bool)
    failed[1000:] = True
    ensemble.paths[1000:] = math.nan
    spoiled = replace(ensemble, failed=failed)
    alone = replace(
        ensemble, paths=ensemble.paths[:1000], noise=ensemble.noise[:1000], failed=failed[:1000]
    )
    expected = score_table(alone, test)
    assert expected.notna().all(axis=None)
    for name, column in score_table(spoiled, test).items():
        assert list(column) == pytest.approx(list(expected[name]), rel=1e-12)


def test_only_observed_points_are_scored():
    ensemble, test = held_out()
    mask = torch.ones(1, 6, 2, dtype=torch.bool)
    mask[0, 4:, 0] = False
    mask[0, :3, 1] = False
    rest = {"series": test.series, "names": test.names, "start": test.start}
    junk = torch.where(mask, test.values, -1e9)
    table = score_table(ensemble, Trajectories(test.times, junk, mask=mask, **rest))
    missing = torch.where(mask, test.values, math.nan)
    same = score_table(ensemble, Trajectories(test.times, missing, **rest))
    for name, column in table.items():
        assert list(column) == pytest.approx(list(same[name]), rel=1e-12)
    assert (table["num_points"] == 7).all()
    assert table.loc["ensemble", "coverage_90"] == pytest.approx((3 + 2) / 7)
    kept = torch.where(mask, ensemble.median - test.values, 0.0).square().sum() / 7
    assert table.loc["ensemble", "rmse"] == pytest.approx(kept.sqrt().item())
    for name, law in baselines(ensemble.train, test, transform="log").items():
        expected = law.log_prob(test.values)[mask].mean().item()
        assert table.loc[name, "log_score_per_point"] == pytest.approx(expected)


def test_baselines_that_do_not_apply_have_no_row():
    ensemble, test = held_out()
    stranger = Trajectories(test.times, test.values, series=["another bay"])
    assert list(score_table(ensemble, stranger).index) == ["ensemble", "climatology"]


def test_counts_with_zeros_are_scored_in_raw_units():
    ensemble, test = held_out()
    values = ensemble.train.values.round()
    values[0, 3, 1] = 0.0
    train = Trajectories(ensemble.train.times, values, series=test.series)
    table = score_table(replace(ensemble, train=train), test)
    assert table.attrs["transform"] == "identity"
    law = baselines(train, test)["ar2"]
    expected = scores.gaussian_crps(law.loc, law.scale, test.values).mean().item()
    assert table.loc["ar2", "crps"] == pytest.approx(expected)
    raw = scores.crps(ensemble.values, test.values).mean().item()
    assert table.loc["ensemble", "crps"] == pytest.approx(raw)


def test_nothing_to_score_is_refused():
    ensemble, test = held_out()
    hidden = Trajectories(test.times, test.values * math.nan, series=test.series)
    for nothing in (hidden, ensemble.train.at(test)):
        with pytest.raises(DataError, match="no observed point"):
            score_table(ensemble, nothing)
    with pytest.raises(DataError, match="every draw of series 'hudson-bay' failed"):
        score_table(replace(ensemble, failed=~ensemble.failed), test)
    with pytest.raises(ShapeError, match=r"posterior.predict\(train.at\(test\)"):
        score_table(ensemble, test.until(18.0))
