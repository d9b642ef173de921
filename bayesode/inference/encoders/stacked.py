"""The laws of several encoders side by side, as of positions and velocities."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.inference.encoders.seen import most_frames
from bayesode.trajectories import Trajectories


class StackedEncoder(nn.Module):
    """x0 = (position, velocity, constants), each from an encoder of its own, independent given y.

    For `SecondOrder` fields: the position from the first observation, the velocity, which one
    observation does not show, from several; for `WithConstants` what stands still in a series.

    Args:
        position: As `LinearEncoder(event_shape, q)` or `ConvEncoder(event_shape, q)`.
        velocity: As `MLPEncoder(event_shape, q, num_frames=m)`, if the state has one.
        constants: As `LineEncoder(event_shape, c)`, if the state has any.

    Source: Yildiz, Heinonen and Lahdesmaki (2019), "ODE2VAE: Deep generative second order ODEs with
    Bayesian neural networks", section 3. arXiv:1905.10994

    Example:
        >>> from bayesode.inference.encoders import LinearEncoder, MLPEncoder
        >>> encoder = StackedEncoder(LinearEncoder((5,), 2), MLPEncoder((5,), 2, num_frames=3))
        >>> encoder(Trajectories([0.0, 0.1, 0.2], torch.rand(4, 3, 5))).event_shape
        torch.Size([4])
    """

    def __init__(
        self,
        position: nn.Module,
        velocity: nn.Module | None = None,
        constants: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.position: Any = position
        for name, part in (("velocity", velocity), ("constants", constants)):
            if part is not None:
                self.add_module(name, part)

    @property
    def config(self) -> dict[str, Any]:
        """Types and constructor arguments of the parts."""
        return {
            name: {"type": type(part).__name__, **getattr(part, "config", {})}
            for name, part in self.named_children()
        }

    @property
    def num_frames(self) -> int | None:
        """How many first observations are read, None for all."""
        return most_frames(self.children())

    def forward(self, trajectories: Trajectories) -> dist.TorchDistribution:
        """The law of x0, batch shape (series,); the event has the components of all parts."""
        laws = [part(trajectories).base_dist for part in self.children()]
        location, scale = (torch.cat([getattr(a, k) for a in laws], -1) for k in ("loc", "scale"))
        return dist.Normal(location, scale).to_event(1)

    def log_scales(self) -> list[nn.Parameter]:
        """Parameters that are logarithms of scales, of all parts."""
        parts = [part for part in self.children() if hasattr(part, "log_scales")]
        return [parameter for part in parts for parameter in part.log_scales()]  # type: ignore

    def row_parameters(self) -> list[nn.Parameter]:
        """Parameters with a row per series, of the constants."""
        part = getattr(self, "constants", None)
        return part.row_parameters() if hasattr(part, "row_parameters") else []  # type: ignore

    def rows(self, trajectories: Trajectories) -> Tensor:
        """Rows in these of the series that have one, (rows,)."""
        return self.constants.rows(trajectories)  # type: ignore[union-attr, operator]

    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """As `LinearEncoder.set_linear`, of the positions; all else begins near 0, if it can.

        Args:
            basis: Columns of the positions first, shape (features, at least positions).
            mean: Shape (features,).
            scale: Length of one unit of the state along a column.
        """
        self.position.set_linear(basis[:, : self.position.config["dim"]], mean, scale)
        for part in list(self.children())[1:]:
            if hasattr(part, "quiet"):
                part.quiet()  # type: ignore[operator]
