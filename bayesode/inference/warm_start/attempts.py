"""Fits from random starts, until one is good enough."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bayesode.errors import FitError
from bayesode.inference.stopwatch import Stopwatch
from bayesode.inference.warm_start.diffusion import (
    FIRST_SCALES,
    ROUNDS,
    SHRINKING,
    DiffusionProblem,
)
from bayesode.inference.warm_start.evidence import LaplaceFit, best_of, fit_noise, fit_scales
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.flat import MAX_WEIGHTS, LastLayer
from bayesode.inference.warm_start.levenberg_marquardt import Minimum, Point, levenberg_marquardt
from bayesode.inference.warm_start.matching import match_gradients
from bayesode.inference.warm_start.problem import PathProblem, StateProblem
from bayesode.inference.warm_start.shooting import fit_windows
from bayesode.plan import LITTLE_DATA
from bayesode.smoothing import Smoothed

PROCESS_SCALES = (0.1, 0.03, 0.01, 0.003)
FIRST_HORIZON, HORIZON_FACTOR = 1 / 8, 1.5  # of all intervals, and from each horizon to the next
MAX_ATTEMPTS, GOOD_RATIO = 4, 1.2
AGREEMENT = 0.05  # of two residuals: then it is the smoother's noise that is wrong
SMALLEST_NOISE = 0.01  # of a data sd: a smoother of smooth data may estimate none at all


def attempts(
    data: FitData,
    grid: Tensor,
    smoothed: Smoothed,
    *,
    is_tuned: bool = False,
    watch: Stopwatch | None = None,
) -> Iterator[LaplaceFit]:
    """Fits from random starts, until one is good enough; two ways to a path take turns.

    Args:
        data: The fit.
        grid: Of the smoothed path.
        smoothed: Path, derivative and noise estimate.
        is_tuned: As in `fit_noise`.
        watch: Counts the seconds of matching and paths ("lm") and of noise and evidence
            ("laplace").

    Raises:
        FitError: If no start leads to a fit.
    """
    watch = watch or Stopwatch()
    if len(data.field.mean) > MAX_WEIGHTS:
        yield fit_last_layer(data, grid, smoothed, is_tuned=is_tuned, watch=watch)
        return
    expected = smoothed.noise_scale.clamp_min(SMALLEST_NOISE)
    noise = data.measurement.noise_of(expected)
    residuals: list[Tensor] = []
    failure: FitError | None = None
    # little data have many optima of which the tightest is not the most probable: all are tried
    is_little = data.measurement.mask.sum() < LITTLE_DATA
    for way in itertools.islice(itertools.cycle((fit_path, fit_growing)), MAX_ATTEMPTS):
        with watch("lm"):
            weights = match_gradients(data.field, grid, smoothed)
            found = way(data, Point(weights, smoothed.path[:, ::2]), noise).point
            scale = data.measurement.residual_scale(data.path(found)).clamp_min(SMALLEST_NOISE)
        try:
            with watch("laplace"):
                scales = data.measurement.noise_of(scale)
                fit = fit_noise(data, found, scales, is_tuned=is_tuned)
        except FitError as error:  # this start led nowhere, another may not
            failure = error
            continue
        residuals.append(data.measurement.residual_scale(data.path(fit.point)))
        yield fit
        if not is_little and _is_reached(residuals, expected):
            return
    if not residuals and failure is not None:
        raise failure
    if not is_little:
        worst = min(float((scale / expected).max()) for scale in residuals)
        warnings.warn(
            f"no trajectory fit: from {MAX_ATTEMPTS} starts the residual is {worst:.2g} times the "
            "noise that a smoother finds. Fit a shorter horizon (train.until(...)), take more "
            "width or finer data; bayesode.diagnostics.diagnose(posterior) says more.",
            stacklevel=2,
        )


def diffusion_attempts(
    problem: DiffusionProblem,
    grid: Tensor,
    smoothed: Smoothed,
    *,
    is_tuned: bool = False,
    watch: Stopwatch | None = None,
) -> Iterator[LaplaceFit]:
    """Fits of a model with process noise from random starts, one for all but little data.

    Every interval is integrated on its own, so a start does not lose its way; little data have many
    optima, of which the most probable is to be found. A last fit has no process noise, which is as
    likely beforehand as that there is some; it counts where it is the more probable one. Little
    data are not asked that: they hardly ever contradict the path of an ODE, and forecasts would be
    far too sure.

    Args:
        problem: The fit, its noise scales not yet known.
        grid: Of the smoothed path.
        smoothed: Path, derivative and noise estimate at knots and the middles between them.
        is_tuned: As in `fit_noise`.
        watch: As in `attempts`.

    Raises:
        FitError: If no start leads to a fit.
    """
    watch, data = watch or Stopwatch(), problem.data
    expected = smoothed.noise_scale.clamp_min(SMALLEST_NOISE)
    seen = data.measurement.noise_of(expected)
    is_little = data.measurement.mask.sum() < LITTLE_DATA
    failure: FitError | None = None
    fits: list[LaplaceFit] = []
    first = itertools.cycle(FIRST_SCALES)
    for scale in itertools.islice(first, MAX_ATTEMPTS if is_little else len(FIRST_SCALES)):
        begin = problem.at(data, torch.cat([seen, problem.process.scales_of(scale)]))
        with watch("lm"):
            point = Point(match_gradients(data.field, grid, smoothed), smoothed.path[:, ::2])
        try:
            with watch("laplace"):
                fits.append(fit_scales(begin, point, is_tuned=is_tuned, rounds=ROUNDS))
        except FitError as error:  # this start led nowhere, another may not
            failure = error
            continue
        yield fits[-1]
    if not fits and failure is not None:
        raise failure
    if is_little:
        return
    best = best_of(fits)
    last = problem.at(best.data, best.noise)
    with watch("laplace"), contextlib.suppress(FitError):
        without = fit_without_process(last, best.point, is_tuned=is_tuned)
        if without.log_evidence > best.log_evidence:
            yield without


def fit_without_process(
    problem: DiffusionProblem, point: Point, *, is_tuned: bool = False
) -> LaplaceFit:
    """The fit in which process noise is none, from one in which it may be.

    Raises:
        FitError: If the curvature there is not positive.
    """
    without, damping = problem.without_process(), 1e-2
    for scale in SHRINKING:
        found = levenberg_marquardt(
            without.within(scale), point, max_iterations=12, tolerance=1e-3, damping=damping
        )
        point, damping = found.point, max(found.damping, 1e-5)
    return fit_scales(without, point, is_tuned=is_tuned, rounds=ROUNDS)


def _is_reached(residuals: list[Tensor], noise: Tensor) -> bool:
    """Whether the residual is the smoother's noise, or two starts agree that it is another."""
    lowest = sorted(residuals, key=lambda scale: float((scale / noise).max()))
    if bool((lowest[0] / noise).max() < GOOD_RATIO):
        return True
    return len(lowest) > 1 and bool((lowest[1] / lowest[0]).log().abs().max() < AGREEMENT)


