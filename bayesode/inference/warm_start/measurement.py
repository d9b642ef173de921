"""What the data say of a path, as a trajectory fit sees it: deviance, its slope, information."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesode.inference.warm_start.flat import FlatField
from bayesode.inference.warm_start.scales import Scales, most_probable_scales
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

SMALLEST_SHARE = 0.1  # of the observations that always count as degrees of freedom
SMALLEST_NOISE = 0.005  # of a data sd
NEAR_FLOOR = 0.1  # of the logarithm of a noise scale


@dataclass(frozen=True, eq=False)
class Measurement:
    """The likelihood of the data along a path, for any likelihood that tells its information.

    Paths are states at knots, among which are the times of the data. The noise is one vector: the
    likelihood's own sites in unconstrained coordinates.

    Args:
        likelihood: The random part in float64.
        sites: Its sites as one vector, with their prior; None if nothing in it is random.
        values: In users' units, NaN or anything where masked, (series, time, component).
        mask: True where observed, shaped like values.
        response: Values as dimensionless states, 0 where masked, (series, time, component).
        knots: Number of the knot at which each value lies, shape (series, time).
    """

    likelihood: Any
    sites: FlatField
    values: Tensor
    mask: Tensor
    response: Tensor
    knots: Tensor

    @classmethod
    def of(
        cls, model: DynamicalModel, train: Trajectories, knots: Tensor | None = None
    ) -> Measurement:
        """The measurements of data under a model; none at all for a question without values.

        Args:
            model: With a likelihood that tells its information.
            train: The data.
            knots: By default the first knot is the start and the others are the times.
        """
        sites = FlatField.of(model.likelihood)
        response = observed_response(model, train)
        has_values = train.values is not None and train.mask is not None
        values = train.values.double() if has_values else response  # type: ignore[union-attr]
        mask = train.mask if has_values else torch.zeros_like(response, dtype=torch.bool)
        if knots is None:
            knots = torch.arange(1, mask.shape[1] + 1).expand(mask.shape[:2])  # type: ignore
        place = knots.to(response.device)  # type: ignore[union-attr]
        return cls(sites.field, sites, values, mask, response, place)  # type: ignore[arg-type]

    def part(self, index: Any) -> Measurement:
        """The measurements of some series and times."""
        names = ("values", "mask", "response", "knots")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    # ---- the noise -------------------------------------------------------------------------------
    def noise_of(self, scale: Tensor) -> Tensor:
        """The vector for noise scales (component,) of the dimensionless response."""
        return self.sites.pack(self.likelihood.starting_values(scale))

    def noise_values(self, noise: Tensor) -> dict[str, Tensor]:
        """Values of the likelihood's sites for vectors (*draws, num_numbers)."""
        return self.sites.unpack(noise)

    def better_noise(self, path: Tensor, noise: Tensor, variance: Tensor) -> Scales:
        """The noise of largest evidence at a fit.

        Args:
            path: Of the fit, shape (series, knot, state).
            noise: At which the variance was found.
            variance: Posterior variance of the observed states, (series, time, component).
        """
        found = most_probable_scales(
            lambda place: self.log_prob(path, place),
            lambda place: (self._information(path, place), self.mask),
            variance,
            self.sites,
            noise,
            smallest_share=SMALLEST_SHARE,
        )
        if len(found.best) == 0:
            return found
        return found._replace(best=found.best.maximum(self.floor))

    @property
    def floor(self) -> Tensor:
        """The smallest noise that is taken for one."""
        return self.noise_of(torch.full_like(self.response[0, 0], SMALLEST_NOISE))

    def is_singular(self, noise: Tensor) -> bool:
        """Whether a path goes through the values of a component as if they had no noise."""
        return len(noise) > 0 and bool((noise <= self.floor + NEAR_FLOOR).any())

    # ---- the path --------------------------------------------------------------------------------
    def at_data(self, path: Tensor) -> Tensor:
        """The states of a path (series, knot, state) at the times of the data."""
        return path.gather(1, self.knots.unsqueeze(-1).expand(-1, -1, path.shape[-1]))

    def log_prob(self, path: Tensor, noise: Tensor) -> Tensor:
        """Log likelihood of all values, a scalar, in users' units."""
        return self._log_prob(self.at_data(path), noise)

    def largest(self, noise: Tensor, size: int) -> float:
        """Log likelihood of the path through the data, for states of this size."""
        response = pad(self.response, (0, size - self.response.shape[-1]))
        return float(self._log_prob(response, noise))

    def pull(self, path: Tensor, noise: Tensor) -> Tensor:
        """Slope of the log likelihood along a path, shaped like the path."""
        with torch.enable_grad():
            place = path.detach().requires_grad_()
            return torch.autograd.grad(self.log_prob(place, noise), place)[0]

    def information(self, path: Tensor, noise: Tensor) -> Tensor:
        """Expected information of the values about the states, shaped like the path."""
        seen = torch.where(self.mask, self._information(path, noise), 0.0)
        seen = pad(seen, (0, path.shape[-1] - seen.shape[-1]))
        index = self.knots.unsqueeze(-1).expand_as(seen)
        return torch.zeros_like(path).scatter_add(1, index, seen)

    def _log_prob(self, states: Tensor, noise: Tensor) -> Tensor:
        law = self.sites.build(noise)(states, self.mask)  # type: ignore[operator]
        return law.log_prob(self.values).sum()

    def _information(self, path: Tensor, noise: Tensor) -> Tensor:
        return self.likelihood.fisher(self.at_data(path), self.sites.unpack(noise))

    def residual_scale(self, path: Tensor) -> Tensor:
        """Root mean square distance of a path to the response per component, (component,)."""
        seen = self.at_data(path)[..., : self.response.shape[-1]]
        error = torch.where(self.mask, self.response - seen, 0.0).square()
        return (error.sum((0, 1)) / self.mask.sum((0, 1))).sqrt()


def observed_response(model: DynamicalModel, train: Trajectories) -> Tensor:
    """Data as a smoother may see them, 0 where missing, float64 (series, time, component)."""
    if train.values is None:
        return train.grid.new_zeros(*train.grid.shape, len(train.names))
    inside = train.values[train.mask][0]  # type: ignore[index]  # inside the support
    values = torch.where(train.mask, train.values, inside).double()  # type: ignore[arg-type]
    return torch.where(train.mask, model.likelihood.working_response(values), 0.0)  # type: ignore
