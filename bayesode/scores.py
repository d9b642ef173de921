"""Summaries and scores of predictive draws, point by point: moments, quantiles, CRPS, coverage.

Everywhere `draws` come first, then series, then whatever a point is (time, component). `valid`
(draws, series) is False for draws that failed: they are left out, series by series, and may hold
anything. A series without a valid draw scores NaN (and is covered nowhere). The log score is taken
point by point because the log of a mean of joint densities over draws is hopelessly biased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bayesode.data_checks import shape_of
from bayesode.errors import DataError, ShapeError


def mean(draws: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over draws, shape (series, ...); NaN for a series without a valid draw.

    Args:
        draws: Shape (draws, series, ...).
        valid: False for failed draws, shape (draws, series).

    Raises:
        ShapeError: If there is no draw or the shapes disagree.

    Example:
        >>> mean(torch.tensor([[1.0], [2.0], [9.0]]), torch.tensor([[True], [True], [False]]))
        tensor([1.5000])
    """
    is_valid = _validity(draws, valid)
    return torch.where(is_valid, draws, 0.0).sum(0) / is_valid.sum(0)


def sd(draws: Tensor, valid: Tensor | None = None) -> Tensor:
    """Standard deviation over draws (n - 1), shape (series, ...).

    Args:
        draws: Shape (draws, series, ...).
        valid: False for failed draws, shape (draws, series).

    Returns:
        0 for a series with a single valid draw, NaN for one without any.

    Raises:
        ShapeError: If there is no draw or the shapes disagree.

    Example:
        >>> sd(torch.tensor([[1.0], [3.0]]))
        tensor([1.4142])
    """
    is_valid = _validity(draws, valid)
    count = is_valid.sum(0)
    squares = torch.where(is_valid, draws - mean(draws, valid), 0.0).square_().sum(0)
    return torch.where(count > 0, (squares / (count - 1).clamp_min(1)).sqrt(), torch.nan)


def log_score(log_prob: Tensor, valid: Tensor | None = None) -> Tensor:
    """Log of the predictive density at each point: the log of the mean density over draws.

    Args:
        log_prob: Log density of each value given each draw, shape (draws, series, ...).
        valid: False for failed draws, shape (draws, series).

    Returns:
        Shape (series, ...), in nats; larger is better. NaN for a series without a valid draw.

    Raises:
        ShapeError: If there is no draw or the shapes disagree.

    Source: Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and
        estimation", section 4.1. doi:10.1198/016214506000001437

    Example:
        >>> log_score(torch.tensor([[0.1], [0.3]]).log()).exp()
        tensor([0.2000])
    """
    is_valid = _validity(log_prob, valid)
    kept = torch.where(is_valid, log_prob, -torch.inf)
    count = is_valid.sum(0)
    score = kept.logsumexp(0) - count.to(log_prob.dtype).log()
    return torch.where(count > 0, score, torch.nan)


