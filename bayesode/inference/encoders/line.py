"""An encoder that reads where a series begins and how it moves there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.data_checks import as_list, check_positive, check_size
from bayesode.errors import DataError
from bayesode.inference.encoders.heads import FIRST_LOG_SCALE
from bayesode.inference.encoders.seen import first_frames
from bayesode.trajectories import Trajectories

SMALLEST_SD = 1e-3  # of the largest one: entries that vary less are constant, and are not read


def lines(values: Tensor, times: Tensor) -> Tensor:
    """Levels and slopes of least-squares lines through a few frames, shape (series, 2 features).

    Args:
        values: Shape (series, frame, features).
        times: Shape (series, frame); the level is that at the first of them.
    """
    since = (times - times[:, :1]).to(values)
    centred = since - since.mean(-1, keepdim=True)
    weight = centred / centred.square().sum(-1, keepdim=True)
    slope = (weight.unsqueeze(-1) * values).sum(1)
    level = values.mean(1) - since.mean(-1, keepdim=True) * slope
    return torch.cat([level, slope], -1)


class LineEncoder(nn.Module):
    """x0 ~ Normal(weight features + bias, scale), features of a line through the first frames.

    The line is fitted to each entry of the first `num_frames` observations by least squares; its
    level at the first of them and its slope are the features, each divided by its sd over the
    training data (`set_features`). Entries that stand still there are not read. The scale is
    learned, one per component, and does not depend on the data.

    Args:
        event_shape: Of one observation.
        dim: Number of components that are encoded.
        num_frames: How many observations are read, two at least.
        time_unit: In which slopes are taken, in the unit of the data.
        clip: Sds beyond which a feature counts as this many: no series that is unlike all others
            gets a state that is; None for no bound.

    Raises:
        DataError: For sizes that are not positive, a single frame, or a clip that is not positive;
            by the call, if one of the first observations is hidden or there are too few.
        ShapeError: By the call, for observations of another shape.

    Example:
        >>> data = Trajectories([0.0, 0.1, 0.2], torch.rand(4, 3, 5))
        >>> LineEncoder((5,), 2)(data).batch_shape
        torch.Size([4])
    """

    shift: Tensor
    gain: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        dim: int,
        *,
        num_frames: int = 3,
        time_unit: float = 1.0,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        sizes = {f"event_shape[{k}]": n for k, n in enumerate(event_shape)}
        check_size(dim=dim, num_frames=num_frames, **sizes)
        check_positive(time_unit=time_unit, **({} if clip is None else {"clip": clip}))
        if num_frames < 2:
            raise DataError("a line needs two frames: give num_frames=2 or more.")
        self.config: dict[str, Any] = {
            "event_shape": as_list(event_shape),
            "dim": dim,
            "num_frames": num_frames,
            "time_unit": time_unit,
            "clip": clip,
        }
        self.event_shape, self.num_frames = torch.Size(event_shape), num_frames
        self.time_unit, self.clip = time_unit, math.inf if clip is None else clip
        num_features = 2 * self.event_shape.numel()
        self.register_buffer("shift", torch.zeros(num_features))
        self.register_buffer("gain", torch.ones(num_features))
        self.weight = nn.Parameter(torch.randn(dim, num_features) / num_features**0.5)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.full((dim,), FIRST_LOG_SCALE))

    def forward(self, trajectories: Trajectories) -> dist.TorchDistribution:
        """The law of the components, batch shape (series,)."""
        mean = self.read(self.features(trajectories))
        return dist.Normal(mean, self.log_scale.exp()).to_event(1)

    def read(self, features: Tensor) -> Tensor:
        """The components that standardised features tell, shape (series, dim)."""
        return features @ self.weight.mT + self.bias

    def features(self, trajectories: Trajectories) -> Tensor:
        """Standardised levels and slopes, shape (series, 2 features)."""
        first = first_frames(trajectories, self.event_shape, self.num_frames)
        grid = trajectories.grid[:, : self.num_frames]
        times = (grid - grid[:, :1]) / self.time_unit
        return self.standardised(lines(first.flatten(2).to(self.weight.dtype), times))

    def standardised(self, lines: Tensor) -> Tensor:
        """Features of levels and slopes (series, 2 features)."""
        return ((lines - self.shift) * self.gain).clamp(-self.clip, self.clip)

    @property
    def reader(self) -> LineEncoder:
        """What reads the features: itself."""
        return self

    def log_scales(self) -> list[nn.Parameter]:
        """Parameters that are logarithms of scales."""
        return [self.log_scale]

    @torch.no_grad()
    def set_features(self, lines: Tensor) -> None:
        """Standardise by the mean and sd of levels and slopes (series, 2 features)."""
        sd = lines.std(0, correction=0)
        largest = torch.stack([half.max() for half in sd.chunk(2)]).repeat_interleave(len(sd) // 2)
        self.shift.copy_(lines.mean(0))
        self.gain.copy_(torch.where(sd > SMALLEST_SD * largest, sd.reciprocal(), 0.0))

    @torch.no_grad()
    def set_affine(self, matrix: Tensor, offset: Tensor) -> None:
        """Encode by levels and slopes @ matrix' + offset, after `set_features`.

        Args:
            matrix: Shape (dim, 2 features); what it has for entries that are not read is left out.
            offset: Shape (dim,).
        """
        is_read = self.gain > 0
        self.weight.copy_(torch.where(is_read, matrix.to(self.weight) / self.gain, 0.0))
        self.bias.copy_(offset + matrix @ self.shift.to(matrix))

    @torch.no_grad()
    def set_standardised(self, matrix: Tensor, offset: Tensor) -> None:
        """Encode by standardised features @ matrix' + offset, (dim, 2 features) and (dim,)."""
        self.weight.copy_(matrix)
        self.bias.copy_(offset)

    def hold(self) -> None:
        """Keep the map as it is: fits move the scale alone.

        Weight and bias become buffers; a state dict holds them by the same names.
        """
        for name in ("weight", "bias"):
            value = getattr(self, name).detach()
            # Not requires_grad_(False): Pyro warns of parameters that it cannot register.
            delattr(self, name)
            self.register_buffer(name, value)
