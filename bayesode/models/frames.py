"""Decoders: plain networks from a latent state to a frame, an image or any other event."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesode.errors import DataError, ShapeError

SLOPE_BEYOND = 8.0  # of grey logits by intensities outside [0, 1], as of `Logits`


class Decoder(nn.Module):
    """What decoders share: they map rows (rows, dim) to frames (rows, *event_shape).

    Args:
        event_shape: Of one frame, such as (channels, height, width) or (features,).
        dim: Size of the latent state.
        settings: Further constructor arguments, kept in `config`.

    Raises:
        ShapeError: For sizes that are not positive.
    """

    def __init__(self, event_shape: Sequence[int], dim: int, **settings: Any) -> None:
        super().__init__()
        self.event_shape, self.dim = tuple(event_shape), dim
        if not self.event_shape or min(*self.event_shape, dim) < 1:
            raise ShapeError(
                f"a decoder needs positive sizes, not event_shape={self.event_shape}, dim={dim}."
            )
        self.config: dict[str, Any] = {"event_shape": list(event_shape), "dim": dim, **settings}

    def extra_repr(self) -> str:
        """The constructor arguments, in the printed module."""
        return ", ".join(f"{name}={value}" for name, value in self.config.items())


class LinearDecoder(Decoder):
    """Frames are an affine map of the state, bias + weight z.

    Args:
        event_shape: Of one frame.
        dim: Size of the latent state.

    Example:
        >>> import torch
        >>> LinearDecoder((1, 8, 8), 4)(torch.zeros(5, 4)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(self, event_shape: Sequence[int], dim: int) -> None:
        super().__init__(event_shape, dim)
        features = math.prod(self.event_shape)
        self.weight = nn.Parameter(torch.randn(features, dim) * dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, rows: Tensor) -> Tensor:
        """Frames (rows, *event_shape) of states (rows, dim)."""
        flat = nn.functional.linear(rows, self.weight, self.bias)
        return flat.unflatten(-1, self.event_shape)

    @torch.no_grad()
    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """Become mean + scale basis z.

        Args:
            basis: Shape (features, dim).
            mean: Shape (features,).
            scale: One number for all directions.

        Raises:
            ShapeError: For other shapes.

        Example:
            >>> from bayesode.inference.latent_start import principal_components
            >>> frames, decoder = torch.rand(5, 8, 3), LinearDecoder((3,), 2)
            >>> found = principal_components(frames, torch.ones(5, 8, dtype=torch.bool), 2)
            >>> decoder.set_linear(found.basis, found.mean, found.scale)
        """
        if basis.shape != self.weight.shape or mean.shape != self.bias.shape:
            raise ShapeError(
                f"a basis of shape {tuple(self.weight.shape)} and a mean of shape "
                f"{tuple(self.bias.shape)} are needed, not {tuple(basis.shape)} and "
                f"{tuple(mean.shape)}."
            )
        self.weight.copy_(scale * basis)
        self.bias.copy_(mean)


class MLPDecoder(Decoder):
    """A multilayer perceptron from state to frame.

    Args:
        event_shape: Of one frame.
        dim: Size of the latent state.
        hidden: Widths of the hidden layers.

    Example:
        >>> import torch
        >>> MLPDecoder((1, 8, 8), 4)(torch.zeros(5, 4)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self, event_shape: Sequence[int], dim: int, hidden: Sequence[int] = (200,)
    ) -> None:
        super().__init__(event_shape, dim, hidden=list(hidden))
        sizes = (dim, *hidden, math.prod(self.event_shape))
        layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        between = [[layer, nn.ELU()] for layer in layers[:-1]]
        self.layers = nn.Sequential(*itertools.chain(*between), layers[-1])

    def forward(self, rows: Tensor) -> Tensor:
        """Frames (rows, *event_shape) of states (rows, dim)."""
        return self.layers(rows).unflatten(-1, self.event_shape)

    def silence(self) -> None:
        """Make the output 0 until training moves it."""
        _silence(self.layers[-1])


class ConvDecoder(Decoder):
    """Transposed convolutions that double height and width, from a small image made by one layer.

    The last layers are the narrow ones: at full size every channel costs most.

    Args:
        event_shape: (channels, height, width), of any size: what the doubling overshoots is cut.
        dim: Size of the latent state.
        channels: Of the images before the output, each half as large as the next one.

    Raises:
        ShapeError: If event_shape is no image, or there are no channels.

    Example:
        >>> import torch
        >>> ConvDecoder((1, 28, 28), 8)(torch.zeros(5, 8)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self, event_shape: Sequence[int], dim: int, channels: Sequence[int] = (32, 16)
    ) -> None:
        super().__init__(event_shape, dim, channels=list(channels))
        if len(self.event_shape) != 3 or not channels or min(channels) < 1:
            raise ShapeError(
                f"images are (channels, height, width), not {self.event_shape}, and channels are "
                f"positive numbers, not {channels}; take MLPDecoder for other events."
            )
        num_out, *size = self.event_shape
        small = [math.ceil(length / 2 ** len(channels)) for length in size]
        # kernel 4, stride 2: each output pixel gets as many terms, so there is no checkerboard
        steps = [nn.ConvTranspose2d(*p, 4, 2, 1) for p in itertools.pairwise((*channels, num_out))]
        self.layers = nn.Sequential(
            nn.Linear(dim, channels[0] * math.prod(small)),
            nn.Unflatten(1, (channels[0], *small)),
            *itertools.chain(*([nn.ELU(), step] for step in steps)),
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Frames (rows, channels, height, width) of states (rows, dim)."""
        _, height, width = self.event_shape
        return self.layers(rows)[..., :height, :width]

    def silence(self) -> None:
        """Make the output 0 until training moves it."""
        _silence(self.layers[-1])


class SumDecoder(nn.Module):
    """The sum of named decoders, such as a linear one and a network.

    Args:
        parts: Decoders of the same states and frames.

    Raises:
        ShapeError: If the decoders are of other states or frames.

    Example:
        >>> import torch
        >>> shape = (1, 8, 8)
        >>> both = SumDecoder(linear=LinearDecoder(shape, 4), network=MLPDecoder(shape, 4))
        >>> both(torch.zeros(5, 4)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        kinds = {(tuple(part.event_shape), part.dim) for part in parts.values()}
        if len(kinds) != 1:
            raise ShapeError(
                "a sum needs decoders of one event_shape and one dim, SumDecoder(name=decoder, "
                f"...), not of {sorted(kinds)}."
            )
        self.parts = nn.ModuleDict(parts)
        self.event_shape, self.dim = kinds.pop()

    @property
    def config(self) -> dict[str, Any]:
        """Types and constructor arguments of the parts."""
        return {
            name: {"type": type(part).__name__, **part.config}  # type: ignore[dict-item]
            for name, part in self.parts.items()
        }

    def forward(self, rows: Tensor) -> Tensor:
        """Frames (rows, *event_shape) of states (rows, dim)."""
        return functools.reduce(torch.add, (part(rows) for part in self.parts.values()))

    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """Become mean + scale basis z: the linear part does, and the others fall silent.

        Raises:
            DataError: If not exactly one of the parts is linear.
        """
        linear = [part for part in self.parts.values() if hasattr(part, "set_linear")]
        if len(linear) != 1:
            raise DataError(
                f"of the parts {list(self.parts)} exactly one has to be a LinearDecoder, not "
                f"{len(linear)}."
            )
        for part in self.parts.values():
            if part is linear[0]:
                part.set_linear(basis, mean, scale)  # type: ignore[operator]
            elif hasattr(part, "silence"):
                part.silence()  # type: ignore[operator]


class Clipped(nn.Module):
    """A decoder whose frames are cut off at the ends of an interval, as pictures are.

    A linear decoder may then overshoot on black and white without an error.

    Args:
        decoder: Of frames.
        low: Lower end.
        high: Upper end.

    Raises:
        DataError: If the ends are not in order.

    Example:
        >>> import torch
        >>> Clipped(LinearDecoder((3,), 2), high=0.5)(torch.full((100, 2), 9.0)).max() <= 0.5
        tensor(True)
    """

    def __init__(self, decoder: Any, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        if not low < high:
            raise DataError(f"low must be smaller than high, not {low} and {high}.")
        self.decoder, self.low, self.high = decoder, low, high
        self.event_shape, self.dim = decoder.event_shape, decoder.dim

    @property
    def config(self) -> dict[str, Any]:
        """Type and constructor arguments of the decoder, and the ends."""
        own = {"type": type(self.decoder).__name__, **self.decoder.config}
        return {"decoder": own, "low": self.low, "high": self.high}

    def extra_repr(self) -> str:
        """The ends, in the printed module."""
        return f"low={self.low}, high={self.high}"

    def forward(self, rows: Tensor) -> Tensor:
        """Frames (rows, *event_shape) of states (rows, dim)."""
        return self.decoder(rows).clamp(self.low, self.high)

    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """Before the cut frames become mean + scale basis z, as far as the decoder is linear."""
        self.decoder.set_linear(basis, mean, scale)


class Logits(nn.Module):
    """A decoder of intensities in [0, 1] as one of logits, slope (y - 1/2).

    Args:
        decoder: Of intensities.
        slope: 8 makes the intensities 0 and 1 the probabilities .018 and .982.

    Raises:
        DataError: For a slope that is not positive.

    Example:
        >>> import torch
        >>> Logits(LinearDecoder((3,), 2))(torch.zeros(1, 2))
        tensor([[-4., -4., -4.]], grad_fn=<MulBackward0>)
    """

    def __init__(self, decoder: Any, slope: float = 8.0) -> None:
        super().__init__()
        if not 0 < slope < math.inf:
            raise DataError(f"slope must be a positive number, not {slope}.")
        self.decoder, self.slope = decoder, slope
        self.event_shape, self.dim = decoder.event_shape, decoder.dim

    @property
    def config(self) -> dict[str, Any]:
        """Type and constructor arguments of the decoder, and the slope."""
        own = {"type": type(self.decoder).__name__, **self.decoder.config}
        return {"decoder": own, "slope": self.slope}

    def extra_repr(self) -> str:
        """The slope, in the printed module."""
        return f"slope={self.slope}"

    def forward(self, rows: Tensor) -> Tensor:
        """Logits (rows, *event_shape) of states (rows, dim)."""
        return self.slope * (self.decoder(rows) - 0.5)

    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """Intensities become mean + scale basis z, as far as the decoder is linear."""
        self.decoder.set_linear(basis, mean, scale)


class GreyLogits(nn.Module):
    """A decoder of intensities as logits of the continuous Bernoulli laws with these means.

    Their means are far from sigmoid(logit): black, .02, needs the logit -50. With y = 2 m - 1 the
    inverse of the mean m is twice that of the Langevin function, y (3 - y^2) / (1 - y^2) up to 5 %
    (1 % in m). Intensities are shrunk into [margin, 1 - margin] before; beyond 0 and 1 the logit
    goes on linearly, so that gradients do not vanish.

    Args:
        decoder: Of intensities.
        margin: Mean of a black pixel.

    Raises:
        DataError: For a margin that does not lie between 0 and 1/2.

    Source: Cohen (1991), "A Padé approximant to the inverse Langevin function", Rheologica Acta 30,
        equation 10. The shrinking and the linear ends are ours.

    Example:
        >>> import torch
        >>> GreyLogits(LinearDecoder((3,), 2))(torch.zeros(1, 2))
        tensor([[-50.8996, -50.8996, -50.8996]], grad_fn=<AddBackward0>)
    """

    def __init__(self, decoder: Any, margin: float = 0.02) -> None:
        super().__init__()
        if not 0 < margin < 0.5:
            raise DataError(f"margin must lie between 0 and 1/2, not {margin}.")
        self.decoder, self.margin = decoder, margin
        self.event_shape, self.dim = decoder.event_shape, decoder.dim

    @property
    def config(self) -> dict[str, Any]:
        """Type and constructor arguments of the decoder, and the margin."""
        own = {"type": type(self.decoder).__name__, **self.decoder.config}
        return {"decoder": own, "margin": self.margin}

    def extra_repr(self) -> str:
        """The margin, in the printed module."""
        return f"margin={self.margin}"

    def forward(self, rows: Tensor) -> Tensor:
        """Logits (rows, *event_shape) of states (rows, dim)."""
        intensity = self.decoder(rows)
        inside = intensity.clamp(0.0, 1.0)
        y = (1 - 2 * self.margin) * (2 * inside - 1)
        return 2 * y * (3 - y * y) / (1 - y * y) + SLOPE_BEYOND * (intensity - inside)

    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """Intensities become mean + scale basis z, as far as the decoder is linear."""
        self.decoder.set_linear(basis, mean, scale)


@torch.no_grad()
def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()
