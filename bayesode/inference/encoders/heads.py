"""The last layers of an encoder network."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

FIRST_LOG_SCALE = -2.0  # an initial state as vague as its prior drowns the first gradients in noise


class NormalHeads(nn.Module):
    """A normal law from features, its mean and log scale each by a linear layer of its own.

    One layer for both would tie the uncertainty of a state to its place.

    Args:
        num_features: Size of the features.
        dim: Size of the law's event.

    Example:
        >>> NormalHeads(8, 2)(torch.zeros(5, 8)).event_shape
        torch.Size([2])
    """

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Linear(num_features, dim), nn.Linear(num_features, dim)
        nn.init.constant_(self.log_scale.bias, FIRST_LOG_SCALE)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """The law of features (series, num_features), batch shape (series,)."""
        return dist.Normal(self.mean(features), self.log_scale(features).exp()).to_event(1)

    @torch.no_grad()
    def quiet(self) -> None:
        """Bring the mean near 0, for a network beside another encoder that is right already."""
        self.mean.weight.mul_(0.01)
        self.mean.bias.zero_()
