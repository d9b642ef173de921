"""Channels that never change, as some joint angles: from components to scores without a NaN."""

from __future__ import annotations

import pytest
import torch

import bayesode as bo
from bayesode.diagnostics import score_table
from bayesode.inference.latent_start import (
    closed_components,
    matched_generator,
    principal_components,
    start_latent,
)
from bayesode.models.likelihoods.decoded import SMALLEST_NOISE

DOUBLE = torch.float64
LEVELS = {2: 7.3, 5: 0.0}  # channel: what it always is


def walks(dtype: torch.dtype = DOUBLE) -> tuple[bo.Trajectories, bo.Trajectories]:
    """Circles seen in six channels, two of which are constant; six to fit and two held out."""
    generator = torch.Generator().manual_seed(0)
    times = torch.linspace(0.0, 2.0, 12, dtype=DOUBLE)
    angle = 2 * times + 6 * torch.rand(8, 1, generator=generator, dtype=DOUBLE)
    map_to_channels = torch.randn(2, 6, generator=generator, dtype=DOUBLE)
    values = torch.stack([angle.cos(), angle.sin()], -1) @ map_to_channels + 3.0
    values = values + 0.05 * torch.randn(8, 12, 6, generator=generator, dtype=DOUBLE)
    for channel, level in LEVELS.items():
        values[..., channel] = level
    data = bo.Trajectories(times, values.to(dtype))
    return data.split(series=[6, 7])


def parts(train: bo.Trajectories, noise: str = "channel") -> tuple:
    """A linear latent model, and its guide, that begin at the principal components."""
    components = principal_components(train.values, train.mask, 2)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.LinearField(2),
        likelihood=bo.GaussianLikelihood(decoder=bo.LinearDecoder((6,), 2), noise=noise),
        solver=bo.FixedGridSolver("rk4", step=0.25),
    ).to(train.values.dtype)
    encoder = bo.LinearEncoder((6,), 2).to(train.values.dtype)
    return model, bo.AmortizedGuide(model, encoder, start=start_latent(components))


# ---- components and decoders ---------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("find", [principal_components, closed_components])
def test_components_take_no_part_of_a_constant_channel(find, dtype: torch.dtype):
    train, _ = walks(dtype)
    found = find(train.values, train.mask, 2)
    for channel, level in LEVELS.items():
        assert found.basis[channel].abs().max() < 1e-12
        assert found.mean[channel].item() == pytest.approx(level, abs=1e-6)


def test_a_user_begins_a_linear_decoder_at_the_principal_components_in_two_lines():
    train, held_out = walks()
    decoder = bo.LinearDecoder((6,), 2).double()

    components = principal_components(train.values, train.mask, 2)
    decoder.set_linear(components.basis, components.mean, components.scale)

    states = components.encode(held_out.values)
    frames = decoder(states.flatten(0, 1)).view_as(held_out.values)
    torch.testing.assert_close(frames, components.decode(states))
    assert (frames - held_out.values).abs().max() < 0.4  # 8 sds of the noise
    for channel, level in LEVELS.items():
        assert (decoder(torch.randn(5, 2, dtype=DOUBLE))[:, channel] - level).abs().max() < 1e-12


def test_a_component_that_never_varies_has_no_rate_of_its_own():
    train, _ = walks()
    states = principal_components(train.values, train.mask, 2).encode(train.values)
    still = torch.cat([states, torch.zeros_like(states[..., :1])], -1)
    found = matched_generator(still, train.grid, train.mask.all(-1))
    assert found.matrix.isfinite().all() and found.matrix[:, 2].abs().max() < 1e-9


# ---- noise ---------------------------------------------------------------------------------------
def test_no_noise_scale_acts_as_less_than_a_thousandth_of_its_prior_median():
    decoder = bo.LinearDecoder((6,), 2).double()
    likelihood = bo.GaussianLikelihood(decoder=decoder, noise="channel", prior_median=2.0).double()
    scale = torch.tensor([3.0, 0.1, 2.1e-3, 1e-4, 1e-30, 0.0], dtype=DOUBLE, requires_grad=True)
    law = likelihood.build({"noise_scale": scale})(torch.zeros(1, 4, 2, dtype=DOUBLE))
    smallest = 2.0 * SMALLEST_NOISE
    expected = torch.tensor([3.0, 0.1, 2.1e-3, smallest, smallest, smallest], dtype=DOUBLE)
    torch.testing.assert_close(law.base_dist.scale[0, 0], expected)
    law.log_prob(law.mean).sum().backward()
    assert scale.grad.isfinite().all() and scale.grad.tolist()[3:] == [0.0] * 3


@pytest.mark.parametrize("noise", ["channel", "entry", "shared"])
def test_a_fit_forecasts_constant_channels_and_all_scores_are_numbers(noise: str):
    train, held_out = walks(torch.float32)
    posterior = bo.fit_svi(*parts(train, noise), train, seed=0, num_steps=60, progress=False)
    assert posterior.elbo_terms(num_particles=4).elbo.isfinite()
    ensemble = posterior.condition(held_out).predict(held_out, num_draws=20, seed=0)
    for found in (ensemble.values, ensemble.log_score(held_out), ensemble.crps(held_out)):
        assert found.isfinite().all()
    table = score_table(ensemble, held_out)
    assert table.notna().all().all()
    room = 1.5 if noise == "shared" else 0.02  # one noise for all is that of the others
    for channel, level in LEVELS.items():
        assert (ensemble.mean[..., channel] - level).abs().max() < room


def test_the_noise_of_a_constant_channel_does_not_run_to_zero_in_a_long_fast_fit():
    train, held_out = walks(torch.float32)
    options = {"num_steps": 300, "learning_rate": {"locations": 2.0}, "progress": False}
    posterior = bo.fit_svi(*parts(train), train, seed=0, **options)
    noise = posterior.guide.posteriors(train)["likelihood.noise_scale"].mean
    # the prior holds it near where the likelihood stops to gain, .1 / 1000
    assert (noise[list(LEVELS)] > 1e-5).all()
    assert (noise[[0, 1, 3, 4]] > 0.01).all()
    changed = held_out.values.clone()
    changed[..., list(LEVELS)] += 1e-5  # as published files differ
    other = bo.Trajectories(held_out.times, changed, series=held_out.series)
    ensemble = posterior.condition(other).predict(other, num_draws=20, seed=0)
    assert ensemble.log_score(other)[..., list(LEVELS)].min() > 0


def test_calibrated_noise_is_finite_and_finds_the_level_beside_constant_channels():
    train, held_out = walks(torch.float32)
    posterior = bo.fit_svi(*parts(train), train, seed=0, num_steps=60, progress=False)
    found = bo.calibrate_noise(posterior, held_out, num_draws=16)
    assert found.settings["calibrated_noise"]["coverage"] == pytest.approx(0.9, abs=0.05)
    assert found.model.likelihood.log_scale.isfinite().all()
    ensemble = found.condition(held_out).predict(held_out, num_draws=20, seed=0)
    for values in (ensemble.values, ensemble.log_score(held_out), ensemble.crps(held_out)):
        assert values.isfinite().all()
