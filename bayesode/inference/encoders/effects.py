"""What series of a fit have of their own beside what an encoder reads off them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.data_checks import check_from_zero
from bayesode.errors import DataError
from bayesode.inference.encoders.heads import FIRST_LOG_SCALE
from bayesode.inference.encoders.line import LineEncoder
from bayesode.trajectories import Trajectories

SAME = 1e-4  # of a standardised feature: what rounding may change of the frames of a series
QUARTILES = 1.349  # distance between those of a normal law, in sds


class SeriesEffects(nn.Module):
    """Components that a few frames hardly tell: read off as far as they can be, plus an effect.

    A series of the fit has an effect and a scale of its own, learned from all of it. A new series
    has the median effect, and an uncertainty that is the spread of these: without effects a field
    bends to the series that are odd, or an encoder learns series by heart. A series is one of the
    fit if it has a label of it and the same first frames.

    Args:
        encoder: Reads the components off the first frames.
        series: Labels of the series of the fit.
        share: Of the spread that new series get. With 0 all of them are typical: draws lie closer
            together, and say less of how a new series may differ.

    Raises:
        DataError: Without series, for a label that comes twice, an encoder of another kind, or a
            negative share; by `set_effects`, for a series that is none of these.

    Source: Random effects with new groups predicted at their population, as in Gelman and Hill
        (2006), "Data Analysis Using Regression and Multilevel/Hierarchical Models", chapter 12.

    Example:
        >>> data = Trajectories([0.0, 0.1, 0.2], torch.rand(4, 3, 5))
        >>> SeriesEffects(LineEncoder((5,), 2), data.series)(data).batch_shape
        torch.Size([4])
    """

    seen: Tensor
    typical: Tensor
    spread: Tensor

    def __init__(
        self, encoder: LineEncoder, series: Sequence[str | int], *, share: float = 1.0
    ) -> None:
        super().__init__()
        check_from_zero(share=share)
        if not hasattr(encoder, "standardised") or len(series) == 0:
            raise DataError("effects need a LineEncoder, and the labels of the series of the fit.")
        if len(set(series)) < len(series):
            raise DataError(f"labels of series are unique, these are not: {list(series)[:5]}.")
        self.encoder, self.series, self.share = encoder, tuple(series), share
        num_series, dim = len(self.series), encoder.config["dim"]
        self.effect = nn.Parameter(torch.zeros(num_series, dim))
        self.log_scale = nn.Parameter(torch.full((num_series, dim), FIRST_LOG_SCALE))
        # NaN: before a start no series has been seen, so none has an effect
        features = encoder.weight.shape[-1]
        self.register_buffer("seen", torch.full((num_series, features), torch.nan))
        self.register_buffer("typical", torch.zeros(dim))
        self.register_buffer("spread", torch.zeros(dim))
        self._rows = {label: row for row, label in enumerate(self.series)}

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        own = {"type": type(self.encoder).__name__, **self.encoder.config}
        return {"encoder": own, "series": list(self.series), "share": self.share}

    @property
    def reader(self) -> LineEncoder:
        """What reads the features."""
        return self.encoder

    @property
    def num_frames(self) -> int:
        """How many first observations are read."""
        return self.encoder.num_frames

    def forward(self, trajectories: Trajectories) -> dist.TorchDistribution:
        """The law of the components, batch shape (series,)."""
        features = self.encoder.features(trajectories)
        row, is_labelled = self._places(trajectories)
        is_same = ((features - self.seen[row]).abs() < SAME).all(-1)  # False for NaN
        is_own = (is_same & is_labelled).unsqueeze(-1)
        read = self.encoder.read(features)
        spread = self.share * self.spread
        width = (self.encoder.log_scale.mul(2).exp() + spread.square()).sqrt()
        location = read + torch.where(is_own, self.effect[row], self.typical)
        scale = torch.where(is_own, self.log_scale[row].exp(), width)
        return dist.Normal(location, scale).to_event(1)

    def _places(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Rows of series by their labels, 0 for unknown ones, and which are known, (series,)."""
        rows = [self._rows.get(label, -1) for label in trajectories.series]
        row = torch.tensor(rows, device=self.effect.device)
        return row.clamp_min(0), row >= 0

    def log_scales(self) -> list[nn.Parameter]:
        """Parameters that are logarithms of scales."""
        return [self.log_scale, *self.encoder.log_scales()]

    def row_parameters(self) -> list[nn.Parameter]:
        """Parameters with a row per series: in a minibatch only those of its series move."""
        return [self.effect, self.log_scale]

    def rows(self, trajectories: Trajectories) -> Tensor:
        """Rows of those series that are of the fit, (rows,)."""
        row, is_known = self._places(trajectories)
        return row[is_known]

    def set_features(self, lines: Tensor) -> None:
        """As `LineEncoder.set_features`."""
        self.encoder.set_features(lines)

    @torch.no_grad()
    def set_effects(self, trajectories: Trajectories, effect: Tensor, scale: Tensor) -> None:
        """Give the series of the fit their effects, and new ones the median and spread of these.

        Args:
            trajectories: Series of the fit, all or some; others have no effect.
            effect: Shape (series, dim).
            scale: Sds of the components of these series, shape (series, dim). That of the read-out,
                for new series, is their root mean square.

        Raises:
            DataError: For a series that is none of the fit.
        """
        row, is_known = self._places(trajectories)
        if not is_known.all():
            label = trajectories.series[int((~is_known).long().argmax())]
            raise DataError(
                f"series {label!r} is none of those whose effects are kept, "
                f"{list(self.series[:5])}: build the system on the data of the fit."
            )
        self.seen[row] = self.encoder.features(trajectories).to(self.seen)
        self.effect[row] = effect.to(self.effect)
        self.log_scale[row] = scale.log().to(self.log_scale)
        self.encoder.log_scale.copy_(scale.square().mean(0).sqrt().log())
        self.typical.copy_(effect.median(0).values)
        quartiles = effect.double().quantile(effect.new_tensor([0.25, 0.75]).double(), dim=0)
        self.spread.copy_((quartiles[1] - quartiles[0]) / QUARTILES)
