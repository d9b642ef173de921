"""The warm start of latent models: closed forms of each step, and what the steps put where."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo
from bayesode.distributions import observed_law
from bayesode.inference.latent_start import (
    closed_components,
    initial_scales,
    matched_generator,
    principal_components,
    rotation_generator,
    start_latent,
    weight_scales,
)
from bayesode.inference.latent_start.generators import rotation_logarithm
from bayesode.inference.latent_start.start import equivalent_noise
from bayesode.models.contracts import Observe, VectorField

float64 = torch.float64


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def everything(values: torch.Tensor) -> torch.Tensor:
    return torch.ones(values.shape[:2], dtype=torch.bool)


def skew(dim: int, largest: float = 2.0, seed: int = 0) -> torch.Tensor:
    """A random skew-symmetric matrix whose frequencies stay below `largest`."""
    matrix = random(dim, dim, seed=seed)
    matrix = matrix - matrix.mT
    return matrix * largest / torch.linalg.matrix_norm(matrix, 2)


def orbit(matrix: torch.Tensor, num_series: int, times: torch.Tensor, seed: int = 1):
    """States z0 exp(matrix t) of random z0, (series, time, dim)."""
    first = random(num_series, 1, 1, len(matrix), seed=seed)
    return (first @ torch.matrix_exp(times[:, None, None] * matrix)).squeeze(-2)


# ---- principal components ------------------------------------------------------------------------
def test_components_are_the_eigenvectors_of_the_covariance_of_visible_frames():
    values, mask = random(6, 9, 4, 3) * torch.linspace(1, 3, 12).view(4, 3), random(6, 9) > -0.5
    found = principal_components(values, mask, 5)
    frames = values[mask].flatten(1)
    covariance = torch.cov(frames.mT, correction=0)
    assert torch.allclose(found.mean, frames.mean(0), rtol=0, atol=1e-13)
    assert torch.allclose(found.basis.mT @ found.basis, torch.eye(5, dtype=float64), atol=1e-12)
    expected = found.scale**2 * found.variance * found.basis
    assert torch.allclose(covariance @ found.basis, expected, rtol=0, atol=1e-11)
    largest = torch.linalg.eigvalsh(covariance).flip(0)[:5]
    assert torch.allclose(found.scale**2 * found.variance, largest, rtol=1e-12)


def test_encoded_frames_have_the_stated_variance_and_the_leading_one_is_1():
    values, mask = random(6, 9, 7) * torch.linspace(1, 3, 7), random(6, 9) > -0.5
    found = principal_components(values, mask, 3)
    states = found.encode(values)[mask]
    assert torch.allclose(states.mean(0), torch.zeros(3, dtype=float64), atol=1e-13)
    assert torch.allclose(states.var(0, correction=0), found.variance, rtol=1e-12)
    assert found.variance[0] == 1


def test_all_components_decode_what_they_encode():
    values = random(4, 5, 6)
    values[..., 2] = 0.7  # a constant entry
    found = principal_components(values, everything(values), 5)
    assert torch.allclose(found.decode(found.encode(values)), values, rtol=0, atol=1e-12)


def test_hidden_frames_change_no_component():
    values, mask = random(4, 6, 5), random(4, 6) > -0.5
    spoiled = torch.where(mask.unsqueeze(-1), values, torch.nan)
    partly = mask.unsqueeze(-1).repeat(1, 1, 5)
    for other in (
        principal_components(spoiled, mask, 2),
        principal_components(spoiled, partly, 2),
    ):
        expected = principal_components(values, mask, 2)
        assert torch.equal(other.basis, expected.basis) and torch.equal(other.mean, expected.mean)


def test_a_frame_that_is_partly_hidden_is_left_out():
    values = random(4, 6, 5)
    mask = torch.ones(4, 6, 5, dtype=torch.bool)
    mask[1, 2, 3] = False
    whole = torch.ones(4, 6, dtype=torch.bool)
    whole[1, 2] = False
    found, expected = (principal_components(values, m, 2) for m in (mask, whole))
    assert torch.equal(found.basis, expected.basis)


@pytest.mark.parametrize("dim", [0, 4])
def test_dimensions_that_the_frames_do_not_have_are_refused(dim):
    values = random(4, 6, 3) @ random(3, 8, seed=1)
    with pytest.raises(bo.DataError, match="vary in 3 directions: take a latent dimension"):
        principal_components(values, everything(values), dim)


def test_frames_that_do_not_vary_are_refused():
    values = torch.ones(4, 6, 3)
    with pytest.raises(bo.DataError, match="there is no motion"):
        principal_components(values, everything(values), 1)
    with pytest.raises(bo.DataError, match="two visible frames; there are 0"):
        principal_components(values, torch.zeros(4, 6, dtype=torch.bool), 1)
    with pytest.raises(bo.ShapeError, match="does not belong to values"):
        principal_components(values, torch.ones(6, 4, dtype=torch.bool), 1)


# ---- components that the motion keeps ------------------------------------------------------------
def mixed_planes():
    """Frames of three planes that turn at their own rates, seen through a rotation of R^6.

    Most series are seen for a short while only, in which one axis of the first plane hardly shows
    and an axis of the second one varies more.
    """
    matrix = torch.zeros(6, 6, dtype=float64)
    for plane, turns in enumerate((1, 5, 8)):
        rate = 2 * math.pi * turns / 24
        matrix[2 * plane, 2 * plane + 1] = rate
        matrix[2 * plane + 1, 2 * plane] = -rate
    first = random(60, 1, 1, 6, seed=4)
    first = first * torch.tensor([2.0, 0.01, 1.0, 1.0, 0.3, 0.3], dtype=float64)
    first = torch.cat([first, -first])  # of mean 0, which every rotation keeps
    times = torch.arange(24.0, dtype=float64)[:, None, None]
    states = (first @ torch.matrix_exp(times * matrix)).squeeze(-2)
    mask = torch.ones(120, 24, dtype=torch.bool)
    mask[2:60, 2:] = mask[62:, 2:] = False
    view = torch.matrix_exp(skew(6, seed=5))
    return states @ view, mask, view


def test_closed_components_span_a_plane_of_the_motion_and_principal_ones_do_not():
    values, mask, view = mixed_planes()
    plane = view[:2].mT @ view[:2]  # the projection onto the plane of largest variance

    def distance(found):
        return torch.linalg.matrix_norm(found.basis @ found.basis.mT - plane, 2).item()

    assert distance(closed_components(values, mask, 2)) < 1e-6
    assert distance(principal_components(values, mask, 2)) > 0.5


def test_closed_components_have_the_form_of_principal_ones():
    values, mask, _ = mixed_planes()
    found = closed_components(values.float(), mask, 3)
    covariance = torch.cov(found.encode(values)[mask].mT, correction=0)
    assert torch.allclose(covariance, torch.diag(found.variance), rtol=0, atol=1e-5)
    assert torch.allclose(found.basis.mT @ found.basis, torch.eye(3, dtype=float64), atol=1e-12)
    assert found.variance[0] == 1 and (found.variance.diff() <= 0).all()


def test_closed_components_are_principal_ones_where_nothing_is_left_to_choose():
    values = random(9, 8, 4)
    found, expected = (
        f(values, everything(values), 4) for f in (closed_components, principal_components)
    )
    assert torch.equal(found.basis, expected.basis)


# ---- generators ----------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 5, 16])
def test_a_rotation_is_found_exactly_from_the_visible_neighbours(dim):
    truth = skew(dim, largest=3.1)
    states = orbit(truth, 40, torch.arange(6.0, dtype=float64))
    mask = random(40, 6) > -0.7
    spoiled = torch.where(mask.unsqueeze(-1), states, torch.nan)
    found = rotation_generator(spoiled, mask)
    assert (found.matrix - truth).abs().max() < 1e-10
    assert found.one_step_rms < 1e-12


def test_ends_of_series_and_gaps_are_no_neighbours():
    truth = skew(3)
    states = orbit(truth, 30, torch.arange(5.0, dtype=float64))
    mask = everything(states)
    mask[:, 2] = False  # the frames on both sides are two steps apart
    found = rotation_generator(states, mask)
    assert (found.matrix - truth).abs().max() < 1e-10


def test_one_step_rms_is_the_noise_of_two_frames():
    truth = skew(3)
    states = orbit(truth, 2000, torch.arange(5.0, dtype=float64))
    noisy = states + 0.01 * random(*states.shape, seed=8)
    # 24,000 residuals of sd .01 sqrt(2): the sd of their rms is .5 %
    found = rotation_generator(noisy, everything(noisy)).one_step_rms
    assert found == pytest.approx(0.01 * math.sqrt(2), rel=0.025)


@pytest.mark.parametrize("angles", [(0.3, 2.9), (math.pi, 1.0), (0.0, math.pi - 1e-7)])
def test_logarithms_of_rotations_are_real_skew_and_exact_half_turns_included(angles):
    basis = torch.linalg.qr(random(5, 5))[0]
    blocks = [
        torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in angles
    ]
    exact = torch.block_diag(*[b.double() for b in blocks], torch.ones(1, 1, dtype=float64))
    exact = torch.linalg.qr(exact)[0] * torch.linalg.qr(exact)[1].diagonal().sign()
    rotation = basis @ exact @ basis.mT
    logarithm = rotation_logarithm(rotation)
    assert torch.allclose(torch.matrix_exp(logarithm), rotation, rtol=0, atol=1e-10)
    assert (logarithm + logarithm.mT).abs().max() < 1e-12
    largest = torch.linalg.matrix_norm(logarithm, 2).item()
    assert largest == pytest.approx(max(angles), abs=1e-7)


def test_of_a_reflection_the_nearest_proper_rotation_is_taken():
    states = random(200, 1, 2)
    mirror = torch.diag(torch.tensor([1.0, -1.0], dtype=float64))
    pairs = torch.cat(
        [states * torch.tensor([1.0, 0.3]), (states * torch.tensor([1.0, 0.3])) @ mirror], 1
    )
    found = rotation_generator(pairs, everything(pairs))
    angles = torch.linspace(-math.pi, math.pi, 20_001, dtype=float64)
    turned = torch.stack(
        [
            torch.stack([angles.cos(), angles.sin()], -1),
            torch.stack([-angles.sin(), angles.cos()], -1),
        ],
        -2,
    )
    misses = (pairs[:, 0] @ turned - pairs[:, 1]).square().sum((-2, -1))
    best = angles[misses.argmin()].item()
    assert found.matrix[0, 1].item() == pytest.approx(best, abs=4e-4)
    assert found.one_step_rms**2 * pairs[:, 0].numel() <= misses.min().item() + 1e-9


def test_too_few_neighbours_for_a_rotation_are_refused():
    states = random(3, 2, 8)
    with pytest.raises(
        bo.DataError, match="3 pairs of visible neighbouring frames determine a rot"
    ):
        rotation_generator(states, everything(states))


def irregular(num_series: int, num_times: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        0.1 + 0.2 * torch.rand(num_series, num_times, generator=generator, dtype=float64)
    ).cumsum(-1)


def test_matching_finds_a_linear_field_from_irregular_noisy_frames():
    truth = torch.tensor([[-0.15, 1.2, 0.0], [-0.9, -0.1, 0.3], [0.0, -0.5, -0.2]], dtype=float64)
    times = irregular(20, 40)
    first = random(20, 1, 1, 3, seed=2)
    states = (first @ torch.matrix_exp(times[..., None, None] * truth)).squeeze(-2)
    clean = matched_generator(states, times, everything(states))
    assert (clean.matrix - truth).abs().max() < 0.01
    mask = random(20, 40) > -0.5
    noisy = torch.where(
        mask.unsqueeze(-1), states + 0.02 * random(*states.shape, seed=9), torch.nan
    )
    found = matched_generator(noisy, times, mask)
    assert (found.matrix - truth).abs().max() < 0.1
    assert found.one_step_rms == pytest.approx(0.02 * math.sqrt(2), rel=0.1)


def test_matching_is_per_unit_of_the_times():
    truth, times = skew(2, 1.0), irregular(10, 30)
    states = (random(10, 1, 1, 2) @ torch.matrix_exp(times[..., None, None] * truth)).squeeze(-2)
    found = matched_generator(states, times, everything(states)).matrix
    slow = matched_generator(states, 10 * times, everything(states)).matrix
    assert torch.allclose(10 * slow, found, rtol=1e-6)


def test_matching_without_two_frames_of_a_series_is_refused():
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[:, 1] = True
    with pytest.raises(bo.DataError, match="no series has two visible frames"):
        matched_generator(random(3, 4, 2), irregular(3, 4), mask)


# ---- scales --------------------------------------------------------------------------------------
def gauss_newton_diagonal(matrix, first, elapsed, mask) -> torch.Tensor:
    """Sum of squares of d path / d A[i, j] over visible frames, by automatic differentiation.

    Series share their times: `elapsed` and `mask` are (time,).
    """

    def flow(entries):
        return torch.matrix_exp(elapsed[mask, None, None] * entries.mT)

    slope = torch.autograd.functional.jacobian(flow, matrix)  # (time, dim, dim, i, j)
    return torch.einsum("sa,tabij->stbij", first, slope).square().sum((0, 1, 2))


@pytest.mark.parametrize("largest", [0.0, 1.0, 3.1])
def test_weight_scales_are_the_gauss_newton_ones_of_a_rotation(largest):
    truth, elapsed = skew(4, largest), torch.tensor([0.0, 0.7, 2.0, 3.0, 5.5], dtype=float64)
    first = torch.linalg.qr(random(500, 4))[0] * math.sqrt(500)  # a law that rotations keep
    mask = torch.tensor([True, True, False, True, True])
    exact = gauss_newton_diagonal(truth.mT, first, elapsed, mask)
    times, seen = elapsed.expand(500, 5), mask.expand(500, 5)
    one = torch.ones(4, dtype=float64)
    found = weight_scales(truth, one, times, seen, noise_scale=0.2, prior_scale=0.01)
    assert torch.allclose(found, (exact / 0.04 + 1e4).rsqrt(), rtol=5e-3)


def test_weight_scales_take_the_variance_of_the_component_that_pushes():
    first, elapsed = random(7, 3) * torch.tensor([1.0, 0.2, 3.0]), irregular(1, 5)
    mask = torch.tensor([True, True, False, True, True])
    still = torch.zeros(3, 3, dtype=float64)
    exact = gauss_newton_diagonal(still, first, elapsed[0], mask)
    variance = first.square().mean(0)
    times, seen = elapsed.expand(7, 5), mask.expand(7, 5)
    found = weight_scales(still, variance, times, seen, noise_scale=0.2, prior_scale=0.5)
    assert torch.allclose(found, (exact / 0.04 + 4).rsqrt(), rtol=5e-3)


def test_initial_scales_are_exact_under_a_rotation():
    flow = torch.matrix_exp(torch.arange(6.0, dtype=float64)[:, None, None] * skew(3))
    variance = torch.tensor([1.0, 0.2, 0.01], dtype=float64)
    precision = (flow @ flow.mT).sum(0) / 0.3**2 + torch.diag(1 / variance)
    found = initial_scales(variance, 6, noise_scale=0.3)
    assert torch.allclose(found, precision.inverse().diagonal().sqrt(), rtol=1e-12)


# ---- all of it -----------------------------------------------------------------------------------
class LinearField(nn.Module):
    """dx_i/dt = sum of A[i, j] x_j, A flat."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def linear_site(self):
        return "weights"

    def priors(self):
        return {"weights": dist.Normal(torch.zeros(self.dim**2), 0.5).to_event(1)}

    def build(self, values, inputs=None):
        matrix = values["weights"].unflatten(-1, (self.dim, self.dim)).mT
        return VectorField(lambda t, x: x @ matrix, (matrix,))


