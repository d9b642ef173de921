"""Distribution families that Pyro lacks."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from bayesode.errors import ShapeError


class ObservedWhere(dist.MaskedDistribution):
    """A law of which only the entries under a mask are scored; all of it can be sampled.

    A masked value is replaced by `fill` before the density is taken. Without that a NaN under the
    mask makes the gradient NaN, and a 0 lies outside a log-normal's support.

    Args:
        base_dist: Law of single entries.
        mask: True where observed, broadcastable to the batch shape of `base_dist`.
        fill: Any number inside the support.
    """

    def __init__(self, base_dist: dist.TorchDistribution, mask: Tensor, fill: float) -> None:
        self.fill = fill
        super().__init__(base_dist, mask)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> ObservedWhere:
        """The law of a larger batch."""
        shape, mask = torch.Size(batch_shape), self._observed
        return ObservedWhere(self.base_dist.expand(shape), mask.expand(shape), self.fill)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density per entry, 0 where masked."""
        # outside the mask the value is `fill` for the base law, whatever it was
        return super().log_prob(torch.where(self._observed, value, self.fill))

    @property
    def _observed(self) -> Tensor:
        return torch.as_tensor(self._mask)


def observed_law(
    base: dist.TorchDistribution, mask: Tensor | None, *, event_dim: int, fill: float
) -> dist.Independent:
    """The law of one series' values, shape (time, *event), scored where `mask` is True.

    Args:
        base: Law of single entries, batch shape (*draws, series, time, *event).
        mask: Shape (series, time, *event), or None if nothing is hidden.
        event_dim: Number of event dimensions, the time included.
        fill: A number inside the support, put in place of masked values.

    Raises:
        ShapeError: If the law has other numbers of times or components than the mask. One alone
            would be broadcast.
    """
    if mask is not None and base.batch_shape[-event_dim:] != mask.shape[-event_dim:]:
        raise ShapeError(
            f"the law of one series has the shape {tuple(base.batch_shape[-event_dim:])}, its "
            f"values have {tuple(mask.shape[-event_dim:])}: give the likelihood as many components "
            "(dim=), or the decoder the event_shape, that the data have."
        )
    scored = base if mask is None else ObservedWhere(base, mask, fill)
    return dist.Independent(scored, event_dim)


class SoftBernoulli(dist.Bernoulli):
    """A Bernoulli law whose values may be probabilities of being on, in place of 0 and 1 alone.

    The log density is minus the cross entropy; draws are 0 or 1. Between 0 and 1 it is not
    normalised.

    Example:
        >>> SoftBernoulli(logits=torch.tensor(0.0)).log_prob(torch.tensor(0.5))
        tensor(-0.6931)
    """

    support = constraints.unit_interval  # pyright: ignore[reportAssignmentType]
    has_enumerate_support = False


SMALL_LOGIT = 0.1  # below it the eighth order is exact, above it the formulas lose no digits


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """The continuous Bernoulli law with density l / (e^l - 1) e^(l x) on [0, 1], for any logit l.

    Torch's own cuts probabilities at the float's precision: in float32 its density integrates to
    .53 at logit -30, where the black pixels of an image lie.

    Source: Loaiza-Ganem and Cunningham (2019), "The continuous Bernoulli", arXiv:1907.06845,
    written in the logit.

    Example:
        >>> ContinuousBernoulli(logits=torch.tensor(-30.0)).mean
        tensor(0.0333)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of values in [0, 1]."""
        if self._validate_args:
            self._validate_sample(value)
        logits, value = torch.broadcast_tensors(self.logits, value)
        kernel = -binary_cross_entropy_with_logits(logits, value, reduction="none")
        a, square, large = self._size()
        series = math.log(2) + square / 12 - square**2 / 1440 * 7
        series = series + 31 / 90720 * square**3 - 127 / 4838400 * square**4
        exact = large.log() - torch.tanh(large / 2).log()
        return kernel + torch.where(a < SMALL_LOGIT, series, exact)

    @property
    def mean(self) -> Tensor:
        """1 / (1 - e^-l) - 1 / l."""
        a, square, large = self._size()
        series = 1 / 12 - square / 720 + square**2 / 30240 - square**3 / 1209600
        exact = -1 / torch.expm1(-large) - 1 / large - 0.5
        above = torch.where(a < SMALL_LOGIT, series * a, exact)
        return 0.5 + torch.where(self.logits < 0, -above, above)

    @property
    def variance(self) -> Tensor:
        """1 / l^2 - e^l / (e^l - 1)^2."""
        a, square, large = self._size()
        series = 1 / 12 - square / 240 + square**2 / 6048 - square**3 / 172800
        exact = large.square().reciprocal() - (-large).exp() / torch.expm1(-large).square()
        return torch.where(a < SMALL_LOGIT, series, exact)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of less than a value."""
        a, is_dark = self._rate(), self.logits < 0
        inside = value.clamp(0, 1)
        distance = torch.where(is_dark, inside, 1 - inside)  # from the end that is likely
        share = torch.expm1(-a * distance) / torch.expm1(-a)
        return torch.where(is_dark, share, 1 - share)

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile of a level; draws are made by it."""
        a, is_dark = self._rate(), self.logits < 0
        share = torch.where(is_dark, value, 1 - value)
        distance = (-torch.log1p(share * torch.expm1(-a)) / a).clamp(0, 1)
        return torch.where(is_dark, distance, 1 - distance)

    def _size(self) -> tuple[Tensor, Tensor, Tensor]:
        """|l|, its square where the series holds, and |l| where the formulas do."""
        a = self.logits.abs()
        return a, a.clamp_max(SMALL_LOGIT).square(), a.clamp_min(SMALL_LOGIT)

    def _rate(self) -> Tensor:
        return self.logits.abs().clamp_min(1e-6)  # the uniform law to the last digit of float32


