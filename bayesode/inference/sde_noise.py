"""Laws of the increments behind the paths of an SDE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from bayesode.errors import ShapeError
from bayesode.models.solvers.sde_grid import Increments


class ShiftedNoise(dist.TorchDistribution):
    """Standard-normal increments, shifted by sqrt(h) u(t, x), with u a function of the past.

    In the coordinates of the prior's increments this is the law of an SDE with the same noise and
    the drift f + g u; the map from unshifted to shifted increments has a unit Jacobian. The KL
    divergence to the prior is half the sum of u^2 h along a path (Girsanov): it is taken along the
    draw that was made last, and exact where u does not depend on the path.

    Args:
        walk: (x0, increments) walks the SDE from x0 and asks increments(k, state) once per step, in
            order.
        shift: (k, state right before the noise of step k) -> sqrt(h) u, shaped like the state.
        x0: Initial states, shape (*draws, series, state).
        num_steps: Number of increments.

    Source: Archambeau et al. (2007), Variational inference for diffusion processes, NeurIPS 20; Li
    et al. (2020), arXiv:2001.01328, section 5.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - torch's own name
    support: Any = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        walk: Callable[[Tensor, Increments], Any],
        shift: Increments,
        x0: Tensor,
        num_steps: int,
    ) -> None:
        self.walk, self.shift, self.x0, self.num_steps = walk, shift, x0, num_steps
        self.shifts: Tensor | None = None
        event_shape = torch.Size([num_steps, x0.shape[-1]])
        super().__init__(x0.shape[:-1], event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> ShiftedNoise:
        """The law from as many initial states; itself, with its last draw, if they are the same."""
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        x0 = self.x0.expand(*batch_shape, self.x0.shape[-1])
        return ShiftedNoise(self.walk, self.shift, x0, self.num_steps)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Increments, shape (*sample_shape, *draws, series, steps, state)."""
        x0 = self.x0.expand(*sample_shape, *self.x0.shape)
        unshifted = torch.randn(
            self._extended_shape(sample_shape), dtype=x0.dtype, device=x0.device
        )
        noise, self.shifts = self._follow(x0, lambda k, s: unshifted[..., k, :] + s)
        return noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of increments, shape (*sample_shape, *draws, series)."""
        x0 = self.x0.expand(*value.shape[:-2], self.x0.shape[-1])
        given = value.to(x0.dtype)
        _, shifts = self._follow(x0, lambda k, s: given[..., k, :])
        return dist.Normal(shifts, torch.ones_like(shifts)).log_prob(given).sum((-1, -2))

    def _follow(
        self, x0: Tensor, increment: Callable[[int, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Increments and their shifts, each (..., series, steps, state)."""
        noise, shifts = [], []

        def ask(k: int, x: Tensor) -> Tensor:
            shifts.append(self.shift(k, x).expand_as(x))
            noise.append(increment(k, shifts[-1]))
            return noise[-1]

        self.walk(x0, ask)
        if not noise:
            nothing = x0.new_zeros(*x0.shape[:-1], 0, x0.shape[-1])
            return nothing, nothing
        return torch.stack(noise, -2), torch.stack(shifts, -2)


@register_kl(ShiftedNoise, dist.Independent)
def _girsanov(posterior: ShiftedNoise, prior: dist.Independent) -> Tensor:
    if posterior.shifts is None:
        raise NotImplementedError("the KL divergence is taken along a draw; make one first")
    if posterior.event_shape != prior.event_shape:
        raise ShapeError(
            f"the guide has increments of {tuple(posterior.event_shape)} (steps, state), the model "
            f"of {tuple(prior.event_shape)}: build the guide for this model and these data, "
            "SDEGuide(model, data)."
        )
    shifted = dist.Normal(posterior.shifts, torch.ones_like(posterior.shifts))
    return kl_divergence(shifted, prior.base_dist).sum((-1, -2))
