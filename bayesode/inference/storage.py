"""Runs as folders of plain numbers: JSON, state dicts, arrays; never pickled code."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from bayesode import __version__
from bayesode.errors import DataError
from bayesode.inputs import Inputs
from bayesode.trajectories import Trajectories

FORMAT = 1
FILES = ("config.json", "history.json", "model.pt", "guide.pt", "store.pt", "train.npz", "member-*")


def save(posterior: Any, folder: Path) -> Path:
    """Write a run; see `write_run`."""
    return write_run(folder, lambda fresh: _write(posterior, fresh))


def write_run(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write a run beside its place, then swap it in: a failure leaves the old run whole.

    Other files in the folder (pictures, notes) stay.

    Raises:
        DataError: If the folder holds something else than a run, or cannot be written.
    """
    place = folder.resolve()
    _check_place(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as beside:
            fresh, old = Path(beside) / "new", Path(beside) / "old"
            if place.exists():
                own = shutil.ignore_patterns(*FILES)
                shutil.copytree(place, fresh, ignore=own, symlinks=True)
            fresh.mkdir(exist_ok=True)
            write(fresh)
            _swap(fresh, place, old)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        raise DataError(f"the run cannot be written to {folder}: {error}") from error
    return folder


def _check_place(folder: Path) -> None:
    """Refuse to replace anything but a run."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; choose a folder for the run.")
    if not any(folder.iterdir()):
        return
    try:
        read_config(folder)
    except DataError as error:
        raise DataError(f"{folder} is not empty and holds no run; choose another one.") from error


def _swap(fresh: Path, place: Path, old: Path) -> None:
    if place.exists():
        os.rename(place, old)
    try:
        os.rename(fresh, place)
    except BaseException:
        if old.exists():
            os.rename(old, place)
        raise


def _write(posterior: Any, folder: Path) -> None:
    config = {
        "format": FORMAT,
        "versions": {"bayesode": __version__, "torch": torch.__version__, "pyro": pyro.__version__},
        "recipe": posterior.model.recipe,
        "parts": describe(posterior.model),
        "settings": posterior.settings,
        "dtype": str(posterior.train.values.dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=_plain))
    history = json.dumps(asdict(posterior.history), default=_plain)
    (folder / "history.json").write_text(history)
    torch.save(posterior.model.state_dict(), folder / "model.pt")
    if hasattr(posterior.guide, "rows"):  # ours: all it learned is in its own state
        torch.save(posterior.guide.state_dict(), folder / "guide.pt")
    else:
        parameters = {n: p.detach() for n, p in posterior.state.get("params", {}).items()}
        torch.save(parameters, folder / "store.pt")
    write_data(posterior.train, folder / "train.npz")


def _plain(value: Any) -> Any:
    """Numpy's and torch's single numbers as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} cannot be written as JSON.")


def describe(model: Any) -> dict[str, Any]:
    """Type and settings of each part, as far as the part tells them (`config`), as JSON keeps them.

    A state dict says nothing of a solver's step or an activation: with others, the same weights
    mean another model.
    """
    told = {}
    for name, part in (
        dict(model.parts()) | {"solver": model.solver, "units": model.units}
    ).items():
        config = getattr(part, "config", None)
        told[name] = {
            "type": type(part).__name__,
            "config": config if isinstance(config, dict) else {},
        }
    return json.loads(json.dumps(told, default=lambda value: type(value).__name__))


def config_of_many(train: Trajectories, settings: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run whose models are those of its members."""
    dtype = str(train.values.dtype).removeprefix("torch.")  # type: ignore[union-attr]
    return {"format": FORMAT, "recipe": None, "parts": {}, "dtype": dtype, "settings": settings}


def write_data(train: Trajectories, path: Path) -> None:
    """Write the training data of a run; `read_data` reads it."""
    arrays: dict[str, Any] = {
        "times": train.times,
        "values": train.values,
        "mask": train.mask,
        "start": train.start,
        "num_times": train.num_times,
    }
    if train.inputs is not None:
        arrays["static"] = train.inputs.static
    labels = {
        "series": list(train.series),
        "names": list(train.names),
        "features": list(train.inputs.names) if train.inputs is not None else [],
    }
    numbers = {name: value.cpu().numpy() for name, value in arrays.items()}
    np.savez_compressed(path, labels=np.array(json.dumps(labels, default=_plain)), **numbers)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run.

    Raises:
        DataError: If the folder holds no run or its configuration is damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no saved run (there is no config.json).") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'config.json'} is damaged: {error}") from error
    if not isinstance(config, dict) or "format" not in config:
        raise DataError(f"{folder / 'config.json'} is not the configuration of a run.")
    if config["format"] != FORMAT:
        raise DataError(
            f"{folder} was written in format {config['format']}; this version reads {FORMAT}."
        )
    missing = {"recipe", "parts", "settings", "dtype"} - set(config)
    if missing:
        raise DataError(f"{folder / 'config.json'} is damaged: it has no {sorted(missing)[0]!r}.")
    return config


def read_history(folder: Path) -> dict[str, Any]:
    """The history of a run, as it was saved."""
    try:
        history = json.loads((folder / "history.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'history.json'} is missing or damaged: {error}") from error
    if not isinstance(history, dict) or "seconds" not in history:
        raise DataError(f"{folder / 'history.json'} is damaged: it holds no history.")
    return history


def read_data(folder: Path) -> Trajectories:
    """The training data of a run."""
    try:
        # opened here: numpy leaves a damaged file open
        with open(folder / "train.npz", "rb") as file, np.load(file, allow_pickle=False) as stored:
            tensors = {n: torch.from_numpy(stored[n]) for n in stored.files if n != "labels"}
            labels = json.loads(str(stored["labels"]))
        static = tensors.pop("static", None)
        inputs = None if static is None else Inputs(static, tuple(labels["features"]))
        times, values = tensors.pop("times"), tensors.pop("values")
        return Trajectories(
            times, values, series=labels["series"], names=labels["names"], inputs=inputs, **tensors
        )
    except Exception as error:  # zip, zlib, pickle, key and shape errors: the file is damaged
        raise DataError(f"{folder / 'train.npz'} is missing or damaged: {error}") from error


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict.

    Raises:
        DataError: If the file is missing, truncated or no state dict.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types for a damaged file
        raise DataError(f"{path} is missing or damaged: {error}") from error