def fit_path(data: FitData, point: Point, noise: Tensor) -> Minimum:
    """Weights and x0 that fit the data, from weights and states near them.

    Process noise between the knots shrinks in four stages, then the path itself is fitted.
    """
    damping = 1e-2
    for scale in PROCESS_SCALES:
        problem = StateProblem.shrunk(data, noise, scale)
        found = levenberg_marquardt(
            problem, point, max_iterations=12, tolerance=1e-3, damping=damping
        )
        point, damping = found.point, max(found.damping, 1e-5)
    first = Point(point.weights, point.states[:, :1])
    # few steps: rounds with the right noise scale follow, and steps towards a wrong one are lost
    return levenberg_marquardt(
        PathProblem(data, noise), first, max_iterations=10, tolerance=1e-3, damping=1e-3
    )


def fit_growing(data: FitData, point: Point, noise: Tensor) -> Minimum:
    """Weights and x0 that fit the data, over a horizon that grows from an eighth to the whole."""
    shortest, *further = horizons(data.gaps.shape[1])

    def fit(horizon: int, begin: Point) -> Minimum:
        problem = PathProblem(data.until(horizon), noise)
        return levenberg_marquardt(problem, begin, max_iterations=10, tolerance=3e-4)

    minimum = fit(shortest, Point(point.weights, point.states[:, :1]))
    for horizon in further:
        minimum = fit(horizon, minimum.point)
    return minimum


def horizons(num_intervals: int) -> list[int]:
    """Numbers of intervals from an eighth to all of them, each half as long again.

    Example:
        >>> horizons(50)
        [7, 11, 17, 26, 40, 50]
    """
    lengths = [max(2, math.ceil(num_intervals * FIRST_HORIZON))]
    while lengths[-1] < num_intervals:
        lengths.append(min(num_intervals, int(HORIZON_FACTOR * lengths[-1]) + 1))
    return [min(length, num_intervals) for length in lengths]


def fit_many(data: FitData, grid: Tensor, smoothed: Smoothed) -> Point:
    """The fit of a field with too many numbers for normal equations, by first-order steps."""
    first = Point(match_gradients(data.field, grid, smoothed), smoothed.path[:, ::2])
    expected = smoothed.noise_scale.clamp_min(SMALLEST_NOISE)
    return fit_windows(data, first, data.measurement.noise_of(expected), expected.mean())


def fit_last_layer(
    data: FitData, grid: Tensor, smoothed: Smoothed, *, is_tuned: bool, watch: Stopwatch
) -> LaplaceFit:
    """A fit of all numbers, and its noise and evidence with only the last layer random."""
    with watch("lm"):
        point = fit_many(data, grid, smoothed)
    field = LastLayer.below(data.field, point.weights, MAX_WEIGHTS)
    own = replace(data, field=field)
    last = Point(point.weights[-len(field.mean) :], point.states)
    scale = data.measurement.residual_scale(data.path(point)).clamp_min(SMALLEST_NOISE)
    with watch("laplace"):
        return fit_noise(own, last, data.measurement.noise_of(scale), is_tuned=is_tuned)
