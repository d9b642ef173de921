"""Noise that makes up for what predictions of new series are missed by, from held-out series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesode.data_checks import check_size
from bayesode.distributions import observed_law
from bayesode.errors import DataError
from bayesode.inference.blocks import Block
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.hold_out_series import HeldOut
from bayesode.inference.windows import SAME_TIME
from bayesode.models.contracts import Observe
from bayesode.trajectories import Trajectories

# Of the sd of an entry; of the usual sd of all, what that of a constant entry counts as
SMALLEST = 0.01


@dataclass(frozen=True, eq=False)
class HorizonNoise:
    """Normal noise around predictions, a scale per entry of the event and part of the horizon.

    A fit does not know how much its predictions are off for new series: its noise is that of the
    training series. This one is what held-out series were missed by, beyond the spread of the
    draws, as it grows with the time since the start of a series.

    Args:
        edges: Times since the start between the parts, (part - 1,), in the unit of the data.
        scale: Sd in users' units, shape (part, *event).

    Example:
        >>> noise = HorizonNoise(torch.tensor([1.0]), torch.tensor([[0.1], [0.5]]))
        >>> noise.at(Trajectories([0.0, 0.5, 1.5], None, series=["a"])).flatten()
        tensor([0.1000, 0.1000, 0.5000])
    """

    edges: Tensor
    scale: Tensor

    @classmethod
    def of(cls, held: Sequence[HeldOut], *, num_parts: int = 3) -> HorizonNoise:
        """The noise that held-out series show.

        The variance is the mean of (value - ensemble mean)² - (variance of the draws of the signal)
        over the series and times of a part. Failed draws are left out, as are series with no other.
        The scale is at least a hundredth of the sd of the entry; the sd of an entry that hardly
        varies counts as a hundredth of the usual one. A part in which an entry is never observed
        gets the entry's variance over all parts.

        Args:
            held: From `leave_series_out`.
            num_parts: Parts of equal length, from the first to the last time since the start of a
                series that is predicted and observed.

        Raises:
            DataError: If nothing was held out or predicted, or an entry is observed nowhere.
        """
        check_size(num_parts=num_parts)
        if not held:
            raise DataError("there are no held-out series: leave_series_out(...) gives some.")
        excess, values, seen, elapsed = map(torch.cat, zip(*map(_residuals, held), strict=True))
        if not seen.flatten(1).any(0).all():
            entry = int((~seen.flatten(1).any(0)).nonzero()[0])
            raise DataError(
                f"entry {entry} of the held-out series is observed at no predicted time (or all "
                "draws failed): its noise is unknown."
            )
        predicted = elapsed[seen.flatten(1).any(1)]
        edges = torch.linspace(0, 1, num_parts + 1, dtype=torch.float64)[1:-1].to(elapsed)
        edges = predicted.min() + (predicted.max() - predicted.min()) * edges
        part = _part(elapsed, edges)
        shape = (num_parts, *excess.shape[1:])
        total = excess.new_zeros(shape).index_add_(0, part, excess.where(seen, 0.0))
        count = excess.new_zeros(shape).index_add_(0, part, seen.double())
        variance = torch.where(count > 0, total / count, total.sum(0) / count.sum(0))
        scale = variance.clamp_min(0).sqrt().maximum(_smallest(values, seen))
        return cls(edges, scale)

    def at(self, trajectories: Trajectories) -> Tensor:
        """The sd at the times of a question, (series, time, *event); that of the first part before.

        After the last part it is that of the last one.
        """
        elapsed = trajectories.grid - trajectories.start.unsqueeze(-1)
        return self.scale.to(elapsed.device)[_part(elapsed, self.edges.to(elapsed))]

    def applied(self, ensemble: Ensemble) -> Ensemble:
        """The same paths with this noise around the signal of each draw, in place of their own.

        Intervals, quantiles, scores and pictures of the result follow; its `mean` is the same.

        Raises:
            DataError: If its observations have another shape.
        """
        if ensemble.event_shape != self.scale.shape[1:]:
            raise DataError(
                f"the noise is of observations of shape {tuple(self.scale.shape[1:])}, these "
                f"predictions of {tuple(ensemble.event_shape)}."
            )
        scale = self.at(ensemble.trajectories)

        def noisy(observe: Observe, block: Block) -> Observe:
            own = block.at(scale)

            def law(path: Tensor, mask: Tensor | None) -> dist.TorchDistribution:
                signal = observe.signal(path)
                return observed_law(
                    dist.Normal(signal, own.to(signal)), mask, event_dim=own.dim() - 1, fill=0.0
                )

            return Observe(law, observe.signal)

        return ensemble.seen_through(noisy)


def _residuals(held: HeldOut) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared errors less the spread of draws, values, which count, and times since the start.

    Each (series x time, *event), the times (series x time,).
    """
    truth: Any = held.truth
    spread = held.ensemble.sd(of="signal").double()
    excess = (truth.values.double() - held.ensemble.mean.double()).square() - spread.square()
    seen = truth.mask & excess.isfinite()
    elapsed = truth.grid - truth.start.unsqueeze(-1)
    return tuple(x.flatten(0, 1) for x in (excess, truth.values.double(), seen, elapsed))  # type: ignore


def _part(elapsed: Tensor, edges: Tensor) -> Tensor:
    """The part of the horizon in which times since the start lie; an edge closes the part before.

    A little late for rounding: times are not exact multiples of a frame.
    """
    slack = SAME_TIME * edges[-1].abs() if len(edges) else 0.0
    return torch.bucketize(elapsed.contiguous(), edges + slack)


def _smallest(values: Tensor, seen: Tensor) -> Tensor:
    """The smallest noise of each entry, (*event)."""
    count = seen.sum(0)
    mean = values.where(seen, 0.0).sum(0) / count
    variance = (values - mean).square().where(seen, 0.0).sum(0) / count
    usual = variance.mean().sqrt()
    if usual == 0:  # everything is constant: its size is the only length there is
        usual = values[seen].square().mean().sqrt().clamp_min(torch.finfo(values.dtype).tiny ** 0.5)
    return SMALLEST * variance.sqrt().maximum(SMALLEST * usual)
