"""A vector field whose weights are random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.errors import DataError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Priors, Tuning, Values, VectorField, without_plate
from bayesode.models.networks import Layout, check_activation


class BayesianMLP(nn.Module):
    """Multilayer perceptron f(x) or f(t, x) with all weights in one normal site, `weights`.

    Weights have the prior N(0, prior_scale^2 / fan_in), biases N(0, prior_scale^2). In a
    hierarchical field each matrix and each bias has a prior scale of its own in place of
    prior_scale, drawn at the site `scale` from LogNormal(log prior_scale, 1).

    Args:
        dim_in: Size of the state.
        hidden: Widths of the hidden layers; empty for an affine field.
        dim_out: Size of the output.
        activation: "tanh", "silu", "softplus" or "elu".
        linear: Whether a linear path from input to output is added.
        time: Whether the dimensionless time is a further input.
        prior_scale: 3 by default: scale 1 bends fits, and wider gains nothing.
        hierarchical: Whether prior scales are latent.

    Raises:
        DataError: For an unknown activation or a prior_scale that is not positive.
        ShapeError: For a width that is not positive.

    Example:
        >>> import torch
        >>> field = BayesianMLP(2, [8], 2)
        >>> f = field.build({"weights": torch.zeros(5, 1, field.num_weights)})
        >>> f(torch.tensor(0.0), torch.randn(5, 10, 2)).shape
        torch.Size([5, 10, 2])
    """

    prior_sd: Tensor

    def __init__(
        self,
        dim_in: int,
        hidden: Sequence[int],
        dim_out: int,
        *,
        activation: str = "tanh",
        linear: bool = False,
        time: bool = False,
        prior_scale: float = 3.0,
        hierarchical: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < prior_scale < math.inf:
            raise DataError(f"prior_scale must be a positive number, not {prior_scale}.")
        self.config: dict[str, Any] = {
            "dim_in": dim_in,
            "hidden": list(hidden),
            "dim_out": dim_out,
            "activation": check_activation(activation),
            "linear": linear,
            "time": time,
            "prior_scale": prior_scale,
            "hierarchical": hierarchical,
        }
        self.layout = Layout((dim_in + time, *hidden, dim_out), linear)
        sd = self.layout.per_weight(lambda fan_in: prior_scale * fan_in**-0.5, prior_scale)
        self.register_buffer("prior_sd", sd)

    @property
    def num_weights(self) -> int:
        """Length of the site `weights`."""
        return self.layout.num_weights

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site."""
        weights = {"weights": self.layout.labels}
        if not self.config["hierarchical"]:
            return weights
        return {"scale": [name for name, _ in self.layout.tensors]} | weights

    def priors(self) -> Priors:
        """The normal prior of the weights (num_weights,), after its scales (tensors,) if latent."""
        if self.config["hierarchical"]:
            return {"scale": self._scale_prior(), "weights": self._weights_given_scale}
        return {"weights": dist.Normal(torch.zeros_like(self.prior_sd), self.prior_sd).to_event(1)}

    def _scale_prior(self) -> dist.TorchDistribution:
        location = self.prior_sd.new_full((len(self.layout.tensors),), 1.0)
        # a factor e either way: as vague as the right scale of a network is unknown
        return dist.LogNormal(math.log(self.config["prior_scale"]) * location, location).to_event(1)

    def _weights_given_scale(self, values: Values) -> dist.TorchDistribution:
        factor = values["scale"][..., self.layout.groups] / self.config["prior_scale"]
        sd = factor * self.prior_sd
        return dist.Normal(torch.zeros_like(sd), sd).to_event(1)

    def tunable(self) -> dict[str, Tuning]:
        """One prior scale per matrix and per bias may be set by the evidence, if not latent."""
        if self.config["hierarchical"]:
            return {}
        return {"weights": Tuning(self.layout.groups, "prior_sd")}

    def silent(self) -> dict[str, Tensor]:
        """Weights at which the network gives 0 and yet can learn: only its last layer is 0.

        A place to start from beside another field; all weights at 0 would have no gradient. The
        others are drawn by torch's generator, with variance 1 / fan_in.
        """
        sd = self.layout.per_weight(lambda fan_in: fan_in**-0.5, 0.0).to(self.prior_sd)
        last = 2 * len(self.config["hidden"])
        return {"weights": torch.where(self.layout.groups < last, sd * torch.randn_like(sd), 0.0)}

    def build(self, values: Values, inputs: Inputs | None = None) -> VectorField:
        """The field of drawn weights (num_weights,) or (*draws, 1, num_weights)."""
        pieces = self.layout.unpack(without_plate(values["weights"]))
        layout, activation = self.layout, self.config["activation"]

        def autonomous(t: Tensor, x: Tensor) -> Tensor:
            return layout.run(pieces, activation, x)

        def driven(t: Tensor, x: Tensor) -> Tensor:
            t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(*x.shape[:-1], 1)
            return layout.run(pieces, activation, torch.cat([x, t], -1))

        return VectorField(driven if self.config["time"] else autonomous, tuple(pieces))
