"""How fast each group of parameters learns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bayesode.errors import DataError

# Locations move in units of their posterior scales, log scales in e-folds (below .03 posterior
# scales stay where they start), weights of networks in numbers of their own: Adam's usual rate.
LOG_SCALES, NETWORKS = 0.03, 1e-3


def by_group(learning_rate: float | Mapping[str, float] | None) -> dict[str, float]:
    """The rates that are named, a number as that of "locations"."""
    if learning_rate is None:
        return {}
    if isinstance(learning_rate, Mapping):
        return dict(learning_rate)
    return {"locations": learning_rate}


def group_rates(
    learning_rate: float | Mapping[str, float] | None, groups: Iterable[str], locations: float
) -> dict[str, float]:
    """The first learning rate of each group.

    Args:
        learning_rate: Of some groups by name, or of "locations" alone; None for the defaults.
        groups: Names of the groups that the fit has.
        locations: Default of "locations".

    Raises:
        DataError: If a rate is not positive, or of a group that the fit does not have, or a group
            has no rate.

    Example:
        >>> group_rates(0.1, ["locations", "networks"], locations=0.05)
        {'locations': 0.1, 'networks': 0.001}
    """
    names = list(groups)
    given = by_group(learning_rate)
    for name, rate in given.items():
        if name not in names:
            raise DataError(
                f"learning_rate names the group {name!r}; this guide and model have {names}."
            )
        if not rate > 0:
            raise DataError(f"learning_rate of {name} must be positive, not {rate}.")
    rates = {"locations": locations, "log_scales": LOG_SCALES, "networks": NETWORKS} | given
    unknown = [name for name in names if name not in rates]
    if unknown:
        raise DataError(f"the guide's group {unknown[0]!r} has no learning rate: give it one.")
    return {name: rates[name] for name in names}
