"""Stochastic variational inference: one function for our guides, Pyro's and the user's own."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bayesode.errors import DataError, FitError, SolverError
from bayesode.inference.checks import check_data
from bayesode.inference.copies import own_copies
from bayesode.inference.objectives import Objective, objective_for
from bayesode.inference.posterior import Posterior
from bayesode.inference.randomness import seeded
from bayesode.inference.threads import threads_for
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

NUM_PARTICLES = 4
CLIP = 1000.0  # largest gradient norm, in nats: a rare exploding draw must not undo the fit
LARGEST_SHARE_FAILED = 0.05  # of a fit's paths: more is no accident of single draws
MAX_SKIPPED = 50  # steps in a row without a finite gradient after which a fit is given up


@dataclass
class History:
    """What happened during a fit.

    Args:
        elbo: Estimates of the ELBO of the full data set at each step, nats.
        start_ratio: Noise of the warm start over the smoother's estimate; None without one.
        num_attempts: Random starts of the warm start.
        num_skipped: Steps that were left out because a gradient was not finite.
        seconds: Wall time.
        is_interrupted: Whether the user stopped the fit.
    """

    elbo: list[float] = field(default_factory=list)
    start_ratio: float | None = None
    num_attempts: int = 0
    num_skipped: int = 0
    seconds: float = 0.0
    is_interrupted: bool = False


def fit_svi(
    model: DynamicalModel,
    guide: Any,
    train: Trajectories,
    *,
    seed: int | None = None,
    num_steps: int | None = None,
    learning_rate: float | None = None,
    num_particles: int = NUM_PARTICLES,
    batch_size: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    warm_start: bool = True,
    progress: bool = True,
) -> Posterior:
    """Fit a guide to data by maximising the ELBO, from a warm start.

    The warm start fits the trajectories by Levenberg-Marquardt from smoothed data and sets every
    posterior scale from the Gauss-Newton diagonal; the steps then maximise the full ELBO.
    Everything happens on copies: model, guide, parameter store and random state stay as they were.

    Args:
        model: The generative model.
        guide: One of ours (run on `elbo_terms`), a Pyro autoguide or your own (run on Pyro's
            `Trace_ELBO`).
        train: Training data.
        seed: Same seed, same posterior; None takes one from torch's generator.
        num_steps: Optimiser steps; 300 for our guides, 1000 for others.
        learning_rate: It decays to 0 along a cosine. For our guides in units of each location's
            posterior scale (default .05), for others absolute (1e-3, and 30 times that for
            parameters whose names say scale).
        num_particles: Draws per step, solved as one batch.
        batch_size: Series per step; all by default.
        optimizer: A torch optimiser class or a function of parameter groups. Per-series rows keep
            Adam moments of their own when there are minibatches.
        warm_start: Whether to start from the smoothed data. Needs a guide of ours or an autoguide
            that has not run yet.
        progress: Show a bar on anything over two seconds.

    Returns:
        The posterior. Ctrl-C ends the fit early and returns what was reached.

    Raises:
        DataError: If the data cannot be fitted as they are.
        FitError: If the data lie outside the model's units, the guide does not suit minibatches,
            or no gradient is finite.
        SolverError: If an adaptive solver gives up.

    Source: Kingma and Welling (2014), arXiv:1312.6114; Ranganath et al. (2014), arXiv:1401.0118.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=2, num_times=12).observed
        >>> model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)
        >>> len(posterior.history.elbo)
        5
    """
    check_data(model, train)
    _check_positive(num_steps=num_steps, num_particles=num_particles, learning_rate=learning_rate)
    if batch_size is not None and not 1 <= batch_size <= train.num_series:
        raise DataError(f"batch_size must lie between 1 and {train.num_series}, not {batch_size}.")
    if set(getattr(guide, "series", train.series)) != set(train.series):
        raise DataError(
            f"the guide has initial states of the series {list(guide.series[:5])}, the data are of "
            f"{list(train.series[:5])}: build it on these data, MeanFieldGuide(model, train)."
        )
    history, begin = History(), time.perf_counter()
    size = train.num_series if batch_size is None else int(batch_size)
    with (
        seeded(seed) as used_seed,
        pyro.get_param_store().scope() as state,
        threads_for(size * num_particles),
    ):
        dtype, device = train.values.dtype, train.values.device  # type: ignore[union-attr]
        model, guide = own_copies(model, guide, dtype=dtype, device=device)
        objective = objective_for(model, guide, is_minibatch=size < train.num_series)
        num_steps = num_steps or objective.default_num_steps
        learning_rate = learning_rate or objective.default_learning_rate
        start = objective.warm_start(train) if warm_start else None
        if start is not None:
            history.start_ratio, history.num_attempts = start.ratio, start.num_attempts
        objective.prepare(train.batch(_rows(train, size)), num_particles)
        loop = _Loop(objective, train, size, num_particles, history)
        loop.run(optimizer, learning_rate, num_steps, progress)
    history.seconds = time.perf_counter() - begin
    settings = {
        "engine": "svi",
        "seed": used_seed,
        "num_steps": num_steps,
        "learning_rate": learning_rate,
        "num_particles": num_particles,
        "batch_size": batch_size,
        "warm_start": warm_start,
    }
    state = dict(state)
    posterior = Posterior(model, guide, train, history=history, settings=settings, state=state)
    _check_paths(posterior)
    return posterior


def _check_paths(posterior: Posterior) -> None:
    """Say so if the fit's own paths leave the model's bound within the data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # predict's own, which speaks of one series
        try:
            share = posterior.predict(posterior.train, num_draws=20, seed=0).share_failed
        except SolverError as error:  # the fit is done: it must not be lost
            share, reason = 0.0, f"paths of the fit cannot be solved: {error}"
        else:
            reason = f"{share:.0%} of the fit's paths leave the model's bound within the data"
            if share <= LARGEST_SHARE_FAILED:
                return
    mend = "tighten the prior of the field, shorten the series, or look at the units"
    if share == 1:
        raise FitError(f"{reason}: the drawn fields explode. Please {mend}.")
    warnings.warn(f"{reason}; {mend}.", stacklevel=3)


