"""Noise from residuals, one factor from validation data, and what of these may be trusted."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo
from bayesode.inference.calibration import calibrate_noise
from bayesode.inference.posterior import Posterior
from bayesode.inference.residual_noise import fit_residual_noise
from bayesode.inputs import Inputs
from bayesode.models.contracts import VectorField
from bayesode.models.likelihoods.calibrated import CalibratedNoise

float64 = torch.float64
ENTRIES, TIMES = 5, 6


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


# ---- residuals -----------------------------------------------------------------------------------
def heteroscedastic(num_frames: int = 6000, seed: int = 0):
    """Residuals of a known law, a third of them hidden."""
    shares = uniform(num_frames, ENTRIES, seed=seed)
    log_scale = torch.linspace(-3.0, -1.0, ENTRIES, dtype=float64)
    coefficients = torch.tensor([1.5, -0.8], dtype=float64)
    bend = coefficients[0] * shares + coefficients[1] * shares**2
    residual = (log_scale + bend).exp() * random(num_frames, ENTRIES, seed=seed + 1)
    mask = uniform(num_frames, ENTRIES, seed=seed + 2) > 1 / 3
    return torch.where(mask, residual, math.nan), shares, mask, log_scale, coefficients


def test_a_known_heteroscedastic_noise_is_recovered_within_its_standard_errors():
    residual, shares, mask, log_scale, coefficients = heteroscedastic()
    found = fit_residual_noise(residual, shares, mask)
    # log sds are linear in the parameters: the Fisher information is 2 X'X
    entry = torch.eye(ENTRIES, dtype=float64).expand(len(shares), -1, -1)
    design = torch.cat([entry, shares.unsqueeze(-1), shares.unsqueeze(-1) ** 2], -1)[mask]
    errors = (2 * design.mT @ design).inverse().diagonal().sqrt()
    truth, estimate = torch.cat([log_scale, coefficients]), torch.cat([*found])
    assert ((estimate - truth).abs() < 5 * errors).all()
    assert errors.max() < 0.1  # or the line above says nothing


def test_no_change_of_the_parameters_makes_the_residuals_more_likely():
    residual, shares, mask, _, _ = heteroscedastic(400)
    found = fit_residual_noise(residual, shares, mask)
    square = torch.where(mask, residual, 0.0).square()
    usual = square.sum() / mask.sum()

    def cost(log_scale, coefficients):
        log_sd = log_scale + coefficients[0] * shares + coefficients[1] * shares**2
        each = torch.where(mask, square * (-2 * log_sd).exp() / 2 + log_sd, 0.0)
        # and one more of the usual size per entry, at the mean bend
        bend = coefficients[0] * shares + coefficients[1] * shares**2
        more = log_scale + torch.where(mask, bend, 0.0).sum(0) / mask.sum(0)
        return each.sum() + (usual * (-2 * more).exp() / 2 + more).sum()

    slopes = torch.func.grad(cost, (0, 1))(found.log_scale, found.coefficients)
    assert torch.cat(slopes).abs().max() < 1e-4 * mask.sum()


def test_entries_that_never_err_get_a_small_positive_scale():
    residual, shares, mask, _, _ = heteroscedastic(1000)
    residual[:, 2] = 0.0
    shares[:, 2] = 0.0
    scale = fit_residual_noise(residual, shares, mask).log_scale.exp()
    usual = torch.where(mask, residual, 0.0).square().sum().div(mask.sum()).sqrt()
    assert scale[2].item() == pytest.approx(
        usual.item() / math.sqrt(1 + mask[:, 2].sum()), rel=1e-9
    )


# ---- a posterior that is known -------------------------------------------------------------------
class Still(nn.Module):
    """dx/dt = 0."""

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return VectorField(lambda t, x: torch.zeros_like(x))


class Known(nn.Module):
    """x0 is what the inputs of a series say, up to a small spread."""

    def __init__(self, spread):
        super().__init__()
        self.spread = spread

    def posteriors(self, trajectories):
        x0 = trajectories.inputs.static.double()
        noise = torch.zeros(ENTRIES, dtype=float64)
        return {
            "likelihood.noise_scale": dist.LogNormal(noise - 2.0, 0.01).to_event(1),
            "x0": dist.Normal(x0, self.spread).to_event(1),
        }

    def rows(self, trajectories):
        return torch.arange(trajectories.num_series)

    def condition(self, model, new):
        return self


def sequences(num_series: int, *, misfit: float = 1.0, seed: int, is_bounded: bool = True):
    """Values around constants, whose noise differs by entry and intensity; the last is constant."""
    center = uniform(num_series, ENTRIES, seed=seed)
    center[:, -1] = 0.5
    scale = torch.linspace(0.03, 0.12, ENTRIES, dtype=float64) * (0.5 + center)
    scale[:, -1] = 1e-3
    values = center[:, None] + misfit * scale[:, None] * random(
        num_series, TIMES, ENTRIES, seed=seed + 1
    )
    if is_bounded:
        values = values.clamp(0, 1)
    mask = torch.ones(values.shape, dtype=torch.bool)
    mask[:, 4, 1] = False
    labels = [f"{seed}-{k}" for k in range(num_series)]
    return bo.Trajectories(
        torch.arange(float(TIMES)), values, mask=mask, series=labels, inputs=Inputs(center)
    )


def known_posterior(train, spread=0.01):
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(ENTRIES),
        field=Still(),
        likelihood=bo.GaussianLikelihood(ENTRIES),
        solver=bo.FixedGridSolver("euler", step=10.0),
    ).double()
    return Posterior(model, Known(spread), train, history=None, settings={"engine": "svi"})


def coverage(posterior, data, level, at=None, entries=slice(0, ENTRIES - 1), num_draws=600):
    """Share of visible values after the start that lie in their central intervals."""
    ensemble = posterior.condition(data).predict(data, num_draws=num_draws, seed=7)
    low, high = ensemble.interval(level)
    is_inside = (data.values >= low) & (data.values <= high)
    times = slice(1, None) if at is None else at
    return is_inside[:, times, entries][data.mask[:, times, entries]].double().mean().item()


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("is_bounded", [True, False])
def test_intervals_cover_the_level_on_the_validation_data(level, is_bounded):
    train = sequences(300, seed=1, is_bounded=is_bounded)
    validation = sequences(80, seed=5, misfit=2.0, is_bounded=is_bounded)
    posterior = known_posterior(train)
    calibrated = calibrate_noise(posterior, validation, level=level)
    told = calibrated.settings["calibrated_noise"]
    assert told["coverage"] == pytest.approx(level, abs=2 / 1580)
    # quantiles of 600 draws: an interval's own coverage is off by .01 at most
    assert coverage(calibrated, validation, level) == pytest.approx(level, abs=0.015)


def test_the_factor_is_what_the_validation_data_err_more_than_the_training_data():
    train = sequences(400, seed=1, is_bounded=False)
    validation = sequences(400, seed=5, misfit=2.0, is_bounded=False)
    calibrated = calibrate_noise(known_posterior(train, spread=1e-4), validation)
    # 7,600 values: se of the coverage .0034, of a factor at 90 % that over .34
    factor = calibrated.settings["calibrated_noise"]["factor"]
    assert factor == pytest.approx(2.0, rel=5 * 0.0034 / 0.34)


def test_the_noise_follows_entry_and_intensity():
    train = sequences(2000, seed=1, is_bounded=False)
    calibrated = calibrate_noise(known_posterior(train, spread=1e-4), sequences(50, seed=5))
    part = calibrated.model.likelihood
    factor = calibrated.settings["calibrated_noise"]["factor"]
    center = torch.linspace(0.1, 0.9, 9, dtype=float64)[:, None].expand(9, ENTRIES)
    expected = torch.linspace(0.03, 0.12, ENTRIES, dtype=float64) * (0.5 + center)
    found = part.noise_scale(center) / factor
    # the quadratic of log(.5 + u) is off by .03
    assert torch.allclose(found[:, :-1], expected[:, :-1], rtol=0.08)


def test_only_active_visible_values_at_the_asked_times_count():
    train, validation = sequences(60, seed=1), sequences(40, seed=5, misfit=2.0)
    posterior = known_posterior(train)
    expected = calibrate_noise(posterior, validation, at=[2, 3]).settings
    values = validation.values.clone()
    values[:, [0, 1, 4, 5]] = 0.123
    values[:, :, -1] = 0.7  # constant in training
    values[~validation.mask] = 99.0
    other = bo.Trajectories(
        validation.times,
        values,
        mask=validation.mask,
        series=validation.series,
        inputs=validation.inputs,
    )
    assert calibrate_noise(posterior, other, at=[2, 3]).settings == expected
    values[:, 2] = 0.5
    again = bo.Trajectories(
        validation.times,
        values,
        mask=validation.mask,
        series=validation.series,
        inputs=validation.inputs,
    )
    assert calibrate_noise(posterior, again, at=[2, 3]).settings != expected


def test_of_the_validation_data_one_number_alone_is_taken():
    train = sequences(60, seed=1)
    posterior = known_posterior(train)
    found = [
        calibrate_noise(posterior, sequences(40, seed=seed, misfit=seed / 4)) for seed in (5, 9)
    ]
    first, second = (dict(p.model.likelihood.state_dict()) for p in found)
    assert first.pop("log_factor") != second.pop("log_factor")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_hidden_training_values_are_not_read():
    train, validation = sequences(60, seed=1), sequences(40, seed=5)
    spoiled = torch.where(train.mask, train.values, 0.9)
    other = bo.Trajectories(
        train.times, spoiled, mask=train.mask, series=train.series, inputs=train.inputs
    )
    assert not torch.equal(spoiled, train.values)
    first, second = (
        calibrate_noise(known_posterior(data), validation).settings for data in (train, other)
    )
    assert first == second


def test_paths_and_sites_stay_and_bands_lie_in_the_range_of_the_data():
    train, validation = sequences(60, seed=1), sequences(40, seed=5, misfit=3.0)
    posterior = known_posterior(train)
    calibrated = calibrate_noise(posterior, validation)
    assert calibrated.model.global_priors().keys() == posterior.model.global_priors().keys()
    before, after = (p.predict(train, num_draws=50, seed=3) for p in (posterior, calibrated))
    assert torch.equal(before.path, after.path)
    assert before.values.min() < 0 and before.values.max() > 1
    low, high = after.interval(0.99)
    assert low.min() >= 0 and high.max() <= 1
    assert after.signal.min() >= 0 and after.signal.max() <= 1
    assert (low < high)[..., :-1].all()
    assert type(posterior.model.likelihood) is bo.GaussianLikelihood  # the original is whole


def test_elbo_terms_take_the_new_noise():
    train, validation = sequences(60, seed=1), sequences(40, seed=5)
    posterior = known_posterior(train)
    calibrated = calibrate_noise(posterior, validation)
    first, second = (p.elbo_terms(num_particles=8, seed=0) for p in (posterior, calibrated))
    assert first.kl == second.kl
    assert first.log_likelihood != second.log_likelihood


def test_values_at_the_start_do_not_count_unless_they_are_asked_for():
    train, validation = sequences(60, seed=1), sequences(40, seed=5, misfit=2.0)
    values = validation.values.clone()
    values[:, 0] = 0.123
    other = bo.Trajectories(
        validation.times,
        values,
        mask=validation.mask,
        series=validation.series,
        inputs=validation.inputs,
    )
    posterior = known_posterior(train)

    def factor(data, **settings):
        return calibrate_noise(posterior, data, **settings).settings["calibrated_noise"]["factor"]

    assert factor(validation) == factor(other)
    assert factor(validation, at=0) != factor(other, at=0)


def test_draws_that_fail_do_not_count():
    class Explodes(Still):
        def build(self, values, inputs=None):
            def rate(t, x):  # frozen at 20 and more
                return 20.0 * (x > 0.85).any(-1, keepdim=True).expand_as(x)

            return VectorField(rate)

    train, validation = (sequences(60, seed=seed, is_bounded=False) for seed in (1, 5))
    posterior = known_posterior(train, spread=0.03)
    expected = calibrate_noise(posterior, validation).settings["calibrated_noise"]["factor"]
    posterior.model.field = Explodes()
    with pytest.warns(UserWarning, match="no draw of series"):
        failed = posterior.condition(validation).predict(validation, num_draws=32, seed=0).failed
        found = calibrate_noise(posterior, validation).settings["calibrated_noise"]["factor"]
    assert 0.1 < failed.double().mean() < 0.6  # of some series all draws, of others a few
    assert found == pytest.approx(expected, rel=0.15)


def test_what_cannot_be_calibrated_is_refused():
    train, validation = sequences(60, seed=1), sequences(40, seed=5)
    posterior = known_posterior(train)
    with pytest.raises(bo.DataError, match="between 0 and 1, not 90"):
        calibrate_noise(posterior, validation, level=90)
    with pytest.raises(bo.DataError, match="no validation value is observed at the times"):
        calibrate_noise(posterior, validation, at=[2.5])
    with pytest.raises(bo.DataError, match="lower active_sd"):
        calibrate_noise(posterior, validation, active_sd=10.0)
    with pytest.raises(bo.FitError, match="no factor between gives"):
        calibrate_noise(posterior, sequences(40, seed=5, misfit=60.0, is_bounded=False))


# ---- the part, and files -------------------------------------------------------------------------
def test_settings_and_state_rebuild_the_part():
    train, validation = sequences(60, seed=1), sequences(40, seed=5)
    part = calibrate_noise(known_posterior(train), validation).model.likelihood
    config = part.config
    again = CalibratedNoise(
        bo.GaussianLikelihood(**{k: v for k, v in config["likelihood"].items() if k != "type"}),
        config["event_shape"],
        bounds=config["bounds"],
    ).double()
    again.load_state_dict(part.state_dict())
    values = {"noise_scale": torch.ones(ENTRIES, dtype=float64)}
    path, seen = uniform(7, 3, ENTRIES), uniform(7, 3, ENTRIES, seed=1)
    first, second = (p.build(values)(path).log_prob(seen) for p in (part, again))
    assert torch.equal(first, second)
    assert again.config == config


def test_a_quiet_constant_entry_does_not_bend_the_noise_of_the_others():
    residual, shares, mask, _, _ = heteroscedastic(1000)
    shares[:, 2] = 0.5
    found = fit_residual_noise(residual, shares, mask)
    quiet = residual.clone()
    quiet[:, 2] *= 1e-3
    assert torch.allclose(fit_residual_noise(quiet, shares, mask)[1], found[1], atol=2e-3)


def test_a_calibrated_run_is_saved_and_loaded(tmp_path):
    data = bo.datasets.van_der_pol(num_series=3, num_times=10).observed
    train, validation = data.split(series=[2])
    model, guide = bo.neural_ode(train, hidden=[3], verbose=False)
    posterior = bo.fit_svi(
        model, guide, train, seed=0, num_steps=5, warm_start=False, progress=False
    )
    calibrated = calibrate_noise(posterior, validation, num_draws=5)
    loaded = bo.load(calibrated.save(tmp_path / "run"))
    first, second = (p.predict(train, num_draws=5, seed=0).values for p in (calibrated, loaded))
    assert torch.equal(first, second)
    assert loaded.settings == calibrated.settings
