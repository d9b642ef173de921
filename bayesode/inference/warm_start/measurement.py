"""What the data say of a path, as a trajectory fit sees it: deviance, its slope, information."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesode.inference.warm_start.flat import FlatField
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

NUM_NEWTON = 20  # on a concave function of few scales: 5 would do
LARGEST_STEP = 1.0  # of the logarithm of a noise scale in one Newton step
SMALLEST_SHARE = 0.1  # of the observations that always count as degrees of freedom
SMALLEST_NOISE = 0.005  # of a data sd


@dataclass(frozen=True, eq=False)
class Measurement:
    """The likelihood of the data along a path, for any likelihood that tells its information.

    Paths have one knot more than the data have times: the start, where nothing is observed. The
    noise is one vector: the likelihood's own sites in unconstrained coordinates.

    Args:
        likelihood: The random part in float64.
        sites: Its sites as one vector, with their prior; None if nothing in it is random.
        values: In users' units, NaN or anything where masked, (series, time, component).
        mask: True where observed, shaped like values.
        response: Values as dimensionless states, 0 where masked, (series, time, component).
    """

    likelihood: Any
    sites: FlatField
    values: Tensor
    mask: Tensor
    response: Tensor

    @classmethod
    def of(cls, model: DynamicalModel, train: Trajectories) -> Measurement:
        """The measurements of data under a model; none at all for a question without values."""
        sites = FlatField.of(model.likelihood)
        response = observed_response(model, train)
        has_values = train.values is not None and train.mask is not None
        values = train.values.double() if has_values else response  # type: ignore[union-attr]
        mask = train.mask if has_values else torch.zeros_like(response, dtype=torch.bool)
        return cls(sites.field, sites, values, mask, response)  # type: ignore[arg-type]

    def part(self, index: Any) -> Measurement:
        """The measurements of some series and times."""
        names = ("values", "mask", "response")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    # ---- the noise -------------------------------------------------------------------------------
    def noise_of(self, scale: Tensor) -> Tensor:
        """The vector for noise scales (component,) of the dimensionless response."""
        return self.sites.pack(self.likelihood.starting_values(scale))

    def noise_values(self, noise: Tensor) -> dict[str, Tensor]:
        """Values of the likelihood's sites for vectors (*draws, num_numbers)."""
        return self.sites.unpack(noise)

    def better_noise(
        self, path: Tensor, noise: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The noise of largest evidence at a fit, its degrees of freedom, and what the fit took.

        Log likelihood and prior are exact along the noise; the volume of the fit's posterior
        follows the information of the values, linearly in the logarithm of a scale (exactly so for
        scale families): for normal noise this is the residual sum of squares over n - p_eff.

        Args:
            path: Of the fit, shape (series, knot, state).
            noise: At which the variance was found.
            variance: Posterior variance of the observed states, (series, time, component).

        Returns:
            The vector; half the curvature of the log posterior along it (of a normal noise scale
            the degrees of freedom); and the number of fitted numbers per entry.
        """
        if len(noise) == 0:
            return noise, noise, noise
        with torch.enable_grad():
            place = noise.detach().requires_grad_()
            information = self._information(path, place)
            seen = torch.where(self.mask, information, 1.0)
            used = torch.autograd.grad((variance * seen).sum(), place, retain_graph=True)[0] / -2
            count = torch.autograd.grad(seen.log().sum(), place)[0] / -2
            used = used.minimum((1 - SMALLEST_SHARE) * count)
            best, curvature = self._maximise(path, noise, used)
        floor = self.noise_of(torch.full_like(self.response[0, 0], SMALLEST_NOISE))
        return best.maximum(floor), curvature / 2, used

    def _maximise(self, path: Tensor, noise: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Newton on log likelihood + used * noise + log prior; entries do not interact."""
        curvature = torch.ones_like(noise)
        for _ in range(NUM_NEWTON):
            place = noise.detach().requires_grad_()
            prior = -((place - self.sites.mean) / self.sites.sd).square().sum() / 2
            value = self.log_prob(path, place) + used @ place + prior
            slope = torch.autograd.grad(value, place, create_graph=True)[0]
            curvature = -torch.autograd.grad(slope.sum(), place)[0]
            step = (slope.detach() / curvature.abs().clamp_min(1e-6)).clamp(
                -LARGEST_STEP, LARGEST_STEP
            )
            noise = noise + step
            if step.abs().max() < 1e-9:
                break
        return noise.detach(), curvature.clamp_min(1e-6)

    # ---- the path --------------------------------------------------------------------------------
    def log_prob(self, path: Tensor, noise: Tensor) -> Tensor:
        """Log likelihood of all values, a scalar, in users' units."""
        law = self.sites.build(noise)(path[:, 1:], self.mask)  # type: ignore[operator]
        return law.log_prob(self.values).sum()

    def largest(self, noise: Tensor, size: int) -> float:
        """Log likelihood of the path through the data, for states of this size."""
        response = pad(self.response, (0, size - self.response.shape[-1], 1, 0))
        return float(self.log_prob(response, noise))

    def pull(self, path: Tensor, noise: Tensor) -> Tensor:
        """Slope of the log likelihood along a path, shaped like the path."""
        with torch.enable_grad():
            place = path.detach().requires_grad_()
            return torch.autograd.grad(self.log_prob(place, noise), place)[0]

    def information(self, path: Tensor, noise: Tensor) -> Tensor:
        """Expected information of the values about the states, shaped like the path."""
        seen = torch.where(self.mask, self._information(path, noise), 0.0)
        return pad(seen, (0, path.shape[-1] - seen.shape[-1], 1, 0))

    def _information(self, path: Tensor, noise: Tensor) -> Tensor:
        return self.likelihood.fisher(path[:, 1:], self.sites.unpack(noise))

    def residual_scale(self, path: Tensor) -> Tensor:
        """Root mean square distance of a path to the response per component, (component,)."""
        error = (self.response - path[:, 1:, : self.response.shape[-1]]).square()
        return (torch.where(self.mask, error, 0.0).sum((0, 1)) / self.mask.sum((0, 1))).sqrt()


def observed_response(model: DynamicalModel, train: Trajectories) -> Tensor:
    """Data as a smoother may see them, 0 where missing, float64 (series, time, component)."""
    if train.values is None:
        return train.grid.new_zeros(*train.grid.shape, len(train.names))
    inside = train.values[train.mask][0]  # type: ignore[index]  # inside the support
    values = torch.where(train.mask, train.values, inside).double()  # type: ignore[arg-type]
    return torch.where(train.mask, model.likelihood.working_response(values), 0.0)  # type: ignore
