"""Several posteriors of the same data as one: what no single width knows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference import arviz, storage
from bayesode.inference.blocks import Block
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.hold_out import HoldOut, inflated
from bayesode.inference.joined import joined, joined_observe, joined_pairs, joined_paths
from bayesode.inference.members import (
    are_seen_alike,
    check_members,
    described,
    has_learned_likelihood,
    joined_draws,
    shares,
)
from bayesode.inference.posterior import Posterior
from bayesode.inference.predict import observe_some
from bayesode.inference.randomness import seeded
from bayesode.inference.variance_parts import PairedPaths
from bayesode.inference.windows import check_after, check_inside, data_window, is_after
from bayesode.models.contracts import Observe, unnest
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories


class Mixture:
    """A mixture of posteriors of the same series, such as models of several widths.

    Each draw is seen through the likelihood of its own member. Where that has learned parameters (a
    decoder), a member's latent states are in coordinates of its own: what is seen, `signal` and
    `values`, can be compared between draws, `states` and `path` cannot.

    Args:
        members: Posteriors with the same series, starts and components, whose models have the same
            kind of likelihood and transform of the units.
        weights: Of the members, non-negative; equal by default.
        hold_out: What forecasts were worth on held-out times; its inflation acts on predictions
            after each series' last training time.
        settings: How it was made, plain values.

    Raises:
        DataError: If there is no member, the members differ in what they must share, the weights
            are none, or forecasts of members with likelihoods of their own are to be inflated.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=2, num_times=20).observed
        >>> fits = []
        >>> for width in (2, 3):
        ...     model, _ = bo.neural_ode(train, hidden=[width], verbose=False)
        ...     fits.append(bo.fit_laplace(model, train, seed=0, progress=False))
        >>> Mixture(fits).predict(train, num_draws=10, seed=0).values.shape
        torch.Size([10, 2, 20, 2])
    """

    def __init__(
        self,
        members: Sequence[Posterior],
        *,
        weights: Sequence[float] | None = None,
        hold_out: HoldOut | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.members, self.hold_out = tuple(members), hold_out
        self.weights = shares(weights, len(self.members))
        check_members(self.members)
        self.is_seen_alike = are_seen_alike(self.members)
        if self.inflation > 1 and not self.is_seen_alike:
            raise DataError(
                "hold-out inflates forecasts of members that share units and likelihood; these "
                "have decoders or units of their own: HorizonNoise.of(leave_series_out(...)) fits "
                "their noise."
            )
        self.settings = {"engine": "mixture"} | dict(settings or {})

    def __repr__(self) -> str:
        return f"Mixture({len(self.members)} members, {self.train!r})"

    def __str__(self) -> str:
        pairs = zip(self.members, self.weights, strict=True)
        title = f"Mixture of {len(self.members)}"
        return "\n".join([title, *(described(*pair) for pair in pairs), self.note])

    @property
    def note(self) -> str:
        """What the hold-out says, in words."""
        if self.hold_out is not None:
            return str(self.hold_out)
        return self.settings.get("hold_out", "Nothing was held out: look at scores on new data.")

    @property
    def train(self) -> Trajectories:
        """The data of the fits."""
        return self.members[0].train

    @property
    def best(self) -> Posterior:
        """The member with the largest weight, of equal ones that with the largest evidence."""
        ranks = [
            (weight, getattr(member.guide, "log_evidence", torch.tensor(0.0)).item())
            for member, weight in zip(self.members, self.weights, strict=True)
        ]
        return self.members[max(range(len(ranks)), key=ranks.__getitem__)]

    @property
    def model(self) -> DynamicalModel:
        """The model of the best member, whose units are those of joined paths."""
        return self.best.model

    @property
    def log_evidence(self) -> float:
        """Log of the weighted mean of the members' evidences, nats, values in users' units.

        Raises:
            DataError: If a member has none.
        """
        parts = [
            math.log(weight) + member.log_evidence
            for member, weight in zip(self.members, self.weights, strict=True)
            if weight > 0
        ]
        return torch.tensor(parts, dtype=torch.float64).logsumexp(0).item()

    @property
    def inflation(self) -> float:
        """Factor of the variance of forecasts."""
        return 1.0 if self.hold_out is None else self.hold_out.inflation

    # ---- draws -----------------------------------------------------------------------------------
    def draws(self, num_draws: int, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of the sites that all members share, in users' units: x0 and the noise."""
        with seeded(seed):
            parts = [member.draws(count) for member, count in self._parts(num_draws)]
            return joined_draws(parts, torch.randperm(num_draws).to(self.train.start.device))

    def predict(
        self,
        trajectories: Trajectories,
        *,
        num_draws: int = 200,
        seed: int | None = None,
        solver: Any = None,
    ) -> Ensemble:
        """The predictive ensemble: draws of the members in the shares of their weights.

        After a series' last training time the predictive variance, on the scale of the units'
        transform, is multiplied by the inflation: the paths spread, the noise stays as it is.

        Args:
            trajectories: As in `Posterior.predict`.
            num_draws: Of all members together; where they do not divide, chance decides.
            seed: Same seed, same draws.
            solver: As in `Posterior.predict`.

        Raises:
            DataError: As `Posterior.predict`.
        """
        with seeded(seed):
            parts = [
                member.predict(trajectories, num_draws=count, solver=solver)
                for member, count in self._parts(num_draws)
            ]
            return self._combined(parts)

    def smooth(
        self,
        trajectories: Trajectories | None = None,
        *,
        num_draws: int = 200,
        seed: int | None = None,
    ) -> Ensemble:
        """Paths inside the data window, as `Posterior.smooth`."""
        asked = data_window(self.train) if trajectories is None else trajectories
        check_inside(self.train, asked)
        return self.predict(asked, num_draws=num_draws, seed=seed)

    def forecast(
        self, trajectories: Trajectories, *, num_draws: int = 200, seed: int | None = None
    ) -> Ensemble:
        """Paths after the last observation of each series, as `Posterior.forecast`."""
        check_after(self.train, trajectories)
        return self.predict(trajectories, num_draws=num_draws, seed=seed)

    def field(
        self,
        states: Tensor,
        *,
        num_draws: int = 100,
        seed: int | None = None,
        time: float | None = None,
    ) -> Tensor:
        """Draws of the vector field dx/dt, as `Posterior.field`; without inflation."""
        with seeded(seed):
            parts = [
                member.field(states, num_draws=count, time=time)
                for member, count in self._parts(num_draws)
            ]
        return torch.cat(parts)

    def condition(
        self, new: Trajectories, *, num_draws: int = 200, seed: int | None = None
    ) -> Mixture:
        """The mixture for new series, each member conditioned as by `Posterior.condition`.

        Weights stay those of the fit. Inflation acts on forecasts of the new series, too.
        """
        with seeded(seed):
            members = [member.condition(new, num_draws=num_draws) for member in self.members]
        return Mixture(
            members,
            weights=self.weights,
            hold_out=self.hold_out,
            settings=self.settings | {"conditioned": {"num_draws": num_draws}},
        )

    # ---- out -------------------------------------------------------------------------------------
    def to_arviz(
        self, trajectories: Trajectories | None = None, *, num_draws: int = 500, seed: int = 0
    ) -> Any:
        """ArviZ data as `Posterior.to_arviz`, of the sites that all members share."""
        data = self.train if trajectories is None else trajectories
        ensemble = self.predict(data, num_draws=num_draws, seed=seed)
        labels = self.model.labels()
        return arviz.inference_data(ensemble, data, labels)

    def save(self, folder: str | Path) -> Path:
        """Write all members and what joins them; `bayesode.load(folder)` reads it.

        Raises:
            DataError: If the folder holds something else than a run, or cannot be written.
        """
        return storage.write_run(Path(folder), self._write)

    def _write(self, folder: Path) -> None:
        config = storage.config_of_many(self.train, self.settings)
        config["mixture"] = {
            "weights": list(self.weights),
            "hold_out": None if self.hold_out is None else self.hold_out.config,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        for row, member in enumerate(self.members):
            member.save(folder / f"member-{row}")

    # ---- inside ----------------------------------------------------------------------------------
    def _parts(self, num_draws: int) -> list[tuple[Posterior, int]]:
        """Members with their numbers of draws; those without a draw are left out."""
        if num_draws < 1:
            raise DataError(f"num_draws must be positive, not {num_draws}.")
        exact = torch.tensor(self.weights, dtype=torch.float64) * num_draws
        counts = (exact + 1e-9).floor()
        if missing := num_draws - int(counts.sum()):
            counts[torch.multinomial((exact - counts).clamp_min(0), missing)] += 1
        pairs = zip(self.members, counts.long().tolist(), strict=True)
        return [(member, count) for member, count in pairs if count]

    def _combined(self, parts: list[Ensemble]) -> Ensemble:
        first, units = parts[0], self.model.units
        order = torch.randperm(sum(len(part.path) for part in parts)).to(first.path.device)
        own = [part.units for part in parts]
        path = joined_paths([part.path for part in parts], own, units, order)
        failed = joined([part.failed for part in parts], order)
        draws = joined_draws([part.draws for part in parts], order)
        sites = {s: v.unsqueeze(1) for s, v in draws.items() if s.startswith("likelihood.")}
        if self.inflation > 1:
            likelihood: Any = self.model.likelihood
            information = likelihood.fisher(path, unnest("likelihood", sites))
            wide = inflated(path, failed, information, self.inflation)
            is_ahead = is_after(self.train, first.trajectories).unsqueeze(-1)
            path = torch.where(is_ahead, wide, path)

        def observe_in(block: Block) -> Observe:
            if self.is_seen_alike:  # one likelihood sees all draws at once
                return observe_some(self.model, sites, first.trajectories, block.rows)
            return joined_observe(parts, units, order, block)

        return Ensemble(
            trajectories=first.trajectories,
            path=path,
            observe=observe_in(Block(slice(None), slice(None), 0)),
            failed=failed,
            draws=draws,
            units=units,
            train=self.train,
            solver_error=lambda: max(part.solver_error for part in parts),
            path_sd=lambda: self._sd(path, failed, parts),
            pairs=lambda: self._paired(parts, order),
            noise_seed=int(torch.randint(2**31, ())),
            observe_in=observe_in,
        )

    def _paired(self, parts: Sequence[Ensemble], order: Tensor) -> PairedPaths:
        """Partners of the joined draws; which member a draw is from counts as its weights."""
        if self.inflation > 1 and is_after(self.train, parts[0].trajectories).any():
            raise DataError(
                f"the variance of these forecasts is inflated x{self.inflation:.2g} by hold-out, "
                "and that has no place in a model: ask inside the data window, smooth(), or a "
                "member, members[0].forecast(...)."
            )
        pairs, units = [part.paired() for part in parts], [part.units for part in parts]
        return joined_pairs(pairs, units, self.model.units, order)

    def _sd(self, path: Tensor, failed: Tensor, parts: Sequence[Ensemble]) -> Tensor:
        """Sd of the joined paths; above 1, too, where most members say: nothing is determined."""
        doubt = 2 * torch.stack([part.undetermined for part in parts]).double().mean(0).to(path)
        if any(map(has_learned_likelihood, self.members)):  # no common coordinates
            return doubt
        kept = torch.where(failed[:, :, None, None], torch.nan, path)
        between = (kept - kept.nanmean(0)).square().nanmean(0).sqrt()
        return between.maximum(doubt)
