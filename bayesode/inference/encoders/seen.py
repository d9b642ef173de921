"""What encoders may see of the data, or one clear error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError, ShapeError
from bayesode.trajectories import Trajectories


def seen_values(trajectories: Trajectories, event_shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Values with 0 in place of hidden ones and their mask, (series, time, *event).

    Raises:
        DataError: If there are no values, or a series has no visible one.
        ShapeError: If an observation has another shape.
    """
    values, mask = trajectories.values, trajectories.mask
    if values is None or mask is None:
        raise DataError(
            "an encoder reads observed values, and this is a question without values: predictions "
            "for series of the fit go through posterior.predict(train.at(times)), for new ones "
            "through posterior.condition(new)."
        )
    if trajectories.event_shape != event_shape:
        raise ShapeError(
            f"the encoder reads observations of shape {tuple(event_shape)}, the data have "
            f"{tuple(trajectories.event_shape)}."
        )
    is_blank = ~mask.flatten(1).any(-1)
    if is_blank.any():
        raise DataError(
            f"series {trajectories.series[int(is_blank.long().argmax())]!r} has no visible value, "
            "so nothing tells its initial state: leave it out."
        )
    return torch.where(mask, values, 0.0), mask


def first_frames(trajectories: Trajectories, event_shape: torch.Size, num_frames: int) -> Tensor:
    """The first observations of every series, (series, frames, *event), all of them visible.

    Raises:
        DataError: If one of them is hidden, in a series or all; and as `seen_values`.
        ShapeError: As `seen_values`.
    """
    values, mask = seen_values(trajectories, event_shape)
    if values.shape[1] < num_frames:
        raise DataError(
            f"the encoder reads the first {num_frames} frames, the data have {values.shape[1]}; "
            "take fewer (num_frames=)."
        )
    is_whole = mask[:, :num_frames].flatten(2).all(-1)
    if not is_whole.all():
        row, frame = (int(i) for i in (~is_whole).nonzero()[0])
        raise DataError(
            f"the encoder reads the first {num_frames} frame(s) of a series, and frame {frame} of "
            f"series {trajectories.series[row]!r} is hidden, wholly or in part: take "
            "GRUEncoder(event_shape, dim), which reads whatever is visible."
        )
    return values[:, :num_frames]


def most_frames(encoders: Iterable[Any]) -> int | None:
    """How many first observations are read by the encoder that reads most, None for all.

    Args:
        encoders: With `num_frames`, None where an encoder reads whatever is visible.

    Raises:
        DataError: If an encoder does not tell.

    Example:
        >>> from bayesode.inference.encoders import LinearEncoder, MLPEncoder
        >>> most_frames([LinearEncoder((5,), 2), MLPEncoder((5,), 2, num_frames=3)])
        3
    """
    counts = []
    for encoder in encoders:
        if not hasattr(encoder, "num_frames"):
            raise DataError(
                f"{type(encoder).__name__} does not tell how many first frames it reads: give it "
                "an attribute num_frames, None for an encoder of whatever is visible."
            )
        counts.append(encoder.num_frames)
    return None if None in counts else max(counts)
