"""One entry to all engines."""

from __future__ import annotations

from typing import Any

from bayesode.errors import DataError
from bayesode.inference.checks import has_random_paths
from bayesode.inference.laplace import fit_laplace
from bayesode.inference.posterior import Posterior
from bayesode.inference.svi import fit_svi
from bayesode.inference.warm_start.diffusion import check_additive
from bayesode.inference.warm_start.flat import FlatField
from bayesode.models.dynamical import DynamicalModel
from bayesode.plan import choose_engine as engine_for
from bayesode.trajectories import Trajectories

ENGINES = ("auto", "laplace", "svi")


def fit(
    model: DynamicalModel,
    guide: Any,
    train: Trajectories,
    *,
    engine: str = "auto",
    seed: int | None = None,
    progress: bool = True,
) -> Posterior:
    """Fit a model by the engine that suits it.

    Args:
        model: The generative model.
        guide: For SVI; Laplace does not need it.
        train: Training data.
        engine: "auto", "laplace" or "svi". "auto" follows the plan of a model that has one; else it
            takes Laplace for models in data space with at most 2,000 random numbers in the field,
            with additive process noise or none, whose bands hold best, and SVI otherwise.
        seed: Same seed, same posterior; None takes one from torch's generator.
        progress: Show a bar on anything over two seconds.

    Returns:
        The posterior; `settings["reason"]` says why the engine was taken.

    Raises:
        DataError: For an unknown engine, or data that cannot be fitted as they are.
        FitError: As the engine.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=30).observed
        >>> model, guide = bo.neural_ode(train, hidden=[8], verbose=False)
        >>> bo.fit(model, guide, train, seed=0, progress=False).settings["engine"]
        'laplace'
    """
    if engine not in ENGINES:
        raise DataError(f"engine must be one of {ENGINES}, not {engine!r}.")
    chosen, reason = (engine, "as asked") if engine != "auto" else choose_engine(model, train)
    if chosen == "laplace":
        posterior = fit_laplace(model, train, seed=seed, progress=progress)
    else:
        posterior = fit_svi(model, guide, train, seed=seed, progress=progress)
    posterior.settings["reason"] = reason
    return posterior


def choose_engine(model: DynamicalModel, train: Trajectories) -> tuple[str, str]:
    """The engine for a model, and why: as its plan says, or by what the model is."""
    stored = ((model.recipe or {}).get("arguments") or {}).get("plan") or {}
    planned = stored.get("engine", "auto")
    if planned != "auto":
        return planned, stored.get("reasons", {}).get("engine", "as planned")
    if has_random_paths(model, train):
        try:
            check_additive(model)
        except DataError as error:
            return "svi", str(error).split(";")[0]
    if not hasattr(model.likelihood, "working_response"):
        name = type(model.likelihood).__name__
        return "svi", f"{name} does not show the state in data space, which Laplace needs"
    return engine_for(len(FlatField.of(model.field).mean))
