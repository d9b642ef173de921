"""Normal and log-normal measurement noise with a latent scale."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.distributions import observed_law
from bayesode.inputs import Inputs
from bayesode.models.contracts import Observe, Values
from bayesode.models.likelihoods.decoded import DecodedGaussian
from bayesode.models.likelihoods.noise import NoiseScale
from bayesode.units import Units


class GaussianLikelihood(NoiseScale):
    """Values are the state in users' units plus normal noise; `noise_scale` is latent.

    With a decoder, `GaussianLikelihood(decoder=module, noise="shared")`, they are what it makes of
    a latent state plus normal noise, in a `DecodedGaussian`, which has the arguments for that.

    Args:
        dim: Number of observed components, the leading ones of the state.
        shared: One noise scale for all components in place of one each.
        prior_median: Of the noise scale, in users' units; three tenths of the data's sd by default.
        prior_log_scale: Sd of its logarithm.

    Raises:
        DataError: For settings that are no positive numbers.

    Example:
        >>> import torch
        >>> observe = GaussianLikelihood(1).build({"noise_scale": torch.tensor([0.5])})
        >>> observe(torch.zeros(4, 7, 1)).log_prob(torch.zeros(4, 7, 1)).shape
        torch.Size([4])
        >>> GaussianLikelihood(decoder=torch.nn.Linear(2, 50), noise="entry").event_shape
        (50,)
    """

    def __new__(cls, *arguments: Any, decoder: nn.Module | None = None, **settings: Any) -> Any:
        """A likelihood of the state, or of what a decoder makes of it: two things to be."""
        if decoder is None or cls is not GaussianLikelihood:
            return super().__new__(cls)
        return DecodedGaussian(decoder, *arguments, **settings)

    def build(self, values: Values, inputs: Inputs | None = None) -> Observe:
        """The law of values along a path, for noise scales (dim,) or (*draws, 1, dim)."""
        scale = values["noise_scale"].unsqueeze(-2)  # (*draws, 1, time, component)

        def law(path: Tensor, mask: Tensor | None) -> dist.TorchDistribution:
            signal = self.units.to_users(path[..., : self.dim])
            return observed_law(dist.Normal(signal, scale), mask, event_dim=2, fill=0.0)

        return Observe(law, lambda path: self.units.to_users(path[..., : self.dim]))

    def fisher(self, path: Tensor, values: Values) -> Tensor:
        """Information of one value about the dimensionless state, (*draws, series, time, dim)."""
        slope = self.units.slope(path)[..., : self.dim]
        return (slope / values["noise_scale"].unsqueeze(-2)).square()

    def data_scale(self, units: Units) -> Tensor:
        """The data's sd in users' units."""
        if units.transform == "log":  # sd of a log-normal with the data's moments
            variance = units.scale.square()
            sd = (units.location + variance / 2).exp() * variance.expm1().sqrt()
            return sd[: self.dim]
        return super().data_scale(units)


class LogNormalLikelihood(NoiseScale):
    """Values are the state in users' units times log-normal noise; `noise_scale` is latent.

    Args:
        dim: Number of observed components, the leading ones of the state.
        shared: One noise scale for all components in place of one each.
        prior_median: Of the noise scale, the sd of the logarithm of a value; .3 by default under
            the identity transform, three tenths of the data's sd of the logarithm under "log".
        prior_log_scale: Sd of its logarithm.

    Example:
        >>> import torch
        >>> observe = LogNormalLikelihood(1).build({"noise_scale": torch.tensor([0.5])})
        >>> observe.signal(torch.full((4, 7, 1), 2.0)).mean()
        tensor(2.)
    """

    def build(self, values: Values, inputs: Inputs | None = None) -> Observe:
        """The law of values along a path, for noise scales (dim,) or (*draws, 1, dim)."""
        scale = values["noise_scale"].unsqueeze(-2)

        def law(path: Tensor, mask: Tensor | None) -> dist.TorchDistribution:
            logarithm = self.units.log_users(path[..., : self.dim])
            return observed_law(dist.LogNormal(logarithm, scale), mask, event_dim=2, fill=1.0)

        return Observe(law, lambda path: self.units.log_users(path[..., : self.dim]).exp())

    def fisher(self, path: Tensor, values: Values) -> Tensor:
        """Information of one value about the dimensionless state, (*draws, series, time, dim)."""
        slope = self.units.log_slope(path)[..., : self.dim]
        return (slope / values["noise_scale"].unsqueeze(-2)).square()

    def data_scale(self, units: Units) -> Tensor:
        """The sd of the data's logarithms; 1 where they have no unit of their own."""
        if units.transform == "identity":  # the sd of a logarithm has no unit
            return torch.ones_like(super().data_scale(units))
        return super().data_scale(units)
