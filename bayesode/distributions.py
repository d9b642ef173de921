"""Distribution families that Pyro lacks."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesode.errors import ShapeError


class ObservedWhere(dist.MaskedDistribution):
    """A law of which only the entries under a mask are scored; all of it can be sampled.

    A masked value is replaced by `fill` before the density is taken. Without that a NaN under the
    mask makes the gradient NaN, and a 0 lies outside a log-normal's support.

    Args:
        base_dist: Law of single entries.
        mask: True where observed, broadcastable to the batch shape of `base_dist`.
        fill: Any number inside the support.
    """

    def __init__(self, base_dist: dist.TorchDistribution, mask: Tensor, fill: float) -> None:
        self.fill = fill
        super().__init__(base_dist, mask)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> ObservedWhere:
        """The law of a larger batch."""
        shape, mask = torch.Size(batch_shape), self._observed
        return ObservedWhere(self.base_dist.expand(shape), mask.expand(shape), self.fill)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density per entry, 0 where masked."""
        # outside the mask the value is `fill` for the base law, whatever it was
        return super().log_prob(torch.where(self._observed, value, self.fill))

    @property
    def _observed(self) -> Tensor:
        return torch.as_tensor(self._mask)


def observed_law(
    base: dist.TorchDistribution, mask: Tensor | None, *, event_dim: int, fill: float
) -> dist.Independent:
    """The law of one series' values, shape (time, *event), scored where `mask` is True.

    Args:
        base: Law of single entries, batch shape (*draws, series, time, *event).
        mask: Shape (series, time, *event), or None if nothing is hidden.
        event_dim: Number of event dimensions, the time included.
        fill: A number inside the support, put in place of masked values.

    Raises:
        ShapeError: If the law has other numbers of times or components than the mask. One alone
            would be broadcast.
    """
    if mask is not None and base.batch_shape[-event_dim:] != mask.shape[-event_dim:]:
        raise ShapeError(
            f"the law of one series has the shape {tuple(base.batch_shape[-event_dim:])}, its "
            f"values have {tuple(mask.shape[-event_dim:])}: give the likelihood as many components "
            "(dim=) as the data have."
        )
    scored = base if mask is None else ObservedWhere(base, mask, fill)
    return dist.Independent(scored, event_dim)
