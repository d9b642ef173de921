"""What linearised posteriors share: draws of scales, rates, and the climate as a bound."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.elbo import check_given
from bayesode.inference.warm_start.flat import FlatField
from bayesode.models.dynamical import DynamicalModel

CLIMATE = 2.0  # sd, in data sds, of what is believed where the data determine nothing
LARGEST_VARIANCE = 1e30  # beyond, the deviations of draws are lost in overflow
SMALLEST_FREEDOM = 3.0  # of the Student t: below that its variance does not exist


def check_given_weights(model: DynamicalModel, given: Mapping[str, Tensor]) -> None:
    """Refuse given sites from which the others of a Laplace posterior cannot be drawn.

    Raises:
        DataError: If they are not the first ones, or some of the field's lack.
    """
    order = [*model.global_priors(), "x0"]
    check_given(order, given)
    field = [site for site in order if site.startswith("field.")]
    if missing := [site for site in field if site not in given]:
        raise DataError(f"the weights of a Laplace fit are given together; {missing} lack.")


def linearised_rates(
    field: FlatField, center: Tensor, deviation: Tensor, t: Tensor, points: Tensor
) -> Tensor:
    """Linearised fields dz/ds at dimensionless points, shape (draws, points, state).

    Args:
        field: The field as a function of one vector.
        center: At which it is linearised.
        deviation: Of drawn weights, shape (draws, weight).
        t: Dimensionless time, a scalar.
        points: The same for every draw, shape (draws, points, state).
    """

    def rate(weights: Tensor, point: Tensor) -> Tensor:
        return field.build(weights)(t.double(), point.unsqueeze(0)).squeeze(0)

    place = points[0].double()
    mean = torch.func.vmap(rate, (None, 0))(center, place)
    slope = torch.func.vmap(torch.func.jacrev(rate), (None, 0))(center, place)
    return mean + torch.einsum("nsp,dp->dns", slope, deviation)


def capped(path: Tensor, change: Tensor, variance: Tensor, is_frozen: Tensor) -> Tensor:
    """Linearised draws within the climate.

    Args:
        path: The fit's, shape (series, time, state).
        change: Deviations of the draws, (draws, series, time, state).
        variance: Of the deviations, (series, time, state).
        is_frozen: Where the path left the bound, (series, time, 1): there the climate alone is
            known.
    """
    is_lost = is_frozen | ~(variance < LARGEST_VARIANCE)
    share = 1 / (1 + variance / CLIMATE**2)  # of the variance that the cap leaves
    paths = path * share + change * share.sqrt()
    return torch.where(is_lost, CLIMATE * torch.randn_like(paths), paths)


def log_scale_draws(center: Tensor, freedom: Tensor, num_draws: int) -> Tensor:
    """Draws of log scales whose variances are inverse chi-square, shape (draws, number)."""
    wide = freedom.expand(num_draws, -1)
    return center + (wide / torch.distributions.Chi2(wide).sample()).log() / 2


def is_frozen_path(path: Tensor, bound: float) -> Tensor:
    """Times from which on a path stands still because it left the bound, (series, time, 1)."""
    is_outside = ~(path.abs() <= bound * (1 - 1e-6)).all(-1, keepdim=True)
    stands = (path == path[:, -1:]).all(-1, keepdim=True)
    near = (path[:, -1:].abs() > bound / 2).any(-1, keepdim=True)
    return is_outside | (stands & near)
