"""The predictive ensemble: draws of paths and values in users' units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bayesode import scores
from bayesode.errors import DataError
from bayesode.inference.blocks import Block, assembled, blocks_of
from bayesode.inference.checks import observed_at
from bayesode.inference.randomness import seeded
from bayesode.inference.variance_parts import PairedPaths, VarianceParts, variance_parts
from bayesode.models.contracts import Observe
from bayesode.trajectories import Trajectories
from bayesode.units import Units


@contextmanager
def without_gradients(seed: int | None) -> Iterator[None]:
    """A block under a seed, in which no gradient is recorded."""
    with seeded(seed), torch.no_grad():
        yield


class Ensemble:
    """Draws of the posterior predictive at the asked times.

    What is kept are paths. `signal` and `values` are computed from them when they are read; means,
    bands and scores compute them block by block (a few series at a time), so that images fit into
    memory: 200 draws of 100 videos of 32 frames are 2 GB in `values` and 20 MB in each block.

    Failed draws (frozen because they left the model's bound) are kept in the arrays and left out
    of means, quantiles and scores; `share_failed` tells how many there are.

    Args:
        trajectories: What was asked.
        path: Dimensionless paths, shape (draws, series, time, state).
        observe: How the draws are seen.
        failed: Shape (draws, series).
        values: Noisy draws in users' units, shape (draws, series, time, *event), where they are
            known already; else they are drawn from `observe` when they are needed.
        units: Of the model.
        train: The data of the fit.
        solver_error: Computes the solver's error when asked for.
        draws: The sites behind the paths in users' units, as `Posterior.draws` gives them.
        path_sd: Computes the posterior sd of the dimensionless paths, (series, time, state), when
            asked for; by default that of the draws.
        pairs: Computes the partners of the draws for `variance_parts` when asked for.
        noise_seed: Of the noise of the values.
        observe_in: How the draws in one block are seen, where that depends on its series or times;
            `observe` by default.
        scope: From a seed to a block in which things are drawn and decoded.
    """

    def __init__(
        self,
        *,
        trajectories: Trajectories,
        path: Tensor,
        observe: Observe,
        failed: Tensor,
        units: Units,
        train: Trajectories,
        solver_error: Callable[[], float],
        values: Tensor | None = None,
        draws: dict[str, Tensor] | None = None,
        path_sd: Callable[[], Tensor] | None = None,
        pairs: Callable[[], PairedPaths] | None = None,
        noise_seed: int = 0,
        observe_in: Callable[[Block], Observe] | None = None,
        scope: Callable[[int | None], AbstractContextManager[Any]] = without_gradients,
    ) -> None:
        self.trajectories, self.path, self.observe = trajectories, path, observe
        self.failed, self.units, self.train = failed, units, train
        self._solver_error, self.draws, self._pairs = solver_error, draws or {}, pairs
        self._path_sd = (lambda: self.sd(of="path")) if path_sd is None else path_sd
        self.noise_seed, self._scope = noise_seed, scope
        self.observe_in = observe_in or (lambda block: self.observe)
        if values is not None:
            self.values = values

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
        return self._whole("signal")

    @cached_property
    def values(self) -> Tensor:
        """Noisy draws in users' units, shape (draws, series, time, *event).

        The same whatever was asked for before: their noise has a seed of its own.
        """
        return self._whole("values")

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one observation."""
        return self.values.shape[3:] if "values" in vars(self) else self._decoded_shape

    @cached_property
    def _decoded_shape(self) -> torch.Size:
        single = Block(slice(0, 1), slice(0, 1), self.noise_seed)  # a series at one time tells it
        with self._scope(single.seed):
            return self.observe_in(single).signal(single.of(self.path)).shape[3:]

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Pieces of the draws that fit into memory one at a time; a single one of small data."""
        return blocks_of((*self.path.shape[:3], *self.event_shape), self.noise_seed)

    def draws_in(self, block: Block, of: str = "values") -> Tensor:
        """The draws in one block, shape (draws, series, time, ...), kept if it is the only one.

        Args:
            block: One of `blocks`.
            of: "values" (with noise), "signal", "states" or "path" (dimensionless states).

        Raises:
            DataError: For anything else.
        """
        if of not in ("values", "signal", "states", "path"):
            raise DataError(f"of= must be 'values', 'signal', 'states' or 'path', not {of!r}.")
        if of == "path" or of in vars(self):
            return block.of(getattr(self, of))
        if len(self.blocks) == 1:
            return getattr(self, of)
        return self._computed(block, of)

    def _computed(self, block: Block, of: str) -> Tensor:
        path = block.of(self.path)
        if of == "states":
            return self.units.to_users(path)
        observe = self.observe_in(block)
        with self._scope(block.seed):
            return observe.signal(path) if of == "signal" else observe(path, None).sample()

    def _whole(self, of: str) -> Tensor:
        return assembled(self.blocks, (self._computed(block, of) for block in self.blocks))

    def _each(self, of: str, summary: Callable[[Block, Tensor], Tensor]) -> Tensor:
        """A summary (any, series, time, ...) of the draws of every block, in one piece."""
        return assembled(self.blocks, (summary(b, self.draws_in(b, of)) for b in self.blocks))

    def _points(self, of: str, summary: Callable[[Block, Tensor], Tensor]) -> Tensor:
        """A summary (series, time, ...) of the draws of every block, in one piece."""
        return self._each(of, lambda block, draws: summary(block, draws)[None])[0]

    def _valid_in(self, block: Block) -> Tensor:
        return ~self.failed[:, block.rows]

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
            return ~(self._path_sd() <= 1)  # NaN counts

    @property
    def share_undetermined(self) -> float:
        """Share of the asked (time, state) that the data do not determine."""
        steps = torch.arange(self.path.shape[2], device=self.path.device)
        is_asked = steps < self.trajectories.num_times.to(steps.device)[:, None]  # no padding
        return self.undetermined[is_asked].double().mean().item()

    def seen_through(self, change: Callable[[Observe, Block], Observe]) -> Ensemble:
        """The same paths, seen in another way: means, bands and scores follow.

        Args:
            change: From how the draws in a block are seen to how they are to be seen.
        """
        everything = Block(slice(None), slice(None), self.noise_seed)
        return Ensemble(
            trajectories=self.trajectories,
            path=self.path,
            observe=change(self.observe, everything),
            failed=self.failed,
            units=self.units,
            train=self.train,
            solver_error=lambda: self.solver_error,
            draws=self.draws,
            path_sd=self._path_sd,
            pairs=self._pairs,
            noise_seed=self.noise_seed,
            observe_in=lambda block: change(self.observe_in(block), block),
            scope=self._scope,
        )

    # ---- summaries -------------------------------------------------------------------------------
    @cached_property
    def mean(self) -> Tensor:
        """Mean of the signal over the draws, shape (series, time, *event).

        NaN for a series of which every draw failed; `predict` warns of it.
        """
        return self._points("signal", lambda b, x: scores.mean(x, self._valid_in(b)))

    def sd(self, *, of: str = "values") -> Tensor:
        """Standard deviation over the draws, shape (series, time, ...).

        Args:
            of: "values" (with noise: that of a new observation), "signal", "states" or "path"
                (the dimensionless states).
        """
        return self._points(of, lambda b, x: scores.sd(x, self._valid_in(b)))

    @cached_property
    def median(self) -> Tensor:
        """Median of the values: the point forecast, shape (series, time, *event)."""
        return self.quantile(0.5)[0]

    def quantile(self, levels: float | Sequence[float], *, of: str = "values") -> Tensor:
        """Quantiles over the draws, shape (levels, series, time, ...).

        Args:
            levels: Between 0 and 1.
            of: As in `sd`.
        """
        wanted = torch.as_tensor(levels, dtype=self.path.dtype).reshape(-1)
        if not ((wanted >= 0) & (wanted <= 1)).all():
            raise DataError(f"quantile levels lie between 0 and 1, not {levels}.")
        levels = wanted.tolist()
        return self._each(of, lambda b, x: scores.quantile(x, levels, self._valid_in(b)))

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
        return VarianceParts(*assembled(self.blocks, (self._parts(b, pairs) for b in self.blocks)))

    def _parts(self, block: Block, pairs: PairedPaths) -> Tensor:
        """The parts of the variance in one block, (part, series, time, *event)."""
        own, observe = pairs.of(block), self.observe_in(block)
        with self._scope(block.seed):
            failed = self.failed[:, block.rows]
            return torch.stack(variance_parts(block.of(self.path), observe, failed, own).all)

    def paired(self) -> PairedPaths:
        """The partners of the draws, solved at each call.

        Raises:
            DataError: As `variance_parts`.
        """
        if self._pairs is None:
            raise DataError("this ensemble was not made by predict(...): nothing can be redrawn.")
        return self._pairs()

    # ---- scores ----------------------------------------------------------------------------------
    def log_prob(self, test: Trajectories) -> Tensor:
        """Log likelihood of single observations given each draw, (draws, series, time, *event).

        Args:
            test: Observed at the times that were asked; 0 where a value is missing.

        Raises:
            DataError: If `test` has other times than were asked.
            ShapeError: If it has other series or components.
        """
        self._observed(test)
        return assembled(self.blocks, (self.log_prob_in(b, test) for b in self.blocks))

    def log_prob_in(self, block: Block, test: Trajectories) -> Tensor:
        """`log_prob` of the series and times of one block."""
        values, mask = self._observed(test)
        observe, path = self.observe_in(block), block.of(self.path)
        with self._scope(block.seed):
            law = observe(path, block.at(mask))
            return law.base_dist.log_prob(block.at(values).to(path.dtype))  # type: ignore

    def log_score(self, test: Trajectories) -> Tensor:
        """Log of the predictive density of each observation, shape (series, time, *event), nats.

        As `bayesode.scores.log_score`, block by block; NaN where nothing was observed.

        Args:
            test: As in `log_prob`.

        Raises:
            DataError: As `log_prob`.
            ShapeError: As `log_prob`.
        """
        _, mask = self._observed(test)
        parts = (
            scores.log_score(self.log_prob_in(b, test), self._valid_in(b))[None]
            for b in self.blocks
        )
        return torch.where(mask, assembled(self.blocks, parts)[0], torch.nan)

    def crps(self, test: Trajectories) -> Tensor:
        """Continuous ranked probability score of each observation, (series, time, *event).

        As `bayesode.scores.crps`, block by block; NaN where nothing was observed.

        Args:
            test: As in `log_prob`.

        Raises:
            DataError: As `log_prob`.
            ShapeError: As `log_prob`.
        """
        values, mask = self._observed(test)
        found = self._points(
            "values", lambda b, x: scores.crps(x, b.at(values).to(x), self._valid_in(b))
        )
        return torch.where(mask, found, torch.nan)

    def covers(self, test: Trajectories, level: float = 0.9) -> Tensor:
        """Whether the central interval holds each observation, booleans (series, time, *event).

        False where nothing was observed: the coverage is `covers(test)[test.mask].double().mean()`.

        Args:
            test: As in `log_prob`.
            level: Probability of the interval.

        Raises:
            DataError: As `log_prob`, or if the level lies outside [0, 1].
            ShapeError: As `log_prob`.
        """
        values, mask = self._observed(test)
        low, high = self.interval(level)
        return mask & (low <= values) & (values <= high)

    def _observed(self, test: Trajectories) -> tuple[Tensor, Tensor]:
        """Values and mask of data at the asked series and times."""
        return observed_at(test, self.trajectories, self.event_shape, self.train.names)
