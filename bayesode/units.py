"""Users' units outside, dimensionless numbers inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesode.errors import DataError, ShapeError
from bayesode.smoothing import smooth
from bayesode.trajectories import Trajectories

TRANSFORMS = ("identity", "log")


class Units(nn.Module):
    """The map between users' units and the dimensionless state z and time s of a model.

    s = (t - time_origin) / time_unit and g(x) = location + scale z, with g the identity or the
    logarithm. The default is the identity map.

    Args:
        location: Per state component, on the scale of g.
        scale: Per state component, on the scale of g, positive.
        time_origin: In the unit of the data.
        time_unit: Length of one dimensionless unit of time, in the unit of the data.
        transform: "identity" or "log".
        names: Names of the state components.

    Example:
        >>> import torch
        >>> units = Units([10.0], [2.0], time_unit=60.0)
        >>> units.to_users(torch.tensor([[1.0]])), units.to_state(torch.tensor([[14.0]]))
        (tensor([[12.]]), tensor([[2.]]))
    """

    location: Tensor
    scale: Tensor
    time_origin: Tensor
    time_unit: Tensor

    def __init__(
        self,
        location: Tensor | Sequence[float] = (0.0,),
        scale: Tensor | Sequence[float] = (1.0,),
        *,
        time_origin: float = 0.0,
        time_unit: float = 1.0,
        transform: str = "identity",
        names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if transform not in TRANSFORMS:
            raise DataError(f"transform must be one of {TRANSFORMS}, not {transform!r}.")
        for name, value in (
            ("location", location),
            ("scale", scale),
            ("time_origin", time_origin),
            ("time_unit", time_unit),
        ):
            tensor = torch.as_tensor(value, dtype=torch.float64)
            if not torch.isfinite(tensor).all() or (name in ("scale", "time_unit") and (tensor <= 0).any()):
                raise DataError(f"{name} of the units must be finite (and positive), not {value}.")
            self.register_buffer(name, tensor)
        self.transform, self.names = transform, tuple(names)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Units:
        # float64 whatever dtype the model is cast to: float32 cannot hold seconds since 1970
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(device=fn(buffer).device)
        return self

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments as plain numbers."""
        return {
            "location": self.location.tolist(),
            "scale": self.scale.tolist(),
            "time_origin": self.time_origin.item(),
            "time_unit": self.time_unit.item(),
            "transform": self.transform,
            "names": list(self.names),
        }

    @classmethod
    def from_data(
        cls,
        train: Trajectories,
        *,
        transform: str = "identity",
        hidden: Mapping[str, float] | None = None,
    ) -> Units:
        """Units in which the data have mean 0, sd 1 and a root mean square speed of 1.

        Args:
            train: Training data with values of shape (series, time, component).
            transform: "log" for positive data that vary by factors.
            hidden: State components that are not observed, {name: scale}.

        Raises:
            ShapeError: If the data are not vectors.
            DataError: If there is too little data, a component is constant or never observed, or
                values <= 0 meet the log transform.
        """
        values, mask = _observed(train, transform)
        grid = train.grid
        location = torch.where(mask, values, 0.0).sum((0, 1)) / mask.sum((0, 1))
        deviation = torch.where(mask, values - location, 0.0)
        scale = (deviation.square().sum((0, 1)) / mask.sum((0, 1))).sqrt()
        is_constant = scale <= 1e-10 * location.abs() + 1e-300
        if is_constant.any():
            name = train.names[int(is_constant.nonzero()[0])]
            raise DataError(
                f"component {name!r} is constant over all observed points: it carries nothing that "
                "could be fitted. Drop it (and add it to inputs if the others depend on it)."
            )
        smoothed = smooth(grid, deviation / scale, mask, grid)
        real = torch.arange(grid.shape[1], device=grid.device) < train.num_times[:, None]
        speed = smoothed.derivative[real].square().mean().sqrt().item()
        span = (grid.amax(-1) - train.start).max().item()
        unit = 1 / speed if math.isfinite(speed) and speed * span > 1e-3 else span
        extra = dict(hidden or {})
        return cls(
            torch.cat([location, location.new_zeros(len(extra))]),
            torch.cat([scale, scale.new_tensor(list(extra.values()))]),
            time_origin=train.start.min().item(),
            time_unit=unit,
            transform=transform,
            names=(*train.names, *extra),
        )

    # ---- values ------------------------------------------------------------------------------------
    def to_state(self, values: Tensor) -> Tensor:
        """Dimensionless numbers of values in users' units, shape (..., component)."""
        if self.transform == "log":
            values = values.log()
        size = slice(values.shape[-1]) if self.location.numel() > 1 else slice(None)
        return (values - self.location[size].to(values.dtype)) / self.scale[size].to(values.dtype)

    def linear(self, state: Tensor) -> Tensor:
        """g(x) = location + scale z: values, or their logarithms under the log transform."""
        size = slice(state.shape[-1]) if self.location.numel() > 1 else slice(None)
        return self.location[size].to(state.dtype) + self.scale[size].to(state.dtype) * state

    def to_users(self, state: Tensor) -> Tensor:
        """Values in users' units of a dimensionless state, shape (..., component)."""
        linear = self.linear(state)
        return linear.exp() if self.transform == "log" else linear

    def log_users(self, state: Tensor) -> Tensor:
        """Logarithms of the values, for positive laws; values <= 0 count as the smallest float."""
        linear = self.linear(state)
        if self.transform == "log":
            return linear
        return linear.clamp_min(torch.finfo(linear.dtype).tiny).log()

    def to_users_rate(self, state: Tensor, rate: Tensor) -> Tensor:
        """dx/dt in users' units of a dimensionless dz/ds at the state z."""
        size = slice(state.shape[-1]) if self.location.numel() > 1 else slice(None)
        slope = rate * self.scale[size].to(rate.dtype) / self.time_unit.to(rate.dtype)
        return slope * self.to_users(state) if self.transform == "log" else slope

    # ---- times -------------------------------------------------------------------------------------
    def dimensionless_times(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Starts, shape (series,), and times, shape (series, time), float64."""
        start = (trajectories.start - self.time_origin) / self.time_unit
        return start, (trajectories.grid - self.time_origin) / self.time_unit


def _observed(train: Trajectories, transform: str) -> tuple[Tensor, Tensor]:
    if train.values is None or train.mask is None:
        raise DataError("units need observed values; this is a question without values.")
    if train.values.dim() != 3:
        raise ShapeError(
            f"units of the state need values (series, time, component), not {train.values.shape}; "
            "give Units(...) yourself for images and other events."
        )
    seen = train.mask.sum((0, 1))
    if (seen == 0).any():
        name = train.names[int((seen == 0).nonzero()[0])]
        raise DataError(f"component {name!r} has no observed value; drop it.")
    if seen.min() < 3 or train.mask.flatten(2).any(-1).sum(-1).max() < 2:
        raise DataError(
            f"{int(seen.min())} observed point(s) per component say nothing about a rate of change; "
            "a fit needs at least 3 per component and 2 times in one series."
        )
    values = train.values.to(torch.float64)
    if transform == "log":
        is_wrong = train.mask & ~(values > 0)
        if is_wrong.any():
            row, step, component = (int(i) for i in is_wrong.nonzero()[0])
            raise DataError(
                f"{train.names[component]!r} of series {train.series[row]!r} is "
                f"{values[row, step, component].item():g} at time "
                f"{train.grid[row, step].item():g}: a log-normal model needs positive values. Mark "
                "zeros as missing, add a detection limit, or take likelihood='gaussian'."
            )
        values = torch.where(train.mask, values, 1.0).log()
    return values, train.mask
