"""Windows of the data for single steps of a fit, and what each scheme makes the fit maximise.

Long paths through a field that is still wrong have useless gradients, and images cost by the frame:
a step may see windows of a batch in place of whole series. Three schemes, three targets:

- `prefix`: from the start to a random end. Its mean over the ends is the ELBO of whole series.
- `blocks`: a series is cut into disjoint windows, each a series of its own with its own x0. The
  ELBO of exactly that model, which is another one than that of whole series.
- `composite`: several such cuts at once, so that windows overlap. Bounds no model's evidence.

`GrowingWindows` makes a scheme a schedule of `fit_svi`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.windows import SAME_TIME
from bayesode.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class Window:
    """What one step of a fit sees of a batch.

    Args:
        trajectories: Series to solve, with the `num_total` that scales them to all data.
        weights: Of the pointwise log likelihood, shape (series, time); None for all 1.
        kl_weight: Of the gradient of all KL terms; the fit multiplies it by its own.
    """

    trajectories: Trajectories
    weights: Tensor | None = None
    kl_weight: float = 1.0


Schedule = Callable[[float, Trajectories], Window]  # (fraction of the fit, batch)
Scheme = Callable[[Trajectories, float], Window]  # (batch, length of the windows)


def whole(fraction: float, batch: Trajectories) -> Window:
    """The schedule of a plain fit: the batch as it is."""
    return Window(batch)


# ---- prefix: from the start to a random end ------------------------------------------------------
def prefix(batch: Trajectories, length: float, *, end: float | None = None) -> Window:
    """Series from their starts to a random end, weighted to be unbiased for whole series.

    All series end after the same duration, drawn with equal chances from `prefix_ends`. A time that
    k of n ends reach has the weight n / k, so that the mean of the ELBO over the ends is the ELBO
    of the batch. Labels and starts stay: any guide of ours can be fitted so.

    Args:
        batch: Observed series.
        length: Shortest duration, in the unit of the data's times.
        end: One of `prefix_ends`, in place of a random one.

    Example:
        >>> import bayesode as bo
        >>> data = bo.Trajectories([0.0, 1.0, 2.0, 3.0], torch.zeros(1, 4, 1))
        >>> prefix(data, 2.0, end=3.1).weights
        tensor([[1., 1., 1., 2.]])
    """
    ends = prefix_ends(batch, length)
    if end is None:
        end = ends[torch.randint(len(ends), ())].item()
    window = batch.until(end)
    reach = batch.start.unsqueeze(-1) + ends  # as `until` computes it: no end is counted otherwise
    short = torch.searchsorted(reach, window.grid.contiguous())
    count = (len(ends) - short).clamp_min(1)  # 1: a hidden time that no end reaches
    return Window(window, (len(ends) / count.double()).to(batch.values))


def prefix_ends(batch: Trajectories, length: float) -> Tensor:
    """Durations after the starts at which a prefix may end, ascending, shape (ends,).

    Those of all observations after `length`, or of the last one if there are none.
    """
    elapsed = (batch.grid - batch.start.unsqueeze(-1))[_is_seen(batch)].unique()
    if len(elapsed) == 0:  # nothing is observed in this batch
        return batch.grid.max() - batch.start.min().unsqueeze(0)
    slack = SAME_TIME * elapsed[-1]
    late = elapsed[elapsed >= length - slack]
    return (late if len(late) else elapsed[-1:]) + slack


# ---- blocks and composite: windows with initial states of their own ------------------------------
def blocks(batch: Trajectories, length: float, *, offset: Tensor | float | None = None) -> Window:
    """Series cut at a random offset into disjoint windows, each a series of its own.

    A window lasts from its first to its last observed time; its x0 holds at the first one, and what
    is observed nowhere drops out. The ELBO is that of the model in which every window is a series:
    KL of the shared sites once, log likelihood and KL of x0 of every window, times (series of the
    data) / (series of the batch). Needs a guide that encodes windows, `AmortizedGuide`.

    Args:
        batch: Observed series.
        length: Of a window, in the unit of the data's times.
        offset: Where after the start of a series the second window begins, a number or shape
            (series,); random in [0, length) for each series by default.

    Raises:
        DataError: If the length is not positive.

    Example:
        >>> import bayesode as bo
        >>> data = bo.Trajectories([0.0, 1.0, 2.0, 3.0], torch.zeros(1, 4, 1), series=["a"])
        >>> window = blocks(data, 2.0, offset=1.0).trajectories
        >>> window.series, window.start.tolist()
        (("'a'[0:1]", "'a'[1:3]", "'a'[3:4]"), [0.0, 1.0, 3.0])
    """
    return _partitions(batch, length, offset, 1)


def composite(
    batch: Trajectories, length: float, *, offset: Tensor | float | None = None, overlap: int = 2
) -> Window:
    """Overlapping windows, in which each observation counts once.

    `blocks` for `overlap` offsets, evenly spaced, together. Each observation lies in `overlap`
    windows, so log likelihood and KL of x0 of every window weigh 1 / overlap: the mean of the ELBOs
    of `overlap` models. **It bounds the evidence of none of them**, since windows that share
    observations have initial states that do not know of each other; compare fits by
    `posterior.elbo_terms()`. Its gradient is less random than that of `blocks`, at `overlap` times
    the cost.

    Args:
        batch: Observed series.
        length: As in `blocks`.
        offset: As in `blocks`, of the first cut.
        overlap: Windows in which each observation lies.

    Raises:
        DataError: If overlap is below 1, or the length is not positive.
    """
    if overlap < 1:
        raise DataError(f"overlap must be at least 1, not {overlap}.")
    return _partitions(batch, length, offset, overlap)


def _partitions(
    batch: Trajectories, length: float, offset: Tensor | float | None, num_cuts: int
) -> Window:
    """Windows of several cuts of each series, every cut weighing 1 / num_cuts."""
    if not length > 0:
        raise DataError(f"windows need a positive length, not {length}.")
    if not _is_seen(batch).any():
        return Window(batch)
    if offset is None:
        offset = torch.rand(batch.num_series, dtype=torch.float64) * length
    first_cut = torch.as_tensor(offset, dtype=torch.float64).expand(batch.num_series)
    shifts = length / num_cuts * torch.arange(num_cuts, dtype=torch.float64)
    cuts = first_cut + shifts.unsqueeze(-1)  # (num_cuts, series)
    places = [_places(batch, length, cut) for cut in cuts.to(batch.start)]
    labels = tuple(
        f"{batch.series[row]!r}[{first}:{last}]" + k * "'"  # a prime for each further cut
        for k, place in enumerate(places)
        for row, first, last in place.mT.tolist()
    )
    row, first, last = torch.cat(places, -1)
    # scale num_total / num_series = (series of the data) / (series of the batch) / num_cuts
    num_total = batch.num_total * len(row) / (batch.num_series * num_cuts)
    return Window(cut_windows(batch, row, first, last, labels)._set(num_total=num_total))


def _places(batch: Trajectories, length: float, offset: Tensor) -> Tensor:
    """Row, first and last + 1 column of the windows of one cut, integers (3, windows)."""
    elapsed = batch.grid - batch.start.unsqueeze(-1)
    number = ((elapsed - offset.unsqueeze(-1)) / length).floor().long()
    row, column = _is_seen(batch).nonzero(as_tuple=True)
    names, which = torch.stack([row, number[row, column]]).unique(dim=1, return_inverse=True)
    first = torch.full_like(names[0], batch.grid.shape[-1]).scatter_reduce(0, which, column, "amin")
    last = torch.zeros_like(names[0]).scatter_reduce(0, which, column, "amax")
    return torch.stack([names[0], first, last + 1])


def cut_windows(
    batch: Trajectories, row: Tensor, first: Tensor, last: Tensor, labels: tuple[str, ...]
) -> Trajectories:
    """Times first <= k < last of rows, any row any number of times, as series of their own.

    Args:
        batch: Observed series.
        row: Of the series of each window, shape (windows,).
        first: Column of its first time, shape (windows,).
        last: Column behind its last time, shape (windows,).
        labels: Of the windows, no two alike.
    """
    count = last - first
    steps = torch.arange(int(count.max()), device=row.device)
    column = (first.unsqueeze(-1) + steps).minimum(last.unsqueeze(-1) - 1)
    row = row.unsqueeze(-1)
    return Trajectories(
        batch.grid[row, column],
        batch.values[row, column],  # type: ignore[index]
        mask=batch.mask[row, column],  # type: ignore[index]
        series=labels,
        names=batch.names,
        inputs=None if batch.inputs is None else batch.inputs.rows(row[:, 0]),
        num_times=count,
    )


def _is_seen(batch: Trajectories) -> Tensor:
    """Where anything was observed, booleans (series, time)."""
    if batch.mask is None:
        raise DataError(
            "windows are cut from observed data, and these trajectories are a question."
        )
    return batch.mask.flatten(2).any(-1)


# ---- schedules -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class GrowingWindows:
    """A schedule: windows that grow over the first share of a fit.

    Args:
        scheme: `prefix`, `blocks`, `composite`, or any (batch, length) -> Window.
        first: Length of the first windows, in the unit of the data's times.
        last: Length of the last ones; None ends with whole series, uncut. `last=first` lets
            windows of one length stay.
        share: Share of the fit over which the length grows linearly.

    Raises:
        DataError: If lengths are not positive or do not grow, or the share is none.

    Example:
        >>> import bayesode as bo
        >>> data = bo.Trajectories(torch.arange(10.0), torch.zeros(1, 10, 1))
        >>> schedule = GrowingWindows(blocks, first=2.0, last=6.0)
        >>> [round(schedule.length(fraction, data), 1) for fraction in (0.0, 0.25, 0.5, 0.9)]
        [2.0, 4.0, 6.0, 6.0]
    """

    scheme: Scheme
    first: float
    last: float | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.first < float("inf"):
            raise DataError(f"first, the length of the first windows, is {self.first}: not > 0.")
        if self.last is not None and not self.first <= self.last < float("inf"):
            raise DataError(f"windows grow: last={self.last} may not be below first={self.first}.")
        if not 0 < self.share <= 1:
            raise DataError(f"share must lie in (0, 1], not {self.share}.")

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments, as numbers and words."""
        scheme = getattr(self.scheme, "__name__", type(self.scheme).__name__)
        return {"scheme": scheme, "first": self.first, "last": self.last, "share": self.share}

    def length(self, fraction: float, batch: Trajectories) -> float:
        """Length of the windows after a fraction of the fit."""
        last = self.last
        if last is None:
            last = max(self.first, (batch.grid[:, -1] - batch.start).max().item())
        return self.first + (last - self.first) * min(1.0, fraction / self.share)

    def __call__(self, fraction: float, batch: Trajectories) -> Window:
        """The windows of a batch after a fraction of the fit."""
        if self.last is None and fraction >= self.share:
            return Window(batch)
        return self.scheme(batch, self.length(fraction, batch))


def check_labels(guide: Any, trajectories: Trajectories) -> None:
    """Refuse windows that are new series to a guide with a table of initial states.

    Raises:
        DataError: If a series has no row.
    """
    unknown = set(trajectories.series) - set(getattr(guide, "series", trajectories.series))
    if unknown:
        raise DataError(
            f"the window {sorted(map(str, unknown))[0]!r} is a series of its own, of which "
            f"{type(guide).__name__} has no initial state: it keeps one per series. Take "
            "AmortizedGuide(model, encoder), which reads x0 off a window, or the scheme prefix."
        )
