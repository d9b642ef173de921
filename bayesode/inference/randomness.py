"""Seeds that act inside a block and leave the global random state as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int | None) -> Iterator[int]:
    """Run a block under a seed of torch, numpy and Python; their states are restored after it.

    Args:
        seed: None takes one from torch's generator, so that `torch.manual_seed` governs it.

    Yields:
        The seed that is used.
    """
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    seed = int(seed)  # numpy's integers are none to Python's generator
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        # the devices are named: with two or more torch would warn that it takes them all
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield seed
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
