"""Runs as folders of plain numbers: JSON, state dicts, arrays; never pickled code."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
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


def save(posterior: Any, folder: Path) -> Path:
    """Write a run beside its place, then move it there: a crash leaves the old run whole."""
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and holds no run; choose another folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as fresh:
            _write(posterior, Path(fresh))
            os.chmod(fresh, 0o755)
            if folder.exists():
                shutil.rmtree(folder)
            shutil.copytree(fresh, folder)
    except OSError as error:
        raise DataError(f"the run cannot be written to {folder}: {error}") from error
    return folder


def _write(posterior: Any, folder: Path) -> None:
    config = {
        "format": FORMAT,
        "versions": {"bayesode": __version__, "torch": torch.__version__, "pyro": pyro.__version__},
        "recipe": posterior.model.recipe,
        "settings": posterior.settings,
        "dtype": str(posterior.train.values.dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "history.json").write_text(json.dumps(asdict(posterior.history)))
    torch.save(posterior.model.state_dict(), folder / "model.pt")
    if isinstance(posterior.guide, torch.nn.Module) and hasattr(posterior.guide, "posteriors"):
        torch.save(posterior.guide.state_dict(), folder / "guide.pt")
    else:
        parameters = {n: p.detach() for n, p in posterior.state.get("params", {}).items()}
        torch.save(parameters, folder / "store.pt")
    _write_data(posterior.train, folder / "train.npz")


def _write_data(train: Trajectories, path: Path) -> None:
    arrays: dict[str, Any] = {
        "times": train.times,
        "values": train.values,
        "mask": train.mask,
        "start": train.start,
        "num_times": train.num_times,
    }
    if train.inputs is not None:
        arrays["static"] = train.inputs.static
    names = {
        "series": list(train.series),
        "names": list(train.names),
        "features": list(train.inputs.names) if train.inputs is not None else [],
    }
    numbers = {name: value.cpu().numpy() for name, value in arrays.items()}
    np.savez_compressed(path, labels=np.array(json.dumps(names)), **numbers)


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
    if config.get("format") != FORMAT:
        raise DataError(
            f"{folder} was written in format {config.get('format')}; this version reads {FORMAT}."
        )
    return config


def read_history(folder: Path) -> dict[str, Any]:
    """The history of a run, as it was saved."""
    try:
        return json.loads((folder / "history.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'history.json'} is missing or damaged: {error}") from error


def read_data(folder: Path) -> Trajectories:
    """The training data of a run."""
    try:
        with np.load(folder / "train.npz", allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        labels = json.loads(str(arrays.pop("labels")))
    except Exception as error:  # zip, zlib, pickle and key errors: the file is damaged
        raise DataError(f"{folder / 'train.npz'} is missing or damaged: {error}") from error
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    static = tensors.pop("static", None)
    inputs = None if static is None else Inputs(static, tuple(labels["features"]))
    times, values = tensors.pop("times"), tensors.pop("values")
    return Trajectories(
        times, values, series=labels["series"], names=labels["names"], inputs=inputs, **tensors
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict.

    Raises:
        DataError: If the file is missing, truncated or no state dict.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types for a damaged file
        raise DataError(f"{path} is missing or damaged: {error}") from error
