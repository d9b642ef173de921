"""Fields with process noise: dx = f(t, x) dt + g(t, x) dW."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bayesode.errors import DataError
from bayesode.inputs import Inputs
from bayesode.models.contracts import (
    SDE,
    Values,
    VectorField,
    rate_of,
    unnest,
)
from bayesode.models.fields.combine import Composite

INTERPRETATIONS = ("ito", "stratonovich")
PARTS = (
    "SDEField(drift, diffusion) takes any field as its drift, and AdditiveNoise(dim) or "
    "StateNoise(dim) as its diffusion; fields add up inside the drift, SDEField(Sum(...), noise)."
)


class SDEField(Composite):
    """A drift with process noise: dx = f(t, x) dt + g(t, x) dW, one noise per component.

    Sites: those of the drift as `drift.site`, those of the noise as `diffusion.site`.

    Args:
        drift: Any random field.
        diffusion: `AdditiveNoise(dim)` or `StateNoise(dim)`.
        interpretation: "ito" or "stratonovich", the meaning of g dW; for additive noise they agree.
            What is built is always the equation in Ito's sense: a Stratonovich drift gets
            g_i dg_i/dx_i / 2 added.

    Raises:
        DataError: For an unknown interpretation, or parts that are no drift and no diffusion.

    Source: Kloeden and Platen (1992), Numerical Solution of Stochastic Differential Equations,
    section 4.9. https://doi.org/10.1007/978-3-662-12616-5

    Example:
        >>> from bayesode.models.fields import AdditiveNoise, BayesianMLP
        >>> field = SDEField(BayesianMLP(2, [8], 2), AdditiveNoise(2))
        >>> list(field.priors())
        ['drift.weights', 'diffusion.scale']
    """

    def __init__(
        self, drift: nn.Module, diffusion: nn.Module, *, interpretation: str = "ito"
    ) -> None:
        super().__init__()
        if interpretation not in INTERPRETATIONS:
            raise DataError(f"interpretation is one of {INTERPRETATIONS}, not {interpretation!r}.")
        for name, part in (("drift", drift), ("diffusion", diffusion)):
            if not isinstance(part, nn.Module) or not hasattr(part, "build"):
                raise DataError(f"{name}={part!r} is no random part. {PARTS}")
        self.drift, self.diffusion, self.interpretation = drift, diffusion, interpretation

    @property
    def config(self) -> dict[str, Any]:
        """Types and constructor arguments of the parts."""
        return super().config | {"interpretation": self.interpretation}

    def build(self, values: Values, inputs: Inputs | None = None) -> SDE:
        """The equation of drawn values of both parts, in Ito's sense."""
        drift, diffusion = (part.build(unnest(name, values), inputs) for name, part in self.parts())
        # a noise in place of the drift would run, and a drift in place of the noise
        if hasattr(drift, "is_additive") or not hasattr(diffusion, "is_additive"):
            raise DataError(
                f"the parts of this SDEField build {type(drift).__name__} and "
                f"{type(diffusion).__name__} in place of VectorField and Diffusion. {PARTS}"
            )
        if self.interpretation == "ito" or diffusion.is_additive:
            return SDE(drift, diffusion)

        def corrected(t: Tensor, x: Tensor) -> Tensor:
            g, slope = diffusion.with_slope(t, x)
            return rate_of(drift, t, x) + g * slope / 2

        tensors = (*drift.tensors, *diffusion.tensors)
        return SDE(VectorField(corrected, tensors), diffusion)