def _check_positive(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not value > 0:
            raise DataError(f"{name} must be positive, not {value}.")


def _rows(train: Trajectories, size: int) -> Tensor:
    if size == train.num_series:
        return torch.arange(size, device=train.start.device)
    return torch.randperm(train.num_series)[:size].to(train.start.device)


class _Loop:
    """The optimisation, with progress, skipped steps and an early end."""

    def __init__(
        self,
        objective: Objective,
        train: Trajectories,
        size: int,
        num_particles: int,
        history: History,
    ) -> None:
        self.objective, self.train, self.size = objective, train, size
        self.num_particles, self.history = num_particles, history

    def run(
        self, optimizer: Callable[..., Any], learning_rate: float, num_steps: int, progress: bool
    ) -> None:
        """Take the steps; Ctrl-C ends them early."""
        optimizers = self.objective.optimizers(optimizer, learning_rate)
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, num_steps) for o in optimizers]
        in_row = 0
        bar = tqdm(total=num_steps, desc="SVI", delay=2, mininterval=0.5, disable=not progress)
        try:
            with bar:
                for step, batch in enumerate(self._batches(num_steps)):
                    is_finite = self._step(batch, optimizers)
                    in_row = 0 if is_finite else in_row + 1
                    self._check(in_row, step)
                    for schedule in schedules:
                        schedule.step()
                    bar.update()
                    if step % 25 == 0:
                        bar.set_postfix(self.objective.status() | self._recent(), refresh=False)
        except KeyboardInterrupt:
            self.history.is_interrupted = True
            warnings.warn(
                f"fit stopped by the user after {len(self.history.elbo)} of {num_steps} steps; the "
                "posterior is what was reached.",
                stacklevel=3,
            )

    def _batches(self, num_steps: int) -> Iterator[Trajectories]:
        """All series, or random disjoint batches of them, epoch after epoch."""
        order: list[Tensor] = []
        for _ in range(num_steps):
            if self.size == self.train.num_series:
                yield self.train
                continue
            if not order:
                parts = torch.randperm(self.train.num_series).split(self.size)
                order = [rows for rows in parts if len(rows) == self.size]
            yield self.train.batch(order.pop().to(self.train.start.device))

    def _step(self, batch: Trajectories, optimizers: list[Any]) -> bool:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = self.objective.loss(batch, self.num_particles)
        loss.backward()
        self.history.elbo.append(-loss.item())
        norm = torch.nn.utils.clip_grad_norm_(self.objective.named_parameters().values(), CLIP)
        is_finite = bool(torch.isfinite(norm))
        if is_finite:
            self.objective.before_step(batch)
        else:
            self.history.num_skipped += 1
        for optimizer in optimizers:
            if not is_finite:
                optimizer.zero_grad()  # nothing moves, but a schedule wants to see a step
            optimizer.step()
        return is_finite

    def _check(self, in_row: int, step: int) -> None:
        if in_row >= MAX_SKIPPED:
            raise FitError(
                f"the gradient was not finite in {in_row} steps in a row (step {step + 1}): the "
                "drawn fields explode. Lower learning_rate, give the model the data's units "
                "(Units.from_data(train)), or shorten the solver's step."
            )

    def _recent(self) -> dict[str, str]:
        recent = self.history.elbo[-25:]
        return {"ELBO": f"{sum(recent) / len(recent):.1f}"}
