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
    components (constants, for one) has `dim` leading ones that the field reads and moves. With
    dim_in=2 * dim the field is an acceleration that reads positions and velocities.

    Args:
        dim: Size of the state.
        dim_in: Number of leading components that are read, `dim` by default.
        prior_scale: Prior sd of an entry, per dimensionless unit of time.

    Raises:
        DataError: For a dim, dim_in or prior_scale that is not positive.

    Example:
        >>> import torch
        >>> spiral = LinearField(2).build({"weights": torch.tensor([-0.1, 2.0, -2.0, -0.1])})
        >>> spiral(torch.tensor(0.0), torch.tensor([[1.0, 0.0]]))
        tensor([[-0.1000, -2.0000]])
    """

    prior_sd: Tensor

    def __init__(self, dim: int, *, dim_in: int | None = None, prior_scale: float = 1.0) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"dim": dim, "dim_in": dim_in, "prior_scale": prior_scale}
        self.dim, self.dim_in = dim, dim if dim_in is None else dim_in
        check_size(dim=dim, dim_in=self.dim_in)
        check_positive(prior_scale=prior_scale)
        self.register_buffer("prior_sd", torch.full((dim * self.dim_in,), float(prior_scale)))

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site."""
        rows, columns = range(self.dim), range(self.dim_in)
        return {"weights": [f"matrix[{i},{j}]" for i in rows for j in columns]}

    def priors(self) -> Priors:
        """The normal prior of the entries, shape (dim * dim_in,)."""
        return {"weights": dist.Normal(torch.zeros_like(self.prior_sd), self.prior_sd).to_event(1)}

    def tunable(self) -> dict[str, Tuning]:
        """One prior scale for all entries may be set by the evidence."""
        return {"weights": Tuning(torch.zeros(len(self.prior_sd), dtype=torch.long), "prior_sd")}

    def linear_site(self) -> str:
        """The site that takes the flat matrix."""
        return "weights"

    def build(self, values: Values, inputs: Inputs | None = None) -> VectorField:
        """The field of a drawn matrix, flat (dim * dim_in,) or (*draws, 1, dim * dim_in)."""
        flat, dim_in = without_plate(values["weights"]), self.dim_in
        matrix = flat.unflatten(-1, (self.dim, dim_in)).mT  # a state is a row: x @ A'

        def rate(t: Tensor, x: Tensor) -> Tensor:
            return x[..., :dim_in] @ matrix

        return VectorField(rate, (matrix,), matrix)
