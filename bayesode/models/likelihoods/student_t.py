"""Measurement noise with outliers."""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor

from bayesode.distributions import observed_law
from bayesode.errors import DataError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Observe, Values
from bayesode.models.likelihoods.gaussian import GaussianLikelihood
from bayesode.models.likelihoods.noise import NOISE_LOG_SCALE


class StudentTLikelihood(GaussianLikelihood):
    """Values are the state in users' units plus Student t noise; `noise_scale` is latent.

    An outlier pulls a path no more than a value a few scales away.

    Args:
        dim: Number of observed components, the leading ones of the state.
        freedom: Degrees of freedom of the noise, more than 2; 4 forgives one wild value in twenty.
        shared: One noise scale for all components in place of one each.
        prior_median: Of the noise scale, in users' units; three tenths of the data's sd by default.
        prior_log_scale: Sd of its logarithm.

    Raises:
        DataError: For settings that are no positive numbers, or freedom of 2 or less.

    Source: Lange, Little and Taylor (1989), "Robust statistical modeling using the t distribution",
    JASA 84(408).

    Example:
        >>> import torch
        >>> observe = StudentTLikelihood(1).build({"noise_scale": torch.tensor([0.5])})
        >>> observe(torch.zeros(4, 7, 1)).log_prob(torch.zeros(4, 7, 1)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        dim: int,
        *,
        freedom: float = 4.0,
        shared: bool = False,
        prior_median: float | None = None,
        prior_log_scale: float = NOISE_LOG_SCALE,
    ) -> None:
        super().__init__(
            dim, shared=shared, prior_median=prior_median, prior_log_scale=prior_log_scale
        )
        if not 2 < freedom < math.inf:
            raise DataError(f"freedom must be a number above 2, not {freedom}.")
        self.freedom = freedom
        self.config["freedom"] = freedom

    def build(self, values: Values, inputs: Inputs | None = None) -> Observe:
        """The law of values along a path, for noise scales (dim,) or (*draws, 1, dim)."""
        scale = values["noise_scale"].unsqueeze(-2)

        def law(path: Tensor, mask: Tensor | None) -> dist.TorchDistribution:
            signal = self.units.to_users(path[..., : self.dim])
            noise = dist.StudentT(scale.new_tensor(self.freedom), signal, scale)
            return observed_law(noise, mask, event_dim=2, fill=0.0)

        return Observe(law, lambda path: self.units.to_users(path[..., : self.dim]))

    def fisher(self, path: Tensor, values: Values) -> Tensor:
        """Expected information of one value about the state, (*draws, series, time, dim)."""
        return super().fisher(path, values) * (self.freedom + 1) / (self.freedom + 3)

    def starting_values(self, noise: Tensor) -> dict[str, Tensor]:
        """Values of the own sites for the sd (dim,) of the noise in dimensionless units."""
        return super().starting_values(noise * math.sqrt((self.freedom - 2) / self.freedom))
