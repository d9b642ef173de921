"""The steps of an optimisation, with progress, skipped steps and an early end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler
from tqdm.auto import tqdm

from bayesode.errors import FitError
from bayesode.inference.empirical import NUM_FROZEN
from bayesode.inference.objectives import Objective
from bayesode.inference.stopping import CYCLE, MAX_STEPS, SMALL_GAIN, StopRule
from bayesode.trajectories import Trajectories

CLIP = 1000.0  # largest gradient norm, in nats: a rare exploding draw must not undo the fit
MAX_SKIPPED = 50  # steps in a row without a finite gradient after which a fit is given up
PARTICLES_PER_STEP = 4  # in a look at the ELBO, times those of a step


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
        is_converged: Whether a further 100 steps would gain less than 1 nat with 95 % confidence;
            None for a number of steps that was asked for.
        gain: Expected rise of the ELBO over the next 100 steps, nats; None as before.
        gain_limit: Its upper 95 % limit, nats; None as before.
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
    ) -> None:
        self.objective, self.train, self.size = objective, train, size
        self.num_particles, self.history, self.update = num_particles, history, update
        self._in_row = 0  # steps without a finite gradient

    def run(
        self,
        optimizer: Callable[..., Any],
        learning_rate: float,
        num_steps: int | None,
        progress: bool,
    ) -> None:
        """Take the steps, until nothing is to be gained if no number is given; Ctrl-C ends them."""
        optimizers = self.objective.optimizers(optimizer, learning_rate)
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
            is_finite = self._step(batch, optimizers)
            self._in_row = 0 if is_finite else self._in_row + 1
            self._check()
            for schedule in schedules:
                schedule.step()
            bar.update()
            if step % 25 == 0:
                bar.set_postfix(self.objective.status() | self._recent(), refresh=False)

    def _estimate(self) -> float:
        """An estimate of the ELBO of all data, by random series where steps are."""
        batch = self.train
        if self.size < self.train.num_series:
            batch = self.train.batch(random_rows(self.train, self.size))
        return -self.objective.loss(batch, PARTICLES_PER_STEP * self.num_particles).item()

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
