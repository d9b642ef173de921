"""A recurrent network that reads whatever is visible of a series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.data_checks import as_list, check_positive, check_size
from bayesode.inference.encoders.heads import NormalHeads
from bayesode.inference.encoders.seen import seen_values
from bayesode.trajectories import Trajectories


class GRUEncoder(nn.Module):
    """A gated recurrent unit over the visible observations, from the last one back to the first.

    At each it sees the values, with 0 in place of hidden ones, what is visible of them, and the
    time that has passed since the observation read before; at last the time from the start of the
    series to its first visible observation. Observations that are wholly hidden are as if they were
    not there, and so is padding.

    Args:
        event_shape: Of one observation.
        dim: Size of the state.
        hidden: Size of the network's own state.
        time_unit: What gaps are measured in, in the unit of the data: a typical gap.

    Raises:
        DataError: For sizes that are not positive; by the call, if a series has no visible value.
        ShapeError: By the call, for observations of another shape.

    Source: Cho et al. (2014), arXiv:1406.1078; read backwards in time as by Chen et al. (2018),
    "Neural ordinary differential equations", section 5. arXiv:1806.07366

    Example:
        >>> values = torch.rand(3, 7, 5)
        >>> data = Trajectories(torch.arange(7.0), values, mask=torch.rand(3, 7) > 0.3)
        >>> GRUEncoder((5,), 2)(data).batch_shape
        torch.Size([3])
    """

    num_frames = None  # whatever is visible
    time_unit: Tensor

    def __init__(
        self, event_shape: Sequence[int], dim: int, *, hidden: int = 50, time_unit: float = 1.0
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "event_shape": as_list(event_shape),
            "dim": dim,
            "hidden": hidden,
            "time_unit": time_unit,
        }
        sizes = {f"event_shape[{k}]": n for k, n in enumerate(event_shape)}
        check_size(dim=dim, hidden=hidden, **sizes)
        check_positive(time_unit=time_unit)
        self.event_shape = torch.Size(event_shape)
        self.register_buffer("time_unit", torch.tensor(float(time_unit)))
        self.body = nn.GRU(2 * self.event_shape.numel() + 1, hidden, batch_first=True)
        self.heads = NormalHeads(hidden, dim)

    def forward(self, trajectories: Trajectories) -> dist.TorchDistribution:
        """The law of x0, batch shape (series,)."""
        sequence, count = self._sequence(trajectories)
        states, _ = self.body(sequence)
        last = count.view(-1, 1, 1).expand(-1, 1, states.shape[-1])  # behind it is filling
        return self.heads(states.gather(1, last).squeeze(1))

    def quiet(self) -> None:
        """Bring the mean near 0, to be a residual."""
        self.heads.quiet()

    def _sequence(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """What is read, (series, step, features), and how many observations of each series.

        The step after a series' observations leads from the first of them back to the start.
        """
        values, mask = (part.flatten(2) for part in seen_values(trajectories, self.event_shape))
        is_seen = mask.any(-1)
        count, last = is_seen.sum(-1), is_seen.shape[-1] - 1
        place = torch.arange(last + 1, device=mask.device)
        # visible observations first, the latest one foremost
        order = torch.where(is_seen, place, -1).sort(-1, descending=True).values
        steps = torch.arange(int(count.max()) + 1, device=mask.device)
        index = order[:, steps.clamp_max(last)].clamp_min(0)
        is_read = steps < count.unsqueeze(-1)
        times = torch.where(
            is_read, trajectories.grid.gather(1, index), trajectories.start.unsqueeze(-1)
        )
        gaps = torch.cat([torch.zeros_like(times[:, :1]), -times.diff()], -1) / self.time_unit
        chosen = index.unsqueeze(-1).expand(-1, -1, values.shape[-1])
        read = [part.gather(1, chosen) * is_read.unsqueeze(-1) for part in (values, mask)]
        dtype = self.heads.mean.weight.dtype
        return torch.cat([part.to(dtype) for part in (*read, gaps.unsqueeze(-1))], -1), count
