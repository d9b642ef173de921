"""Whether initial states tell sequences apart: an encoder that is ignored says the same of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ACTIVE_SHARE = 0.01  # of the prior variance, by which the means of an active dimension vary
LEAST_INFORMATION = 0.5  # nats; telling two groups of sequences apart takes log 2 = .69
MAX_SERIES = 256  # that a fit looks at


@dataclass(frozen=True, eq=False)
class EncoderUse:
    """What x0 carries of its sequence.

    Args:
        activity: Variance over the sequences of the posterior mean of x0, in prior variances,
            shape (state,).
        information: How much a dimension tells at most of which sequence it is, nats, shape
            (state,): entropy of a normal law with the moments of all sequences' posteriors
            together, less the mean entropy of each.
        num_series: Number of sequences.

    Source: Burda, Grosse and Salakhutdinov (2016), "Importance weighted autoencoders", section 5.2.
        arXiv:1509.00519
    """

    activity: Tensor
    information: Tensor
    num_series: int

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor, prior_variance: Tensor) -> EncoderUse:
        """From moments of x0, each (series, state)."""
        spread = (mean - mean.mean(0)).square().sum(0) / max(1, len(mean) - 1)
        information = ((spread + variance.mean(0)).log() - variance.log().mean(0)) / 2
        return cls(spread / prior_variance.mean(0), information, len(mean))

    @property
    def is_active(self) -> Tensor:
        """Which dimensions of x0 differ between sequences, booleans, shape (state,)."""
        return self.activity > ACTIVE_SHARE

    @property
    def is_ignored(self) -> bool:
        """Whether x0 is the same for all sequences: then frames after the first are an average."""
        is_silent = self.information.sum().item() < LEAST_INFORMATION
        return self.num_series > 1 and not self.is_active.any() and is_silent

    @property
    def warning(self) -> str | None:
        """What is wrong and how to mend it; None if nothing is."""
        if not self.is_ignored:
            return None
        return (
            f"the encoder is ignored: x0 is nearly the same in all {self.num_series} sequences "
            f"(0 of {len(self.activity)} dimensions are active, together they tell "
            f"{self.information.sum().item():.2g} nats of which sequence it is). Let the KL come "
            "in slowly, fit_svi(..., kl_weight=lambda fraction: min(1.0, 3 * fraction)), begin in "
            "data space, AmortizedGuide(model, encoder, start=start_latent(components)), or give "
            "the noise scale a smaller prior median."
        )


@torch.no_grad()
def encoder_use(posterior: Any) -> EncoderUse:
    """The use of the encoder on some training sequences of a posterior with an amortised guide."""
    some = posterior.train.rows(torch.arange(min(MAX_SERIES, posterior.train.num_series)))
    law = posterior.guide.encoder(some)
    prior = posterior.model.build(posterior.model.prototype(), some)[0]
    return EncoderUse.of(law.mean, law.variance, prior.variance.expand_as(law.mean))
