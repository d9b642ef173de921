"""What the parts of a model may condition on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesode.data_checks import as_floating, as_list, shape_of
from bayesode.errors import DataError, ShapeError


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the parts of a model may condition on, one row per series.

    Args:
        static: Features that do not change with time, shape (series, features).
        names: Names of the features.

    Raises:
        ShapeError: If static is no matrix or the names do not fit it.
        DataError: For NaN, infinite values, what is no number, or repeated names.

    Example:
        >>> Inputs([[79.6, 4.02], [72.4, 4.4]], ["weight", "dose"]).rows(torch.tensor([1])).static
        tensor([[72.4000,  4.4000]])
    """

    static: Tensor
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        static = as_floating("static", self.static)
        if static.dim() != 2 or 0 in static.shape:
            raise ShapeError(
                f"static needs the shape (series, features) with no empty axis, not "
                f"{shape_of(static)}. One feature alone is static.unsqueeze(-1)."
            )
        if not torch.isfinite(static).all():
            raise DataError("static holds NaN or infinite features; fill or drop them first.")
        given: Any = self.names
        names = () if given is None else tuple(str(name) for name in as_list(given))
        names = names or tuple(f"feature{i + 1}" for i in range(static.shape[1]))
        if len(names) != static.shape[1]:
            raise ShapeError(f"{len(names)} names for {static.shape[1]} features.")
        if len(set(names)) < len(names):
            raise DataError(f"names of features must be unique, not {list(names)}.")
        object.__setattr__(self, "static", static)
        object.__setattr__(self, "names", names)

    def rows(self, index: Tensor) -> Inputs:
        """The inputs of some series."""
        return Inputs(self.static[index.to(self.static.device)], self.names)

    def to(self, *, device: torch.device | str | None, dtype: torch.dtype | None) -> Inputs:
        """The inputs on another device or with another floating dtype."""
        return Inputs(self.static.to(device=device, dtype=dtype), self.names)


def check_inputs(inputs: Any, num_series: int) -> None:
    """Refuse what are no inputs of so many series.

    Raises:
        DataError: If it is something else than `Inputs`.
        ShapeError: If the number of rows is another.
    """
    if inputs is not None and not isinstance(inputs, Inputs):
        raise DataError(f"inputs must be Inputs(static=...), not {type(inputs).__name__}.")
    if inputs is not None and len(inputs.static) != num_series:
        raise ShapeError(f"inputs have {len(inputs.static)} rows for {num_series} series.")
