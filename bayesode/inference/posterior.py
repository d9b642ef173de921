"""What a fit returns: draws, predictions, an account of the ELBO, files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference import arviz, storage
from bayesode.inference.conditioning import check_new, condition_draws
from bayesode.inference.elbo import ELBOTerms, elbo_terms
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.guides import rows_of
from bayesode.inference.predict import in_users_units, predict
from bayesode.inference.predictive import predictive_of
from bayesode.inference.randomness import seeded
from bayesode.inference.windows import check_after, check_inside, data_window
from bayesode.models.dynamical import DynamicalModel
from bayesode.threads import threads_for
from bayesode.trajectories import Trajectories


class Posterior:
    """A fitted model.

    Args:
        model: The fit's own copy of the model.
        guide: The fit's own copy of the guide, with what was learned.
        train: The data of the fit.
        history: What happened during the fit.
        settings: How it was made, plain values.
        state: Pyro's parameter store of the fit.
    """

    def __init__(
        self,
        model: DynamicalModel,
        guide: Any,
        train: Trajectories,
        *,
        history: Any,
        settings: dict[str, Any],
        state: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.guide, self.train = model, guide, train
        self.history, self.settings, self.state = history, settings, dict(state or {})
        self.predictive = predictive_of(model, guide, train)

    def __repr__(self) -> str:
        return f"Posterior({self.settings.get('engine')}, {self.train!r})"

    # ---- draws -----------------------------------------------------------------------------------
    def draws(self, num_draws: int, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of every site in users' units: (draws, *event), x0 (draws, series, state)."""
        with self._active(seed):
            return in_users_units(self.model, self.predictive.sample(self.train, num_draws))

    def predict(
        self,
        trajectories: Trajectories,
        *,
        num_draws: int = 200,
        seed: int | None = None,
        solver: Any = None,
    ) -> Ensemble:
        """The predictive ensemble at the times of a question.

        Args:
            trajectories: Which series at which times: `train.at(times)`, or any trajectories with
                the fit's labels and starts.
            num_draws: Draws of weights, initial states and noise.
            seed: Same seed, same draws; None takes one from torch's generator.
            solver: In place of the model's own. A network fitted through a solver has learned that
                solver: change it only to measure its error.

        Raises:
            DataError: For an unknown series, another start, or times before it.
        """
        self._check_question(trajectories)
        return predict(
            self.model,
            self.predictive,
            trajectories.to(self.train.start.device),
            num_draws,
            train=self.train,
            scope=self._active,
            seed=seed,
            solver=solver,
        )

    def smooth(
        self,
        trajectories: Trajectories | None = None,
        *,
        num_draws: int = 200,
        seed: int | None = None,
    ) -> Ensemble:
        """The ensemble of paths inside the data window, given all data: before and after.

        Args:
            trajectories: As in `predict`, no time after the last observed one of its series; by
                default the training times up to there.
            num_draws: As in `predict`.
            seed: As in `predict`.

        Raises:
            DataError: For a time after the data window, and as `predict`.
        """
        asked = data_window(self.train) if trajectories is None else trajectories
        check_inside(self.train, asked)
        return self.predict(asked, num_draws=num_draws, seed=seed)

    def forecast(
        self, trajectories: Trajectories, *, num_draws: int = 200, seed: int | None = None
    ) -> Ensemble:
        """The ensemble of paths after the data: drift and, of an SDE, fresh noise from there on.

        Every draw goes on from its own smoothed state at the last observation.

        Args:
            trajectories: As in `predict`, all times after the last observed one of their series.
            num_draws: As in `predict`.
            seed: As in `predict`.

        Raises:
            DataError: For a time inside the data window, and as `predict`.
        """
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
        """Draws of the vector field dx/dt, in users' units.

        Args:
            states: Where, in users' units, shape (points, state).
            num_draws: Draws of the field.
            seed: As in `predict`.
            time: When, in the unit of the data (for fields that depend on time); the first start
                by default.

        Returns:
            Shape (draws, points, state).
        """
        units = self.model.units
        begin = self.train.start.min().item() if time is None else time
        with self._active(seed):
            values = self.predictive.sample(self.train, num_draws)
            points = units.to_state(states.to(values["x0"])).expand(num_draws, -1, -1)
            t = torch.tensor((begin - units.time_origin.item()) / units.time_unit.item()).to(points)
            return units.to_users_rate(points, self.predictive.rates(values, t, points))

    @property
    def log_evidence(self) -> float:
        """Log evidence of a Laplace fit, nats, values in users' units.

        Raises:
            DataError: For other engines.
        """
        if not hasattr(self.guide, "log_evidence"):
            raise DataError("only fit_laplace gives a log evidence; SVI has elbo_terms().")
        return self.guide.log_evidence.item()

    def elbo_terms(self, *, num_particles: int = 64, seed: int | None = 0) -> ELBOTerms:
        """The terms of the ELBO on the training data, nats.

        Raises:
            DataError: If the guide does not declare its posteriors (Pyro's and your own).
        """
        if not hasattr(self.guide, "posteriors"):
            raise DataError(
                f"the guide {type(self.guide).__name__} does not declare its posteriors, so its "
                "ELBO has no terms: history.elbo has the estimates of an SVI fit, log_evidence "
                "what Laplace has in its place."
            )
        is_type_two = self.settings.get("prior_scale") == "empirical"
        with self._active(seed):
            terms = elbo_terms(self.model, self.guide, self.train, num_particles=num_particles)
        return replace(terms, is_type_two=is_type_two)

    def condition(
        self, new: Trajectories, *, num_draws: int = 200, seed: int | None = None
    ) -> Posterior:
        """The posterior for new series: their initial states, inferred from their first points.

        What the series share (weights, constants, noise) keeps the posterior of the fit. After
        Laplace x0 is linearised along with the weights; an encoder reads it off the new values;
        else it is inferred for every draw of the weights, never at their mean.

        Args:
            new: Observed series with the components of the fit, on any times and from any starts;
                the prior fills what they leave open. A label of the fit is inferred anew.
            num_draws: Draws of the shared sites that are kept (Laplace and encoders need none).
            seed: As in `predict`.

        Returns:
            A posterior whose `train` is `new`: ask it with predict(new.at(times)).

        Raises:
            DataError: If nothing is observed, or not what an encoder reads, components are others
                than in the fit, values lie outside the model's bound, or its paths are random and
                it was fitted by SVI.

        Example:
            >>> import bayesode as bo
            >>> data = bo.datasets.van_der_pol(num_series=4, num_times=30).observed
            >>> train, new = data.split(series=[3])
            >>> model, _ = bo.neural_ode(train, hidden=[4], verbose=False)
            >>> posterior = bo.fit_laplace(model, train, seed=0, progress=False)
            >>> forecast = posterior.condition(new.until(1.5)).predict(new, num_draws=50, seed=0)
            >>> forecast.values.shape
            torch.Size([50, 1, 30, 2])
        """
        check_new(self.model, self.train, new)
        if num_draws < 1:
            raise DataError(f"num_draws must be positive, not {num_draws}.")
        new = new.to(self.train.start.device, self.train.values.dtype)  # type: ignore[union-attr]
        with (
            seeded(seed) as used_seed,
            self._active(used_seed),
            threads_for(num_draws * new.num_series),
        ):
            conditioned = {"seed": used_seed}
            if hasattr(self.guide, "condition"):
                guide = self.guide.condition(self.model, new)
            else:
                draws = self.predictive.sample(self.train, num_draws)
                guide = condition_draws(self.model, draws, new)
                conditioned |= {"num_draws": num_draws}
        settings = self.settings | {"conditioned": conditioned}
        return Posterior(self.model, guide, new, history=self.history, settings=settings)

    # ---- out -------------------------------------------------------------------------------------
    def to_arviz(
        self, trajectories: Trajectories | None = None, *, num_draws: int = 500, seed: int = 0
    ) -> Any:
        """ArviZ data: posterior, posterior_predictive, observed_data, log_likelihood.

        Args:
            trajectories: The data to look at, the training data by default.
            num_draws: In one chain. They are independent draws of an approximation, so R-hat and
                effective sample sizes mean nothing.
            seed: Of the draws.

        Returns:
            `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (1.x).
        """
        data = self.train if trajectories is None else trajectories
        ensemble = self.predict(data, num_draws=num_draws, seed=seed)
        return arviz.inference_data(ensemble, data, self.model.labels())

    def save(self, folder: str | Path) -> Path:
        """Write the run to a folder as plain numbers; `bayesode.load(folder)` reads it.

        Raises:
            DataError: If the folder holds something else than a run, or cannot be written.
        """
        return storage.save(self, Path(folder))

    # ---- inside ----------------------------------------------------------------------------------
    @contextmanager
    def _active(self, seed: int | None) -> Iterator[None]:
        state: Any = dict(self.state) or None
        with seeded(seed), pyro.get_param_store().scope(state), torch.no_grad():
            yield

    def _check_question(self, question: Trajectories) -> None:
        rows = rows_of(self.train.series, question).to(self.train.start.device)
        difference = (question.start.to(self.train.start) - self.train.start[rows]).abs()
        if (difference > 1e-9 * self.model.units.time_unit).any():
            row = int(difference.argmax())
            raise DataError(
                f"series {question.series[row]!r} starts at {question.start[row].item():g} in the "
                f"question and at {self.train.start[rows[row]].item():g} in the fit; ask with "
                "train.at(times), which keeps the start."
            )
