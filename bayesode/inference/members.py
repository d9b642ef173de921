"""What the members of a mixture must share, and what they may."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.checks import has_random_paths
from bayesode.inference.posterior import Posterior


def joined_draws(parts: Sequence[dict[str, Tensor]], order: Tensor) -> dict[str, Tensor]:
    """Draws of the parts of the model that have the same sites and shapes in all members."""
    groups = [_groups(part) for part in parts]
    shared = [name for name in groups[0] if all(g.get(name) == groups[0][name] for g in groups)]
    return {
        site: torch.cat([part[site] for part in parts])[order]
        for site in parts[0]
        if _group(site) in shared
    }


def _groups(draws: dict[str, Tensor]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes per site of each part of a model, as "field.network"."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for site, value in draws.items():
        found.setdefault(_group(site), {})[site] = tuple(value.shape[1:])
    return found


def _group(site: str) -> str:
    return site.rpartition(".")[0]


def shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights that add up to 1, equal ones by default.

    Raises:
        DataError: Without members, or if the weights are none.
    """
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    is_usable = all(0 <= weight < math.inf for weight in given) and sum(given) > 0
    if len(given) != count or not is_usable:
        raise DataError(
            f"a mixture needs a member or more and one weight >= 0 for each, not {given} for "
            f"{count} members."
        )
    return tuple(weight / sum(given) for weight in given)


def check_members(members: Sequence[Posterior]) -> None:
    """Refuse posteriors that cannot be mixed.

    Raises:
        DataError: If they differ in series, starts, components, the transform of their units, or
            the kind of their likelihood.
    """
    first = members[0]
    for member in members[1:]:
        if _shared(member) != _shared(first) or not torch.equal(
            member.train.start, first.train.start
        ):
            raise DataError(
                "the members of a mixture share series, starts and units of the model: the labels "
                "and components of their data, and the transform and names of the units. Members "
                "that were fitted to other series are mixed after condition(new) of each, as a "
                "Bag does."
            )
        kinds = [type(one.model.likelihood).__name__ for one in (first, member)]
        if kinds[0] != kinds[1]:
            raise DataError(f"the members have different likelihoods, {kinds[0]} and {kinds[1]}.")


def _shared(member: Posterior) -> tuple[Any, ...]:
    data, units = member.train, member.model.units
    return data.series, data.names, data.event_shape, units.transform, units.names


def are_seen_alike(members: Sequence[Posterior]) -> bool:
    """Whether one likelihood serves the draws of all: same units, nothing learned, same numbers."""
    if any(has_learned_likelihood(member) for member in members):
        return False
    first, *others = (member.model for member in members)
    own: Any = first.likelihood
    return all(
        other.units.config == first.units.config
        and _is_equal(other.likelihood.state_dict(), own.state_dict())  # type: ignore[operator]
        for other in others
    )


def has_learned_likelihood(member: Posterior) -> bool:
    """Whether the likelihood has learned parameters, such as a decoder.

    Then the latent states of a member are in coordinates of its own.
    """
    likelihood: Any = member.model.likelihood
    return any(True for _ in likelihood.parameters())


def _is_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def has_process_noise(member: Posterior) -> bool:
    """Whether the paths of a posterior have noise of their own."""
    return has_random_paths(member.model, member.train)


def described(member: Posterior, weight: float) -> str:
    """A line on one member."""
    field: Any = getattr(member.model.field, "drift", member.model.field)
    hidden = "x".join(map(str, getattr(field, "config", {}).get("hidden", [])))
    noise = ", with process noise" if has_process_noise(member) else ""
    evidence = getattr(member.guide, "log_evidence", None)
    told = "" if evidence is None else f", log evidence {evidence.item():.1f}"
    return f"  hidden {hidden or type(field).__name__}{noise}, weight {weight:.2g}{told}"