class LinearMap(nn.Module):
    """Encoder and decoder in one: what a start sets, kept as it came."""

    def __init__(self, features, dim):
        super().__init__()
        self.basis = nn.Parameter(torch.zeros(features, dim))
        self.mean, self.scale = nn.Parameter(torch.zeros(features)), 1.0
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def decode(self, path):
        return self.mean + self.scale * path @ self.basis.mT

    @torch.no_grad()
    def set_linear(self, basis, mean, scale):
        self.basis.copy_(basis)
        self.mean.copy_(mean)
        self.scale = scale


class PixelLikelihood(nn.Module):
    """Normal noise on decoded states, shared by all entries; values keep an event shape."""

    def __init__(self, event_shape, dim):
        super().__init__()
        self.event_shape, self.dim = event_shape, dim
        self.decoder = LinearMap(math.prod(event_shape), dim)

    def priors(self):
        shape = (1,) * len(self.event_shape)
        return {"noise_scale": dist.LogNormal(torch.zeros(shape), 1.0).to_event(len(shape))}

    def build(self, values, inputs=None):
        def signal(path):
            return self.decoder.decode(path).unflatten(-1, self.event_shape)

        def law(path, mask):
            scale = values["noise_scale"].unsqueeze(-len(self.event_shape) - 1)
            noise = dist.Normal(signal(path), scale)
            return observed_law(noise, mask, event_dim=1 + len(self.event_shape), fill=0.0)

        return Observe(law, signal)


