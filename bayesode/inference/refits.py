"""The same fit many times over: what was reached is kept, whatever happens to the rest."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from tqdm.auto import tqdm

from bayesode.errors import DataError, FitError
from bayesode.inference.randomness import seeded
from bayesode.trajectories import Trajectories

Result = TypeVar("Result")


class Fit(Protocol):
    """From training data and a seed to a posterior (or a bag of them)."""

    def __call__(self, part: Trajectories, seed: int, /) -> Any:
        """The fit."""
        ...


def each_of(
    work: Callable[[int], Result], count: int, *, what: str, progress: bool
) -> list[Result]:
    """Results of work(0), ..., work(count - 1).

    Ctrl-C ends it, and work that raises a `FitError` is left out; a warning tells of both.

    Args:
        work: Calls `complete_fit`, so that a fit that was stopped half way does not count.
        count: How often.
        what: What the results are called, in the plural.
        progress: Show a bar.

    Raises:
        KeyboardInterrupt: If nothing was reached.
        FitError: If every one failed.
    """
    done: list[Result] = []
    failure: FitError | None = None
    try:
        for k in tqdm(range(count), desc=what, disable=not progress):
            try:
                done.append(work(k))
            except FitError as error:
                failure = error
                _warn(f"number {k + 1} of {count} {what} cannot be fitted and is left out: {error}")
    except KeyboardInterrupt:
        if not done:
            raise
        _warn(f"stopped by the user: {len(done)} of {count} {what} were reached and are kept.")
    if failure is not None and not done:
        raise FitError(f"none of the {count} {what} can be fitted: {failure}") from failure
    return done


def complete_fit(fit: Fit, part: Trajectories, seed: int) -> Any:
    """A posterior that was fitted to the end.

    Raises:
        KeyboardInterrupt: If the user stopped it.
        DataError: If `fit` returns something else.
    """
    with seeded(seed):
        posterior = fit(part, seed)
    if not hasattr(posterior, "condition"):
        raise DataError(
            f"fit(part, seed) has to return a posterior, not {type(posterior).__name__}: for "
            "example lambda part, seed: bo.fit_svi(*bo.ode_vae(part), part, seed=seed)."
        )
    if getattr(getattr(posterior, "history", None), "is_interrupted", False):
        raise KeyboardInterrupt
    return posterior


def seeds_of(generator: torch.Generator, count: int) -> list[int]:
    """Seeds of `count` fits."""
    return torch.randint(2**31, (count,), generator=generator).tolist()


def check_series(train: Any, fewest: int) -> None:
    """Refuse what cannot be divided into parts.

    Raises:
        DataError: Unless there are trajectories with values and at least `fewest` series.
    """
    if not isinstance(train, Trajectories) or train.num_observed == 0:
        raise DataError("fits need observed series, Trajectories with values.")
    if train.num_series < fewest:
        raise DataError(f"at least {fewest} series are needed, not {train.num_series}.")


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
