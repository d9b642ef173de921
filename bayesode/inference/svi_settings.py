"""The settings of an SVI fit: which go together, and how a run tells them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bayesode.errors import DataError
from bayesode.inference.learning_rates import by_group
from bayesode.inference.validation import check_validation
from bayesode.inference.window_schemes import Schedule
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

Weight = float | Callable[[float], float]
NUM_PARTICLES = 4


class Steps(NamedTuple):
    """How a fit takes its steps; see `fit_svi`."""

    num_steps: int | None
    learning_rate: float | Mapping[str, float] | None
    num_particles: int
    batch_size: int | None
    prior_scale: str
    schedule: Schedule | None
    kl_weight: Weight


def with_defaults(guide: Any, train: Trajectories, **given: Any) -> Steps:
    """The steps of a fit, what was left at None as the guide suggests, or as suits most.

    Groups of parameters whose learning rate is not given keep the one that the guide suggests.

    Args:
        guide: With an attribute `defaults`, or without.
        train: Training data, which may be fewer series than the guide expects.
        given: As the user gave them.
    """
    usual = {"num_particles": NUM_PARTICLES, "prior_scale": "fixed", "kl_weight": 1.0}
    defaults = usual | getattr(guide, "defaults", {})
    if "batch_size" in defaults:
        defaults["batch_size"] = min(defaults["batch_size"], train.num_series)
    chosen: Any = {n: defaults.get(n) if value is None else value for n, value in given.items()}
    suggested = by_group(defaults.get("learning_rate"))
    chosen["learning_rate"] = suggested | by_group(given.get("learning_rate"))
    return Steps(**chosen)


def check_guide(guide: Any, train: Trajectories) -> None:
    """Refuse a guide with initial states of other series.

    Raises:
        DataError: If the series differ.
    """
    if set(getattr(guide, "series", train.series)) != set(train.series):
        raise DataError(
            f"the guide has initial states of the series {list(guide.series[:5])}, the data are of "
            f"{list(train.series[:5])}: build it on these data, MeanFieldGuide(model, train)."
        )


def check_counts(train: Trajectories, batch_size: int | None, **counts: int | None) -> None:
    """Refuse counts that are not positive, and batches larger than the data.

    Raises:
        DataError: For such a number.
    """
    for name, count in counts.items():
        if count is not None and not count > 0:
            raise DataError(f"{name} must be positive, not {count}.")
    if batch_size is not None and not 1 <= batch_size <= train.num_series:
        raise DataError(f"batch_size must lie between 1 and {train.num_series}, not {batch_size}.")


def check_target(
    guide: Any, num_steps: int | None, schedule: Schedule | None, kl_weight: Weight
) -> None:
    """Refuse another target than the ELBO of whole series where it cannot be had.

    Raises:
        DataError: Without a number of steps, or for a guide that is a Pyro program.
    """
    if schedule is None and kl_weight == 1.0:
        return
    if num_steps is None:
        raise DataError(
            "schedule= and kl_weight= need num_steps: they follow the fraction of the fit, and the "
            "rule that ends a fit by itself judges the plain ELBO of whole series."
        )
    if not hasattr(guide, "posteriors"):
        raise DataError(
            f"schedule= and kl_weight= need a guide that declares its laws, {type(guide).__name__} "
            "is a Pyro program: take MeanFieldGuide or AmortizedGuide."
        )


def check_looks(
    model: DynamicalModel, guide: Any, validation: Trajectories | None, patience: int | None
) -> None:
    """Refuse validation data that cannot be looked at, and patience without any.

    Raises:
        DataError: If the guide does not encode new series, or there is nothing to wait for.
    """
    if validation is not None:
        check_validation(model, guide, validation)
    elif patience is not None:
        raise DataError("patience= waits for looks at validation data: give validation= too.")


def over_time(weight: Weight) -> Callable[[float], float]:
    """A weight as a function of the fraction of the fit.

    Example:
        >>> over_time(0.5)(0.1)
        0.5
    """
    if isinstance(weight, int | float):
        return lambda fraction: weight
    return weight


def told(
    schedule: Schedule | None,
    kl_weight: Weight,
    validation: Trajectories | None,
    patience: int | None,
) -> dict[str, Any]:
    """What a fit did beyond the plain one, as plain values; functions by their names.

    Example:
        >>> told(None, 0.5, None, None)
        {'kl_weight': 0.5}
    """
    settings: dict[str, Any] = {}
    if schedule is not None:
        settings["schedule"] = getattr(schedule, "config", None) or _name(schedule)
    if kl_weight != 1.0:
        settings["kl_weight"] = _name(kl_weight) if callable(kl_weight) else float(kl_weight)
    if validation is not None:
        settings |= {"validation": list(validation.series), "patience": patience}
    return settings


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
