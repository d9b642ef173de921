"""Grids that do not depend on which times are asked, beyond passing through them."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesode.errors import SolverError

# A step may exceed the bound by this share, so that rounding of times never adds a step.
SLACK = 1e-4
MAX_SUBSTEPS = 1_000_000  # of one series; more are a mistake about units, and fill the memory


def substeps(start: Tensor, times: Tensor, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each series' own steps from its start through its asked times.

    Every interval between asked times is cut into equal substeps no longer than `step`; the shorter
    lists are filled up with steps of length 0.

    Args:
        start: Shape (series,).
        times: Shape (series, time), not decreasing; padding repeats the last time.
        step: Largest substep, in the unit of the times.

    Returns:
        Lengths (series, substep), times at which they begin (series, substep), and the number of
        substeps that lie before each asked time (series, time).

    Raises:
        SolverError: If a series needs more than a million substeps.
    """
    before = torch.cat([start.unsqueeze(-1), times[:, :-1]], -1)
    gaps = times - before
    count = torch.ceil(gaps / step * (1 - SLACK)).clamp_min(0)
    most = count.sum(-1).max().item() if count.numel() else 0
    if most > MAX_SUBSTEPS:
        raise SolverError(
            f"{most:.3g} steps of {step:.3g} lie between a start and its last asked time: give the "
            "model the data's units (units=Units.from_data(train)), the series a start nearer to "
            "the data, or the solver a longer step."
        )
    count = count.long()
    reached = count.cumsum(-1)
    num_substeps = int(reached[:, -1].max()) if reached.numel() else 0
    index = torch.arange(num_substeps, device=times.device).expand(len(times), -1)
    interval = torch.searchsorted(reached, index.contiguous(), right=True)
    is_real = interval < times.shape[-1]
    interval = interval.clamp_max(times.shape[-1] - 1)
    own = count.gather(-1, interval).clamp_min(1)
    length = gaps.gather(-1, interval) / own
    done = index - (reached - count).gather(-1, interval)
    begin = before.gather(-1, interval) + done * length
    last = times[:, -1:].expand_as(begin)
    return torch.where(is_real, length, 0.0), torch.where(is_real, begin, last), reached
