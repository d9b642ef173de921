"""From data to a converged trajectory fit: where every engine begins."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesode.errors import FitError
from bayesode.inference.stopwatch import Stopwatch
from bayesode.inference.warm_start.evidence import LaplaceFit, fit_noise
from bayesode.inference.warm_start.flat import MAX_WEIGHTS, LastLayer
from bayesode.inference.warm_start.levenberg_marquardt import Minimum, Point, levenberg_marquardt
from bayesode.inference.warm_start.matching import match_gradients
from bayesode.inference.warm_start.measurement import observed_response
from bayesode.inference.warm_start.problem import FitData, PathProblem, StateProblem
from bayesode.inference.warm_start.shooting import fit_windows
from bayesode.models.dynamical import DynamicalModel
from bayesode.smoothing import Smoothed, smooth
from bayesode.threads import threads_for
from bayesode.trajectories import Trajectories

PROCESS_SCALES = (0.1, 0.03, 0.01, 0.003)
FIRST_HORIZON, HORIZON_FACTOR = 1 / 8, 1.5  # of all intervals, and from each horizon to the next
MAX_ATTEMPTS, GOOD_RATIO = 4, 1.2
AGREEMENT = 0.05  # of two residuals: then it is the smoother's noise that is wrong
LITTLE_DATA = 100  # numbers, below which all attempts are made and the evidence decides
SMALLEST_NOISE = 0.01  # of a data sd: a smoother of smooth data may estimate none at all
UNFITTED_SCALE = 0.01  # posterior sd of a site whose information is not known


@dataclass(frozen=True)
class Start:
    """Where a fit begins.

    Args:
        values: A value per global site, and x0 (series, state), dimensionless.
        scales: Posterior sd of the unconstrained sites near the fit, from the Gauss-Newton
            diagonal.
        units: In which the locations of some sites move, where it is not their scale.
        ratio: Noise scale of the fit over the smoother's estimate, the largest component; above
            1.2 the trajectory was not reached, or the smoother's estimate is too small.
        num_attempts: Random starts that were tried.
    """

    values: dict[str, Tensor]
    scales: dict[str, Tensor]
    units: dict[str, Tensor]
    ratio: float
    num_attempts: int


def smooth_knots(model: DynamicalModel, train: Trajectories) -> tuple[Tensor, Smoothed]:
    """The smoothed data at start, asked times and the middles between them.

    Returns:
        Grid (series, 2 time + 1) and the smoothed path on it, dimensionless, float64.
    """
    start, times = model.units.dimensionless_times(train)
    knots = torch.cat([start.unsqueeze(-1), times], -1)
    middle = (knots[:, 1:] + knots[:, :-1]) / 2
    grid = torch.cat([torch.stack([knots[:, :-1], middle], -1).flatten(-2), knots[:, -1:]], -1)
    response = observed_response(model, train)
    return grid, smooth(times, response, train.mask, grid)  # type: ignore[arg-type]


def find_start(model: DynamicalModel, train: Trajectories) -> Start:
    """A trajectory fit of weights and initial states, and how well they are determined.

    Smooth; match gradients; fit weights and states with process noise that shrinks; fit weights and
    x0 over the path. Up to four random starts until the residual reaches the smoother's noise.

    Args:
        model: Any model whose likelihood has a `working_response`.
        train: The data.

    Raises:
        FitError: If the likelihood cannot say what a smoother may see, or components of the state
            are not observed.

    Source: weak-constraint start: Tremolet (2006), "Accounting for an imperfect model in 4D-Var",
    QJRMS 132.
    """
    with torch.no_grad(), threads_for(train.grid.numel()):
        data, grid, smoothed = prepare(model, train)
        expected = smoothed.noise_scale.clamp_min(SMALLEST_NOISE)
        noise = data.measurement.noise_of(expected)
        if len(data.field.mean) > MAX_WEIGHTS:
            point = fit_many(data, grid, smoothed)
            return _start(model, data, point, noise, expected, 1)
        tries = list(attempts(data, grid, smoothed))
        best = max(tries, key=lambda fit: fit.log_evidence)
        return _start(model, data, best.point, best.noise, expected, len(tries))


def fit_many(data: FitData, grid: Tensor, smoothed: Smoothed) -> Point:
    """The fit of a field with too many numbers for normal equations, by first-order steps."""
    first = Point(match_gradients(data.field, grid, smoothed), smoothed.path[:, ::2])
    expected = smoothed.noise_scale.clamp_min(SMALLEST_NOISE)
    return fit_windows(data, first, data.measurement.noise_of(expected), expected.mean())


def prepare(model: DynamicalModel, train: Trajectories) -> tuple[FitData, Tensor, Smoothed]:
    """The trajectory fit of a model to data, and the smoothed data at which it begins.

    Raises:
        FitError: As `find_start`.
    """
    if not hasattr(model.likelihood, "working_response"):
        raise FitError(
            f"{type(model.likelihood).__name__} has no working_response(values), which the warm "
            "start needs: add it, or call fit_svi(..., warm_start=False)."
        )
    grid, smoothed = smooth_knots(model, train)
    data = FitData.of(model, train)
    num_hidden = data.x0_mean.shape[-1] - data.measurement.response.shape[-1]
    if num_hidden > 0:
        raise FitError(
            f"{num_hidden} component(s) of the state are not observed, and the warm start begins "
            "at smoothed data: call fit_svi(..., warm_start=False)."
        )
    is_seen = data.measurement.mask.any(0).any(0)
    if not is_seen.all():
        name = train.names[int((~is_seen).nonzero()[0])]
        raise FitError(
            f"component {name!r} has no observed value, and the warm start begins at smoothed "
            "data: drop it, or call fit_svi(..., warm_start=False)."
        )
    return data, grid, smoothed


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
    for way in itertools.islice(itertools.cycle((fit_path, fit_growing)), MAX_ATTEMPTS):
        with watch("lm"):
            weights = match_gradients(data.field, grid, smoothed)
            found = way(data, Point(weights, smoothed.path[:, ::2]), noise).point
            scale = data.measurement.residual_scale(data.path(found)).clamp_min(SMALLEST_NOISE)
        try:
            with watch("laplace"):
                fit = fit_noise(data, found, data.measurement.noise_of(scale), is_tuned=is_tuned)
        except FitError as error:  # this start led nowhere, another may not
            failure = error
            continue
        residuals.append(data.measurement.residual_scale(data.path(fit.point)))
        yield fit
        # little data have many optima of which the tightest is not the most probable
        is_little = data.measurement.mask.sum() < LITTLE_DATA
        if not is_little and _is_reached(residuals, expected):
            return
    if not residuals and failure is not None:
        raise failure
    if data.measurement.mask.sum() >= LITTLE_DATA:
        worst = min(float((scale / expected).max()) for scale in residuals)
        warnings.warn(
            f"no trajectory fit: from {MAX_ATTEMPTS} starts the residual is {worst:.2g} times the "
            "noise that a smoother finds. Fit a shorter horizon (train.until(...)), take more "
            "width or finer data; bayesode.diagnostics.diagnose(posterior) says more.",
            stacklevel=2,
        )


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
        problem = StateProblem(data, noise, scale)
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


def _start(
    model: DynamicalModel,
    data: FitData,
    point: Point,
    noise: Tensor,
    expected: Tensor,
    num_attempts: int,
) -> Start:
    field_values = data.field.unpack(point.weights)
    likelihood_values = data.measurement.noise_values(noise)
    values = model.prototype()
    values |= {f"field.{site}": value for site, value in field_values.items()}
    values |= {f"likelihood.{site}": value for site, value in likelihood_values.items()}
    scales = {site: torch.full_like(v, UNFITTED_SCALE) for site, v in values.items()}
    scales |= {f"likelihood.{s}": torch.full_like(v, 0.1) for s, v in likelihood_values.items()}
    by_weights, by_x0 = information_diagonal(data, point, noise)
    own = data.field.split(by_weights.rsqrt())
    scales |= {f"field.{site}": value for site, value in own.items()}
    values["x0"], scales["x0"] = point.states[:, 0], by_x0.rsqrt()
    # the noise of a mean-field fit lies well above that of the least-squares fit: far in own scales
    units = {f"likelihood.{s}": torch.ones_like(v) for s, v in likelihood_values.items()}
    residual = data.measurement.residual_scale(data.path(point))
    return Start(values, scales, units, (residual / expected).max().item(), num_attempts)


def information_diagonal(data: FitData, point: Point, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal of the Gauss-Newton matrix at a fit, series by series: it need not fit into memory.

    Returns:
        Of the weights (num_numbers,) and of x0 (series, state), prior precisions included.
    """
    by_weights, by_x0 = data.field.sd.pow(-2), data.x0_sd.pow(-2)
    firsts = []
    for row in range(len(data.gaps)):
        one, first = data.rows(row), Point(point.weights, point.states[row : row + 1])
        path, weights, x0 = one.sensitivities(first)
        information = one.measurement.information(path, noise).unsqueeze(-1)
        by_weights = by_weights + (weights.square() * information).sum((0, 1, 2))
        firsts.append((x0.square() * information).sum((1, 2)))
    return by_weights, by_x0 + torch.cat(firsts)
