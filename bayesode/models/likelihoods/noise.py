"""The noise scale that likelihoods of real numbers share."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.errors import DataError
from bayesode.models.contracts import Priors
from bayesode.units import Units

# Of the data's sd: noise that is seen in a plot; its logarithm's sd lets it be a tenth of that.
NOISE_SHARE, NOISE_LOG_SCALE = 0.3, 1.0


class NoiseScale(nn.Module):
    """A latent noise scale with a log-normal prior, for likelihoods to inherit.

    Args:
        dim: Number of observed components, the leading ones of the state.
        shared: One noise scale for all components in place of one each.
        prior_median: Of the noise scale; three tenths of the data's sd by default.
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
        prior_log_scale: float = NOISE_LOG_SCALE,
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
        self.register_buffer(
            "log_median", torch.full((size,), math.log(prior_median or NOISE_SHARE))
        )
        self.register_buffer("log_scale", torch.full((size,), prior_log_scale))
        self.units = Units()

    def with_units(self, units: Units) -> None:
        """Take on the units of a model."""
        self.units = units
        if self.config["prior_median"] is None:
            sizes = self.data_scale(units).expand(self.dim).log()
            shown = sizes.mean(0, keepdim=True) if self.config["shared"] else sizes
            self.log_median = (shown + math.log(NOISE_SHARE)).to(self.log_median)

    def data_scale(self, units: Units) -> Tensor:
        """What a noise scale is measured in: the data's sd, in users' units."""
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
        scale = noise * self.data_scale(self.units).to(noise)
        return {"noise_scale": scale.mean(-1, keepdim=True) if self.config["shared"] else scale}
