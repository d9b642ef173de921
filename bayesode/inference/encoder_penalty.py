"""The penalty of ODE2VAE-KL: how far pushed-forward states are from what the encoder reads off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesode.inference.window_schemes import cut_windows
from bayesode.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class EncoderPenalty:
    """gamma (log q_t(x_t) - log q_enc(x_t)) at the times that an encoder can read.

    q_enc(x_t) is the encoder's law of the initial state of a series that begins at frame t. Its
    mean over draws from q_t is gamma KL[q_t || q_enc].

    Args:
        encoder: `encoder(trajectories)` is a law of x0; `num_frames` is how many first observations
            it reads, None for whatever is visible.
        gamma: The weight, positive.
    """

    encoder: Any
    gamma: float

    def divergences(self, log_density: Tensor, path: Tensor, data: Trajectories) -> Tensor:
        """The penalty of each time, 0 where the encoder cannot read.

        Args:
            log_density: log q_t of the states of the path, shape (*draws, series, time).
            path: Shape (*draws, series, time, state).
            data: Whose frames are read.
        """
        row, column = readable(data, self.encoder.num_frames).nonzero(as_tuple=True)
        found = torch.zeros_like(log_density)
        if len(row) > 0:
            law = self.encoder(self._windows(data, row, column))
            log_read = law.log_prob(path[..., row, column, :])
            found[..., row, column] = self.gamma * (log_density[..., row, column] - log_read)
        return found

    def _windows(self, data: Trajectories, row: Tensor, first: Tensor) -> Trajectories:
        count = self.encoder.num_frames
        last = data.num_times[row] if count is None else first + count
        labels = tuple(f"{i}[{k}:]" for i, k in zip(row.tolist(), first.tolist(), strict=True))
        return cut_windows(data, row, first, last, labels)


def readable(data: Trajectories, num_frames: int | None) -> Tensor:
    """Times at which an encoder can begin to read, booleans (series, time).

    Args:
        data: Observed series.
        num_frames: It reads so many frames, all of them wholly visible; None for an encoder of
            whatever is visible, which begins at frames of which something is.

    Example:
        >>> mask = torch.tensor([[True, True, False, True, True]])
        >>> data = Trajectories(torch.arange(5.0), torch.zeros(1, 5, 2), mask=mask)
        >>> readable(data, 2)
        tensor([[ True, False, False,  True, False]])
    """
    seen: Any = data.mask
    if num_frames is None:
        return seen.flatten(2).any(-1)
    is_whole = seen.flatten(2).all(-1)
    ends = torch.zeros_like(is_whole[:, :1]).expand(-1, num_frames - 1)
    return torch.cat([is_whole, ends], 1).unfold(1, num_frames, 1).all(-1)