def crps(draws: Tensor, values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Continuous ranked probability score of the empirical distribution of the draws.

    E|X - y| - E|X - X'| / 2, with X and X' independent and uniform over the draws, by sorting.
    The score of the law behind n draws is smaller by E|X - X'| / (2 n) on average.

    Args:
        draws: Predictive draws, noise included, shape (draws, series, ...).
        values: What was observed, shape (series, ...), in the unit of the draws.
        valid: False for failed draws, shape (draws, series).

    Returns:
        Shape (series, ...), in the unit of the values; smaller is better. NaN for a series without
        a valid draw and where a draw or the value is NaN.

    Raises:
        ShapeError: If there is no draw or the shapes disagree.

    Source: Gneiting and Raftery (2007), equation (21). doi:10.1198/016214506000001437

    Example:
        >>> crps(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0]))  # 3/2 - 1/4
        tensor([1.2500])
    """
    _check_values(draws, values)
    # distances from the value, not the draws: a large offset would cost their last digits
    distances, count = _sorted(draws - values, valid)
    rank = _column(torch.arange(len(draws), device=draws.device), draws)
    is_kept = rank < count
    weight = torch.where(is_kept, 2 * rank + 1 - count, 0)
    distances = torch.where(is_kept, distances, 0)
    spread = (weight * distances).sum(0) / count**2  # half of E|X - X'|
    return distances.abs().sum(0) / count - spread


def quantile(
    draws: Tensor, levels: float | Sequence[float] | Tensor, valid: Tensor | None = None
) -> Tensor:
    """Quantiles over draws, linear between order statistics (numpy's default).

    `torch.quantile` takes neither more than 2^24 numbers nor a number of draws per series.

    Args:
        draws: Shape (draws, series, ...).
        levels: Probabilities in [0, 1], shape (levels,); a single number counts as one level.
        valid: False for failed draws, shape (draws, series).

    Returns:
        Shape (levels, series, ...). NaN for a series without a valid draw and where a draw is NaN.

    Raises:
        ShapeError: If there is no draw or the shapes disagree.
        DataError: If a level lies outside [0, 1].

    Source: Hyndman and Fan (1996), "Sample quantiles in statistical packages", type 7.
        doi:10.1080/00031305.1996.10473566

    Example:
        >>> quantile(torch.tensor([[3.0], [1.0], [2.0]]), [0.5, 0.75])
        tensor([[2.0000],
                [2.5000]])
    """
    level = torch.as_tensor(levels, dtype=draws.dtype, device=draws.device).flatten()
    if not ((level >= 0) & (level <= 1)).all():
        raise DataError(f"levels are probabilities in [0, 1], not {level.tolist()}.")
    ordered, count = _sorted(draws, valid)
    last = (count - 1).clamp_min(0).unsqueeze(0)
    position = _column(level, draws) * last
    lower = position.floor().long()
    upper = (lower + 1).minimum(last)
    low, high = (_pick(ordered, rank) for rank in (lower, upper))
    between = torch.lerp(low, high, position - lower)
    is_defined = (count > 0) & ~_pick(ordered, last).isnan()  # NaN is sorted behind all numbers
    return torch.where(is_defined, between, torch.nan)


def interval_covers(
    draws: Tensor, values: Tensor, level: float = 0.9, valid: Tensor | None = None
) -> Tensor:
    """Whether each value lies in the central interval of the draws; its mean is the coverage.

    Args:
        draws: Predictive draws, noise included, shape (draws, series, ...).
        values: What was observed, shape (series, ...), in the unit of the draws.
        level: Probability of the interval, between its (1 - level) / 2 quantiles on both sides.
        valid: False for failed draws, shape (draws, series).

    Returns:
        Booleans, shape (series, ...); False for a series without a valid draw and for a NaN value.

    Raises:
        ShapeError: If there is no draw or the shapes disagree.
        DataError: If the level lies outside [0, 1].

    Example:
        >>> draws = torch.arange(101.0).unsqueeze(-1).expand(101, 2)
        >>> interval_covers(draws, torch.tensor([5.5, 4.5]), level=0.9)
        tensor([ True, False])
    """
    _check_values(draws, values)
    low, high = quantile(draws, [(1 - level) / 2, (1 + level) / 2], valid)
    return (low <= values) & (values <= high)


def gaussian_crps(location: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """Continuous ranked probability score of a normal distribution, in closed form.

    Args:
        location: Mean, any shape.
        scale: Standard deviation, positive, broadcasts with location.
        values: What was observed, broadcasts with location.

    Returns:
        The score, in the unit of the values; smaller is better.

    Source: Gneiting and Raftery (2007), section 4.2. doi:10.1198/016214506000001437

    Example:
        >>> gaussian_crps(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0))
        tensor(0.2337)
    """
    distance = (values - location) / scale
    density = (-0.5 * distance.square()).exp() / math.sqrt(2 * math.pi)
    two_sided = torch.erf(distance / math.sqrt(2))  # 2 Phi - 1
    return scale * (distance * two_sided + 2 * density - 1 / math.sqrt(math.pi))


def _check_values(draws: Tensor, values: Tensor) -> None:
    if draws.shape[1:] != values.shape:
        raise ShapeError(
            f"draws {shape_of(draws)} need values of shape {tuple(draws.shape[1:])}, not "
            f"{shape_of(values)}: the axes are (draws, series, ...) and (series, ...)."
        )


def _column(vector: Tensor, draws: Tensor) -> Tensor:
    """A vector along the first axis of `draws`, to broadcast with it."""
    return vector.view(-1, *[1] * (draws.dim() - 1))


def _validity(draws: Tensor, valid: Tensor | None) -> Tensor:
    """`valid`, to broadcast with `draws`."""
    if draws.dim() < 2 or len(draws) == 0:
        raise ShapeError(f"draws need the shape (draws, series, ...), not {shape_of(draws)}.")
    if valid is None:
        valid = torch.ones(draws.shape[:2], dtype=torch.bool, device=draws.device)
    if valid.shape != draws.shape[:2] or valid.dtype != torch.bool:
        raise ShapeError(
            f"valid needs booleans of shape (draws, series) = {tuple(draws.shape[:2])}, not "
            f"{valid.dtype} of shape {shape_of(valid)}."
        )
    return valid.view(*valid.shape, *[1] * (draws.dim() - 2))


def _sorted(draws: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draws in increasing order, failed ones last, and the number of valid ones, (series, ...)."""
    is_valid = _validity(draws, valid)
    kept = torch.where(is_valid, draws, torch.nan)
    if kept.device.type == "cpu":  # numpy's is ten times as fast and keeps no indices
        return torch.from_numpy(np.sort(kept.detach().numpy(), axis=0)), is_valid.sum(0)
    return kept.sort(0).values, is_valid.sum(0)


def _pick(ordered: Tensor, rank: Tensor) -> Tensor:
    """Order statistics of each point; all axes of `rank` but the first may have size one."""
    return ordered.gather(0, rank.expand(-1, *ordered.shape[1:]))
