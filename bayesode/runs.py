"""Saved runs, back into posteriors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import torch

from bayesode import systems
from bayesode.errors import DataError
from bayesode.inference import storage
from bayesode.inference.posterior import Posterior
from bayesode.inference.svi import History
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories


def load(
    folder: str | Path, *, model: DynamicalModel | None = None, guide: Any = None
) -> Posterior:
    """The posterior of a saved run.

    Args:
        folder: Written by `Posterior.save`.
        model: For a hand-made model: an object built like the one that was saved.
        guide: For a hand-made model or guide: likewise.

    Raises:
        DataError: If the run is missing, damaged, or needs a model and guide that are not given.
    """
    folder = Path(folder)
    config = storage.read_config(folder)
    train = storage.read_data(folder)
    if model is None or guide is None:
        if config["recipe"] is None or (guide is None and not (folder / "guide.pt").is_file()):
            raise DataError(
                f"{folder} holds a hand-made model or guide: build them as before and call "
                "load(folder, model=model, guide=guide)."
            )
        rebuilt = systems.rebuild(config["recipe"], train)
        model, guide = model or rebuilt[0], guide or rebuilt[1]
    dtype = getattr(torch, config["dtype"])
    _fill(model.to(dtype=dtype), storage.read_state(folder / "model.pt"), folder / "model.pt")
    state: dict[str, Any] = {}
    if hasattr(guide, "posteriors"):
        _fill(guide.to(dtype=dtype), storage.read_state(folder / "guide.pt"), folder / "guide.pt")
    else:
        state = _fill_store(guide, train, storage.read_state(folder / "store.pt"))
    history = History(**storage.read_history(folder))
    return Posterior(model, guide, train, history=history, settings=config["settings"], state=state)


def _fill(module: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{path} does not fit the model that was given: {error}") from error


def _fill_store(guide: Any, train: Trajectories, stored: dict[str, Any]) -> dict[str, Any]:
    """Pyro's parameter store for a guide that makes its parameters when it first runs."""
    with pyro.get_param_store().scope() as state:
        guide(train)
        store = pyro.get_param_store()
        if set(stored) != set(store.keys()):
            raise DataError(
                f"the guide has the parameters {sorted(store.keys())}, the run {sorted(stored)}."
            )
        with torch.no_grad():
            for name, value in stored.items():
                store._params[name].copy_(value)
    return dict(state)
