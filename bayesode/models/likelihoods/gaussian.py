"""Normal and log-normal measurement noise with a latent scale."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.distributions import observed_law
from bayesode.errors import DataError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Observe, Priors, Values
from bayesode.units import Units


class _NoiseScale(nn.Module):
    """The declaration that both likelihoods share: a log-normal noise scale.

    Args:
        dim: Number of observed components, the leading ones of the state.
        shared: One noise scale for all components in place of one each.
        prior_median: Of the noise scale; a tenth of the data's sd by default.
        prior_log_scale: Sd of its logarithm.
    """

    log_median: Tensor
    log_scale: Tensor

    def __init__(
        self,
        dim: int,
        *,
        shared: bool = False,
        prior_median: float | None = None,
        prior_log_scale: float = 2.0,
    ) -> None:
        super().__init__()
        numbers = {"dim": dim, "prior_median": prior_median, "prior_log_scale": prior_log_scale}
        for name, number in numbers.items():
            if number is not None and not 0 < number < math.inf:
                raise DataError(f"{name} must be a positive number, not {number}.")
        self.dim = dim
        self.config: dict[str, Any] = {
            "dim": dim,
            "shared": shared,
            "prior_median": prior_median,
            "prior_log_scale": prior_log_scale,
        }
        size = 1 if shared else dim
        self.register_buffer("log_median", torch.full((size,), math.log(prior_median or 0.1)))
        self.register_buffer("log_scale", torch.full((size,), prior_log_scale))
        self.units = Units()

    def with_units(self, units: Units) -> None:
        """Take on the units of a model."""
        self.units = units
        if self.config["prior_median"] is None:
            sizes = self._data_scale(units).expand(self.dim).log()
            shown = sizes.mean(0, keepdim=True) if self.config["shared"] else sizes
            self.log_median = (shown + math.log(0.1)).to(self.log_median)

    def _data_scale(self, units: Units) -> Tensor:
        return units.scale[: self.dim] if units.scale.numel() > 1 else units.scale

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site."""
        names = list(self.units.names[: self.dim]) or [f"x{i + 1}" for i in range(self.dim)]
        return {"noise_scale": ["all"] if self.config["shared"] else names}

    def priors(self) -> Priors:
        """The log-normal prior of the noise scale, shape (dim,) or (1,)."""
        return {"noise_scale": dist.LogNormal(self.log_median, self.log_scale).to_event(1)}

    def working_response(self, values: Tensor) -> Tensor:
        """Values as a smoother may see them, in dimensionless units."""
        return self.units.to_state(values)

    def starting_values(self, noise: Tensor) -> dict[str, Tensor]:
        """Values of the own sites for a noise estimate (dim,) in dimensionless units."""
        scale = noise * self._data_scale(self.units).to(noise)
        return {"noise_scale": scale.mean(-1, keepdim=True) if self.config["shared"] else scale}


class GaussianLikelihood(_NoiseScale):
    """Values are the state in users' units plus normal noise; `noise_scale` is latent.

    Args:
        dim: Number of observed components, the leading ones of the state.
        shared: One noise scale for all components in place of one each.
        prior_median: Of the noise scale, in users' units; a tenth of the data's sd by default.
        prior_log_scale: Sd of its logarithm.

    Example:
        >>> import torch
        >>> observe = GaussianLikelihood(1).build({"noise_scale": torch.tensor([0.5])})
        >>> observe(torch.zeros(4, 7, 1)).log_prob(torch.zeros(4, 7, 1)).shape
        torch.Size([4])
    """

    def build(self, values: Values, inputs: Inputs | None = None) -> Observe:
        """The law of values along a path, for noise scales (dim,) or (*draws, 1, dim)."""
        scale = values["noise_scale"].unsqueeze(-2)  # (*draws, 1, time, component)

        def law(path: Tensor, mask: Tensor | None) -> dist.TorchDistribution:
            signal = self.units.to_users(path[..., : self.dim])
            return observed_law(dist.Normal(signal, scale), mask, event_dim=2, fill=0.0)

        return Observe(law, lambda path: self.units.to_users(path[..., : self.dim]))

    def fisher(self, path: Tensor, values: Values) -> Tensor:
        """Information of one value about the dimensionless state, (*draws, series, time, dim)."""
        slope = self.units.to_users_rate(path, torch.ones_like(path)) * self.units.time_unit
        return (slope[..., : self.dim] / values["noise_scale"].unsqueeze(-2)).square()

    def _data_scale(self, units: Units) -> Tensor:
        if units.transform == "log":  # sd of a log-normal with the data's moments
            variance = units.scale.square()
            sd = (units.location + variance / 2).exp() * variance.expm1().sqrt()
            return sd[: self.dim]
        return super()._data_scale(units)


class LogNormalLikelihood(_NoiseScale):
    """Values are the state in users' units times log-normal noise; `noise_scale` is latent.

    Args:
        dim: Number of observed components, the leading ones of the state.
        shared: One noise scale for all components in place of one each.
        prior_median: Of the noise scale, the sd of the logarithm of a value; .1 by default under
            the identity transform, a tenth of the data's sd of the logarithm under "log".
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
        slope = self.units.scale.to(path.dtype).expand_as(path)
        if self.units.transform == "identity":
            users = self.units.to_users(path)
            # below zero the logarithm is cut off: it says nothing about the state
            slope = torch.where(users > 0, slope / users, 0.0)
        return (slope[..., : self.dim] / values["noise_scale"].unsqueeze(-2)).square()

    def _data_scale(self, units: Units) -> Tensor:
        if units.transform == "identity":  # the sd of a logarithm has no unit
            return torch.ones_like(super()._data_scale(units))
        return super()._data_scale(units)
