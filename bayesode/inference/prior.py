"""Prior predictive draws: what a model believes before it has seen data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from bayesode.errors import DataError
from bayesode.inference.ensemble import Ensemble
from bayesode.inference.predict import predict
from bayesode.inference.predictive import Predictive, SolvedPredictive, declared_draws
from bayesode.inference.randomness import seeded
from bayesode.inference.sde_predictive import SDEPredictive
from bayesode.models.contracts import Solver
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories


def sample_prior(
    model: DynamicalModel,
    question: Trajectories,
    *,
    num_draws: int = 200,
    seed: int | None = None,
) -> Ensemble:
    """The prior predictive ensemble of a model: what it believes before it has seen data.

    Every site is drawn from its prior in the model's order, all draws and series are solved at
    once, and of an SDE each draw of each series has a Brownian path of its own. Draws that explode
    count as failed (`Ensemble.share_failed`): wide priors of networks explode often.

    Args:
        model: Any model, of an ODE or an SDE; it stays as it is.
        question: Which series at which times, with values (which are not looked at, but give the
            dtype) or without.
        num_draws: Draws of everything.
        seed: Same seed, same draws; None takes one from torch's generator.

    Raises:
        DataError: If there is no draw, or the question is something else.

    Example:
        >>> import bayesode as bo
        >>> model = bo.DynamicalModel(
        ...     initial=bo.NormalInitial(1),
        ...     field=bo.SDEField(bo.BayesianMLP(1, [], 1), bo.AdditiveNoise(1)),
        ...     likelihood=bo.GaussianLikelihood(1),
        ...     solver=bo.SDESolver(1, step=0.1, noise_step=0.1),
        ... )
        >>> question = bo.Trajectories([0.0, 0.5, 1.0], None, series=["a", "b"], names=["x"])
        >>> bo.sample_prior(model, question, num_draws=50, seed=0).values.shape
        torch.Size([50, 2, 3, 1])
    """
    if not isinstance(question, Trajectories):
        raise DataError(
            f"a question is Trajectories, not {type(question).__name__} (of simulated data: "
            ".observed)."
        )
    dtype = None if question.values is None else question.values.dtype
    own = copy.deepcopy(model).to(device=question.start.device, dtype=dtype)
    return predict(
        own, _predictive(own), question, num_draws, train=question, scope=_active, seed=seed
    )


@dataclass(frozen=True, eq=False)
class Prior:
    """The laws of a model in the place of a guide.

    Args:
        model: Whose priors they are.
    """

    model: DynamicalModel

    def posteriors(self, question: Trajectories) -> dict[str, Any]:
        """The prior of each site in the model's order, x0 and paths included."""
        start, times = self.model.units.dimensionless_times(question)
        path = self.model.solver.priors(start, times)
        return {
            **self.model.global_priors(),
            "x0": lambda values: self.model.build(values, question)[0],
            **{f"path.{site}": law for site, law in path.items()},
        }

    def solver_on(self, question: Trajectories) -> Solver:
        """The solver of an SDE, on the noise grid that the priors are laid on."""
        _, times = self.model.units.dimensionless_times(question)
        solver: Any = self.model.solver
        return solver.on(times)


def _predictive(model: DynamicalModel) -> Predictive:
    prior = Prior(model)
    if hasattr(model.solver, "noise_grid"):
        return SDEPredictive(model, prior)
    return SolvedPredictive(model, lambda q, n, given: declared_draws(prior, q, n, given))


@contextmanager
def _active(seed: int | None) -> Iterator[None]:
    # parts that users wrote may keep parameters in Pyro's store
    with seeded(seed), pyro.get_param_store().scope(), torch.no_grad():
        yield
