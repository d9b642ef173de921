"""Steps of a fit that see some frames of long series, without a bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bayesode.data_checks import check_size
from bayesode.inference.window_schemes import Window
from bayesode.trajectories import Trajectories


@dataclass(frozen=True)
class ThinnedFrames:
    """A schedule: the first frames of a series, and every so many of the others.

    A fixed-step solver pays for each frame that is asked for, and neighbours of a smooth path say
    nearly the same. Where thinning begins is drawn anew for each step, and frames that stand for
    `every` of them weigh as much: the mean over these draws is the ELBO of whole series.

    Args:
        every: Frames of which one is seen.
        first: Leading frames that are always seen, weighing 1: those that an encoder reads.

    Raises:
        DataError: For numbers that are not positive.

    Example:
        >>> data = Trajectories(torch.arange(9.0), torch.zeros(1, 9, 1))
        >>> window = ThinnedFrames(every=3, first=3).window(data, offset=1)
        >>> window.trajectories.times.tolist(), window.weights.tolist()
        ([0.0, 1.0, 2.0, 4.0, 7.0], [[1.0, 1.0, 1.0, 3.0, 3.0]])
    """

    every: int
    first: int = 1

    def __post_init__(self) -> None:
        check_size(every=self.every, first=self.first)

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments, as a run tells them."""
        return {"scheme": "thinned", "every": self.every, "first": self.first}

    def __call__(self, fraction: float, batch: Trajectories) -> Window:
        """What a step sees of a batch, the same whatever the fraction of the fit."""
        return self.window(batch, offset=int(torch.randint(self.every, ())))

    def window(self, batch: Trajectories, *, offset: int) -> Window:
        """The first frames, and those `offset` + k `every` behind them.

        Args:
            batch: Observed series.
            offset: 0, ..., every - 1.
        """
        length = batch.grid.shape[-1]
        first = torch.arange(min(self.first, length))
        begin = self.first + offset
        # short series: where it begins behind their ends nothing more is seen
        more = torch.arange(begin, max(begin, length), self.every)
        index = torch.cat([first, more])
        weights = torch.where(index < self.first, 1.0, float(self.every)).to(batch.values)
        index = index.to(batch.grid.device)
        seen = Trajectories(
            batch.times[..., index],
            batch.values[:, index],  # type: ignore[index]
            mask=batch.mask[:, index],  # type: ignore[index]
            series=batch.series,
            names=batch.names,
            start=batch.start,
            inputs=batch.inputs,
            num_times=(index < batch.num_times.unsqueeze(-1)).sum(-1),
        )
        whole = seen._set(index=batch.index, num_total=batch.num_total)
        return Window(whole, weights.expand(batch.num_series, -1))