class Guide(bo.MeanFieldGuide):
    """x0 by the encoder, everything else as it is."""

    def __init__(self, model, train, encoder):
        super().__init__(model, train)
        self.encoder = encoder.to(train.values.dtype)

    def posteriors(self, trajectories):
        e, frame = self.encoder, trajectories.values[:, 0].flatten(1)
        mean = (frame - e.mean) @ e.basis / e.scale
        return super().posteriors(trajectories) | {
            "x0": dist.Normal(mean, e.log_scale.exp()).to_event(1)
        }


def turning_frames(noise_scale: float = 0.05, times=None):
    """Frames of 2 x 5 numbers that are a linear map of three rotating states."""
    truth = skew(3, 1.0)
    grid = 2.0 * torch.arange(8.0, dtype=float64) if times is None else times
    grid = grid.expand(60, grid.shape[-1])
    first = random(60, 1, 1, 3, seed=1)
    states = (first @ torch.matrix_exp((grid - grid[:, :1])[..., None, None] / 2 * truth)).squeeze(
        -2
    )
    view = torch.linalg.qr(random(10, 3, seed=2))[0]
    clean = 0.3 + states @ view.mT
    values = clean + noise_scale * random(*clean.shape, seed=3)
    mask = random(*values.shape[:2], seed=7) > -0.8
    mask[:, 0] = True
    values = torch.where(mask.unsqueeze(-1), values, 99.0)
    return bo.Trajectories(grid, values.unflatten(-1, (2, 5)), mask=mask), clean


