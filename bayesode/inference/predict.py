"""From draws of a model to the ensemble that users see."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.guides import is_local
from bayesode.inference.predictive import Predictive
from bayesode.inference.variance_parts import PairedPaths, paired_paths
from bayesode.models.contracts import Observe, unnest
from bayesode.models.dynamical import DynamicalModel
from bayesode.threads import threads_for
from bayesode.trajectories import Trajectories

Scope = Callable[[int | None], AbstractContextManager[Any]]


def predict(
    model: DynamicalModel,
    predictive: Predictive,
    question: Trajectories,
    num_draws: int,
    *,
    train: Trajectories,
    scope: Scope,
    seed: int | None = None,
    solver: Any = None,
) -> Ensemble:
    """The ensemble of `num_draws` draws at the times of a question.

    Args:
        model: How draws are seen, and in which units.
        predictive: What draws sites and turns them into paths.
        question: Series and times.
        num_draws: One or more.
        train: The data of the fit.
        scope: From a seed to a block in which draws are made; entered again for paired draws.
        seed: For `scope`.
        solver: In place of the model's own.

    Raises:
        DataError: If there is not a single draw.
    """
    if num_draws < 1:
        raise DataError(f"num_draws must be positive, not {num_draws}.")
    num_rows = num_draws * question.num_series
    with scope(seed), threads_for(num_rows):
        values = predictive.sample(question, num_draws)
        _, _, observe = model.build(values, question)
        path, failed = predictive.paths(values, question, solver)
        # `seed` again would repeat these draws
        noise_seed, seed_of_pairs = torch.randint(2**31, (2,)).tolist()

    def pairs() -> PairedPaths:
        with scope(seed_of_pairs), threads_for(num_rows):
            return paired_paths(model, predictive, values, path, question, solver)

    _warn_of_failures(failed, question)
    uncapped_sd = getattr(predictive, "uncapped_sd", None)  # draws that are solved: none
    return Ensemble(
        trajectories=question,
        path=path,
        observe=observe,
        failed=failed,
        draws=in_users_units(model, values),
        units=model.units,
        train=train,
        solver_error=lambda: predictive.solver_error(values, question),
        path_sd=None if uncapped_sd is None else lambda: uncapped_sd(question),
        pairs=pairs,
        noise_seed=noise_seed,
        observe_in=lambda block: observe_some(model, values, question, block.rows),
        scope=scope,
    )


def observe_some(
    model: DynamicalModel, values: Mapping[str, Tensor], question: Trajectories, rows: slice
) -> Observe:
    """How draws of some of the series are seen, with the inputs of these.

    Args:
        model: Whose likelihood it is.
        values: Drawn sites of it, {"likelihood.noise_scale": ...}.
        question: All series.
        rows: Those that are wanted.
    """
    inputs = question.inputs
    index = torch.arange(question.num_series)[rows]
    likelihood: Any = model.likelihood
    some = None if inputs is None else inputs.rows(index)
    return likelihood.build(unnest("likelihood", values), some)


def in_users_units(model: DynamicalModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws per site without the plate's place, x0 in the units of the data."""
    raw = {s: v if is_local(s) else v.squeeze(1) for s, v in values.items()}
    return raw | {"x0": model.units.to_users(values["x0"])}


def _warn_of_failures(failed: Tensor, question: Trajectories) -> None:
    if failed.all(0).any():
        row = int(failed.all(0).nonzero()[0])
        warnings.warn(
            f"no draw of series {question.series[row]!r} stays within the model's bound: its "
            "means and bands are NaN.",
            stacklevel=4,
        )
