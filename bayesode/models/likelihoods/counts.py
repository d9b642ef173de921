"""Counts of events."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from bayesode.distributions import observed_law
from bayesode.errors import DataError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Observe, Priors, Values
from bayesode.units import Units

SMALLEST_COUNT = 0.5  # that a smoother of logarithms sees in place of 0


class PoissonLikelihood(nn.Module):
    """Values are counts whose expectation is the state in users' units; nothing is latent.

    Args:
        dim: Number of observed components, the leading ones of the state.

    Raises:
        DataError: If dim is not positive.

    Example:
        >>> import torch
        >>> observe = PoissonLikelihood(1).build({})
        >>> observe(torch.full((4, 7, 1), 3.0)).log_prob(torch.ones(4, 7, 1)).shape
        torch.Size([4])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if not 0 < dim < math.inf:
            raise DataError(f"dim must be a positive number, not {dim}.")
        self.dim = dim
        self.config: dict[str, Any] = {"dim": dim}
        self.units = Units()

    def with_units(self, units: Units) -> None:
        """Take on the units of a model."""
        self.units = units

    def priors(self) -> Priors:
        """Nothing is random beside the counts."""
        return {}

    def build(self, values: Values, inputs: Inputs | None = None) -> Observe:
        """The law of counts along a path (*draws, series, time, state)."""

        def expectation(path: Tensor) -> Tensor:
            return self.units.log_users(path[..., : self.dim]).exp()

        def law(path: Tensor, mask: Tensor | None) -> dist.TorchDistribution:
            return observed_law(dist.Poisson(expectation(path)), mask, event_dim=2, fill=0.0)

        return Observe(law, expectation)

    def fisher(self, path: Tensor, values: Values) -> Tensor:
        """Information of one count about the dimensionless state, (*draws, series, time, dim)."""
        expectation = self.units.log_users(path[..., : self.dim]).exp()
        return expectation * self.units.log_slope(path)[..., : self.dim].square()

    def working_response(self, values: Tensor) -> Tensor:
        """Counts as a smoother may see them, in dimensionless units; 0 counts as one half."""
        return self.units.to_state(values.clamp_min(SMALLEST_COUNT))

    def starting_values(self, noise: Tensor) -> dict[str, Tensor]:
        """No own sites."""
        return {}