class CensoredNormal(dist.TorchDistribution):
    """A normal number that is cut off at the ends of an interval: what lies outside becomes an end.

    The law of a clipped measurement, such as a grey value in [0, 1]. Its density is normal inside;
    each end has a probability of its own, the mass beyond it.

    Args:
        loc: Mean before the cut.
        scale: Sd before the cut.
        low: Lower end.
        high: Upper end.

    Source: Tobin (1958), "Estimation of relationships for limited dependent variables".
        doi:10.2307/1907382

    Example:
        >>> law = CensoredNormal(torch.tensor(0.0), torch.tensor(0.1), 0.0, 1.0)
        >>> law.log_prob(torch.tensor(0.0)).exp()  # half of the mass lies below
        tensor(0.5000)
    """

    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, low: float, high: float) -> None:
        self.base: Any = dist.Normal(loc, scale)
        self.low, self.high = low, high
        super().__init__(self.base.batch_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """The interval."""
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> CensoredNormal:
        """The law of a larger batch."""
        base = self.base.expand(torch.Size(batch_shape))
        return CensoredNormal(base.loc, base.scale, self.low, self.high)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, (*sample_shape, *batch)."""
        return self.base.rsample(torch.Size(sample_shape)).clamp(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density inside, log probability at the ends."""
        below, above = self._tails(value)
        inside = self.base.log_prob(value)
        lower, upper = torch.special.log_ndtr(below), torch.special.log_ndtr(above)
        return torch.where(value <= self.low, lower, torch.where(value >= self.high, upper, inside))

    def _tails(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Distances of the ends from the mean, in sds, each positive if most mass is beyond."""
        low, high = (like.new_tensor(end) for end in (self.low, self.high))
        return (low - self.base.loc) / self.base.scale, (self.base.loc - high) / self.base.scale

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles."""
        return self.base.icdf(value).clamp(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        """Mean after the cut."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Variance after the cut."""
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, from those of the standard normal between the ends."""
        below, above = self._tails(self.base.loc)
        first, last = below, -above
        lower, upper = torch.special.ndtr(below), torch.special.ndtr(above)
        inside = 1 - lower - upper
        density = [torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi) for x in (first, last)]
        mean = first * lower + last * upper + density[0] - density[1]
        square = first.square() * lower + last.square() * upper + inside
        square = square + first * density[0] - last * density[1]
        scale = self.base.scale
        return self.base.loc + scale * mean, scale.square() * (square - mean.square()).clamp_min(0)


def divergence(posterior: Any, prior: Any, value: Tensor) -> tuple[Tensor, bool]:
    """KL[posterior || prior] and True; without a closed form its estimate from a draw and False.

    Args:
        posterior: Law that the value was drawn from.
        prior: Law over the same values.
        value: The draw.
    """
    try:
        return kl_divergence(posterior, prior), True
    except NotImplementedError:
        return posterior.log_prob(value) - prior.log_prob(value), False
