"""A linear vector field with a random matrix."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.data_checks import check_positive, check_size
from bayesode.inputs import Inputs
from bayesode.models.contracts import Priors, Tuning, Values, VectorField, without_plate


class LinearField(nn.Module):
    """dx_i/dt = sum_j A[i, j] x_j, with all entries of A in one normal site, `weights`.

    The site is A row by row, with the prior N(0, prior_scale^2) for each entry. A state with more
    components (constants, for one) has `dim` leading ones that the field reads and moves.

    Args:
        dim: Size of the state.
        prior_scale: Prior sd of an entry, per dimensionless unit of time.

    Raises:
        DataError: For a dim or prior_scale that is not positive.

    Example:
        >>> import torch
        >>> spiral = LinearField(2).build({"weights": torch.tensor([-0.1, 2.0, -2.0, -0.1])})
        >>> spiral(torch.tensor(0.0), torch.tensor([[1.0, 0.0]]))
        tensor([[-0.1000, -2.0000]])
    """

    prior_sd: Tensor

    def __init__(self, dim: int, *, prior_scale: float = 1.0) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"dim": dim, "prior_scale": prior_scale}
        check_size(dim=dim)
        check_positive(prior_scale=prior_scale)
        self.dim = dim
        self.register_buffer("prior_sd", torch.full((dim * dim,), float(prior_scale)))

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site."""
        size = range(self.dim)
        return {"weights": [f"matrix[{i},{j}]" for i in size for j in size]}

    def priors(self) -> Priors:
        """The normal prior of the entries, shape (dim * dim,)."""
        return {"weights": dist.Normal(torch.zeros_like(self.prior_sd), self.prior_sd).to_event(1)}

    def tunable(self) -> dict[str, Tuning]:
        """One prior scale for all entries may be set by the evidence."""
        return {"weights": Tuning(torch.zeros(self.dim**2, dtype=torch.long), "prior_sd")}

    def linear_site(self) -> str:
        """The site that takes the flat matrix."""
        return "weights"

    def build(self, values: Values, inputs: Inputs | None = None) -> VectorField:
        """The field of a drawn matrix, flat (dim * dim,) or (*draws, 1, dim * dim)."""
        flat, dim = without_plate(values["weights"]), self.dim
        matrix = flat.unflatten(-1, (dim, dim)).mT  # a state is a row: x @ A'

        def rate(t: Tensor, x: Tensor) -> Tensor:
            return x[..., :dim] @ matrix

        return VectorField(rate, (matrix,), matrix)
