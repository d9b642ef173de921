"""Networks that read the first observations of a series."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from bayesode.data_checks import as_list, check_size
from bayesode.errors import ShapeError
from bayesode.inference.encoders.heads import NormalHeads
from bayesode.inference.encoders.seen import first_frames
from bayesode.trajectories import Trajectories


class FirstFrames(nn.Module):
    """A network of the first observations of a series, for encoders to inherit.

    Args:
        event_shape: Of one observation.
        num_frames: How many are read.
        body: From what `arrange` makes of them to features (series, num_features).
        heads: From features to the law.
    """

    def __init__(
        self, event_shape: Sequence[int], num_frames: int, body: nn.Module, heads: NormalHeads
    ) -> None:
        super().__init__()
        self.event_shape, self.num_frames = torch.Size(event_shape), num_frames
        self.body, self.heads = body, heads

    def forward(self, trajectories: Trajectories) -> dist.TorchDistribution:
        """The law of x0, batch shape (series,).

        Raises:
            DataError: If one of the first observations is hidden, or there are too few.
            ShapeError: For observations of another shape.
        """
        first = first_frames(trajectories, self.event_shape, self.num_frames)
        # frames one after another: images side by side as channels, vectors as one long one
        joined = first.flatten(1, 2).to(self.heads.mean.weight.dtype)
        return self.heads(self.body(joined))

    def quiet(self) -> None:
        """Bring the mean near 0, to be a residual."""
        self.heads.quiet()


class MLPEncoder(FirstFrames):
    """A multilayer perceptron of the first observations, with ReLU.

    Args:
        event_shape: Of one observation.
        dim: Size of the state.
        hidden: Widths of the hidden layers.
        num_frames: How many observations are read; several tell the velocity. Their times are not
            read: they have to be the same for every series.

    Raises:
        DataError: For sizes that are not positive.

    Example:
        >>> data = Trajectories([0.0, 1.0], torch.rand(3, 2, 1, 8, 8))
        >>> MLPEncoder((1, 8, 8), 4, num_frames=2)(data).batch_shape
        torch.Size([3])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        dim: int,
        *,
        hidden: Sequence[int] = (100,),
        num_frames: int = 1,
    ) -> None:
        config = _checked(event_shape, dim, num_frames, hidden=hidden)
        sizes = [num_frames * torch.Size(event_shape).numel(), *config["hidden"]]
        layers: list[nn.Module] = [nn.Flatten()]
        for size, width in pairwise(sizes):
            layers += [nn.Linear(size, width), nn.ReLU()]
        super().__init__(
            event_shape, num_frames, nn.Sequential(*layers), NormalHeads(sizes[-1], dim)
        )
        self.config = config


class ConvEncoder(FirstFrames):
    """Convolutions over the first frames of a video, each of which halves the picture.

    Without batch statistics: an encoder of training and one of prediction are the same function.

    Args:
        event_shape: Of one frame, (channels, height, width).
        dim: Size of the state.
        num_frames: As in `MLPEncoder`; frames are channels.
        channels: Of each convolution.

    Raises:
        DataError: For sizes that are not positive.
        ShapeError: For frames that are no images with channels.

    Example:
        >>> video = Trajectories([0.0, 1.0], torch.rand(3, 2, 1, 28, 28))
        >>> ConvEncoder((1, 28, 28), 4)(video).batch_shape
        torch.Size([3])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        dim: int,
        *,
        num_frames: int = 1,
        channels: Sequence[int] = (16, 32),
    ) -> None:
        config = _checked(event_shape, dim, num_frames, channels=channels)
        if len(config["event_shape"]) != 3:
            raise ShapeError(
                f"ConvEncoder reads frames (channels, height, width), not {tuple(event_shape)}; "
                "take MLPEncoder for vectors, and (1, height, width) for grey pictures."
            )
        depth, height, width = config["event_shape"]
        depths, layers = [num_frames * depth, *config["channels"]], []
        for before, after in pairwise(depths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
            height, width = (height + 1) // 2, (width + 1) // 2
        body = nn.Sequential(*layers, nn.Flatten())
        heads = NormalHeads(depths[-1] * height * width, dim)
        super().__init__(event_shape, num_frames, body, heads)
        self.config = config


def _checked(
    event_shape: Sequence[int], dim: int, num_frames: int, **widths: Sequence[int]
) -> dict[str, Any]:
    """The constructor's arguments as plain numbers, all of them positive."""
    lists = {
        name: as_list(value) for name, value in ({"event_shape": event_shape} | widths).items()
    }
    sizes = {f"{name}[{k}]": n for name, value in lists.items() for k, n in enumerate(value)}
    check_size(dim=dim, num_frames=num_frames, **sizes)
    return lists | {"dim": dim, "num_frames": num_frames}
