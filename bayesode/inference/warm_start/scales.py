"""Noise scales of largest evidence at a fit: Newton steps, any log density of misses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bayesode.inference.warm_start.flat import FlatField

NUM_NEWTON = 20  # on a concave function of few scales: 5 would do
LARGEST_STEP = 1.0  # of the logarithm of a noise scale in one Newton step


class Scales(NamedTuple):
    """What the evidence says of noise scales at a fit.

    Args:
        best: The scales of largest evidence, unconstrained.
        freedom: Half the curvature of the log posterior along each at a fixed fit; of a normal
            noise scale the degrees of freedom.
        used: Number of fitted numbers per scale.
        slope: Of the log evidence at the scales of the fit.
    """

    best: Tensor
    freedom: Tensor
    used: Tensor
    slope: Tensor


def most_probable_scales(
    log_prob: Callable[[Tensor], Tensor],
    information: Callable[[Tensor], tuple[Tensor, Tensor]],
    variance: Tensor,
    sites: FlatField,
    scales: Tensor,
    *,
    smallest_share: float,
) -> Scales:
    """The scales of largest evidence at a fit.

    Log likelihood and prior are exact along the scales; the volume of the fit's posterior follows
    the information of what is seen, linearly in the logarithm of a scale (exactly so for scale
    families): for normal noise this is the residual sum of squares over n - p_eff.

    Args:
        log_prob: Scales to the log density of what the noise has to explain at the fit, a scalar.
        information: Scales to the information of each number, and where there is a number.
        variance: Posterior variance of the explained numbers, shaped like the information.
        sites: The scales as one vector with a normal prior.
        scales: At which the variance was found, unconstrained.
        smallest_share: Of the numbers, that always counts as degrees of freedom.
    """
    if len(scales) == 0:
        return Scales(scales, scales, scales, scales)
    with torch.enable_grad():
        place = scales.detach().requires_grad_()
        told, is_seen = information(place)
        seen = torch.where(is_seen, told, 1.0)
        used = torch.autograd.grad((variance * seen).sum(), place, retain_graph=True)[0] / -2
        count = torch.autograd.grad(seen.log().sum(), place)[0] / -2
        used = used.minimum((1 - smallest_share) * count)
        prior = -((place - sites.mean) / sites.sd).square().sum() / 2
        slope = torch.autograd.grad(log_prob(place) + prior, place)[0] + used
        best, curvature = _maximise(log_prob, sites, scales, used)
    return Scales(best, curvature / 2, used, slope)


def log_volume(sites: FlatField, scales: Tensor, freedom: Tensor) -> float:
    """Log of prior density times posterior volume of scales: their share of a log evidence.

    Args:
        sites: The scales as one vector with a normal prior.
        scales: Where their posterior is largest.
        freedom: Half the curvature of the log posterior there.
    """
    prior = -((scales - sites.mean) / sites.sd).square() / 2 - sites.sd.log()
    return float((prior - (2 * freedom).log() / 2).sum())


def _maximise(
    log_prob: Callable[[Tensor], Tensor], sites: FlatField, scales: Tensor, used: Tensor
) -> tuple[Tensor, Tensor]:
    """Newton on log likelihood + used * scales + log prior; entries do not interact."""
    curvature = torch.ones_like(scales)
    for _ in range(NUM_NEWTON):
        place = scales.detach().requires_grad_()
        prior = -((place - sites.mean) / sites.sd).square().sum() / 2
        value = log_prob(place) + used @ place + prior
        slope = torch.autograd.grad(value, place, create_graph=True)[0]
        curvature = -torch.autograd.grad(slope.sum(), place)[0]
        step = (slope.detach() / curvature.abs().clamp_min(1e-6)).clamp(-LARGEST_STEP, LARGEST_STEP)
        scales = scales + step
        if step.abs().max() < 1e-9:
            break
    return scales.detach(), curvature.clamp_min(1e-6)
