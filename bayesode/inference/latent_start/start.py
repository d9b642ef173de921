"""The warm start of an amortised latent model with a linear part."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.latent_start.generators import (
    Generator,
    matched_generator,
    rotation_generator,
)
from bayesode.inference.latent_start.principal_components import PrincipalComponents
from bayesode.inference.latent_start.scales import initial_scales, weight_scales
from bayesode.inference.latent_start.visible import visible_values
from bayesode.models.contracts import Observe, resolve
from bayesode.models.dynamical import DynamicalModel, median
from bayesode.trajectories import Trajectories

DECODER, NOISE = "likelihood.decoder.weights", "likelihood.noise_scale"
SMALLEST_NOISE = 0.1  # of the mean one: where the training frames are constant
NOISE_UNIT = 0.4  # of its logarithm: a step of .05 units is 2 %
MAX_SERIES = 256  # of which the noise is estimated
UNKNOWN_SCALE = 0.1  # of state components that no principal component stands for
TOLERANCE = 1e-6  # of a frame: for equidistant ones

LatentStart = Callable[[DynamicalModel, Any, Trajectories], None]


def start_latent(components: PrincipalComponents) -> LatentStart:
    """What puts a latent model where linear algebra on the visible frames would have it.

    Encoder and decoder get the components, the field its generator in closed form, initial states
    the components' variances as their prior, the noise what the start leaves unexplained, and all
    posterior scales the Gauss-Newton diagonal at that noise. Networks beside the linear parts stay
    as they are. Prior scales of the field stay too.

    Args:
        components: Of the training frames, by `principal_components` or `closed_components`; as
            many as the field's linear part has.

    Returns:
        For `AmortizedGuide(model, encoder, start=...)`: a function of model, guide and training
        data, called by the fit on its own copies. It raises DataError if the field has no linear
        part, or one of another size.
    """

    @torch.no_grad()
    def start(model: DynamicalModel, guide: Any, train: Trajectories) -> None:
        site, dim = _linear_site(model), components.dim
        if model.prototype()[site].numel() != dim**2:
            size = math.isqrt(model.prototype()[site].numel())
            raise DataError(f"the field's linear part has {size} components, the start has {dim}.")
        _set_maps(model, guide, train, components)
        matrix = _generator(model, train, components).matrix
        guide.set_site(site, matrix.mT.flatten())
        noise_scale = set_noise(model, guide, train)
        _set_scales(model, guide, train, site, matrix, components.variance, noise_scale)

    return start


def _linear_site(model: DynamicalModel) -> str:
    """Full name of the site that takes the generator, row by row as A[i, j]."""
    if hasattr(model.field, "hidden_components"):  # its matrix is that of the acceleration
        raise DataError(
            f"this start is for fields of first order, not {type(model.field).__name__}: leave "
            "start= of the guide out, or give one that sets the acceleration."
        )
    name = getattr(model.field, "linear_site", lambda: None)()
    if name is None:
        raise DataError(
            f"the field {type(model.field).__name__} has no linear part to start from: take "
            "LinearField(dim) or Sum(linear=LinearField(dim), network=...)."
        )
    return f"field.{name}"


def _generator(
    model: DynamicalModel, train: Trajectories, components: PrincipalComponents
) -> Generator:
    """The linear dynamics of the encoded frames per dimensionless unit of time."""
    values, is_seen = visible_values(train)
    states = components.encode(values.flatten(2).to(torch.float64))
    times = model.units.dimensionless_times(train)[1]
    gaps = times.diff()[is_seen[:, 1:]]
    is_regular = len(gaps) > 0 and (gaps - gaps.mean()).abs().max() < TOLERANCE * gaps.mean()
    if not is_regular:
        return matched_generator(states, times, is_seen)
    found = rotation_generator(states, is_seen)
    return Generator(found.matrix / gaps.mean(), found.one_step_rms)


def _set_maps(
    model: DynamicalModel, guide: Any, train: Trajectories, components: PrincipalComponents
) -> None:
    """Encoder, decoder and law of x0; state components beyond the principal ones get zeros."""
    dim, likelihood = components.dim, model.likelihood
    dim_state = guide.posteriors(train)["x0"].event_shape[-1]
    for part, size in ((guide.encoder, dim_state), (likelihood.decoder, likelihood.dim)):
        basis = F.pad(components.basis, (0, size - dim))  # type: ignore[operator]
        part.set_linear(basis, components.mean, components.scale)  # type: ignore[operator]
    if DECODER in model.global_priors():
        guide.set_site(DECODER, likelihood.decoder.starting_weights())  # type: ignore[operator]
    sd = components.variance.sqrt()
    model.initial.set_moments(torch.zeros_like(sd), sd)  # type: ignore[operator]


def set_noise(model: DynamicalModel, guide: Any, train: Trajectories) -> float:
    """Set the noise to what the start leaves unexplained; its sd in units of the states."""
    some = train.rows(torch.arange(min(MAX_SERIES, train.num_series)))
    values, is_seen = visible_values(some)
    found = _medians(guide, some)
    _, field, observe = model.build(found, some)
    path = model.solve(field, found, some).path
    if NOISE in found:
        missed = (values - observe.signal(path))[is_seen]
        shape = found[NOISE].shape
        sd, log_scale = _residual_scales(missed, shape)
        guide.set_site(NOISE, sd, log_scale, torch.full_like(log_scale, NOISE_UNIT))
        observe = model.build(_medians(guide, some), some)[2]
    return equivalent_noise(observe, path, is_seen)


def _medians(guide: Any, trajectories: Trajectories) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for site, law in guide.posteriors(trajectories).items():
        values[site] = median(resolve(law, values))
    return values


def _residual_scales(missed: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Root mean square of residuals (frames, *event) per noise scale, and the sd of its log."""
    mean = missed.square().mean()
    number = missed[0].numel() * len(missed) / shape.numel()
    square = missed.square().sum(0).sum_to_size(shape) / number
    sd = square.clamp_min(SMALLEST_NOISE**2 * mean).sqrt()
    return sd, torch.full_like(sd, (2 * number) ** -0.5)


