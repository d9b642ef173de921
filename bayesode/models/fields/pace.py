"""Dynamics whose clock runs at a speed of its own in every series."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Values, VectorField, unnest
from bayesode.models.fields.combine import Composite


class Paced(Composite):
    """dx/dt = exp(c) f(x): the state ends in c, the logarithm of a pace, which f does not see.

    Series that go through the same states at different speeds share one field. The rate is that of
    the components before c, so that `WithConstants(Paced(field), 1)` keeps c constant; with further
    constants u, which f reads, the state is (x, u, c). Around a second-order field all of it runs
    faster: velocities are those at pace 1. Sites: those of the field as `paced.site`.

    Args:
        field: Random field of the components before c.

    Raises:
        DataError: For a field that is no random part.
        ShapeError: By the rate, for a state of a single component.

    Example:
        >>> import torch
        >>> from bayesode.models.fields import LinearField, WithConstants
        >>> field = WithConstants(Paced(LinearField(1)), 1)
        >>> f = field.build({"dynamics.paced.weights": torch.tensor([-1.0])})
        >>> f(torch.tensor(0.0), torch.tensor([[2.0, 0.0], [2.0, 0.6931]])).round(decimals=3)
        tensor([[-2.,  0.],
                [-4.,  0.]])
    """

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        if not isinstance(field, nn.Module) or not hasattr(field, "build"):
            raise DataError(f"field={field!r} is no random part; take BayesianMLP(q, [8], q).")
        self.paced: Any = field

    def build(self, values: Values, inputs: Inputs | None = None) -> VectorField:
        """The field of drawn values; a pace multiplies states, so it is never linear."""
        field = self.paced.build(unnest("paced", values), inputs)

        def rate(t: Tensor, x: Tensor) -> Tensor:
            if x.shape[-1] < 2:
                raise ShapeError(
                    f"a paced state holds components and the logarithm of their pace, so it cannot "
                    f"have {x.shape[-1]}: give x0 one more (WithConstants.initial)."
                )
            return torch.exp(x[..., -1:]) * field(t, x[..., :-1])

        return VectorField(rate, field.tensors)
