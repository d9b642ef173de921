"""What the parts of a model may condition on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from bayesode.data_checks import shape_of
from bayesode.errors import DataError, ShapeError
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the parts of a model may condition on, one row per series.

    Args:
        static: Features that do not change with time, shape (series, features).
        names: Names of the features.
    """

    static: Tensor
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        static = torch.as_tensor(self.static)
        if static.dim() != 2:
            raise ShapeError(f"static needs the shape (series, features), not {shape_of(static)}.")
        if not torch.isfinite(static).all():
            raise DataError("static holds NaN or infinite features; fill or drop them first.")
        names = tuple(self.names) or tuple(f"feature{i + 1}" for i in range(static.shape[1]))
        object.__setattr__(self, "static", static)
        object.__setattr__(self, "names", names)

    def rows(self, index: Tensor) -> Inputs:
        """The inputs of some series."""
        return Inputs(self.static[index.to(self.static.device)], self.names)

    def to(self, *, device: torch.device | str | None, dtype: torch.dtype | None) -> Inputs:
        """The inputs on another device or with another floating dtype."""
        return Inputs(self.static.to(device=device, dtype=dtype), self.names)
