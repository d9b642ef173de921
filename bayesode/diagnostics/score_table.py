"""A forecast beside honest baselines, in one table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesode import scores, tabular
from bayesode.baselines import baselines
from bayesode.data_checks import shape_of
from bayesode.errors import DataError, ShapeError
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

    Args:
        ensemble: Forecast at test's series and times, `posterior.predict(train.at(test), ...)`.
        test: What was observed, values (series, time, component).

    Returns:
        A pandas DataFrame, one row per forecast.

    Raises:
        ShapeError: If the ensemble is not a forecast at test's series and times.
        DataError: If test has no observed point, or all draws of one of its series failed.

    Source: Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and
        estimation". doi:10.1198/016214506000001437

    Example:
        >>> from types import SimpleNamespace
        >>> from bayesode.datasets import lynx_hare
        >>> train, test = lynx_hare().split(time=1914)
        >>> law = torch.distributions.LogNormal(3.0, 0.8)  # a forecast that knows no dynamics
        >>> levels = torch.linspace(0.0005, 0.9995, 1000).view(-1, 1, 1, 1)
        >>> forecast = SimpleNamespace(
        ...     values=law.icdf(levels).expand(-1, 1, 6, 2),
        ...     failed=torch.zeros(1000, 1, dtype=torch.bool),
        ...     median=torch.full((1, 6, 2), 3.0).exp(),
        ...     log_prob=lambda test: law.log_prob(test.values).expand(1000, -1, -1, -1),
        ...     train=train,
        ...     transform="log",
        ... )
        >>> score_table(forecast, test)["log_score_per_point"].round(2).to_dict()
        {'ensemble': -3.72, 'climatology': -4.37, 'random_walk': -5.0, 'ar2': -3.58}
    """
    values, mask = _observed(test)
    valid = _validity(ensemble, test, mask)
    points, draws = values[mask], ensemble.values[:, mask]
    transform = _transform(ensemble, [points, draws[valid]])
    is_log = transform == "log"
    scaled, unscaled = (torch.log, torch.exp) if is_log else (torch.clone, torch.clone)
    records = [
        _record(
            "ensemble",
            log_score=scores.log_score(ensemble.log_prob(test)[:, mask], valid),
            crps=scores.crps(scaled(draws), scaled(points), valid),
            is_covered=scores.interval_covers(draws, points, LEVEL, valid),
            error=ensemble.median[mask] - points,
        )
    ]
    filled = torch.where(mask, values, 1.0)  # in the support of either family
    for name, law in baselines(ensemble.train, test, transform=transform).items():
        record = _record(
            name,
            log_score=law.log_prob(filled)[mask],
            crps=scores.gaussian_crps(law.loc[mask], law.scale[mask], scaled(points)),
            is_covered=(law.cdf(filled)[mask] - 0.5).abs() <= LEVEL / 2,
            error=unscaled(law.loc[mask]) - points,
        )
        records.append(record)
    table = tabular.frame(records, index="forecast")
    table.attrs["transform"] = transform
    return table


def _observed(data: Trajectories) -> tuple[Tensor, Tensor]:
    if data.values is None or data.mask is None or not data.mask.any():
        raise DataError(f"there is no observed point to score in {data!r}.")
    return data.values, data.mask


def _validity(ensemble: Ensemble, test: Trajectories, mask: Tensor) -> Tensor:
    """Which draws count at each observed point, shape (draws, points)."""
    if ensemble.values.shape[1:] != mask.shape:
        raise ShapeError(
            f"the ensemble has values {shape_of(ensemble.values)}, (draws, series, time, "
            f"component), but test has {shape_of(mask)}; ask for "
            "posterior.predict(train.at(test), ...)."
        )
    rows = mask.nonzero()[:, 0]
    valid = ~ensemble.failed[:, rows]
    has_none = ~valid.any(0)
    if has_none.any():
        label = test.series[int(rows[has_none][0])]
        raise DataError(
            f"every draw of series {label!r} failed; there is nothing to score. Leave it out with "
            f"test.split(series=[{label!r}]), or score a shorter horizon, test.until(...)."
        )
    return valid


def _transform(ensemble: Ensemble, numbers: list[Tensor]) -> str:
    values, mask = _observed(ensemble.train)
    is_positive = all(bool((n > 0).all()) for n in [values[mask], *numbers])
    return ensemble.transform if is_positive else "identity"


def _record(
    name: str, *, log_score: Tensor, crps: Tensor, is_covered: Tensor, error: Tensor
) -> dict[str, str | float | int]:
    return {
        "forecast": name,
        "log_score_per_point": log_score.mean().item(),
        "crps": crps.mean().item(),
        "coverage_90": is_covered.double().mean().item(),
        "rmse": error.square().mean().sqrt().item(),
        "num_points": error.numel(),
    }
