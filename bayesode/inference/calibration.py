"""Noise that gives the intervals of a fit their stated coverage on other sequences."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError, FitError
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.posterior import Posterior
from bayesode.inference.residual_noise import fit_residual_noise
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.likelihoods.calibrated import CalibratedNoise
from bayesode.trajectories import Trajectories

ACTIVE_SD = 0.05  # of an entry over the training frames, for values in [0, 1]
LARGEST_FACTOR = 20.0  # and one over it the smallest
NUM_HALVINGS = 20  # of the interval of its logarithm
MAX_NUMBERS = 20_000_000  # of the draws in one chunk
MAX_RESIDUALS = 2_000_000  # of training data: a scale per pixel of 28 x 28 is known to 1.4 %
MAX_ENTRIES = 100_000  # whose coverage is counted: a standard error of .001


def calibrate_noise(
    posterior: Posterior,
    validation: Trajectories,
    *,
    level: float = 0.9,
    at: Any = None,
    active_sd: float = ACTIVE_SD,
    num_draws: int = 32,
    seed: int = 0,
) -> Posterior:
    """A posterior whose predictive intervals cover `level` of the validation data.

    The noise becomes a scale per entry times a quadratic in the predicted intensity, fitted to the
    residuals of the posterior mean on the visible training frames, times one factor, the only
    number that is taken from the validation data. Means, weights and states stay as they were, up
    to the cut at 0 and 1 if the training data lie between. The factor makes up for what the
    posterior does not know of itself: misfit. It holds for data and times like those it was found
    on.

    `elbo_terms` of the result take the new noise: they are not what the fit maximised, and no bound
    that model selection could use. The original is left whole.

    Args:
        posterior: Of a model whose `signal` is the mean of real values.
        validation: Sequences that the fit did not see; their initial states are inferred by
            `posterior.condition(validation)`.
        level: Of central intervals.
        at: Times whose coverage is counted, in the unit of the data; all but each series' start by
            default (what an encoder has read is no prediction). Give the times that matter: hidden
            frames err more than others.
        active_sd: Entries whose training sd is smaller do not count, such as a picture's margin.
        num_draws: Draws of weights and states.
        seed: Of the draws.

    Returns:
        A posterior with a `CalibratedNoise` in place of the likelihood; `settings` have the factor
        under "calibrated_noise". It is saved and loaded like any other.

    Raises:
        DataError: If the level is not between 0 and 1, no entry is active, or none of the asked
            times is observed.
        FitError: If no factor between 1/20 and 20 gives the level.

    Source: A held-out scale factor as in Guo et al. (2017), "On calibration of modern neural
        networks" (temperature scaling), arXiv:1706.04599, for intervals in place of classes.

    Example:
        >>> import bayesode as bo
        >>> data = bo.datasets.van_der_pol(num_series=4, num_times=10).observed
        >>> train, validation = data.split(series=[3])
        >>> model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=5, warm_start=False)
        >>> calibrated = calibrate_noise(posterior, validation, num_draws=20)
        >>> round(calibrated.settings["calibrated_noise"]["coverage"], 1)
        0.9
    """
    if not 0 < level < 1:
        raise DataError(f"level must lie between 0 and 1, not {level}.")
    part, is_active = _with_residual_noise(posterior, active_sd, num_draws, seed)
    counted = _counted(posterior, validation, at)
    new = posterior.condition(validation, num_draws=num_draws, seed=seed)
    found = _entries(new, validation, counted & is_active, part, num_draws, seed)
    factor, coverage = _factor(*found, level)
    part.log_factor.fill_(math.log(factor))
    model = copy.deepcopy(posterior.model)
    model.likelihood = part.to(posterior.train.values.dtype)  # type: ignore[union-attr]
    told = {"level": level, "factor": factor, "coverage": coverage, "seed": seed}
    told |= {name: part.config[name] for name in ("event_shape", "bounds")}
    return Posterior(
        model,
        posterior.guide,
        posterior.train,
        history=posterior.history,
        settings=posterior.settings | {"calibrated_noise": told},
        state=posterior.state,
    )


def with_calibrated_noise(model: DynamicalModel, settings: dict[str, Any]) -> None:
    """Give a rebuilt model the likelihood that settings of a saved run tell of, if they do."""
    told = settings.get("calibrated_noise")
    if told is not None:
        model.likelihood = CalibratedNoise(
            model.likelihood, told["event_shape"], bounds=told["bounds"]
        )


# ---- residuals -----------------------------------------------------------------------------------
def _with_residual_noise(
    posterior: Posterior, active_sd: float, num_draws: int, seed: int
) -> tuple[CalibratedNoise, Tensor]:
    """The likelihood with noise as in the training residuals, and which entries are active."""
    train = posterior.train
    values, mask = _observed(train)
    seen = values[mask]
    bounds = (0.0, 1.0) if seen.min() >= 0 and seen.max() <= 1 else None
    is_active = _deviation(values, mask) > active_sd
    part = CalibratedNoise(
        copy.deepcopy(posterior.model.likelihood), train.event_shape, bounds=bounds
    ).to(values.device, torch.float64)
    most = max(1, MAX_RESIDUALS // values[0].numel())
    rows = torch.linspace(0, train.num_series - 1, min(most, train.num_series)).round().long()
    chunks = _chunks(posterior, train.rows(rows), num_draws, seed)
    predicted = part.within(torch.cat([ensemble.mean for _, ensemble in chunks]).double())
    values, mask = values[rows], mask[rows] & predicted.isfinite()
    if not mask.any():
        raise DataError("no observed value of the training data is predicted: all draws fail.")
    part.intensities.copy_(torch.stack([predicted[mask].min(), predicted[mask].max() + 1e-9]))
    residual = torch.where(mask, values - predicted, 0.0)
    shares = part.shares(torch.where(mask, predicted, 0.0))
    noise = fit_residual_noise(*(x.flatten(0, 1).flatten(1) for x in (residual, shares, mask)))
    part.log_scale.copy_(noise.log_scale.view_as(part.log_scale))
    part.coefficients.copy_(noise.coefficients)
    return part, is_active


def _observed(data: Trajectories) -> tuple[Tensor, Tensor]:
    """Values in float64, hidden ones 0, and their mask."""
    if data.values is None or data.mask is None:
        raise DataError("calibration needs observed values; this is a question without values.")
    return torch.where(data.mask, data.values, 0.0).double(), data.mask


def _deviation(values: Tensor, mask: Tensor) -> Tensor:
    """Sd of each entry over its visible values, shape (*event)."""
    count = mask.sum((0, 1)).clamp_min(1)
    mean = torch.where(mask, values, 0.0).sum((0, 1)) / count
    return (torch.where(mask, values - mean, 0.0).square().sum((0, 1)) / count).sqrt()


def _chunks(
    posterior: Posterior, data: Trajectories, num_draws: int, seed: int
) -> Iterator[tuple[Tensor, Ensemble]]:
    """Rows and predictions of a few series at a time."""
    per_series = num_draws * data.times.shape[-1] * data.event_shape.numel()
    size = max(1, MAX_NUMBERS // per_series)
    for rows in torch.arange(data.num_series).split(size):
        yield rows, posterior.predict(data.rows(rows), num_draws=num_draws, seed=seed)


# ---- the factor ----------------------------------------------------------------------------------
def _counted(posterior: Posterior, validation: Trajectories, at: Any) -> Tensor:
    """Values of the validation data that are seen and asked for, shaped like them."""
    _, mask = _observed(validation)
    grid, start = validation.grid, validation.start.unsqueeze(-1)
    tolerance = 1e-6 * posterior.model.units.time_unit.item()
    is_asked = grid > start + tolerance
    if at is not None:
        times = torch.as_tensor(at, dtype=grid.dtype, device=grid.device).reshape(-1)
        is_asked = ((grid.unsqueeze(-1) - times).abs() < tolerance).any(-1)
    counted = mask & is_asked.view(*is_asked.shape, *[1] * (mask.dim() - 2))
    if not counted.any():
        raise DataError(
            "no validation value is observed at the times whose coverage is asked for, "
            f"at={at if at is not None else 'all after the start'}."
        )
    return counted


def _entries(
    posterior: Posterior,
    data: Trajectories,
    counted: Tensor,
    part: CalibratedNoise,
    num_draws: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values (entries,), signals and noise scales at factor 1 (draws, entries) that count."""
    if not counted.any():
        raise DataError(
            "no entry that is asked for varies over the training frames; lower active_sd."
        )
    generator = torch.Generator().manual_seed(seed)
    is_picked = torch.rand(counted.shape, generator=generator) < MAX_ENTRIES / counted.sum().cpu()
    counted = counted & is_picked.to(counted.device)
    found = []
    for rows, ensemble in _chunks(posterior, data, num_draws, seed):
        picked = counted[rows].flatten().nonzero().flatten()
        failed = ensemble.failed.view(*ensemble.failed.shape, *[1] * (counted.dim() - 1))
        signal = part.within(torch.where(failed, torch.nan, ensemble.signal).double())
        values = data.values[rows].double().flatten()[picked]  # type: ignore[index]
        both = [x.flatten(1)[:, picked] for x in (signal, part.noise_scale(signal))]
        found.append((values, *both))
    values, signal, scale = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    is_known = ~signal.isnan().all(0)
    return values[is_known], signal[:, is_known], scale[:, is_known]


def _factor(values: Tensor, signal: Tensor, scale: Tensor, level: float) -> tuple[float, float]:
    """The factor of the noise at which central intervals cover `level`, and what they cover."""
    tail = (1 - level) / 2

    def coverage(log_factor: float) -> float:
        # the share of the predictive law below a value; a cut at the bounds, within which signals
        # and values lie, moves no end of an interval across a value
        below = torch.special.ndtr((values - signal) / (scale * math.exp(log_factor))).nanmean(0)
        return ((below >= tail) & (below <= 1 - tail)).double().mean().item()

    largest = math.log(LARGEST_FACTOR)
    ends = [coverage(end) for end in (-largest, largest)]
    if not ends[0] <= level <= ends[1]:
        raise FitError(
            f"intervals cover {ends[0]:.3f} of the validation data with a twentieth of the noise "
            f"and {ends[1]:.3f} with twenty times the noise of the training residuals: no factor "
            f"between gives {level:g}. Ask for another level, or look at the data."
        )
    smaller, larger = -largest, largest
    for _ in range(NUM_HALVINGS):
        middle = (smaller + larger) / 2
        smaller, larger = (middle, larger) if coverage(middle) < level else (smaller, middle)
    return math.exp(larger), coverage(larger)
