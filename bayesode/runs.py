"""Saved runs, back into posteriors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import torch

from bayesode import systems
from bayesode.errors import DataError
from bayesode.inference import storage
from bayesode.inference.bag import Bag
from bayesode.inference.calibration import with_calibrated_noise
from bayesode.inference.conditioning import ConditionedGuide
from bayesode.inference.copies import own_copies
from bayesode.inference.hold_out import HoldOut
from bayesode.inference.laplace import LaplaceHistory, laplace_guide
from bayesode.inference.mixture import Mixture
from bayesode.inference.posterior import Posterior
from bayesode.inference.randomness import seeded
from bayesode.inference.svi import History
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

HISTORIES = {"svi": History, "laplace": LaplaceHistory}


def load(
    folder: str | Path, *, model: DynamicalModel | None = None, guide: Any = None
) -> Posterior | Mixture | Bag:
    """The posterior of a saved run.

    Args:
        folder: Written by `Posterior.save`, `Mixture.save` or `Bag.save`.
        model: For a hand-made model: an object built like the one that was saved; of a mixture or
            bag, like that of every member.
        guide: For a hand-made model or guide: likewise.

    Raises:
        DataError: If the run is missing, damaged, or needs a model and guide that are not given.
    """
    folder = Path(folder)
    config = storage.read_config(folder)
    if config["settings"].get("engine") == "mixture":
        return _load_mixture(folder, config, model, guide)
    if config["settings"].get("engine") == "bag":
        return _load_bag(folder, config, model, guide)
    train, settings = storage.read_data(folder), config["settings"]
    if model is None or guide is None:
        recipe, rebuilt = config["recipe"], (None, None)
        if recipe is not None:
            rebuilt = systems.rebuild(recipe, train)
            with_calibrated_noise(rebuilt[0], settings)
        model = model or rebuilt[0]
        if guide is None and model is not None and (folder / "guide.pt").is_file():
            guide = _own_guide(settings, model, train) or rebuilt[1]
        if model is None or guide is None:
            raise DataError(
                f"{folder} holds a hand-made model or guide: build them as before and call "
                "load(folder, model=model, guide=guide)."
            )
    _check_parts(model, config["parts"], folder)
    dtype = getattr(torch, config["dtype"])
    _fill(model.to(dtype=dtype), storage.read_state(folder / "model.pt"), folder / "model.pt")
    state: dict[str, Any] = {}
    if hasattr(guide, "rows"):
        _fill(guide.to(dtype=dtype), storage.read_state(folder / "guide.pt"), folder / "guide.pt")
    else:
        state = _fill_store(guide, train, storage.read_state(folder / "store.pt"))
    try:
        history = HISTORIES[settings["engine"]](**storage.read_history(folder))
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder} holds the history of another version: {error}") from error
    return Posterior(model, guide, train, history=history, settings=settings, state=state)


def _load_mixture(folder: Path, config: dict[str, Any], model: Any, guide: Any) -> Mixture:
    """All members and what joins them."""
    try:
        joint = config["mixture"]
        found = None if joint["hold_out"] is None else HoldOut(**joint["hold_out"])
        weights = joint["weights"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder} holds the mixture of another version: {error}") from error
    members = _load_members(folder, len(weights), model, guide)
    return Mixture(members, weights=weights, hold_out=found, settings=config["settings"])


def _load_bag(folder: Path, config: dict[str, Any], model: Any, guide: Any) -> Bag:
    """All members and the series that they were fitted to subsets of."""
    try:
        count = int(config["bag"]["num_members"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder} holds the bag of another version: {error}") from error
    members = _load_members(folder, count, model, guide)
    return Bag(members, storage.read_data(folder), settings=config["settings"])


def _load_members(folder: Path, count: int, model: Any, guide: Any) -> list[Any]:
    """Members, each with a copy of what is given for a hand-made model."""
    members = []
    for row in range(count):
        own, its_guide = model, guide
        if model is not None:
            own, its_guide = own_copies(model, guide, dtype=torch.float64, device="cpu")
        members.append(load(folder / f"member-{row}", model=own, guide=its_guide))
    return members


def _own_guide(settings: dict[str, Any], model: DynamicalModel, train: Trajectories) -> Any:
    """The guide of a run whose settings alone tell what it is; None for others."""
    if settings["engine"] == "laplace":
        return laplace_guide(model, train)
    if "num_draws" in settings.get("conditioned", {}):  # an amortised guide conditions itself
        return ConditionedGuide(model, train, settings["conditioned"]["num_draws"])
    return None


def _check_parts(model: DynamicalModel, saved: dict[str, Any], folder: Path) -> None:
    """What a state dict does not hold must agree: types of parts, solver steps, activations."""
    given = storage.describe(model)
    for name, part in saved.items():
        if given[name]["type"] != part["type"]:
            raise DataError(
                f"{folder} was saved with {name}={part['type']}, the model that is given has "
                f"{given[name]['type']}: build it as before."
            )
        for key, value in part["config"].items():
            found = given[name]["config"].get(key)
            if found != value:
                raise DataError(
                    f"{folder} was saved with {key}={value!r} in its {name}, the model that is "
                    f"given has {found!r}: build it as before."
                )


def _fill(module: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{path} does not fit the model that was given: {error}") from error


def _fill_store(guide: Any, train: Trajectories, stored: dict[str, Any]) -> dict[str, Any]:
    """Pyro's parameter store for a guide that makes its parameters when it first runs."""
    with seeded(0), pyro.get_param_store().scope() as state:
        guide(train)
        made = pyro.get_param_store().get_state()["params"]
        found = {name: tuple(value.shape) for name, value in made.items()}
        wanted = {name: tuple(value.shape) for name, value in stored.items()}
        if found != wanted:
            raise DataError(f"the guide has the parameters {found}, the run {wanted}.")
        with torch.no_grad():
            for name, value in stored.items():
                made[name].copy_(value)
    return dict(state)
