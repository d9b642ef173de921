"""The border of every engine: data, model and guide that go together, or one clear error."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from bayesode.errors import DataError, FitError, ShapeError
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

MAX_AT_ONCE = 5_000_000  # numbers that a decoder makes in one go, 40 MB in float64


def check_data(model: DynamicalModel, train: Trajectories) -> None:
    """Raise the error that explains why these data cannot be fitted by this model, if any.

    Raises:
        DataError: If nothing is observed, of single times alone, or a value is impossible.
        ShapeError: If the likelihood is of values of another shape, which might broadcast.
        FitError: If the data lie outside the model's bound.
    """
    if train.values is None or train.mask is None or not train.mask.any():
        raise DataError("there is nothing to fit: these trajectories hold no observed value.")
    if train.mask.flatten(2).any(-1).sum(-1).max() < 2:
        raise DataError("every series has a single time: a rate of change needs at least two.")
    is_wrong = impossible_values(model, train)
    if is_wrong.any():
        place = [int(i) for i in is_wrong.nonzero()[0]]
        raise DataError(
            f"the value {train.values[tuple(place)].item():g} of series {train.series[place[0]]!r} "
            f"{told_impossible(model)}; rescale the data, mark it as missing or take another "
            "likelihood."
        )
    response = getattr(model.likelihood, "working_response", None)
    bound = getattr(model.solver, "max_state", math.inf)
    if response is not None:
        size = response(train.values)[train.mask].abs().max().item()
        if not size <= bound / 3:
            raise FitError(
                f"the data reach {size:.3g} in the model's units, but a path is frozen beyond "
                f"{bound:g}: give the model the data's units, "
                "DynamicalModel(..., units=Units.from_data(train))."
            )


def has_random_paths(model: DynamicalModel, data: Trajectories) -> bool:
    """Whether paths have noise of their own, beside field and initial state."""
    return bool(model.solver.priors(*model.units.dimensionless_times(data)))


def told_impossible(model: DynamicalModel) -> str:
    """That a value cannot be, and what the likelihood takes, if it tells its `domain`."""
    domain = getattr(model.likelihood, "domain", None)
    takes = "" if domain is None else f", which takes {domain}"
    return f"is impossible under {type(model.likelihood).__name__}{takes}"


@torch.no_grad()
def impossible_values(model: DynamicalModel, data: Trajectories) -> Tensor:
    """Observed values that the likelihood cannot give, booleans shaped like the values.

    Raises:
        ShapeError: If the likelihood is of values of another shape, which might broadcast.
    """
    values: Any = data.values
    model = copy.deepcopy(model).to(values)
    size = max(1, data.num_series * MAX_AT_ONCE // max(1, values.numel()))
    chunks = torch.arange(data.num_series, device=data.start.device).split(size)
    return torch.cat([_impossible(model, data.rows(rows)) for rows in chunks])


def _impossible(model: DynamicalModel, data: Trajectories) -> Tensor:
    values: Any = data.values
    prototype = {site: value.to(values.dtype) for site, value in model.prototype().items()}
    initial, _, observe = model.build(prototype, data)
    path = initial.mean.to(values).unsqueeze(-2).expand(*data.grid.shape, -1)
    law = observe(path, None)
    if law.event_shape != values.shape[1:]:
        raise ShapeError(
            f"{type(model.likelihood).__name__} is of values (series, time, *event) with "
            f"{tuple(law.event_shape)} for (time, *event), the data have "
            f"{tuple(values.shape[1:])}: give it as many components (dim=), or its "
            "decoder the event_shape, that they have."
        )
    base: Any = law
    while hasattr(base, "base_dist") and not hasattr(base, "transforms"):
        base = base.base_dist
    return data.mask & ~base.support.check(values)  # pyright: ignore


def check_sites(model: DynamicalModel, found: Iterable[str], trajectories: Trajectories) -> None:
    """Refuse a guide that does not draw what the model declares.

    Args:
        model: The generative model.
        found: Sites that the guide draws.
        trajectories: Any data of the model.

    Raises:
        FitError: If a site is missing (its prior would be drawn in silence) or unknown.
    """
    start, times = model.units.dimensionless_times(trajectories)
    local = ["x0", *(f"path.{site}" for site in model.solver.priors(start, times))]
    wanted, drawn = {*model.global_priors(), *local}, set(found)
    for sites, what in ((wanted - drawn, "does not draw"), (drawn - wanted, "draws the unknown")):
        if sites:
            raise FitError(
                f"the guide {what} {sorted(sites)}; the model has the sites {sorted(wanted)}: "
                "build the guide for this model."
            )


def drawn_sites(trace: Any) -> list[str]:
    """Sites of a guide that stand for sites of the model."""
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not (site["is_observed"] or site["infer"].get("is_auxiliary"))
        and not site_is_subsample(site)
    ]


def observed_at(
    test: Trajectories, asked: Trajectories, event_shape: torch.Size, names: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Values and mask of data that are compared with a prediction.

    Args:
        test: The data.
        asked: Series and times that were predicted.
        event_shape: Of one predicted observation.
        names: Of its components.

    Raises:
        DataError: If the data have no values, or other times than were asked.
        ShapeError: If they have other series or components.
    """
    if test.values is None or test.mask is None:
        raise DataError("scores need observed values; this is a question without values.")
    if test.series != asked.series or test.grid.shape != asked.grid.shape:
        raise ShapeError(
            f"scores need data at the series and times of the ensemble ({asked!r}), not "
            f"{test!r}; predict(train.at(test))."
        )
    if not torch.allclose(test.grid, asked.grid, rtol=1e-12, atol=0.0):
        raise DataError("the data have other times than the ensemble: predict(train.at(test)).")
    if test.event_shape != event_shape or test.names != names:
        raise ShapeError(
            f"scores need the components of the fit, {list(names)} of shape {tuple(event_shape)}, "
            f"not {list(test.names)} of shape {tuple(test.event_shape)}."
        )
    return test.values, test.mask