def frames(train):
    """Which frames are visible; trajectories keep a mask of every number."""
    return train.mask.flatten(2).all(-1)


def latent_model(train, dim_state: int = 3, field=None):
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(dim_state),
        field=field or LinearField(3),
        likelihood=PixelLikelihood((2, 5), dim_state),
        solver=bo.FixedGridSolver("rk4", step=0.25),
        units=bo.Units(time_unit=3.0),
    ).double()
    return model, Guide(model, train, LinearMap(10, dim_state))


def test_a_started_model_predicts_hidden_frames_within_the_noise():
    train, clean = turning_frames()
    model, guide = latent_model(train)
    components = principal_components(train.values, frames(train), 3)
    start_latent(components)(model, guide, train)
    values = {
        site: law.base_dist.loc for site, law in guide.posteriors(train).items() if site == "x0"
    }
    values["field.weights"] = guide.location("field.weights")
    path = model.solve(model.field.build({"weights": values["field.weights"]}), values, train).path
    seen = model.likelihood.decoder.decode(path)
    hidden = ~frames(train)
    # x0 from one noisy frame of 10 numbers through 3 components: noise .05 sqrt(3 / 10)
    assert (seen - clean)[hidden].square().mean().sqrt() < 1.5 * 0.05 * math.sqrt(0.3)


