"""Windows of series in latent components, each with what an encoder would read of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.encoders.line import lines
from bayesode.inference.latent_start.principal_components import PrincipalComponents
from bayesode.inference.latent_start.visible import visible_values
from bayesode.trajectories import Trajectories

MAX_KNOTS = 33  # of a window: more cost in proportion, and smooth paths say the same again
NUM_STARTS, LAST_START = 11, 2 / 3  # of windows along a series, and the last one's place


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of series that begin at several of their frames, to their ends.

    Args:
        components: Of every `stride`-th frame after the first, as series of their own with the
            first frame as their start, values (window, time, component).
        lines: Of the first frames, `encoders.line.lines`, shape (window, 2 features).
        is_first: Whether a window begins with its series, shape (window,).
        row: Of its series in the data, shape (window,).
        stride: Frames from one time of a window to the next.
    """

    components: Trajectories
    lines: Tensor
    is_first: Tensor
    row: Tensor
    stride: int

    @classmethod
    def of(
        cls,
        train: Trajectories,
        components: PrincipalComponents,
        *,
        num_frames: int,
        time_unit: float,
    ) -> Windows:
        """Windows of all series.

        Args:
            train: Frames; a window begins where `num_frames` frames in a row are wholly visible.
            components: What states are.
            num_frames: How many an encoder reads.
            time_unit: Of slopes, in the unit of the data.

        Raises:
            DataError: If no series has so many visible frames in a row and one to predict.
        """
        length = train.grid.shape[1]
        stride = max(1, round((length - 1) / MAX_KNOTS))
        last = max(0, min(int(LAST_START * length), length - num_frames - stride))
        starts = torch.linspace(0, last, NUM_STARTS).round().long().unique().tolist()
        parts = [_window(train, components, a, stride, num_frames, time_unit) for a in starts]
        joined = [torch.cat(column) for column in zip(*parts, strict=True)]
        times, states, mask, start, num_times, read, number, row = joined
        if len(times) == 0:
            raise DataError(
                f"no series has {num_frames} wholly visible frames in a row and a later one: the "
                "encoder has nothing to read. Take a smaller num_frames, or show more frames."
            )
        series = Trajectories(
            times,
            states,
            mask=mask.unsqueeze(-1).expand_as(states),
            start=start,
            num_times=num_times,
        )
        return cls(series, read, number == 0, row, stride)


def _window(
    train: Trajectories,
    components: PrincipalComponents,
    first: int,
    stride: int,
    num_frames: int,
    time_unit: float,
) -> tuple[Tensor, ...]:
    """Of each series that can be read from a frame on, in the order of `Windows.of`."""
    values, is_seen = visible_values(train)
    flat, grid = values.flatten(2).double(), train.grid
    longest = torch.arange(
        stride, grid.shape[1], stride, device=grid.device
    )  # from the first frame
    place = longest + first
    # windows that begin later are shorter: they end in padding
    place = place.clamp_max(place[place < grid.shape[1]].max())
    given = slice(first, first + num_frames)
    num_times = (longest + first < train.num_times.unsqueeze(-1)).sum(-1)
    is_usable = is_seen[:, given].all(-1) & is_seen[:, place].any(-1) & (num_times > 0)
    rows = is_usable.nonzero().flatten()
    is_real = torch.arange(len(place), device=grid.device) < num_times[rows, None]
    times = grid[rows[:, None], place]
    read = lines(flat[rows, given], (grid[rows, given] - grid[rows, first, None]) / time_unit)
    return (
        times,
        components.encode(flat[rows[:, None], place]),
        is_seen[rows[:, None], place] & is_real,
        grid[rows, first],
        num_times[rows],
        read,
        torch.full_like(rows, first),
        rows,
    )
