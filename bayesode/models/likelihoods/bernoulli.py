"""Laws of pixels between 0 and 1 around a decoded image."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from bayesode.distributions import ContinuousBernoulli, SoftBernoulli
from bayesode.models.contracts import Values
from bayesode.models.likelihoods.decoded import DecodedLikelihood

DOMAIN = "values from 0 to 1 (divide pixels from 0 to 255 by 255)"


class BernoulliLikelihood(DecodedLikelihood):
    """Pixels are on or off with decoded probabilities; the decoder gives logits.

    Values between 0 and 1 count as probabilities of being on: the log density is minus the cross
    entropy, and a draw of values is black and white. Over grey pixels that is no density (its
    integral over [0, 1] is at most 1/2), and log scores cannot be compared with those of other
    laws; `ContinuousBernoulliLikelihood` is normalised.

    Args:
        decoder: Of logits, a module or a random part; see `DecodedLikelihood`.

    Raises:
        DataError: If the decoder does not tell the size of the state, or is no function of it.

    Example:
        >>> import torch
        >>> from bayesode.models.frames import MLPDecoder
        >>> observe = BernoulliLikelihood(MLPDecoder((1, 8, 8), 4)).build({})
        >>> observe(torch.zeros(3, 7, 4)).log_prob(torch.zeros(3, 7, 1, 8, 8)).shape
        torch.Size([3])
        >>> observe.signal(torch.zeros(3, 7, 4)).shape  # probabilities
        torch.Size([3, 7, 1, 8, 8])
    """

    domain = DOMAIN

    def entry_law(self, decoded: Tensor, values: Values) -> dist.TorchDistribution:
        """On or off, by logits."""
        return SoftBernoulli(logits=decoded)


class ContinuousBernoulliLikelihood(DecodedLikelihood):
    """Grey pixels between 0 and 1 with the density proportional to exp(logit x value).

    The normalised relative of the Bernoulli law. Its density grows without bound at 0 and 1 as
    logits do: images that are black to the last bit gain a little from it for ever.

    Args:
        decoder: Of logits, a module or a random part; see `DecodedLikelihood`.

    Raises:
        DataError: If the decoder does not tell the size of the state, or is no function of it.

    Source: Loaiza-Ganem and Cunningham (2019), "The continuous Bernoulli", arXiv:1907.06845.

    Example:
        >>> import torch
        >>> from bayesode.models.frames import MLPDecoder
        >>> observe = ContinuousBernoulliLikelihood(MLPDecoder((1, 8, 8), 4)).build({})
        >>> observe(torch.zeros(3, 7, 4)).log_prob(torch.zeros(3, 7, 1, 8, 8)).shape
        torch.Size([3])
    """

    domain = DOMAIN

    def entry_law(self, decoded: Tensor, values: Values) -> dist.TorchDistribution:
        """The continuous Bernoulli law, by logits."""
        return ContinuousBernoulli(logits=decoded)
