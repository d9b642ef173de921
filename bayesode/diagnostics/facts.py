"""What a report looks at: the fit beside its data, each quantity computed once, when first asked.

States, residuals and noise are dimensionless, in the model's units; times are in users' units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayesode.inference.checks import has_random_paths
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.posterior import Posterior
from bayesode.inference.predictive import solve_draws
from bayesode.inference.warm_start.attempts import SMALLEST_NOISE
from bayesode.inference.warm_start.measurement import observed_response
from bayesode.inference.warm_start.start import smooth_knots
from bayesode.smoothing import Smoothed
from bayesode.trajectories import Trajectories

NUM_DRAWS = 100
NUM_SOLVED = 8  # draws that are solved next to each other to see how far neighbours part
NUM_TIMES = 60  # at which they are compared
SHIFT = 1e-7  # between neighbours, in data sds: far above rounding in float64
LARGEST_PARTING = math.log(0.1 / SHIFT)  # beyond, neighbours are no neighbours any more


@dataclass(frozen=True, eq=False)
class Facts:
    """A posterior and a question, and what follows from both.

    Args:
        posterior: The fit.
        question: Series and times that were asked.
    """

    posterior: Posterior
    question: Trajectories

    # ---- the data ----------------------------------------------------------------------------
    @property
    def train(self) -> Trajectories:
        """The data of the fit."""
        return self.posterior.train

    @cached_property
    def has_random_paths(self) -> bool:
        """Whether paths have noise of their own."""
        return has_random_paths(self.posterior.model, self.train)

    @cached_property
    def values(self) -> Tensor:
        """The data in users' units, NaN where missing, (series, time, component), float64."""
        values, mask = self.train.values, self.train.mask
        if values is None or mask is None or values.dim() != 3:
            raise ValueError("the data are no vectors (series, time, component)")
        return torch.where(mask, values.double(), torch.nan)

    @cached_property
    def response(self) -> Tensor:
        """The data as dimensionless states, NaN where missing, (series, time, component)."""
        if not hasattr(self.posterior.model.likelihood, "working_response"):
            name = type(self.posterior.model.likelihood).__name__
            raise ValueError(f"{name} has no working_response(values)")
        seen = observed_response(self.posterior.model, self.train).double()
        return torch.where(self.values.isfinite(), seen, torch.nan)

    @cached_property
    def smoothed(self) -> Smoothed:
        """The smoother's view of the data."""
        return smooth_knots(self.posterior.model, self.train)[1]

    @property
    def smoothers_noise(self) -> Tensor:
        """The smoother's estimate of the noise, (component,)."""
        return self.smoothed.noise_scale.clamp_min(SMALLEST_NOISE)

    @cached_property
    def gap(self) -> Tensor:
        """Median dimensionless time between neighbouring times."""
        gaps = torch.diff(self.train.grid, dim=-1)
        return gaps[gaps > 0].median() / self.posterior.model.units.time_unit

    # ---- the fit -----------------------------------------------------------------------------
    @cached_property
    def fitted(self) -> Ensemble:
        """Predictions at the data."""
        return self.posterior.predict(self.train, num_draws=NUM_DRAWS, seed=0)

    @cached_property
    def asked(self) -> Ensemble:
        """Predictions at the question."""
        return self.posterior.predict(self.question, num_draws=NUM_DRAWS, seed=0)

    @cached_property
    def num_weights(self) -> int:
        """Random numbers of the field."""
        draws = self.fitted.draws
        return sum(v[0].numel() for site, v in draws.items() if site.startswith("field."))

    @cached_property
    def precision(self) -> Tensor:
        """Posterior mean of 1 / noise variance at each value, (series, time, component)."""
        likelihood = self.posterior.model.likelihood
        if not hasattr(likelihood, "fisher"):
            raise ValueError(f"{type(likelihood).__name__} has no fisher(path, values)")
        sites = {
            site.removeprefix("likelihood."): value.unsqueeze(1)
            for site, value in self.fitted.draws.items()
            if site.startswith("likelihood.")
        }
        information = likelihood.fisher(self.fitted.path, sites)  # type: ignore[operator]
        return information.double().expand(NUM_DRAWS, *self.response.shape).mean(0)

    @cached_property
    def noise(self) -> Tensor:
        """The fitted noise scale, (component,)."""
        seen = torch.where(self.response.isfinite(), self.precision, torch.nan)
        return seen.nanmean((0, 1)).rsqrt()

    @cached_property
    def residual(self) -> Tensor:
        """Data minus mean path, NaN where missing, (series, time, component)."""
        return self.response - self._mean_path

    @cached_property
    def deviation(self) -> Tensor:
        """Draws of the path minus their mean, 0 for failed ones, (draws, series, time, component).

        Scaled so that their mean square over all draws is the variance of the valid ones.
        """
        is_valid = ~self.fitted.failed[..., None, None]
        share = is_valid.double().mean(0).clamp_min(1 / NUM_DRAWS)
        away = self._observed_path - self._mean_path
        return torch.where(is_valid, away, 0.0) / share.sqrt()

    @cached_property
    def _observed_path(self) -> Tensor:
        return self.fitted.path.double()[..., : self.response.shape[-1]]

    @cached_property
    def _mean_path(self) -> Tensor:
        is_valid = ~self.fitted.failed[..., None, None]
        return torch.where(is_valid, self._observed_path, 0.0).sum(0) / is_valid.sum(0)

    @cached_property
    def residual_scale(self) -> Tensor:
        """Root mean square residual, (component,)."""
        return self.residual.square().nanmean((0, 1)).sqrt()

    # ---- the question ------------------------------------------------------------------------
    @cached_property
    def time_beyond(self) -> float:
        """How far the question reaches beyond the data, the longest of its series."""
        last = self.train.grid.amax(-1)[self.train.positions(self.question.series)]
        return (self.question.grid.amax(-1) - last.to(self.question.grid)).max().item()

    def solved(self, question: Trajectories, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """Paths of a few draws from shifted initial states, each solved, never linearised.

        Draws of a linearised posterior are no solutions, so there its center is solved.

        Args:
            question: Series and times.
            shifts: Of x0, in data sds, shape (shift, state).

        Returns:
            Paths (shift, draws, series, time, state) and which failed (shift, draws, series).
        """
        if hasattr(self.posterior.predictive, "center"):
            values = self.posterior.predictive.center(question)  # type: ignore[attr-defined]
        else:
            some = {site: v[:NUM_SOLVED] for site, v in self.fitted.draws.items()}
            rows = self.train.positions(question.series)
            x0 = self.posterior.model.units.to_state(some.pop("x0")[:, rows])
            values = {site: value.unsqueeze(1) for site, value in some.items()} | {"x0": x0}
        values = {site: value.double() for site, value in values.items()}
        count = len(values["x0"])
        copies = {s: torch.cat([v] * len(shifts)) for s, v in values.items()}
        copies["x0"] = copies["x0"] + shifts.double().repeat_interleave(count, 0).unsqueeze(1)
        with torch.no_grad():
            paths, failed = solve_draws(self.posterior.model, copies, question)
        return paths.unflatten(0, (-1, count)), failed.unflatten(0, (-1, count))

    @cached_property
    def asked_paths(self) -> tuple[Tensor, Tensor]:
        """Paths of draws at the question that are solved, and which of them failed.

        Shapes (draws, series, time, state) and (draws, series). Draws of paths with noise of their
        own are taken as they are: they are no solutions from their initial state alone.
        """
        if self.has_random_paths:
            return self.asked.path, self.asked.failed
        paths, failed = self.solved(self.question, torch.zeros(1, self.fitted.path.shape[-1]))
        return paths[0], failed[0]

    @cached_property
    def parting(self) -> tuple[Tensor, Tensor]:
        """Times since the start, in users' units, and the mean log distance of neighbours then.

        Both of shape (time,); the distance is one of solved paths that began together, relative to
        the distance at which they began.
        """
        rows = self.train.positions(self.question.series)
        start = self.train.start[rows]
        longest = (self.question.grid.amax(-1).to(start) - start).max()
        elapsed = longest * torch.linspace(1, NUM_TIMES, NUM_TIMES).to(longest) / NUM_TIMES
        asked = self.train.rows(torch.as_tensor(rows)).at(start.unsqueeze(-1) + elapsed)
        dim = self.fitted.path.shape[-1]
        shifts = SHIFT * torch.eye(dim + 1, dim, dtype=torch.float64)
        paths, failed = self.solved(asked, shifts.roll(1, 0))
        change = (paths[1:] - paths[:1]).square().sum((0, -1)).sqrt() / (SHIFT * dim**0.5)
        is_valid = ~failed.any(0) & (change > 0).all(-1)  # a frozen path parts from nothing
        return elapsed, change[is_valid].log().mean(0)
