"""The predictive ensemble: draws of paths and values in users' units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from bayesode import scores
from bayesode.errors import DataError, ShapeError
from bayesode.inference.variance_parts import PairedPaths, VarianceParts, variance_parts
from bayesode.models.contracts import Observe
from bayesode.trajectories import Trajectories
from bayesode.units import Units


class Ensemble:
    """Draws of the posterior predictive at the asked times.

    Failed draws (frozen because they left the model's bound) are kept in the arrays and left out
    of means, quantiles and scores; `share_failed` tells how many there are.

    Args:
        trajectories: What was asked.
        path: Dimensionless paths, shape (draws, series, time, state).
        observe: How the draws are seen.
        failed: Shape (draws, series).
        values: Noisy draws in users' units, shape (draws, series, time, *event).
        units: Of the model.
        train: The data of the fit.
        solver_error: Computes the solver's error when asked for.
        draws: The sites behind the paths in users' units, as `Posterior.draws` gives them.
        path_sd: Computes the posterior sd of the dimensionless paths, (series, time, state), when
            asked for; by default that of the draws.
        pairs: Computes the partners of the draws for `variance_parts` when asked for.
    """

    def __init__(
        self,
        *,
        trajectories: Trajectories,
        path: Tensor,
        observe: Observe,
        failed: Tensor,
        values: Tensor,
        units: Units,
        train: Trajectories,
        solver_error: Callable[[], float],
        draws: dict[str, Tensor] | None = None,
        path_sd: Callable[[], Tensor] | None = None,
        pairs: Callable[[], PairedPaths] | None = None,
    ) -> None:
        self.trajectories, self.path, self.observe = trajectories, path, observe
        self.failed, self.values, self.units, self.train = failed, values, units, train
        self._solver_error, self.draws, self._pairs = solver_error, draws or {}, pairs
        self._path_sd = self._sd_of_draws if path_sd is None else path_sd

    def __repr__(self) -> str:
        draws, series, times = self.path.shape[:3]
        return (
            f"Ensemble({draws} draws x {series} series x {times} times, "
            f"{self.share_failed:.1%} failed)"
        )

    @property
    def times(self) -> Tensor:
        """Asked times in the unit of the data, shape (time,) or (series, time)."""
        return self.trajectories.times

    @property
    def transform(self) -> str:
        """Scale on which the state is dimensionless: "identity" or "log"."""
        return self.units.transform

    @cached_property
    def states(self) -> Tensor:
        """Paths in users' units, shape (draws, series, time, state)."""
        return self.units.to_users(self.path)

    @cached_property
    def signal(self) -> Tensor:
        """What would be observed without noise, shape (draws, series, time, *event)."""
        return self.observe.signal(self.path)

    @property
    def share_failed(self) -> float:
        """Share of the draws (of all series) that failed."""
        return self.failed.double().mean().item()

    @cached_property
    def solver_error(self) -> float:
        """Root mean square distance to a tight solve, in units of the noise, on a few draws.

        Above .1 the numerical error is no longer small beside the noise: take a smaller step.
        """
        return self._solver_error()

    @cached_property
    def undetermined(self) -> Tensor:
        """Where the data do not determine the path, booleans (series, time, state).

        There its posterior sd, on the scale of the transform, exceeds one sd of the data: a guess
        that knows no dynamics is as good. Linearised predictions are capped; this is the sd before
        the cap. True for a series of which every draw failed.
        """
        with torch.no_grad():
            return ~(self._path_sd() <= 1)

    @property
    def share_undetermined(self) -> float:
        """Share of the asked (time, state) that the data do not determine."""
        steps = torch.arange(self.path.shape[2], device=self.path.device)
        is_asked = steps < self.trajectories.num_times.to(steps.device)[:, None]  # no padding
        return self.undetermined[is_asked].double().mean().item()

    # ---- summaries -------------------------------------------------------------------------------
    @cached_property
    def mean(self) -> Tensor:
        """Mean of the signal over the draws, shape (series, time, *event).

        NaN for a series of which every draw failed; `predict` warns of it.
        """
        valid = self._valid(self.signal)
        return torch.where(valid, self.signal, 0.0).sum(0) / valid.sum(0)

    @cached_property
    def median(self) -> Tensor:
        """Median of the values: the point forecast, shape (series, time, *event)."""
        return self.quantile(0.5)[0]

    def quantile(self, levels: float | Sequence[float], *, of: str = "values") -> Tensor:
        """Quantiles over the draws, shape (levels, series, time, ...).

        Args:
            levels: Between 0 and 1.
            of: "values" (with noise), "signal" or "states".
        """
        wanted = torch.as_tensor(levels, dtype=self.path.dtype).reshape(-1)
        if not ((wanted >= 0) & (wanted <= 1)).all():
            raise DataError(f"quantile levels lie between 0 and 1, not {levels}.")
        return scores.quantile(self._of(of), wanted.tolist(), ~self.failed)

    def interval(self, level: float = 0.9, *, of: str = "values") -> tuple[Tensor, Tensor]:
        """Lower and upper end of the central interval, each (series, time, ...)."""
        low, high = self.quantile([(1 - level) / 2, (1 + level) / 2], of=of)
        return low, high

    def variance_parts(self) -> VarianceParts:
        """What the variance of the values is made of: weights, initial state, process, noise.

        By two more draws for each one, with the same weights, and with the same weights and initial
        state; solved when first asked for. Print it for a table of shares.

        Raises:
            DataError: If there is a single draw, the law of the values does not tell its variance,
                or the posterior cannot draw initial states and paths given weights.

        Example:
            >>> import bayesode as bo
            >>> train = bo.datasets.van_der_pol(num_series=2, num_times=20).observed
            >>> model, guide = bo.neural_ode(train, hidden=[2], verbose=False)
            >>> prior = bo.sample_prior(model, train.until(0.5), num_draws=50, seed=0)
            >>> prior.variance_parts().process.max()
            tensor(0.)
        """
        return self._variance_parts

    @cached_property
    def _variance_parts(self) -> VarianceParts:
        if len(self.path) < 2:
            raise DataError("a single draw has no variance: ask for num_draws of 2 or more.")
        pairs = self.paired()
        with torch.no_grad():
            return variance_parts(self.path, self.observe, self.failed, pairs)

    def paired(self) -> PairedPaths:
        """The partners of the draws, solved at each call.

        Raises:
            DataError: As `variance_parts`.
        """
        if self._pairs is None:
            raise DataError("this ensemble was not made by predict(...): nothing can be redrawn.")
        return self._pairs()

    def log_prob(self, test: Trajectories) -> Tensor:
        """Log likelihood of single observations given each draw, (draws, series, time, *event).

        Args:
            test: Observed at the times that were asked; 0 where a value is missing.

        Raises:
            DataError: If `test` has other times than were asked.
            ShapeError: If it has other series or components.
        """
        if test.values is None or test.mask is None:
            raise DataError("scores need observed values; this is a question without values.")
        asked = self.trajectories
        if test.series != asked.series or test.grid.shape != asked.grid.shape:
            raise ShapeError(
                f"scores need data at the series and times of the ensemble ({asked!r}), not "
                f"{test!r}; predict(train.at(test))."
            )
        if not torch.allclose(test.grid, asked.grid, rtol=1e-12, atol=0.0):
            raise DataError("the data have other times than the ensemble: predict(train.at(test)).")
        if test.values.shape[2:] != self.values.shape[3:] or test.names != self.train.names:
            raise ShapeError(
                f"scores need the components of the fit, {list(self.train.names)}, not "
                f"{list(test.names)} of shape {tuple(test.values.shape[2:])}."
            )
        with torch.no_grad():
            law = self.observe(self.path, test.mask)
            return law.base_dist.log_prob(test.values.to(self.path.dtype))  # type: ignore

    def _sd_of_draws(self) -> Tensor:
        valid = self._valid(self.path)
        count = valid.sum(0)
        mean = torch.where(valid, self.path, 0.0).sum(0) / count
        squares = torch.where(valid, self.path - mean, 0.0).square().sum(0)
        return torch.where(count > 0, (squares / (count - 1).clamp_min(1)).sqrt(), torch.inf)

    def _of(self, name: str) -> Tensor:
        if name not in ("values", "signal", "states"):
            raise DataError(f"of= must be 'values', 'signal' or 'states', not {name!r}.")
        return getattr(self, name)

    def _valid(self, draws: Tensor) -> Tensor:
        return ~self.failed.view(*self.failed.shape, *[1] * (draws.dim() - 2))
