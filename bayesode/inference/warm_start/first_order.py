"""First-order steps, where there are too many numbers for normal equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CLIP = 1000.0  # largest gradient norm


def descend(
    numbers: Sequence[Tensor], cost: Callable[[float], Tensor], *, num_steps: int, rate: float
) -> None:
    """Lower a cost by Adam with a cosine to 0, in place.

    Steps without a finite gradient are left out.

    Args:
        numbers: What moves: leaves without gradients.
        cost: The share of the steps that is done, 0 to 1, to a scalar.
        num_steps: Number of steps.
        rate: First learning rate.

    Example:
        >>> x = torch.ones(2)
        >>> descend([x], lambda share: (x - 3).square().sum(), num_steps=300, rate=0.1)
        >>> x.round(decimals=2)
        tensor([3., 3.])
    """
    with torch.enable_grad():
        for number in numbers:
            number.requires_grad_()
        optimizer = torch.optim.Adam(numbers, lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        for step in range(num_steps):
            optimizer.zero_grad()
            cost(step / num_steps).backward()
            if not math.isfinite(float(torch.nn.utils.clip_grad_norm_(numbers, CLIP))):
                optimizer.zero_grad()  # nothing moves, but a schedule wants to see a step
            optimizer.step()
            schedule.step()
    for number in numbers:
        number.requires_grad_(False)
