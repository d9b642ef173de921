"""A forecast beside honest baselines, in one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayesode import scores, tabular
from bayesode.baselines import baselines
from bayesode.data_checks import shape_of
from bayesode.errors import DataError, ShapeError
from bayesode.inference.blocks import Block
from bayesode.inference.ensemble import Ensemble
from bayesode.trajectories import Trajectories

LEVEL = 0.9


def score_table(ensemble: Ensemble, test: Trajectories) -> Any:
    """Scores of a forecast and of the baselines that apply, as means over observed test points.

    Rows are "ensemble" and the keys of `bayesode.baselines.baselines`, fitted to `ensemble.train`
    under the same transform. Each number of `test` is one point. Columns:

    - `log_score_per_point`: nats, of the density in raw units; larger is better.
    - `crps`: smaller is better; **of logs** under the transform "log", else in the unit of the
      data. If a training value, test value or draw is not positive (counts), the table
      falls back to raw units and normal baselines; `table.attrs["transform"]` says what was used.
    - `coverage_90`: share of the points in the central 90 % interval.
    - `rmse`: of the median, in the unit of the data.
    - `num_points`: number of points.

    Images are scored number by number, a block of series at a time, and baselines see them as
    vectors; a pixel that is constant in training leaves a baseline without a law, and so without a
    row.

    Args:
        ensemble: Forecast at test's series and times, `posterior.predict(train.at(test), ...)`.
        test: What was observed, values (series, time, *event).

    Returns:
        A pandas DataFrame, one row per forecast.

    Raises:
        ShapeError: If the ensemble is not a forecast at test's series and times.
        DataError: If test has no observed point, or all draws of one of its series failed.

    Source: Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and
        estimation". doi:10.1198/016214506000001437

    Example:
        >>> from bayesode.datasets import lynx_hare
        >>> from bayesode.models.contracts import Observe
        >>> from bayesode.units import Units
        >>> train, test = lynx_hare().split(time=1914)
        >>> normal = torch.distributions.Normal(3.0, 0.8)  # a forecast that knows no dynamics
        >>> noise = lambda path, mask: torch.distributions.Independent(
        ...     torch.distributions.LogNormal(torch.full_like(path, 3.0), 0.8), 2
        ... )
        >>> logs = normal.icdf(torch.linspace(0.0005, 0.9995, 1000).view(-1, 1, 1, 1))
        >>> forecast = Ensemble(
        ...     trajectories=train.at(test),
        ...     path=logs.expand(-1, 1, 6, 2),
        ...     observe=Observe(noise, torch.exp),
        ...     values=logs.exp().expand(-1, 1, 6, 2),
        ...     failed=torch.zeros(1000, 1, dtype=torch.bool),
        ...     units=Units(transform="log"),
        ...     train=train,
        ...     solver_error=lambda: 0.0,
        ... )
        >>> score_table(forecast, test)["log_score_per_point"].round(2).to_dict()
        {'ensemble': -3.72, 'climatology': -4.37, 'random_walk': -5.0, 'ar2': -3.58}
    """
    values, mask = _observed(test)
    _check_shape(ensemble, mask)
    points, transform = values[mask], _transform(ensemble, test)
    is_log = transform == "log"
    scaled, unscaled = (torch.log, torch.exp) if is_log else (torch.clone, torch.clone)
    # numbers, not tensors: small ones that outlive a block would keep its memory from being reused
    own = [_scored(ensemble, block, test, scaled) for block in ensemble.blocks]
    records = [_record("ensemble", [sum(part) for part in zip(*own, strict=True)])]
    filled = torch.where(mask, values, 1.0)  # in the support of either family
    for name, flat in baselines(
        _vectors(ensemble.train), _vectors(test), transform=transform
    ).items():
        law = type(flat)(flat.loc.view_as(values), flat.scale.view_as(values))
        sums = _sums(
            log_score=law.log_prob(filled)[mask],
            crps=scores.gaussian_crps(law.loc[mask], law.scale[mask], scaled(points)),
            is_covered=(law.cdf(filled)[mask] - 0.5).abs() <= LEVEL / 2,
            error=unscaled(law.loc[mask]) - points,
        )
        records.append(_record(name, sums))
    table = tabular.frame(records, index="forecast")
    table.attrs["transform"] = transform
    return table


def _scored(
    ensemble: Ensemble, block: Block, test: Trajectories, scaled: Callable[[Tensor], Tensor]
) -> list[float]:
    """Sums of the scores of the observed points of one block."""
    mask = block.at(_observed(test)[1])
    points, draws = block.at(_observed(test)[0])[mask], ensemble.draws_in(block)[:, mask]
    valid = _validity(ensemble, block, test, mask)
    levels = [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2]
    low, middle, high = scores.quantile(draws, levels, valid)
    return _sums(
        log_score=scores.log_score(ensemble.log_prob_in(block, test)[:, mask], valid),
        crps=scores.crps(scaled(draws), scaled(points), valid),
        is_covered=(low <= points) & (points <= high),
        error=middle - points,
    )


def _vectors(data: Trajectories) -> Trajectories:
    """Images and other events as vectors (series, time, component)."""
    if data.values is None or data.mask is None or data.values.dim() == 3:
        return data
    flat = {"values": data.values.flatten(2), "mask": data.mask.flatten(2), "names": ()}
    return replace(data, **flat)


def _observed(data: Trajectories) -> tuple[Tensor, Tensor]:
    if data.values is None or data.mask is None or not data.mask.any():
        raise DataError(f"there is no observed point to score in {data!r}.")
    return data.values, data.mask


def _check_shape(ensemble: Ensemble, mask: Tensor) -> None:
    shape = (*ensemble.path.shape[1:3], *ensemble.event_shape)
    if shape != mask.shape:
        raise ShapeError(
            f"the ensemble has values {(len(ensemble.path), *shape)}, (draws, series, time, "
            f"*event), but test has {shape_of(mask)}; ask for "
            "posterior.predict(train.at(test), ...)."
        )


def _validity(ensemble: Ensemble, block: Block, test: Trajectories, mask: Tensor) -> Tensor:
    """Which draws count at each observed point of a block, shape (draws, points)."""
    rows = mask.nonzero()[:, 0] + block.rows.start
    valid = ~ensemble.failed[:, rows]
    has_none = ~valid.any(0)
    if has_none.any():
        label = test.series[int(rows[has_none][0])]
        raise DataError(
            f"every draw of series {label!r} failed; there is nothing to score. Leave it out with "
            f"test.split(series=[{label!r}]), or score a shorter horizon, test.until(...)."
        )
    return valid


def _transform(ensemble: Ensemble, test: Trajectories) -> str:
    """The ensemble's scale, if everything that is scored on it is positive."""
    if ensemble.transform == "identity":
        return "identity"
    values, mask = _observed(ensemble.train)
    points, seen = _observed(test)
    is_positive = bool((values[mask] > 0).all() and (points[seen] > 0).all()) and all(
        _has_positive_draws(ensemble, block, block.at(seen)) for block in ensemble.blocks
    )
    return ensemble.transform if is_positive else "identity"


def _has_positive_draws(ensemble: Ensemble, block: Block, mask: Tensor) -> bool:
    draws, failed = ensemble.draws_in(block)[:, mask], ensemble.failed[:, block.rows]
    return bool(((draws > 0) | failed[:, mask.nonzero()[:, 0]]).all())


def _sums(*, log_score: Tensor, crps: Tensor, is_covered: Tensor, error: Tensor) -> list[float]:
    """Sums over points, and how many there are."""
    found = (log_score, crps, is_covered, error.square())
    return [*(score.double().sum().item() for score in found), error.numel()]


def _record(name: str, sums: Sequence[float]) -> dict[str, str | float | int]:
    *totals, num_points = sums
    log_score, crps, coverage, square = (total / num_points for total in totals)
    return {
        "forecast": name,
        "log_score_per_point": log_score,
        "crps": crps,
        "coverage_90": coverage,
        "rmse": math.sqrt(square),
        "num_points": int(num_points),
    }