def equivalent_noise(observe: Observe, path: Tensor, is_seen: Tensor) -> float:
    """Sd of a noise on each state component that would tell as much of it as the frames do.

    One over the root of the mean Fisher information per component of a frame,
    Σ (∂signal/∂z)² / variance over its entries, by a random sum of these for every frame. The
    signal has to be the mean of the values: then this is all the information that normal,
    Bernoulli and continuous Bernoulli values hold.

    Args:
        observe: How states are seen.
        path: States, shape (series, time, state).
        is_seen: Which frames count, shape (series, time).
    """
    law: Any = observe(path, None)
    sd = law.base_dist.variance.clamp_min(torch.finfo(path.dtype).tiny).sqrt()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(sd.shape, generator=generator, dtype=path.dtype).to(path.device)
    with torch.enable_grad():
        place = path.detach().requires_grad_()
        slope = torch.autograd.grad(observe.signal(place), place, direction / sd)[0]
    return slope[is_seen].square().mean().rsqrt().item()


def _set_scales(
    model: DynamicalModel,
    guide: Any,
    train: Trajectories,
    site: str,
    matrix: Tensor,
    variance: Tensor,
    noise_scale: float,
) -> None:
    """Posterior scales of the linear field and of the encoder."""
    _, is_seen = visible_values(train)
    begin, times = model.units.dimensionless_times(train)
    prior = resolve(model.global_priors()[site], model.prototype())
    scales = weight_scales(
        matrix,
        variance,
        times - begin[:, None],
        is_seen,
        noise_scale=noise_scale,
        prior_scale=prior.variance.mean().sqrt().item(),
    )
    guide.set_site(site, guide.location(site), scales.flatten())
    num_visible = is_seen.sum(-1).double().mean().item()
    sd = initial_scales(variance, num_visible, noise_scale=noise_scale)
    guide.encoder.log_scale.fill_(math.log(UNKNOWN_SCALE))
    guide.encoder.log_scale[: len(sd)] = sd.log()
