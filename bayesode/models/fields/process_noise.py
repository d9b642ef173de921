"""The noise of an SDE, one independent Brownian motion per component."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesode.data_checks import as_list, check_positive, check_size
from bayesode.errors import ShapeError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Diffusion, Priors, Tuning, Values, without_plate
from bayesode.models.fields.mlp import BayesianMLP
from bayesode.units import Units

# Of the data's sd, per square root of the dimensionless time. Much data find smaller noise or
# none; after little data, which cannot tell, forecasts are to widen.
NOISE_MEDIAN, NOISE_LOG_SCALE = 0.3, 1.0
SOFTPLUS_ONE = math.log(math.e - 1)  # where softplus is 1


class AdditiveNoise(nn.Module):
    """Process noise that does not depend on the state; its `scale` is latent.

    After a time t the noise alone has moved a component by scale sqrt(t). Under a log transform it
    moves the logarithm: the noise is multiplicative then, and the scale a relative one.

    Args:
        dim: Size of the state.
        prior_median: Of the scale, in users' units (of the logarithm under a log transform) per
            square root of the users' unit of time; by default three tenths of the data's sd per
            square root of the dimensionless unit.
        prior_log_scale: Sd of its logarithm.

    Raises:
        DataError: For numbers that are not positive.
        ShapeError: By `with_units`, for units of another number of components.

    Example:
        >>> import torch
        >>> noise = AdditiveNoise(2).build({"scale": torch.tensor([0.1, 0.2])})
        >>> noise(torch.tensor(0.0), torch.zeros(5, 2))
        tensor([0.1000, 0.2000])
    """

    log_median: Tensor
    log_scale: Tensor

    def __init__(
        self,
        dim: int,
        *,
        prior_median: float | None = None,
        prior_log_scale: float = NOISE_LOG_SCALE,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "dim": dim,
            "prior_median": prior_median,
            "prior_log_scale": prior_log_scale,
        }
        check_size(dim=dim)
        check_positive(prior_log_scale=prior_log_scale)
        _check_median(prior_median)
        self.dim = dim
        median = math.log(prior_median or NOISE_MEDIAN)
        self.register_buffer("log_median", torch.full((dim,), median))
        self.register_buffer("log_scale", torch.full((dim,), prior_log_scale))
        self.units = Units()

    def with_units(self, units: Units) -> None:
        """Take on the units of a model."""
        _check_components(self.dim, units)
        self.units = units
        if self.config["prior_median"] is None:
            median = math.log(NOISE_MEDIAN) - _per_users_scale(units).log()
            self.log_median = median.expand(self.dim).to(self.log_median)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site."""
        return {"scale": list(self.units.names) or [f"x{i + 1}" for i in range(self.dim)]}

    def priors(self) -> Priors:
        """The log-normal prior of the scale, shape (dim,)."""
        return {"scale": dist.LogNormal(self.log_median, self.log_scale).to_event(1)}

    def starting_values(self, noise: Tensor) -> dict[str, Tensor]:
        """Values of the own sites for a noise scale (dim,) in dimensionless units."""
        return {"scale": noise / _per_users_scale(self.units).to(noise)}

    def build(self, values: Values, inputs: Inputs | None = None) -> Diffusion:
        """The noise of a drawn scale (dim,) or (*draws, 1, dim); of scale 0 it is none."""
        scale = without_plate(values["scale"])
        scale = scale * _per_users_scale(self.units).to(scale)
        scale = scale.unsqueeze(-2) if scale.dim() > 1 else scale
        return Diffusion(lambda t, x: scale, (scale,), is_additive=True)


class StateNoise(nn.Module):
    """Process noise whose scale is a positive random function of the state.

    g(x) = median (floor + softplus(network(x))), so that a network of weights 0 gives `median`
    (1 + floor). A noise scale of exactly 0 would say that the drift is never wrong.

    Args:
        dim: Size of the state.
        hidden: Widths of the hidden layers of the network.
        prior_median: As in `AdditiveNoise`.
        floor: Smallest noise scale, as a share of the median.
        prior_scale: Of the weights, as in `BayesianMLP`.

    Raises:
        DataError: For numbers that are not positive.
        ShapeError: By `with_units`, for units of another number of components.

    Example:
        >>> import torch
        >>> noise = StateNoise(2, [4], prior_median=0.5, floor=0.2)
        >>> g = noise.build({"weights": torch.zeros(noise.network.num_weights)})
        >>> g(torch.tensor(0.0), torch.zeros(1, 2))
        tensor([[0.6000, 0.6000]])
    """

    median: Tensor

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (8,),
        *,
        prior_median: float | None = None,
        floor: float = 0.1,
        prior_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "dim": dim,
            "hidden": as_list(hidden),
            "prior_median": prior_median,
            "floor": floor,
            "prior_scale": prior_scale,
        }
        widths = self.config["hidden"]
        check_size(dim=dim, **{f"hidden[{k}]": width for k, width in enumerate(widths)})
        check_positive(floor=floor, prior_scale=prior_scale)
        _check_median(prior_median)
        self.network = BayesianMLP(dim, widths, dim, prior_scale=prior_scale)
        self.register_buffer("median", torch.full((dim,), prior_median or NOISE_MEDIAN))

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site."""
        return self.network.labels

    def with_units(self, units: Units) -> None:
        """Take on the units of a model."""
        _check_components(self.config["dim"], units)
        given = self.config["prior_median"]
        if given is not None:
            median = given * _per_users_scale(units)
            self.median = median.expand(self.config["dim"]).to(self.median)

    def priors(self) -> Priors:
        """The normal prior of the network's weights."""
        return self.network.priors()

    def tunable(self) -> dict[str, Tuning]:
        """The prior scales of the network may be set by the evidence."""
        return {
            site: Tuning(tuning.groups, f"network.{tuning.buffer}")
            for site, tuning in self.network.tunable().items()
        }

    def build(self, values: Values, inputs: Inputs | None = None) -> Diffusion:
        """The noise of drawn weights."""
        network, median, floor = (
            self.network.build(values, inputs),
            self.median,
            self.config["floor"],
        )

        def scale(t: Tensor, x: Tensor) -> Tensor:
            return median * (floor + functional.softplus(network(t, x) + SOFTPLUS_ONE))

        return Diffusion(scale, network.tensors, is_additive=False)


def _per_users_scale(units: Units) -> Tensor:
    """What a noise scale in users' units is multiplied by to be dimensionless, (dim,) or (1,)."""
    return units.time_unit.sqrt() / units.scale


def _check_median(prior_median: float | None) -> None:
    if prior_median is not None:
        check_positive(prior_median=prior_median)


def _check_components(dim: int, units: Units) -> None:
    """Refuse units of another state: a scale of one component would be broadcast to all."""
    if units.scale.numel() not in (1, dim):
        raise ShapeError(
            f"noise of dim={dim} meets units of {units.scale.numel()} components: give it one "
            "scale per component of the state."
        )
