"""A linear encoder, and the sum of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.data_checks import as_list, check_size
from bayesode.inference.encoders.heads import FIRST_LOG_SCALE
from bayesode.inference.encoders.seen import first_frames, most_frames
from bayesode.trajectories import Trajectories


class LinearEncoder(nn.Module):
    """x0 ~ Normal(weight (y - shift), scale) with y the first observation, flat.

    The scale is learned, one per component of the state, and does not depend on y.

    Args:
        event_shape: Of one observation.
        dim: Size of the state.

    Raises:
        DataError: For sizes that are not positive; by the call, if a first observation is hidden.
        ShapeError: By the call, for observations of another shape.

    Example:
        >>> data = Trajectories([0.0, 1.0], torch.rand(3, 2, 1, 8, 8))
        >>> LinearEncoder((1, 8, 8), 4)(data).batch_shape
        torch.Size([3])
    """

    num_frames = 1

    def __init__(self, event_shape: Sequence[int], dim: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"event_shape": as_list(event_shape), "dim": dim}
        check_size(dim=dim, **{f"event_shape[{k}]": n for k, n in enumerate(event_shape)})
        self.event_shape = torch.Size(event_shape)
        num_features = self.event_shape.numel()
        self.weight = nn.Parameter(torch.randn(dim, num_features) / num_features**0.5)
        self.shift = nn.Parameter(torch.zeros(num_features))
        self.log_scale = nn.Parameter(torch.full((dim,), FIRST_LOG_SCALE))

    def forward(self, trajectories: Trajectories) -> dist.TorchDistribution:
        """The law of x0, batch shape (series,)."""
        first = first_frames(trajectories, self.event_shape, 1).flatten(1).to(self.weight.dtype)
        mean = (first - self.shift) @ self.weight.mT
        return dist.Normal(mean, self.log_scale.exp()).to_event(1)

    def log_scales(self) -> list[nn.Parameter]:
        """Parameters that are logarithms of scales."""
        return [self.log_scale]

    @torch.no_grad()
    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """Encode by x0 = basis' (y - mean) / scale.

        Args:
            basis: Orthonormal columns, shape (features, dim).
            mean: Shape (features,).
            scale: Length of one unit of the state along a column.
        """
        self.weight.copy_(basis.mT / scale)
        self.shift.copy_(mean)


class SumEncoder(nn.Module):
    """Two encoders whose means add up, with the scale of the first.

    Args:
        base: As `LinearEncoder`.
        residual: What it lacks, as `MLPEncoder`; its own scale is not used.

    Example:
        >>> from bayesode.inference.encoders import MLPEncoder
        >>> encoder = SumEncoder(LinearEncoder((5,), 2), MLPEncoder((5,), 2))
        >>> encoder(Trajectories([0.0], torch.rand(3, 1, 5))).event_shape
        torch.Size([2])
    """

    def __init__(self, base: nn.Module, residual: nn.Module) -> None:
        super().__init__()
        self.base: Any = base
        self.residual: Any = residual

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

    @property
    def log_scale(self) -> nn.Parameter:
        """Of the base, if its scale does not depend on the data."""
        return self.base.log_scale

    def forward(self, trajectories: Trajectories) -> dist.TorchDistribution:
        """The law of x0, batch shape (series,)."""
        law, more = self.base(trajectories), self.residual(trajectories)
        return dist.Normal(law.base_dist.loc + more.base_dist.loc, law.base_dist.scale).to_event(1)

    def log_scales(self) -> list[nn.Parameter]:
        """Parameters that are logarithms of scales."""
        return self.base.log_scales() if hasattr(self.base, "log_scales") else []

    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """As `LinearEncoder.set_linear`, of the base; the residual begins near 0."""
        self.base.set_linear(basis, mean, scale)
        if hasattr(self.residual, "quiet"):
            self.residual.quiet()

    def set_features(self, lines: Tensor) -> None:
        """As `LineEncoder.set_features`, of the base."""
        self.base.set_features(lines)

    def set_affine(self, matrix: Tensor, offset: Tensor) -> None:
        """As `LineEncoder.set_affine`, of the base; the residual begins near 0."""
        self.base.set_affine(matrix, offset)
        if hasattr(self.residual, "quiet"):
            self.residual.quiet()

    def hold(self) -> None:
        """As `LineEncoder.hold`, of the base."""
        self.base.hold()
