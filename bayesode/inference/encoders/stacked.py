"""The laws of two encoders side by side, as of positions and velocities."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.inference.encoders.seen import most_frames
from bayesode.trajectories import Trajectories


class StackedEncoder(nn.Module):
    """x0 = (position, velocity), each from an encoder of its own, independent given the data.

    For `SecondOrder` fields: the position from the first observation, the velocity, which one
    observation does not show, from several.

    Args:
        position: As `LinearEncoder(event_shape, q)` or `ConvEncoder(event_shape, q)`.
        velocity: As `MLPEncoder(event_shape, q, num_frames=m)`.

    Source: Yildiz, Heinonen and Lahdesmaki (2019), "ODE2VAE: Deep generative second order ODEs with
    Bayesian neural networks", section 3. arXiv:1905.10994

    Example:
        >>> from bayesode.inference.encoders import LinearEncoder, MLPEncoder
        >>> encoder = StackedEncoder(LinearEncoder((5,), 2), MLPEncoder((5,), 2, num_frames=3))
        >>> encoder(Trajectories([0.0, 0.1, 0.2], torch.rand(4, 3, 5))).event_shape
        torch.Size([4])
    """

    def __init__(self, position: nn.Module, velocity: nn.Module) -> None:
        super().__init__()
        self.position: Any = position
        self.velocity: Any = velocity

    @property
    def config(self) -> dict[str, Any]:
        """Types and constructor arguments of the two."""
        return {
            name: {"type": type(part).__name__, **getattr(part, "config", {})}
            for name, part in self.named_children()
        }

    @property
    def num_frames(self) -> int | None:
        """How many first observations are read, None for all."""
        return most_frames(self.children())

    def forward(self, trajectories: Trajectories) -> dist.TorchDistribution:
        """The law of x0, batch shape (series,), event shape (positions + velocities,)."""
        laws = [part(trajectories).base_dist for part in self.children()]
        location, scale = (torch.cat([getattr(a, k) for a in laws], -1) for k in ("loc", "scale"))
        return dist.Normal(location, scale).to_event(1)

    def log_scales(self) -> list[nn.Parameter]:
        """Parameters that are logarithms of scales, of both."""
        parts = [part for part in self.children() if hasattr(part, "log_scales")]
        return [parameter for part in parts for parameter in part.log_scales()]  # type: ignore

    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """As `LinearEncoder.set_linear`, of the positions; velocities begin near 0.

        Args:
            basis: Columns of the positions first, shape (features, at least positions).
            mean: Shape (features,).
            scale: Length of one unit of the state along a column.
        """
        self.position.set_linear(basis[:, : self.position.config["dim"]], mean, scale)
        self.quiet_velocity()

    def quiet_velocity(self) -> None:
        """Bring the mean of the velocities near 0, if their encoder can."""
        if hasattr(self.velocity, "quiet"):
            self.velocity.quiet()
