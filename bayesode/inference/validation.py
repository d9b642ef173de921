"""Looks at validation sequences during a fit, and the best state that was seen."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.checks import check_data
from bayesode.inference.elbo import elbo_terms
from bayesode.inference.guides import is_local
from bayesode.inference.randomness import seeded
from bayesode.inference.stopping import CYCLE
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

NUM_LOOKS = 20  # in a fit, but not more often than every 25 steps
FEWEST_STEPS = 25
NUM_SOLVES = 4  # of a look, each with the draws of a step: a look needs no more memory than a step
FIRST_SEED = 8_000_000  # the same draws at every look, far from the seeds that people give to fits


def check_validation(model: DynamicalModel, guide: Any, data: Trajectories) -> None:
    """Refuse validation data of which the guide could say nothing.

    Raises:
        DataError: If the guide keeps initial states of its own series, or is a Pyro program.
    """
    # rows of effects are beside what is encoded, rows of initial states in its place
    if not hasattr(guide, "posteriors") or (
        guide.row_parameters() and not hasattr(guide, "condition")
    ):
        raise DataError(
            f"validation= needs a guide that reads x0 off new series, and {type(guide).__name__} "
            "knows those of the fit alone: take AmortizedGuide(model, encoder), or score "
            "posterior.condition(new) after the fit."
        )
    check_data(model, data)


def validation_bound(
    model: DynamicalModel, guide: Any, data: Trajectories, *, num_particles: int
) -> float:
    """Bound on the log density of new series under the posterior, nats per series.

    Expected log likelihood minus the KL of what is drawn per series, by the same random draws at
    every call. The KL of the shared sites is no part of it: it belongs to the training data.
    """
    total = 0.0
    for k in range(NUM_SOLVES):
        with seeded(FIRST_SEED + k), torch.no_grad():
            terms = elbo_terms(model, guide, data, num_particles=num_particles)
        local = sum(value.item() for site, value in terms.kl.items() if is_local(site))
        total += (terms.log_likelihood.item() - local) / data.num_total
    return total / NUM_SOLVES


class Validation:
    """The best state of a fit on sequences that it does not learn from.

    Args:
        model: The fit's own copy.
        guide: The fit's own copy.
        data: The validation sequences.
        looks: Where (step, nats per series) is noted at every look.
        num_steps: Steps of the fit, all of which but the last may go without a look; None if their
            number is not known: a look after every cycle, when the learning rate is 0.
        num_particles: Draws of a step.
        patience: Looks without an improvement after which the fit ends; None for all steps.
    """

    def __init__(
        self,
        model: DynamicalModel,
        guide: Any,
        data: Trajectories,
        looks: list[tuple[int, float]],
        num_steps: int | None,
        *,
        num_particles: int,
        patience: int | None,
    ) -> None:
        self.model, self.guide, self.data, self.looks = model, guide, data, looks
        self.num_steps, self.num_particles, self.patience = num_steps, num_particles, patience
        self.every = max(FEWEST_STEPS, num_steps // NUM_LOOKS) if num_steps else CYCLE
        self._best, self._state, self._since = -math.inf, self._copy(), 0
        self.look(0)

    def __call__(self, step: int) -> bool:
        """Look if it is time to, and tell whether patience is at its end."""
        if step % self.every and step != self.num_steps:
            return False
        self.look(step)
        return self.patience is not None and self._since >= self.patience

    def look(self, step: int) -> None:
        """Score the present state, and keep it if it is the best."""
        nats = validation_bound(self.model, self.guide, self.data, num_particles=self.num_particles)
        self.looks.append((step, nats))
        if nats > self._best:
            self._best, self._state, self._since = nats, self._copy(), 0
        else:  # a NaN too
            self._since += 1

    def restore(self) -> None:
        """Go back to the best state that was looked at."""
        for part, state in zip((self.model, self.guide), self._state, strict=True):
            part.load_state_dict(state)

    def _copy(self) -> tuple[dict[str, Tensor], ...]:
        return tuple(
            {name: value.detach().clone() for name, value in part.state_dict().items()}
            for part in (self.model, self.guide)
        )
