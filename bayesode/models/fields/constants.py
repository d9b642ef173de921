"""Constants of a series beside its dynamic state: what does not change but has its say."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesode.data_checks import check_size
from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Values, VectorField, unnest
from bayesode.models.fields.combine import Composite
from bayesode.units import Units


class WithConstants(Composite):
    """A field whose state ends in components that stand still: effects, a style, a content code.

    The state is (dynamic, constants), and the field reads all of it: a network takes `BayesianMLP(q
    + c, hidden, q)`, with q dynamic components and c constants. `WithConstants.initial` gives the
    constants a law. Sites: those of the field as `dynamics.site`.

    Args:
        field: Random field from states of q + dim components to rates of q.
        dim: Number of constants.

    Raises:
        DataError: For a dim that is not positive, or a field that is no random part.

    Example:
        >>> import torch
        >>> from bayesode.models.fields import BayesianMLP
        >>> field = WithConstants(BayesianMLP(3, [8], 2), 1)
        >>> f = field.build({"dynamics.weights": torch.ones(field.dynamics.num_weights)})
        >>> f(torch.tensor(0.0), torch.ones(5, 3))[0]
        tensor([8.9946, 8.9946, 0.0000])
    """

    def __init__(self, field: nn.Module, dim: int) -> None:
        super().__init__()
        check_size(dim=dim)
        if not isinstance(field, nn.Module) or not hasattr(field, "build"):
            raise DataError(f"field={field!r} is no random part; take BayesianMLP(q + c, [8], q).")
        self.dynamics: Any = field
        self.dim = dim

    @property
    def config(self) -> dict[str, Any]:
        """Type and constructor arguments of the field, and the number of constants."""
        return super().config | {"dim": self.dim}

    @staticmethod
    def initial(initial: nn.Module, law: nn.Module) -> InitialWithConstants:
        """The law of x0 whose dynamic components follow `initial` and whose constants `law`."""
        return InitialWithConstants(initial, law)

    def build(self, values: Values, inputs: Inputs | None = None) -> VectorField:
        """The field of drawn values; its rate raises a ShapeError if it is not of q components."""
        field, dim = self.dynamics.build(unnest("dynamics", values), inputs), self.dim

        def rate(t: Tensor, x: Tensor) -> Tensor:
            moving = field(t, x)
            if moving.shape[-1] + dim != x.shape[-1]:
                raise ShapeError(
                    f"the field has rates of {moving.shape[-1]} components for states of "
                    f"{x.shape[-1]}, of which {dim} are constants: its rate has to be of "
                    f"{x.shape[-1] - dim} (dim_out of a network)."
                )
            return functional.pad(moving, (0, dim))

        still = None if field.matrix is None else functional.pad(field.matrix, (0, dim, 0, dim))
        return VectorField(rate, field.tensors, still)


class InitialWithConstants(Composite):
    """The law of x0 = (dynamic, constants) as two laws side by side.

    Sites: those of the two laws, as `state.site` and `constants.site`. Constants are dimensionless:
    the units of a model are those of its dynamic components.

    Args:
        state: Law of the dynamic components, as `NormalInitial(q)`.
        constants: Law of the constants, as `NormalInitial(c)`.

    Example:
        >>> from bayesode.models import NormalInitial
        >>> initial = WithConstants.initial(NormalInitial(2), NormalInitial(1, scale=[0.5]))
        >>> initial.build({}).base_dist.scale
        tensor([2.0000, 2.0000, 0.5000])
    """

    def __init__(self, state: nn.Module, constants: nn.Module) -> None:
        super().__init__()
        self.state: Any = state
        self.constants: Any = constants

    def set_moments(self, mean: Tensor, deviation: Tensor) -> None:
        """Give the leading components other moments: the dynamic ones first, then constants."""
        size = self.state.dim
        self.state.set_moments(mean[:size], deviation[:size])
        self.constants.set_moments(mean[size:], deviation[size:])

    def with_units(self, units: Units) -> None:
        """Take on the units of a model, for the dynamic components."""
        if hasattr(self.state, "with_units"):
            self.state.with_units(units)

    def build(self, values: Values, inputs: Inputs | None = None) -> dist.TorchDistribution:
        """The law of x0, event shape (q + c,).

        Raises:
            DataError: If one of the laws is not normal.
        """
        laws = [part.build(unnest(name, values), inputs) for name, part in self.parts()]
        locations, scales = zip(*map(_moments, laws), strict=True)
        return dist.Normal(_side_by_side(locations), _side_by_side(scales)).to_event(1)


def _moments(law: Any) -> tuple[Tensor, Tensor]:
    base = getattr(law, "base_dist", law)
    if not isinstance(base, torch.distributions.Normal):
        raise DataError(
            f"the laws of a state and its constants are joined if they are normal, not {law}."
        )
    return base.loc, base.scale


def _side_by_side(parts: tuple[Tensor, ...]) -> Tensor:
    """Vectors with their own leading shapes as one."""
    lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], -1)
