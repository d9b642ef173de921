"""When the optimisation of an ELBO may end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from bayesode.inference.randomness import seeded

CYCLE = 100  # steps over which the learning rate falls to 0; the rule speaks of the next as many
MAX_STEPS = 3000
SMALL_GAIN = 1.0  # nats
LEVEL = 0.95
NUM_GROUPS = 32  # of draws per look: 512 in all make the limits about half a nat wide
FIRST_SEED = 7_000_000  # of the looks: far from the seeds that people give to fits
TRIMMED = 0.1  # of the groups on either side: one draw that explodes must not decide


@dataclass(frozen=True)
class Gain:
    """By how much an ELBO rose, nats.

    Args:
        mean: Estimate.
        lower: Lower 95 % limit, one-sided.
        upper: Upper 95 % limit, one-sided.
    """

    mean: float
    lower: float
    upper: float


def paired_gain(before: Tensor, after: Tensor) -> Gain:
    """The rise of an ELBO between two sets of parameters, from the same random draws.

    The difference of two estimates from the same draws is far less noisy than either: a step's own
    estimate has a sd of 40 nats on a network of 160 weights, by which 1 nat is not seen within
    500 steps. A tenth of the groups is trimmed at either end.

    Args:
        before: Estimates, one per group of draws, shape (groups,).
        after: The same groups at the later parameters.

    Returns:
        Infinite limits if fewer than half of the groups are finite.

    Source: Yuen (1974), "The two-sample trimmed t for unequal population variances", Biometrika
    61(1): trimmed mean with its winsorised standard error.

    Example:
        >>> draws = 100 * torch.randn(32)
        >>> round(paired_gain(draws, draws + 2).upper, 3)
        2.0
    """
    change = (after - before).double()
    change = change[change.isfinite()].sort().values
    if len(change) < max(5, len(before) // 2):
        return Gain(math.nan, -math.inf, math.inf)
    num_cut = int(TRIMMED * len(change))
    kept = change[num_cut : len(change) - num_cut]
    spread = change.clamp(kept[0], kept[-1]).std().item()  # winsorised
    error = spread / ((1 - 2 * num_cut / len(change)) * math.sqrt(len(change)))
    margin = float(stdtrit(len(kept) - 1, LEVEL)) * error
    mean = kept.mean().item()
    return Gain(mean, mean - margin, mean + margin)


class StopRule:
    """Cycles of steps with a falling learning rate, until a further one would gain too little.

    Each cycle of 100 steps lets the rate fall to 0, so that what is compared is free of the
    optimiser's own noise. The rate of the next cycle is half as large unless the ELBO still rises
    clearly. The gain to be expected from it is the gain of the last times the ratio of the rates:
    to first order both progress and the noise of the end of a cycle are proportional to the rate.

    Args:
        estimate: Gives a random estimate of the ELBO at the present parameters.

    Source: cycles: Loshchilov and Hutter (2017), "SGDR", arXiv:1608.03983; rate lowered on a
    plateau and ended by relative gain in ELBO: Kucukelbir et al. (2017), JMLR 18(14).
    """

    def __init__(self, estimate: Callable[[], float]) -> None:
        self.estimate = estimate
        self.factor = 1.0  # of the first learning rate
        self.gain, self.gain_limit = math.nan, math.inf  # over the next cycle: mean, upper limit
        self._last = self._look()

    @property
    def is_converged(self) -> bool:
        """Whether the upper limit of the gain over the next 100 steps is below 1 nat."""
        return self.gain_limit < SMALL_GAIN

    def end_cycle(self) -> None:
        """Look at the ELBO and set the rate of the next cycle."""
        now = self._look()
        gain, self._last = paired_gain(self._last, now), now
        ratio = 1.0 if gain.lower > SMALL_GAIN else 0.5
        self.factor *= ratio
        self.gain, self.gain_limit = ratio * gain.mean, ratio * gain.upper

    def _look(self) -> Tensor:
        values = []
        for group in range(NUM_GROUPS):
            with seeded(FIRST_SEED + group), torch.no_grad():
                values.append(self.estimate())
        return torch.tensor(values, dtype=torch.float64)
