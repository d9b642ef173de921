"""The only door to torchvision: its MNIST, with errors that say what to do."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError

FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
INSTALL = 'pip install "bayesode[vision]"'


def mnist(root: str | Path, *, download: bool = False) -> tuple[Tensor, Tensor]:
    """The 60,000 training images of MNIST and their labels.

    Args:
        root: Folder that has `MNIST/raw` with the four files, or shall get it.
        download: Whether files that are missing may be downloaded, about 12 MB.

    Returns:
        Images (image, 28, 28) in 0 ... 255 and labels (image,), both whole numbers.

    Raises:
        DataError: If files are missing, unreadable or cannot be downloaded, or without torchvision.
    """
    MNIST, folder = torchvision().datasets.MNIST, Path(root) / "MNIST" / "raw"
    try:
        data = MNIST(root=str(root), train=True, download=download)
    except Exception as error:  # of the network, the disk or the format: all have the same mend
        raise DataError(_what_to_do(folder, download, error)) from error
    return data.data, data.targets


def _what_to_do(folder: Path, download: bool, error: Exception) -> str:
    missing = [name for name in FILES if not (folder / name).is_file()]
    why = " ".join(str(error).split())
    if not missing:
        return f"the files of MNIST in {folder} cannot be read ({why}); replace them."
    place = f"put {', '.join(missing)} (unpacked) into {folder}"
    if download:
        return f"MNIST could not be downloaded ({why}). Fetch it elsewhere and {place}."
    return f"MNIST is not in {folder}: {place}, or pass download=True to fetch them."


# ---- import --------------------------------------------------------------------------------------
@cache
def torchvision() -> Any:
    """The library, also where its compiled operators are for another build of torch.

    Raises:
        DataError: If it is absent, or broken in another way.
    """
    try:
        return _imported()
    except ModuleNotFoundError as error:
        raise DataError(f"images need a library that is absent ({error}): {INSTALL}.") from error
    except Exception as error:
        try:
            _declare_operators()
            return _imported()
        except Exception:
            raise DataError(
                f"torchvision cannot be imported ({error}): it does not fit torch "
                f"{torch.__version__}. Install the one that does: {INSTALL}."
            ) from error


def _imported() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of compiled readers of image files, which we do not use
        import torchvision.datasets
    return torchvision


@cache  # The declarations last as long as the object does, and may be made only once.
def _declare_operators() -> torch.library.Library:
    """Declare the two operators that torchvision's import asks for and Python code never calls.

    The package index serves compiled operators for CUDA alone: beside a torch for CPUs the import
    dies of "operator torchvision::nms does not exist".
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