def test_the_start_sets_noise_scales_and_the_laws_of_states():
    train, _ = turning_frames()
    model, guide = latent_model(train)
    components = principal_components(train.values, frames(train), 3)
    start_latent(components)(model, guide, train)
    noise = guide.location("likelihood.noise_scale").exp().item()
    # noise of the frame and of x0, which rotates along
    assert noise == pytest.approx(0.05 * math.sqrt(1.3), rel=0.1)
    assert torch.allclose(model.initial.deviation, components.variance.sqrt())
    per_state = noise / components.scale
    elapsed = 2 / 3 * torch.arange(8.0, dtype=float64).expand(60, 8)
    matrix = guide.location("field.weights").view(3, 3).mT
    expected = weight_scales(
        matrix, components.variance, elapsed, frames(train), noise_scale=per_state, prior_scale=0.5
    )
    weights = guide.sites.log_scale["field__weights"].exp()
    assert torch.allclose(weights.view(3, 3), expected, rtol=0.1)  # random sums
    num_visible = frames(train).sum(-1).double().mean().item()
    sd = initial_scales(components.variance, num_visible, noise_scale=per_state)
    assert torch.allclose(guide.encoder.log_scale.exp(), sd, rtol=0.1)


def test_weight_scales_of_the_start_are_near_those_of_the_largest_elbo():
    train, _ = turning_frames()
    model, guide = latent_model(train)
    start_latent(principal_components(train.values, frames(train), 3))(model, guide, train)
    log_scale, bounds = guide.sites.log_scale["field__weights"], []
    with torch.no_grad():
        for factor in (0.4, 1.0, 2.5):
            log_scale.add_(math.log(factor))
            torch.manual_seed(0)
            bounds.append(bo.elbo_terms(model, guide, train, num_particles=16).elbo.item())
            log_scale.sub_(math.log(factor))
    assert max(bounds) == bounds[1]


