"""Where a question lies: inside the data window of each series, or after it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.trajectories import Trajectories

SAME_TIME = 1e-9  # of the span of the data: times so near are one


def is_after(train: Trajectories, question: Trajectories) -> Tensor:
    """Which times lie after the last observed one of their series, booleans (series, time).

    All, for a series of which nothing is observed.

    Raises:
        DataError: For an unknown series.
    """
    last = _last_observed(train)[train.positions(question.series)].unsqueeze(-1)
    slack = SAME_TIME * (train.grid.max() - train.start.min())
    return question.grid.to(last) > last + slack


def data_window(train: Trajectories) -> Trajectories:
    """The training times of each series up to its last observed one; series with none are left out.

    A question: it has no values.
    """
    count = train.num_times.minimum((~is_after(train, train)).sum(-1))
    rows = (count > 0).nonzero()[:, 0]
    kept, count = train.rows(rows), count[rows]
    return kept.at(kept.times[..., : int(count.max())], count)


def check_inside(train: Trajectories, question: Trajectories) -> None:
    """Refuse times after the data.

    Raises:
        DataError: If a time lies after the last observed one of its series.
    """
    _refuse(
        is_after(train, question),
        train,
        question,
        "lies after the data: smooth() is for the data window. Ask forecast(train.at(later)) for "
        "times after it, predict() for both at once.",
    )


def check_after(train: Trajectories, question: Trajectories) -> None:
    """Refuse times that are not after the data.

    Raises:
        DataError: If a time does not lie after the last observed one of its series.
    """
    _refuse(
        ~is_after(train, question),
        train,
        question,
        "does not lie after the data: forecast() is for later times. Ask smooth() for times inside "
        "the data window, predict() for both at once.",
    )


def _last_observed(train: Trajectories) -> Tensor:
    """The last observed time of each series, -inf for a series without any, (series,)."""
    seen = train.mask.flatten(2).any(-1)  # type: ignore[union-attr]
    return torch.where(seen, train.grid, -torch.inf).amax(-1)


def _refuse(is_wrong: Tensor, train: Trajectories, question: Trajectories, why: str) -> None:
    if not is_wrong.any():
        return
    row, column = (int(i) for i in is_wrong.nonzero()[0])
    label, time = question.series[row], question.grid[row, column].item()
    last = _last_observed(train)[train.positions([label])].item()
    seen = f"last observed at {last:g}" if last > -math.inf else "never observed"
    raise DataError(f"series {label!r} is {seen}, and the time {time:g} {why}")
