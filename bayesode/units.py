"""Users' units outside, dimensionless numbers inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from bayesode.data_checks import as_numbers, shape_of
from bayesode.errors import DataError, ShapeError
from bayesode.smoothing import smooth
from bayesode.trajectories import Trajectories

TRANSFORMS = ("identity", "log")


class Float64Module(nn.Module):
    """A module whose buffers stay float64 whatever dtype the module around it is cast to."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # float64 whatever dtype the model is cast to: float32 cannot hold seconds since 1970
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(device=fn(buffer).device)
        return self


class Units(Float64Module):
    """The map between users' units and the dimensionless state z and time s of a model.

    s = (t - time_origin) / time_unit and g(x) = location + scale z, with g the identity or the
    logarithm. The default is the identity map.

    Args:
        location: Per state component, on the scale of g; one number for all also does.
        scale: Per state component, on the scale of g, positive; likewise.
        time_origin: In the unit of the data.
        time_unit: Length of one dimensionless unit of time, in the unit of the data.
        transform: "identity" or "log".
        names: Names of the state components.

    Raises:
        ShapeError: If location, scale and names disagree on the number of components.
        DataError: For numbers that are not finite or not positive, or an unknown transform.

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
        given = {"location": location, "scale": scale}
        numbers = {name: _numbers(name, value).reshape(-1) for name, value in given.items()}
        try:
            numbers["location"], numbers["scale"] = torch.broadcast_tensors(*numbers.values())
        except RuntimeError as error:
            sizes = [len(number) for number in numbers.values()]
            raise ShapeError(f"{sizes[0]} locations for {sizes[1]} scales.") from error
        numbers["time_origin"] = _numbers("time_origin", time_origin).reshape(())
        numbers["time_unit"] = _numbers("time_unit", time_unit).reshape(())
        for name, number in numbers.items():
            self.register_buffer(name, number.clone())
        self.transform, self.names = transform, tuple(names)
        if names and len(names) != len(self.location):
            raise ShapeError(f"{len(names)} names for {len(self.location)} components.")
        if len(set(names)) < len(names):
            raise DataError(f"names of the components must be unique, not {list(names)}.")

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
        smallest: float | None = None,
    ) -> Units:
        """Units in which the data have mean 0, sd 1 and, smoothed, a root mean square speed of 1.

        Args:
            train: Training data with values of shape (series, time, component).
            transform: "log" for positive data that vary by factors.
            hidden: State components that are not observed, {name: scale}, the scale in users'
                units; under "log" it is their typical size, and the sd of their logarithm is 1.
            smallest: What values below it count as, under "log": .5 for counts with zeros.

        Raises:
            ShapeError: If the data are not vectors.
            DataError: If there is too little data, a component is constant or never observed, or
                values <= 0 meet the log transform.
        """
        if transform not in TRANSFORMS:
            raise DataError(f"transform must be one of {TRANSFORMS}, not {transform!r}.")
        values, mask = _observed(train, transform, smallest)
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
        # where nothing was observed the smoother falls back to the mean and stands still
        speed = smoothed.derivative[mask].square().mean().sqrt().item()
        span = (grid.amax(-1) - train.start).max().item()
        # A path that moves less than its own sd in all that time was taken for noise.
        unit = 1 / max(speed, 1 / span)
        extra = dict(hidden or {})
        size = _numbers("scale", list(extra.values())).to(scale) if extra else scale.new_empty(0)
        is_log = transform == "log"
        return cls(
            torch.cat([location, size.log() if is_log else torch.zeros_like(size)]),
            torch.cat([scale, torch.ones_like(size) if is_log else size]),
            time_origin=train.start.min().item(),
            time_unit=unit,
            transform=transform,
            names=(*train.names, *extra),
        )

    def with_velocities(self, names: Sequence[str] = ()) -> Units:
        """Units of a state (positions, velocities), for `SecondOrder`; these are the positions'.

        Velocities have location 0 and the scale of their position over the unit of time: ds/dt = v
        in users' units is the same equation in dimensionless ones.

        Args:
            names: Of the velocities, "d(name)/dt" by default.

        Raises:
            DataError: Under a log transform: velocities are not positive.

        Example:
            >>> units = Units([1.0], [6.0], time_unit=2.0, names=["angle"]).with_velocities()
            >>> units.scale.tolist(), units.names
            ([6.0, 3.0], ('angle', 'd(angle)/dt'))
        """
        if self.transform != "identity":
            raise DataError(f"velocities have no units under the transform {self.transform!r}.")
        velocities = tuple(names) or tuple(f"d({name})/dt" for name in self.names)
        return Units(
            torch.cat([self.location, torch.zeros_like(self.location)]),
            torch.cat([self.scale, self.scale / self.time_unit]),
            time_origin=self.time_origin.item(),
            time_unit=self.time_unit.item(),
            names=(*self.names, *velocities),
        )

    # ---- values ----------------------------------------------------------------------------------
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

    def slope(self, state: Tensor) -> Tensor:
        """dx/dz, values in users' units by the dimensionless state, shape (..., component)."""
        size = slice(state.shape[-1]) if self.location.numel() > 1 else slice(None)
        scale = self.scale[size].to(state.dtype)
        return scale * self.to_users(state) if self.transform == "log" else scale.expand_as(state)

    def log_slope(self, state: Tensor) -> Tensor:
        """Derivative of log(x) by z, shape (..., component); 0 where `log_users` is cut off."""
        if self.transform == "log":
            size = slice(state.shape[-1]) if self.location.numel() > 1 else slice(None)
            return self.scale[size].to(state.dtype).expand_as(state)
        users = self.to_users(state)
        return torch.where(users > 0, self.slope(state) / users, 0.0)

    def to_users_rate(self, state: Tensor, rate: Tensor) -> Tensor:
        """dx/dt in users' units of a dimensionless dz/ds at the state z."""
        return rate * self.slope(state) / self.time_unit.to(rate.dtype)

    def to_state_rate(self, state: Tensor, rate: Tensor) -> Tensor:
        """dz/ds of a dx/dt in users' units at the state z, or of its last components alone."""
        slope = self.slope(state)[..., -rate.shape[-1] :]  # of accelerations: the velocities
        return rate / slope * self.time_unit.to(rate.dtype)

    # ---- times -----------------------------------------------------------------------------------
    def dimensionless_times(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Starts, shape (series,), and times, shape (series, time), float64."""
        start = (trajectories.start - self.time_origin) / self.time_unit
        return start, (trajectories.grid - self.time_origin) / self.time_unit


def _numbers(name: str, value: Any) -> Tensor:
    """Float64, finite, and positive where that is needed."""
    number = as_numbers(name, value).to(torch.float64)
    if not torch.isfinite(number).all():
        raise DataError(f"{name} of the units must be finite, not {number.tolist()}.")
    if name in ("scale", "time_unit") and not (number > 0).all():
        raise DataError(f"{name} of the units must be positive, not {number.tolist()}.")
    if name in ("time_origin", "time_unit") and number.numel() != 1:
        raise ShapeError(f"{name} is one number, not {shape_of(number)}.")
    return number


def _observed(train: Trajectories, transform: str, smallest: float | None) -> tuple[Tensor, Tensor]:
    if not isinstance(train, Trajectories):
        raise DataError(
            f"Trajectories are needed, not {type(train).__name__} (of simulated data: .observed)."
        )
    if train.values is None or train.mask is None:
        raise DataError("units need observed values; this is a question without values.")
    if train.values.dim() != 3:
        raise ShapeError(
            f"units of the state need values (series, time, component), not "
            f"{shape_of(train.values)}; for images and other events take ode_vae(train), "
            "or Units() of the time alone, a likelihood with a decoder, and fit_svi."
        )
    seen = train.mask.sum((0, 1))
    if (seen == 0).any():
        name = train.names[int((seen == 0).nonzero()[0])]
        raise DataError(f"component {name!r} has no observed value; drop it.")
    most = int(train.mask.flatten(2).any(-1).sum(-1).max())
    if seen.min() < 3 or most < 2:
        raise DataError(
            f"{train.names[int(seen.argmin())]!r} has {int(seen.min())} observed point(s), and no "
            f"series has more than {most} observed time(s): that says too little about a rate of "
            "change. A fit needs at least 3 points per component and 2 times in one series."
        )
    values = train.values.to(torch.float64)
    if transform == "log":
        values = values if smallest is None else values.clamp_min(smallest)
        is_wrong = train.mask & ~(values > 0)
        if is_wrong.any():
            row, step, component = (int(i) for i in is_wrong.nonzero()[0])
            raise DataError(
                f"{train.names[component]!r} of series {train.series[row]!r} is "
                f"{values[row, step, component].item():g} at time "
                f"{train.grid[row, step].item()}: a log-normal model needs positive values. Mark "
                "zeros as missing, add a detection limit, or take likelihood='gaussian'."
            )
        values = torch.where(train.mask, values, 1.0).log()
    return values, train.mask