def test_frames_at_irregular_times_are_matched():
    times = 2 * irregular(60, 30)
    train, clean = turning_frames(0.01, times=times)
    model, guide = latent_model(train)
    start_latent(principal_components(train.values, frames(train), 3))(model, guide, train)
    values = {"x0": guide.posteriors(train)["x0"].base_dist.loc}
    field = model.field.build({"weights": guide.location("field.weights")})
    seen = model.likelihood.decoder.decode(model.solve(field, values, train).path)
    assert (seen - clean).square().mean().sqrt() < 0.05  # of an sd of .55


def test_state_components_beyond_the_principal_ones_start_at_zero():
    class WithConstant(LinearField):
        def build(self, values, inputs=None):
            field = super().build(values, inputs)

            def function(t, x):
                rate = field(t, x[..., : self.dim])
                return torch.cat([rate, torch.zeros_like(x[..., self.dim :])], -1)

            return VectorField(function, field.tensors)

    train, _ = turning_frames()
    model, guide = latent_model(train, dim_state=4, field=WithConstant(3))
    start_latent(principal_components(train.values, frames(train), 3))(model, guide, train)
    assert (guide.encoder.basis[:, 3] == 0).all()
    assert (model.likelihood.decoder.basis[:, 3] == 0).all()
    assert (model.initial.deviation[:3] <= 1).all() and model.initial.deviation[3] == 2


def test_fields_without_a_linear_part_of_the_right_size_are_refused():
    train, _ = turning_frames()
    components = principal_components(train.values, frames(train), 2)
    model, guide = latent_model(train)
    with pytest.raises(bo.DataError, match="linear part has 3 components, the start has 2"):
        start_latent(components)(model, guide, train)
    model, guide = latent_model(train, field=bo.BayesianMLP(3, [4], 3))
    with pytest.raises(bo.DataError, match="BayesianMLP has no linear part"):
        start_latent(components)(model, guide, train)


def test_the_equivalent_noise_of_bernoulli_frames_is_their_information():
    weight, path = 3 * random(6, 2), random(3000, 4, 2, seed=1)

    def signal(x):
        return torch.sigmoid(x @ weight.mT)

    observe = Observe(lambda x, mask: dist.Independent(dist.Bernoulli(signal(x)), 2), signal)
    found = equivalent_noise(observe, path, everything(path))
    variance = signal(path) * (1 - signal(path))
    information = torch.einsum("stf,fi,fi->i", variance, weight, weight) / 12_000
    # the mean over directions of 12,000 frames: a relative sd of about 1 %
    assert found == pytest.approx(information.mean().rsqrt().item(), rel=0.03)
