"""The steps of an optimisation, with progress, skipped steps and an early end."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler
from tqdm.auto import tqdm

from bayesode.errors import DataError, FitError
from bayesode.inference.empirical import NUM_FROZEN
from bayesode.inference.objectives import Objective
from bayesode.inference.stopping import CYCLE, MAX_STEPS, SMALL_GAIN, StopRule
from bayesode.inference.window_schemes import Schedule, Window, whole
from bayesode.trajectories import Trajectories

# Largest gradient norm, in nats: a rare exploding draw must not undo the fit. Of large data, as
# images, every gradient is larger: a nat per observed number is ordinary there.
CLIP = 1000.0
MAX_SKIPPED = 50  # steps in a row without a finite gradient after which a fit is given up
PARTICLES_PER_STEP = 4  # in a look at the ELBO, times those of a step


@dataclass
class History:
    """What happened during a fit.

    Args:
        elbo: Estimates of the ELBO of the full data set at each step, nats, with all KL terms at
            weight 1 whatever `kl_weight` is. Of whole series under no schedule and under `prefix`;
            under `blocks` that of the model of windows; under `composite` the mean over several
            such models, which bounds no evidence. `posterior.elbo_terms()` is always that of whole
            series.
        start_ratio: Noise of the warm start over the smoother's estimate; None without one.
        num_attempts: Random starts of the warm start.
        num_skipped: Steps that were left out because a gradient was not finite.
        seconds: Wall time.
        is_interrupted: Whether the user stopped the fit.
        is_converged: Whether a further 100 steps would gain less than 1 nat with 95 % confidence;
            None for a number of steps that was asked for, or a fit that was ended before.
        gain: Expected rise of the ELBO over the next 100 steps, nats; None as before.
        gain_limit: Its upper 95 % limit, nats; None as before.
        validation: Pairs of a step and the bound on the log density of the validation sequences
            after it, nats per series.
    """

    elbo: list[float] = field(default_factory=list)
    start_ratio: float | None = None
    num_attempts: int = 0
    num_skipped: int = 0
    seconds: float = 0.0
    is_interrupted: bool = False
    is_converged: bool | None = None
    gain: float | None = None
    gain_limit: float | None = None
    validation: list[tuple[int, float]] = field(default_factory=list)


def always_one(fraction: float) -> float:
    """The weight of the KL terms in a plain fit."""
    return 1.0


def random_rows(train: Trajectories, size: int) -> Tensor:
    """Rows of some series, all of them or drawn without replacement, (size,)."""
    if size == train.num_series:
        return torch.arange(size, device=train.start.device)
    return torch.randperm(train.num_series)[:size].to(train.start.device)


class Loop:
    """The optimisation of an objective.

    Args:
        objective: What is maximised.
        train: All data.
        size: Series per step.
        num_particles: Draws per step.
        history: Where everything is noted.
        update: Called before every step but the last 50 (of each cycle, where their number is not
            known before): sets prior scales.
        schedule: What a step sees of a batch, after a fraction of the steps that were asked for.
        kl_weight: Weight of the KL terms in the gradient, after such a fraction.
        watchers: Called with the number of steps after each; True ends the fit.
    """

    def __init__(
        self,
        objective: Objective,
        train: Trajectories,
        size: int,
        num_particles: int,
        history: History,
        *,
        update: Callable[[], None] | None = None,
        schedule: Schedule = whole,
        kl_weight: Callable[[float], float] = always_one,
        watchers: Sequence[Callable[[int], bool]] = (),
    ) -> None:
        self.objective, self.train, self.size = objective, train, size
        self.num_particles, self.history, self.update = num_particles, history, update
        self.schedule, self.kl_weight, self.watchers = schedule, kl_weight, watchers
        self.clip = max(CLIP, train.num_observed)
        self._in_row = 0  # steps without a finite gradient
        self._is_over = False  # a watcher has ended the fit

    def run(
        self,
        optimizer: Callable[..., Any],
        rates: Mapping[str, float],
        num_steps: int | None,
        progress: bool,
    ) -> None:
        """Take the steps, until nothing is to be gained if no number is given; Ctrl-C ends them."""
        optimizers = self.objective.optimizers(optimizer, rates)
        most = num_steps or MAX_STEPS
        bar = tqdm(total=num_steps, desc="SVI", delay=2, mininterval=0.5, disable=not progress)
        try:
            with bar:
                if num_steps is None:
                    self._until_converged(optimizers, bar)
                else:
                    self._anneal(optimizers, num_steps, bar)
        except KeyboardInterrupt:
            self.history.is_interrupted = True
            warnings.warn(
                f"fit stopped by the user after {len(self.history.elbo)} of {most} steps; the "
                "posterior is what was reached.",
                stacklevel=3,
            )

    def _until_converged(self, optimizers: list[Any], bar: Any) -> None:
        """Cycles of steps until the next would gain less than 1 nat."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        first_rates = [group["lr"] for group in groups]
        history, rule = self.history, StopRule(self._estimate)
        history.is_converged = False
        while not rule.is_converged and len(history.elbo) < MAX_STEPS:
            for group, rate in zip(groups, first_rates, strict=True):
                group["lr"] = group["initial_lr"] = rule.factor * rate
            self._anneal(optimizers, CYCLE, bar)
            if self._is_over:
                history.is_converged = None
                return
            rule.end_cycle()
            history.gain, history.gain_limit = rule.gain, rule.gain_limit
        history.is_converged = rule.is_converged
        if not rule.is_converged:
            warnings.warn(
                f"the ELBO may still rise by {rule.gain_limit:.3g} nats in the next {CYCLE} steps "
                f"(upper 95 % limit, wanted below {SMALL_GAIN:g}) after {len(history.elbo)} steps: "
                f"give num_steps={2 * MAX_STEPS}, more num_particles, or another learning_rate.",
                stacklevel=4,
            )

    def _anneal(self, optimizers: list[Any], num_steps: int, bar: Any) -> None:
        """Steps while the learning rates fall to 0 along a cosine."""
        schedules = [lr_scheduler.CosineAnnealingLR(o, num_steps) for o in optimizers]
        for step, batch in enumerate(self._batches(num_steps)):
            if self.update is not None and step < num_steps - NUM_FROZEN:
                self.update()
            is_finite = self._step(self._window(batch, step / num_steps), optimizers)
            self._in_row = 0 if is_finite else self._in_row + 1
            self._check()
            for schedule in schedules:
                schedule.step()
            bar.update()
            if step % 25 == 0:
                bar.set_postfix(self.objective.status() | self._recent(), refresh=False)
            # all of them: none may miss a step because another one ends the fit
            self._is_over = any([watch(len(self.history.elbo)) for watch in self.watchers])
            if self._is_over:
                return

    def _window(self, batch: Trajectories, fraction: float) -> Window:
        """What a step sees of its batch."""
        window, weight = self.schedule(fraction, batch), self.kl_weight(fraction)
        if not isinstance(window, Window):
            raise DataError(f"a schedule returns a Window(trajectories, weights), not {window!r}.")
        if not 0 <= weight < math.inf:
            raise DataError(f"kl_weight must be a number from 0 on, not {weight}.")
        return replace(window, kl_weight=weight * window.kl_weight)

    def _estimate(self) -> float:
        """An estimate of the ELBO of all data, by random series where steps are."""
        batch = self.train
        if self.size < self.train.num_series:
            batch = self.train.batch(random_rows(self.train, self.size))
        return -self.objective.loss(Window(batch), PARTICLES_PER_STEP * self.num_particles).item()

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

    def _step(self, window: Window, optimizers: list[Any]) -> bool:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = self.objective.loss(window, self.num_particles)
        loss.backward()
        self.history.elbo.append(-loss.item())
        parameters = self.objective.named_parameters().values()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        is_finite = bool(torch.isfinite(norm))
        if is_finite:
            self.objective.before_step(window.trajectories)
        else:
            self.history.num_skipped += 1
        for optimizer in optimizers:
            if not is_finite:
                optimizer.zero_grad()  # nothing moves, but a schedule wants to see a step
            optimizer.step()
        return is_finite

    def _check(self) -> None:
        if self._in_row >= MAX_SKIPPED:
            raise FitError(
                f"the gradient was not finite in {self._in_row} steps in a row (step "
                f"{len(self.history.elbo)}): the "
                "drawn fields explode. Lower learning_rate, give the model the data's units "
                "(Units.from_data(train)), or shorten the solver's step."
            )

    def _recent(self) -> dict[str, str]:
        recent = self.history.elbo[-25:]
        return {"ELBO": f"{sum(recent) / len(recent):.1f}"}
