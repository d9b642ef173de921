"""Draws of images a few series at a time, because all of them do not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of the numbers in one block: 34 MB in single precision, and about ten times that while they are
# decoded and sorted. Draws of small data are one block.
MAX_NUMBERS = 2**23


@dataclass(frozen=True)
class Block:
    """A few series at a few of their times.

    Args:
        rows: Which series.
        steps: Which times.
        seed: Of everything that is drawn in it.
    """

    rows: slice
    steps: slice
    seed: int

    def of(self, draws: Tensor) -> Tensor:
        """Its part of draws (draws, series, time, ...)."""
        return draws[:, self.rows, self.steps]

    def at(self, points: Tensor) -> Tensor:
        """Its part of points (series, time, ...)."""
        return points[self.rows, self.steps]


def blocks_of(shape: Sequence[int], seed: int) -> tuple[Block, ...]:
    """Blocks that cover draws of a shape, each with a seed of its own.

    Whole series, as many as fit; where a single one does not, some of its times. Where the blocks
    end depends on the shape alone, so that the same seed gives the same draws.

    Args:
        shape: (draws, series, time, *event).
        seed: Of all blocks together.

    Example:
        >>> [block.rows for block in blocks_of((200, 3, 32, 28, 28), seed=0)]
        [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    num_draws, num_series, num_times, *event = shape
    num_steps = min(num_times, _fitting(num_draws * math.prod(event)))
    num_rows = min(num_series, _fitting(num_draws * math.prod(event) * num_times))
    places = [
        (slice(row, min(row + num_rows, num_series)), slice(step, min(step + num_steps, num_times)))
        for row in range(0, num_series, num_rows)
        for step in range(0, num_times, num_steps)
    ]
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (len(places),), generator=generator).tolist()
    return tuple(Block(*place, own) for place, own in zip(places, seeds, strict=True))


def _fitting(size: int) -> int:
    """How many things of this size fit into one block, at least one."""
    return max(1, MAX_NUMBERS // max(1, size))


def assembled(blocks: Sequence[Block], parts: Iterable[Tensor]) -> Tensor:
    """The whole of parts that were computed block by block.

    Args:
        blocks: That cover the whole.
        parts: Per block, in their order, shape (any, series, time, ...); taken one at a time.
    """
    num_series, num_times = blocks[-1].rows.stop, blocks[-1].steps.stop
    whole = torch.empty(0)
    for k, (block, part) in enumerate(zip(blocks, parts, strict=True)):
        if len(blocks) == 1:
            return part
        if k == 0:
            whole = part.new_empty(len(part), num_series, num_times, *part.shape[3:])
        whole[:, block.rows, block.steps] = part
    return whole
