"""From data to a converged trajectory fit: where every engine begins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesode.errors import FitError, ShapeError
from bayesode.inference.warm_start.attempts import SMALLEST_NOISE, attempts, fit_many
from bayesode.inference.warm_start.diffusion import DiffusionProblem
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.flat import MAX_WEIGHTS
from bayesode.inference.warm_start.levenberg_marquardt import Point
from bayesode.inference.warm_start.measurement import observed_response
from bayesode.models.dynamical import DynamicalModel
from bayesode.smoothing import Smoothed, smooth, with_rates
from bayesode.threads import threads_for
from bayesode.trajectories import Trajectories

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
    """The smoothed data at start, asked times and the middles between them: see `smooth_at`."""
    start, times = model.units.dimensionless_times(train)
    return smooth_at(model, train, torch.cat([start.unsqueeze(-1), times], -1))


def smooth_at(model: DynamicalModel, train: Trajectories, knots: Tensor) -> tuple[Tensor, Smoothed]:
    """The smoothed data at knots (series, knot) and the middles between them.

    Returns:
        Grid (series, 2 knot - 1) and the smoothed path on it, dimensionless, float64.
    """
    _, times = model.units.dimensionless_times(train)
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


def prepare(model: DynamicalModel, train: Trajectories) -> tuple[FitData, Tensor, Smoothed]:
    """The trajectory fit of a model to data, and the smoothed data at which it begins.

    Raises:
        FitError: As `find_start`.
    """
    check_smoothable(model)
    grid, smoothed = smooth_knots(model, train)
    data = FitData.of(model, train)
    is_partial = smoothed.path.shape[-1] < data.x0_mean.shape[-1]
    if is_partial and hasattr(model.field, "hidden_components"):
        hidden = model.field.hidden_components(smoothed.derivative)
        seen = grid.gather(1, 2 * data.measurement.knots)
        smoothed = with_rates(smoothed, hidden, seen, data.measurement.mask, grid)
    check_seen(data, train, smoothed.path.shape[-1])
    return data, grid, smoothed


def prepare_diffusion(
    model: DynamicalModel, train: Trajectories
) -> tuple[DiffusionProblem, Tensor, Smoothed]:
    """The same for a model with process noise, the smoothed data at the knots of its noise.

    Raises:
        FitError: As `find_start`.
        DataError: If the process noise is not additive, or not that of "split".
    """
    check_smoothable(model)
    problem = DiffusionProblem.of(model, train)
    check_seen(problem.data, train, problem.data.measurement.response.shape[-1])
    process = problem.process
    knots = torch.cat([process.begins, process.begins[:, -1:] + process.gaps[:, -1:]], -1)
    return problem, *smooth_at(model, train, knots)


def check_smoothable(model: DynamicalModel) -> None:
    """Refuse a likelihood that does not show the state.

    Raises:
        FitError: Then.
    """
    if not hasattr(model.likelihood, "working_response"):
        raise FitError(
            f"{type(model.likelihood).__name__} has no working_response(values): its values do "
            "not show the state, which fit_laplace and the warm start of a table of initial states "
            "need. Call fit_svi(model, AmortizedGuide(model, encoder), train), or fit_svi(..., "
            "warm_start=False)."
        )


def check_seen(data: FitData, train: Trajectories, num_known: int) -> None:
    """Refuse states of which a smoother sees nothing.

    Args:
        data: The fit.
        train: The data.
        num_known: Number of components of the state that are observed or follow from these.

    Raises:
        FitError: Then.
        ShapeError: If they are more than the state has.
    """
    num_hidden = data.x0_mean.shape[-1] - num_known
    if num_hidden < 0:
        raise ShapeError(
            f"{num_known} components are observed or follow from these by the field, and the "
            f"initial state has {num_known + num_hidden}: give x0, field and likelihood the sizes "
            "of one state."
        )
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
        rows = slice(row, row + 1)
        one, first = data.rows(rows), Point(point.weights, point.states[rows])
        path, weights, x0 = one.sensitivities(first)
        information = one.measurement.information(path, noise).unsqueeze(-1)
        by_weights = by_weights + (weights.square() * information).sum((0, 1, 2))
        firsts.append((x0.square() * information).sum((1, 2)))
    return by_weights, by_x0 + torch.cat(firsts)
