"""A posterior for new series: what is shared as it was fitted, initial states inferred."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.checks import impossible_values, told_impossible
from bayesode.inference.guides import is_local, rows_of
from bayesode.inference.initial_states import InitialStates, infer_initial_states
from bayesode.inference.predictive import Given, SolvedPredictive, refuse_given
from bayesode.models.contracts import Solver
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories
from bayesode.units import Float64Module


class ConditionedGuide(Float64Module):
    """Stored joint draws of all that series share, and for each the posterior of new x0.

    Nested, never at mean weights: the spread of x0 between draws is part of its posterior.

    Args:
        model: The fit's own copy of the model.
        new: The series whose initial states it holds.
        num_draws: How many draws are stored.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, model: DynamicalModel, new: Trajectories, num_draws: int) -> None:
        super().__init__()
        prototype = model.prototype()
        (dim,) = model.build(prototype, new)[0].event_shape
        shapes = {_key(site): value.shape for site, value in prototype.items()}
        shapes |= {"mean": (new.num_series, dim), "factor": (new.num_series, dim, dim)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros((num_draws, *shape), dtype=torch.float64))
        self.sites, self.series = tuple(prototype), new.series
        self.dtype = torch.get_default_dtype() if new.values is None else new.values.dtype
        self.to(new.start.device)

    def fill(self, shared: dict[str, Tensor], found: InitialStates) -> None:
        """Take on draws (draws, 1, *event) and the initial states that belong to them.

        Args:
            shared: Per global site.
            found: NaN is stored where no initial state suits a draw.
        """
        for site in self.sites:
            self.get_buffer(_key(site)).copy_(shared[site].squeeze(1))
        self.mean.copy_(torch.where(found.failed.unsqueeze(-1), math.nan, found.mean))
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(found.precision))
        self.factor.copy_(torch.linalg.cholesky(covariance))

    def rows(self, trajectories: Trajectories) -> Tensor:
        """Rows of the initial states that belong to these series, (series,).

        Raises:
            DataError: For a series that was not conditioned on.
        """
        return rows_of(self.series, trajectories).to(self.mean.device)

    def sample(
        self, question: Trajectories, num_draws: int, given: Given = None
    ) -> dict[str, Tensor]:
        """Joint draws per site: every stored one comes once before any comes again.

        The initial states of a draw are drawn afresh each time; NaN where none suits the draw.

        Raises:
            DataError: If sites are given.
        """
        refuse_given(given, self)
        rows, num_stored = self.rows(question), len(self.mean)
        rounds = range(math.ceil(num_draws / num_stored))
        index = torch.cat([torch.randperm(num_stored) for _ in rounds])[:num_draws]
        index = index.to(self.mean.device)
        mean, factor = self.mean[index][:, rows], self.factor[index][:, rows]
        noise = torch.randn(mean.shape).to(mean).unsqueeze(-1)
        values = {site: self.get_buffer(_key(site))[index].unsqueeze(1) for site in self.sites}
        values["x0"] = mean + (factor @ noise).squeeze(-1)
        return {site: value.to(self.dtype) for site, value in values.items()}

    def predictive(self, model: DynamicalModel, train: Trajectories) -> ConditionedPredictive:
        """Predictions that solve every draw."""
        return ConditionedPredictive(SolvedPredictive(model, self.sample))


@dataclass(frozen=True, eq=False)
class ConditionedPredictive:
    """Predictions that solve every draw; those without an initial state count as failed."""

    solved: SolvedPredictive

    def sample(
        self, question: Trajectories, num_draws: int, given: Given = None
    ) -> dict[str, Tensor]:
        """Joint draws per site."""
        return self.solved.sample(question, num_draws, given)

    def paths(
        self, values: dict[str, Tensor], question: Trajectories, solver: Solver | None = None
    ) -> tuple[Tensor, Tensor]:
        """Solved paths and which of them failed."""
        is_missing = values["x0"].isnan().any(-1)
        path, failed = self.solved.paths(_filled(values), question, solver)
        return path, failed | is_missing

    def rates(self, values: dict[str, Tensor], t: Tensor, points: Tensor) -> Tensor:
        """Drawn fields at points."""
        return self.solved.rates(values, t, points)

    def solver_error(self, values: dict[str, Tensor], question: Trajectories) -> float:
        """Error over a few of the draws."""
        return self.solved.solver_error(_filled(values), question)


def _filled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draws whose missing initial states lie in the middle of the data: paths are never NaN."""
    return values | {"x0": values["x0"].nan_to_num(nan=0.0)}


def condition_draws(
    model: DynamicalModel, draws: dict[str, Tensor], new: Trajectories
) -> ConditionedGuide:
    """The guide for new series of a posterior that is known by draws.

    Args:
        model: The fit's own copy of the model.
        draws: Joint draws per site, global ones (draws, 1, *event); local ones are not used.
        new: Observed series.

    Raises:
        DataError: As `infer_initial_states`.
    """
    shared = {site: value.double() for site, value in draws.items() if not is_local(site)}
    guide = ConditionedGuide(model, new, len(draws["x0"]))
    guide.fill(shared, infer_initial_states(model, shared, new))
    return guide


def check_new(model: DynamicalModel, train: Trajectories, new: Any) -> None:
    """Raise the error that explains why a posterior cannot be conditioned on these series.

    Raises:
        DataError: If nothing is observed, components or inputs are not those of the fit, a value
            is impossible, or the values lie outside the model's bound.
    """
    if not isinstance(new, Trajectories):
        raise DataError(
            f"Trajectories are needed, not {type(new).__name__} (of simulated data: .observed)."
        )
    if new.values is None or new.mask is None or not new.mask.any():
        raise DataError(
            "there is nothing to condition on: these trajectories hold no observed value. Give the "
            "first points of the new series, for example data.until(duration)."
        )
    if new.names != train.names or new.event_shape != train.event_shape:
        raise DataError(
            f"the new series have the components {list(new.names)} of shape "
            f"{tuple(new.event_shape)}, the fit {list(train.names)} of shape "
            f"{tuple(train.event_shape)}; a component that was not measured is a column of NaN."
        )
    if _features(new) != _features(train):
        raise DataError(
            f"the new series have the inputs {_features(new)}, the fit {_features(train)}."
        )
    _check_values(model, new)


def _check_values(model: DynamicalModel, new: Trajectories) -> None:
    is_wrong = impossible_values(model, new)
    if is_wrong.any():
        _refuse(new, is_wrong, told_impossible(model))
    bound = getattr(model.solver, "max_state", math.inf)
    if hasattr(model.likelihood, "working_response"):
        size = model.likelihood.working_response(new.values).abs()  # type: ignore[operator]
        is_wrong = new.mask & ~(size <= bound)
        if is_wrong.any():
            _refuse(new, is_wrong, f"lies beyond the model's bound of {bound:g} sds of its data")


def _refuse(new: Trajectories, is_wrong: Tensor, reason: str) -> None:
    place = tuple(int(i) for i in is_wrong.nonzero()[0])
    raise DataError(
        f"the value {new.values[place].item():g} of series {new.series[place[0]]!r} "  # type: ignore
        f"{reason}: give the new series in the units of the fit, or mark it as missing."
    )


def _features(data: Trajectories) -> list[str] | None:
    return None if data.inputs is None else list(data.inputs.names)


def _key(site: str) -> str:
    return "draws_" + site.replace(".", "__")  # torch forbids dots in the names of buffers
