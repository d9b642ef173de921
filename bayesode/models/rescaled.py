"""Decoders of values of any size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bayesode.data_checks import check_positive


class Rescaled(nn.Module):
    """A decoder times a number: what it learns is of size one in whatever unit values are.

    Args:
        decoder: Of values in units of `scale`.
        scale: In the unit of the data, as the root mean square of values around their mean.

    Raises:
        DataError: For a scale that is not positive.

    Example:
        >>> import torch
        >>> from bayesode.models.frames import LinearDecoder
        >>> decoder = Rescaled(LinearDecoder((3,), 2), 1000.0)
        >>> decoder.set_linear(torch.eye(3, 2), torch.zeros(3), 500.0)
        >>> decoder(torch.tensor([[1.0, 2.0]])).round()
        tensor([[ 500., 1000.,    0.]], grad_fn=<RoundBackward0>)
    """

    def __init__(self, decoder: Any, scale: float) -> None:
        super().__init__()
        check_positive(scale=scale)
        self.decoder, self.scale = decoder, scale
        self.event_shape, self.dim = decoder.event_shape, decoder.dim

    @property
    def config(self) -> dict[str, Any]:
        """Type and constructor arguments of the decoder, and the scale."""
        own = {"type": type(self.decoder).__name__, **self.decoder.config}
        return {"decoder": own, "scale": self.scale}

    def extra_repr(self) -> str:
        """The scale, in the printed module."""
        return f"scale={self.scale}"

    def forward(self, rows: Tensor) -> Tensor:
        """Values (rows, *event_shape) of states (rows, dim)."""
        return self.scale * self.decoder(rows)

    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """Values become mean + scale basis z, as far as the decoder is linear."""
        self.decoder.set_linear(basis, mean / self.scale, scale / self.scale)
