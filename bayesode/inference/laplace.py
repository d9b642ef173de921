"""The Gauss-Newton posterior of weights and states at a trajectory fit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from tqdm.auto import tqdm

from bayesode.errors import DataError
from bayesode.inference.checks import check_data, has_random_paths
from bayesode.inference.copies import own_copies
from bayesode.inference.laplace_sde_guide import LaplaceSDEGuide
from bayesode.inference.linearised import LaplaceGuide
from bayesode.inference.path_objective import guide_half
from bayesode.inference.posterior import Posterior
from bayesode.inference.randomness import seeded
from bayesode.inference.stopwatch import Stopwatch
from bayesode.inference.warm_start.attempts import MAX_ATTEMPTS, attempts, diffusion_attempts
from bayesode.inference.warm_start.evidence import LaplaceFit, best_of, with_open_scales
from bayesode.inference.warm_start.start import prepare, prepare_diffusion
from bayesode.models.dynamical import DynamicalModel
from bayesode.plan import LITTLE_DATA
from bayesode.threads import threads_for
from bayesode.trajectories import Trajectories

PRIOR_SCALES = ("mackay", "fixed")


@dataclass
class LaplaceHistory:
    """What happened during a fit.

    Args:
        log_evidence: Of each random start, nats, values in users' units.
        num_rounds: Rounds of the best start until fit and scales agreed.
        num_weights_used: Numbers of the field and initial states that the data determine.
        seconds: Wall time.
        seconds_of: The same by phase: "smoothing", "lm", "laplace".
    """

    log_evidence: list[float]
    num_rounds: int
    num_weights_used: float
    seconds: float = 0.0
    seconds_of: dict[str, float] = field(default_factory=dict)


def fit_laplace(
    model: DynamicalModel,
    train: Trajectories,
    *,
    seed: int | None = None,
    prior_scale: str = "mackay",
    progress: bool = True,
) -> Posterior:
    """The Gauss-Newton (Laplace) posterior of weights and initial states at the trajectory fit.

    Random starts, each brought to convergence together with noise scales and prior scales; the
    largest evidence wins. Predictions are linearised around the fit.

    With additive process noise, `SDEField(drift, AdditiveNoise(dim))`, the states at all points of
    the noise grid are fitted along with the weights, and the scales of both noises are found by the
    evidence: inside the data paths are smoothed, after them they go on with the noise.

    Args:
        model: A model in data space. Of a field with more than 2,000 random numbers only the last
            layer is random, the others stay at the fit (not with process noise).
        train: Training data.
        seed: Same seed, same posterior; None takes one from torch's generator.
        prior_scale: "mackay" sets one prior scale per weight matrix by the evidence; "fixed" keeps
            the model's priors.
        progress: Show a bar on anything over two seconds.

    Raises:
        DataError: If the data cannot be fitted as they are, or the process noise depends on the
            state.
        FitError: If no start leads to a fit, or the model does not fit the data's units or is half
            of the `path` objective.

    Source: MacKay (1992); linearised predictions: Immer, Korzepa, Bauer (2021), arXiv:2008.08400;
    for neural ODEs Ott, Tiemann, Hennig (2023), arXiv:2305.13290; states as unknowns: Tremolet
    (2006), "Accounting for an imperfect model in 4D-Var", QJRMS 132.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=40).observed
        >>> model, _ = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_laplace(model, train, seed=0, progress=False)
        >>> posterior.predict(train, num_draws=50, seed=0).values.shape
        torch.Size([50, 3, 40, 2])
    """
    if prior_scale not in PRIOR_SCALES:
        raise DataError(f"prior_scale must be one of {PRIOR_SCALES}, not {prior_scale!r}.")
    check_data(model, train)
    guide_half(model, None)  # no guide has the other half of an objective here
    begin, watch = time.perf_counter(), Stopwatch()
    device = train.start.device
    with seeded(seed) as used_seed, pyro.get_param_store().scope(), torch.no_grad():
        model, _ = own_copies(model, None, dtype=train.values.dtype, device=device)  # type: ignore
        with threads_for(train.grid.numel()):
            starts = _diffusion_starts if has_random_paths(model, train) else _starts
            tries = _fit(starts(model, train, prior_scale == "mackay", watch), progress)
            best = best_of(tries)
            if train.num_observed < LITTLE_DATA:
                tries[tries.index(best)] = best = with_open_scales(best)
        guide = laplace_guide(model, train).to(device)
        best.data.field.write_prior(guide.moving(model))
        guide.fill(best)
    evidences = [fit.log_evidence for fit in tries]
    history = LaplaceHistory(evidences, best.num_rounds, best.num_used)
    history.seconds, history.seconds_of = time.perf_counter() - begin, watch.seconds
    settings = {"engine": "laplace", "seed": used_seed, "prior_scale": prior_scale}
    return Posterior(model, guide, train, history=history, settings=settings)


def laplace_guide(model: DynamicalModel, train: Trajectories) -> Any:
    """An empty Laplace posterior of a model, for states if its paths have noise of their own."""
    if has_random_paths(model, train):
        return LaplaceSDEGuide(model, train)
    return LaplaceGuide(model, train)


def _starts(
    model: DynamicalModel, train: Trajectories, is_tuned: bool, watch: Stopwatch
) -> Iterator[LaplaceFit]:
    with watch("smoothing"):
        data, grid, smoothed = prepare(model, train)
    return attempts(data, grid, smoothed, is_tuned=is_tuned, watch=watch)


def _diffusion_starts(
    model: DynamicalModel, train: Trajectories, is_tuned: bool, watch: Stopwatch
) -> Iterator[LaplaceFit]:
    with watch("smoothing"):
        problem, grid, smoothed = prepare_diffusion(model, train)
    return diffusion_attempts(problem, grid, smoothed, is_tuned=is_tuned, watch=watch)


def _fit(starts: Iterator[LaplaceFit], progress: bool) -> list[LaplaceFit]:
    tries = []
    with tqdm(total=MAX_ATTEMPTS, desc="Laplace", delay=2, disable=not progress) as bar:
        for fit in starts:
            tries.append(fit)
            best = best_of(tries)
            bar.set_postfix(log_evidence=f"{best.log_evidence:.1f}", refresh=False)
            bar.update()
        bar.total = len(tries)
    return tries
