"""Bagging: one fit to each of several random subsets of the series, which predict together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from bayesode.data_checks import check_size
from bayesode.errors import DataError
from bayesode.inference import storage
from bayesode.inference.mixture import Mixture
from bayesode.inference.posterior import Posterior
from bayesode.inference.randomness import seeded
from bayesode.inference.refits import Fit, check_series, complete_fit, each_of, seeds_of
from bayesode.trajectories import Trajectories

FEWEST = 3  # series of a member, where there are as many


class Bag:
    """Posteriors of the same system, each of other series; it predicts once it is conditioned.

    Args:
        members: Posteriors.
        train: All series.
        settings: How it was made, plain values.

    Raises:
        DataError: If there is no member.
    """

    def __init__(
        self,
        members: Sequence[Posterior],
        train: Trajectories,
        *,
        settings: dict[str, Any] | None = None,
    ) -> None:
        if not members:
            raise DataError("a bag needs a member or more.")
        self.members, self.train = tuple(members), train
        self.settings = dict(settings or {}) | {"engine": "bag"}

    def __repr__(self) -> str:
        return f"Bag({len(self.members)} members, {self.train!r})"

    @property
    def subsets(self) -> list[tuple[str | int, ...]]:
        """Labels of the series that each member was fitted to."""
        return [member.train.series for member in self.members]

    def condition(
        self, new: Trajectories, *, num_draws: int = 200, seed: int | None = None
    ) -> Mixture:
        """The equal mixture of the members for these series, each conditioned on them.

        Args:
            new: As in `Posterior.condition`; training series (`bag.train`) are inferred anew, too,
                by all members.
            num_draws: As in `Posterior.condition`.
            seed: Same seed, same mixture.

        Raises:
            DataError: As `Posterior.condition`.
        """
        with seeded(seed):
            members = [member.condition(new, num_draws=num_draws) for member in self.members]
        told = {name: value for name, value in self.settings.items() if name != "engine"}
        return Mixture(members, settings=told | {"conditioned": {"num_draws": num_draws}})

    def save(self, folder: str | Path) -> Path:
        """Write all members and the data; `bayesode.load(folder)` reads it.

        Raises:
            DataError: If the folder holds something else than a run, or cannot be written.
        """
        return storage.write_run(Path(folder), self._write)

    def _write(self, folder: Path) -> None:
        config = storage.config_of_many(self.train, self.settings)
        config["bag"] = {"num_members": len(self.members)}
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        storage.write_data(self.train, folder / "train.npz")
        for row, member in enumerate(self.members):
            member.save(folder / f"member-{row}")


def fit_bag(
    fit: Fit,
    train: Trajectories,
    *,
    num_members: int = 4,
    fraction: float = 0.75,
    seed: int = 0,
    progress: bool = True,
) -> Bag:
    """Fit several members, each to a random subset of the series, and predict by all of them.

    The mean of the members varies less with the choice of series than a single fit does. Their
    spread is part of the prediction: it also stands for what a mean-field posterior does not know
    of itself, such as other optima, or posterior correlations that it leaves out.

    Ctrl-C keeps the members that were reached, with a warning; so does a `FitError` of one of them.

    Args:
        fit: fit(part, seed) -> posterior; builds model and guide for the series in `part`, as
            `lambda part, seed: bo.fit_svi(*bo.ode_vae(part), part, seed=seed)`.
        train: Training series.
        num_members: How many.
        fraction: Of the series that each member sees, without replacement; at least 3, or all.
        seed: Of the subsets and of the fits: same seed, same bag.
        progress: Show a bar.

    Returns:
        A bag: `bag.condition(new).predict(new.at(times))`.

    Raises:
        DataError: For a number of members or a fraction that is none, or data without series.
        FitError: If no member can be fitted.

    Source: Breiman (1996), "Bagging predictors", Machine Learning 24. doi:10.1007/BF00058655. He
        draws as many series as there are, with replacement. Subsets without replacement: Bühlmann
        and Yu (2002), "Analyzing bagging", Annals of Statistics 30. doi:10.1214/aos/1031689014

    Example:
        >>> import bayesode as bo
        >>> data = bo.datasets.van_der_pol(num_series=5, num_times=12).observed
        >>> train, new = data.split(series=[4])
        >>> def fit(part, seed):
        ...     system = dict(dim_latent=2, likelihood="gaussian", hidden=(), network="none")
        ...     model, guide = bo.ode_vae(part, **system, verbose=False)
        ...     return bo.fit_svi(model, guide, part, seed=seed, num_steps=3, progress=False)
        >>> bag = fit_bag(fit, train, num_members=2, progress=False)
        >>> ensemble = bag.condition(new.until(1.5)).predict(new, num_draws=20, seed=0)
        >>> len(bag.members), ensemble.values.shape
        (2, torch.Size([20, 1, 12, 2]))
    """
    check_size(num_members=num_members)
    if not isinstance(fraction, Real) or not 0 < fraction <= 1:
        raise DataError(f"fraction must lie in (0, 1], not {fraction!r}.")
    check_series(train, 1)
    generator = torch.Generator().manual_seed(int(seed))
    subsets = [_subset(train, float(fraction), generator) for _ in range(num_members)]
    seeds = seeds_of(generator, num_members)
    members = each_of(
        lambda k: complete_fit(fit, train.rows(subsets[k]), seeds[k]),
        num_members,
        what="members",
        progress=progress,
    )
    told = {"num_members": num_members, "fraction": float(fraction), "seed": int(seed)}
    return Bag(members, train, settings=told)


def _subset(train: Trajectories, fraction: float, generator: torch.Generator) -> list[int]:
    """Rows of one member, in the order of the data."""
    count = min(train.num_series, max(FEWEST, round(fraction * train.num_series)))
    return sorted(torch.randperm(train.num_series, generator=generator)[:count].tolist())
