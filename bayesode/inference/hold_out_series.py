"""Cross-validation over series: what predictions of series are worth that a fit has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesode.data_checks import check_size
from bayesode.errors import DataError
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.refits import Fit, check_series, complete_fit, each_of, seeds_of
from bayesode.inference.windows import SAME_TIME
from bayesode.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Series that were held out of a fit, and what it predicted of them.

    Args:
        truth: The series; their mask is False where a value was given to the prediction, so that
            scores leave it out (it stays in `values`).
        ensemble: Predictions at all times of them; what was given is `ensemble.train`.
    """

    truth: Trajectories
    ensemble: Ensemble


def leave_series_out(
    fit: Fit,
    train: Trajectories,
    *,
    given: Callable[[Trajectories], Trajectories],
    num_folds: int = 5,
    num_draws: int = 50,
    seed: int = 0,
    progress: bool = True,
) -> list[HeldOut]:
    """Cross-validation over series: each is held out once and predicted from what is given of it.

    Ctrl-C keeps the folds that were reached, with a warning; so does a `FitError` of one of them.

    Args:
        fit: fit(part, seed) -> posterior or bag; builds model and guide for the series in `part`.
        train: All series.
        given: From held-out series to what may be read of them, such as
            `lambda series: series.until(0.2)`; the posterior is conditioned on that alone.
        num_folds: How many fits, each without one of as many random parts of the series.
        num_draws: Draws of each prediction.
        seed: Of the parts, the fits and the draws.
        progress: Show a bar.

    Returns:
        One `HeldOut` per fold.

    Raises:
        DataError: For fewer series than folds, or if `given` returns other series or nothing that
            is observed; and as the fit.
        FitError: If no fold can be fitted.

    Example:
        >>> import bayesode as bo
        >>> data = bo.datasets.van_der_pol(num_series=4, num_times=20).observed
        >>> def fit(part, seed):
        ...     system = dict(dim_latent=2, likelihood="gaussian", hidden=(), network="none")
        ...     model, guide = bo.ode_vae(part, **system, verbose=False)
        ...     return bo.fit_svi(model, guide, part, seed=seed, num_steps=3, progress=False)
        >>> held = leave_series_out(
        ...     fit, data, given=lambda new: new.until(0), num_folds=2, progress=False
        ... )
        >>> [fold.truth.series for fold in held]
        [(0, 1), (2, 3)]
    """
    check_size(num_folds=num_folds, num_draws=num_draws)
    if num_folds < 2:
        raise DataError("num_folds must be 2 or more: a fit needs the other folds.")
    check_series(train, num_folds)
    generator = torch.Generator().manual_seed(int(seed))
    order = torch.randperm(train.num_series, generator=generator)
    folds = [part.sort().values for part in order.tensor_split(num_folds)]
    seeds, draw_seeds = seeds_of(generator, num_folds), seeds_of(generator, num_folds)

    def held_out(k: int) -> HeldOut:
        is_held = torch.zeros(train.num_series, dtype=torch.bool)
        is_held[folds[k]] = True
        held = train.rows(is_held)
        seen = _given(given, held)
        unread: Any = ~_was_given(held, seen)
        posterior = complete_fit(fit, train.rows(~is_held), seeds[k])
        new = posterior.condition(seen, seed=draw_seeds[k])
        question = held.at(held.times, held.num_times)  # without values: nothing can be read
        ensemble = new.predict(question, num_draws=num_draws, seed=draw_seeds[k])
        return HeldOut(replace(held, mask=unread & held.mask), ensemble)

    return each_of(held_out, num_folds, what="folds", progress=progress)


def _given(given: Callable[[Trajectories], Trajectories], held: Trajectories) -> Trajectories:
    """What may be read of held-out series, in their order."""
    seen: Any = given(held)
    if not isinstance(seen, Trajectories) or set(seen.series) != set(held.series):
        raise DataError(
            f"given(series) has to return what may be read of the series {list(held.series)}, not "
            f"{seen!r}: for example lambda series: series.until(0.2)."
        )
    return seen.rows(seen.positions(held.series))


def _was_given(held: Trajectories, seen: Trajectories) -> Tensor:
    """Which values of held-out series may be read, booleans (series, time, *event)."""
    if seen.mask is None or not seen.mask.any():
        raise DataError("given(series) leaves nothing that is observed: give the first times.")
    slack = SAME_TIME * (held.grid.max() - held.start.min())
    is_same = (held.grid.unsqueeze(-1) - seen.grid.unsqueeze(-2)).abs() <= slack
    count = is_same.float() @ seen.mask.flatten(2).float()  # (series, time, time) by its entries
    return (count > 0).view(*held.grid.shape, *held.event_shape)
