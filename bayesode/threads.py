"""How many threads a computation of small pieces should use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 4096  # rows (draws x series) below which handing work between threads costs more than it


@contextmanager
def threads_for(num_rows: int) -> Iterator[None]:
    """One thread inside the block if there are few rows; the setting is restored after it.

    A solve is thousands of tiny products. Spread over threads each one waits for all threads to
    meet: on a busy machine with two cores a warm start took 85 s in place of 6.
    """
    before = torch.get_num_threads()
    if num_rows <= SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
