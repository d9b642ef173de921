"""Damped Gauss-Newton steps on weights and states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bayesode.inference.warm_start.blocks import BorderedChain

MAX_TRIES = 6  # rejected steps in a row after which an optimum is taken as reached


@dataclass(frozen=True, eq=False)
class Point:
    """Weights (num_numbers,) and states (series, knot, state)."""

    weights: Tensor
    states: Tensor


class LeastSquares(Protocol):
    """A cost that is a sum of squares."""

    def cost(self, point: Point) -> float:
        """Sum of squared residuals, prior included."""
        ...

    def linearise(self, point: Point) -> BorderedChain:
        """Normal equations of a step at a point."""
        ...


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where the steps ended.

    Args:
        point: Best point found.
        cost: Its cost.
        damping: With which a next run may begin.
        num_iterations: Accepted steps.
    """

    point: Point
    cost: float
    damping: float
    num_iterations: int


def levenberg_marquardt(
    problem: LeastSquares,
    point: Point,
    *,
    max_iterations: int,
    tolerance: float,
    damping: float = 1e-2,
) -> Minimum:
    """Lower a cost by damped Gauss-Newton steps.

    Args:
        problem: The cost and its normal equations.
        point: Where to begin.
        max_iterations: Largest number of accepted steps.
        tolerance: Relative decrease below which it stops.
        damping: Initial damping, relative to the diagonal; times 4 on a rejected step, a fifth
            after an accepted one.

    Source: More (1978), "The Levenberg-Marquardt algorithm".
    """
    cost, num_iterations = problem.cost(point), 0
    while num_iterations < max_iterations:
        system, accepted = problem.linearise(point), None
        for _ in range(MAX_TRIES):
            step = system.solve(damping)
            if step is not None:
                moved = Point(point.weights + step[0], point.states + step[1])
                new_cost = problem.cost(moved)
                if new_cost < cost:  # False for NaN
                    accepted = moved
                    break
            damping *= 4
        if accepted is None:
            break
        decrease = (cost - new_cost) / max(cost, 1e-300)
        point, cost, num_iterations = accepted, new_cost, num_iterations + 1
        damping = max(damping / 5, 1e-6)
        if decrease < tolerance:
            break
    return Minimum(point, cost, damping, num_iterations)
