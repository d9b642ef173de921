"""Human walking by motion capture: the benchmark of latent differential equations over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from bayesode.datasets.arguments import check_whole
from bayesode.errors import DataError, ShapeError
from bayesode.trajectories import Trajectories

FRAMES_PER_SECOND = 120.0
NUM_GIVEN = 3  # what encoders read in every published table
NUM_CHANNELS = 50
CONSTANT_CHANNELS = (24, 25, 31, 32)
KEYS = {
    "npz": {"train": "train", "validation": "validation", "test": "test"},
    "mat": {"train": "Xtr", "validation": "Xval", "test": "Xtest"},
}


class MotionCapture(NamedTuple):
    """Walks by the published split, values (walk, time, 50) in degrees, time in seconds from 0."""

    train: Trajectories
    validation: Trajectories
    test: Trajectories


def motion_capture(
    root: str | Path, subject: str = "35", *, file: str = "npz", num_frames: int | None = None
) -> MotionCapture:
    """Walks of one subject of the CMU motion capture database: 50 channels at 120 frames a second.

    Subject 35 has 16 training, 3 validation and 4 test walks of 300 frames, two steps of each foot.
    Tasks give the first 3 frames of a walk (`given_frames`) and ask for all others.

    **The two files differ, and one of them leaks.** In the published `.mat` each walk is centred by
    the mean of its own 300 frames, test walks included: the frames that are given tell the mean
    of those that are asked for, which nobody has before the walk is over. Published scores are,
    as far as is known, of that file. In the `.npz` one mean of all 23 walks is taken off: an origin
    of the channels, the same for all walks. Scores on the `.npz` are the honest ones.

    Channels 24, 25, 31 and 32 are constant (up to 1e-5, by which the parts of the `.mat` differ):
    divide by no standard deviation of theirs, and leave them out of coverage and log scores.
    Channels 0 to 2 are differences from frame to frame, the others joint angles. The files name
    neither channels nor walks: names are "channel 0" ... "channel 49", labels "train 1", ....

    Args:
        root: Folder with `mocap/mocap35.npz` or `mocap/mocap35.mat`, 35 being the subject.
        subject: Number of the subject, as it stands in the name of the file.
        file: "npz" with the arrays train, validation and test, or "mat" with Xtr, Xval and Xtest,
            each (walk, frame, 50).
        num_frames: The first frames of each walk, 4 at least; None takes all.

    Returns:
        Training, validation and test walks in torch's default dtype; the frame k is at k / 120 s.

    Raises:
        DataError: If the file is missing, unreadable, lacks an array or holds NaN, infinite or no
            real numbers, or for another file, subject or number of frames than there is.
        ShapeError: If an array is not (walk, frame, 50), or has another number of frames.

    Source: mocap.cs.cmu.edu, funded by NSF EIA-0196217; free for all uses, except to be resold. The
        `.mat` and the split are those of Yildiz et al. (2019), "ODE2VAE", arXiv:1905.10994.

    Example:
        >>> motion_capture("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        bayesode.errors.DataError: there is no ...mocap35.npz: ...
    """
    if file not in KEYS:
        raise DataError(f"file must be 'npz' or 'mat', not {file!r}.")
    if num_frames is not None:
        check_whole("num_frames", num_frames, least=NUM_GIVEN + 1)
    path = Path(root).expanduser() / "mocap" / f"mocap{subject}.{file}"
    stored = _read(path, file)
    arrays = {part: _checked(stored, key, path) for part, key in KEYS[file].items()}
    count = _count_frames(arrays, num_frames, path)
    return MotionCapture(**{part: _walks(part, array[:, :count]) for part, array in arrays.items()})


def given_frames(walks: Trajectories, num_frames: int = NUM_GIVEN) -> Trajectories:
    """The first frames of each walk: all that a forecast may read.

    Args:
        walks: Of `motion_capture`, or others with one grid of times.
        num_frames: How many.

    Raises:
        DataError: If the walks have fewer.

    Example:
        >>> walks = Trajectories(torch.arange(5) / FRAMES_PER_SECOND, torch.rand(2, 5, 50))
        >>> given_frames(walks).values.shape
        torch.Size([2, 3, 50])
    """
    check_whole("num_frames", num_frames, least=1)
    if walks.times.dim() != 1 or len(walks.times) < num_frames:
        raise DataError(
            f"num_frames={num_frames} frames are to be given, and {walks!r} has "
            f"{walks.times.shape[-1]} times (one grid for all walks is needed)."
        )
    last = walks.times[num_frames - 1]
    return walks.until((last - walks.start.min()).item())


# ---- files ---------------------------------------------------------------------------------------
def _read(path: Path, file: str) -> dict[str, Any]:
    """The arrays of a file by their names."""
    keys = ", ".join(KEYS[file].values())
    if not path.is_file():
        raise DataError(
            f"there is no {path}: put the file there (arrays {keys}, each (walk, frame, "
            f"{NUM_CHANNELS})), or pass the root= that has mocap/{path.name}."
        )
    try:
        if file == "mat":
            return loadmat(path)
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # of the disk or the format: all have the same mend
        why = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({why}); replace the file.") from error


def _checked(stored: dict[str, Any], key: str, path: Path) -> Tensor:
    """One array as walks (walk, frame, channel), float64."""
    if key not in stored:
        known = ", ".join(name for name in stored if not name.startswith("__")) or "nothing"
        raise DataError(f"{path} needs an array {key}, and it has {known}; replace the file.")
    array = np.asarray(stored[key])
    if array.dtype.kind not in "fiu":
        raise DataError(f"{key} of {path} needs real numbers, not {array.dtype}.")
    if array.ndim != 3 or array.shape[2] != NUM_CHANNELS or not array.size:
        raise ShapeError(
            f"{key} of {path} needs the shape (walk, frame, {NUM_CHANNELS}), not {array.shape}."
        )
    broken = np.argwhere(~np.isfinite(array))
    if len(broken):
        walk, frame, channel = broken[0].tolist()
        raise DataError(
            f"{key} of {path} has {len(broken)} numbers that are NaN or infinite, the first in "
            f"walk {walk}, frame {frame}, channel {channel} (from 0); replace the file."
        )
    return torch.from_numpy(array.astype(np.float64))


def _count_frames(arrays: dict[str, Tensor], num_frames: int | None, path: Path) -> int:
    """How many frames of each walk are taken."""
    counts = {part: array.shape[1] for part, array in arrays.items()}
    least = min(counts.values())
    if len(set(counts.values())) > 1:
        raise ShapeError(f"the parts of {path} need as many frames each, not {counts}.")
    if least < (num_frames or NUM_GIVEN + 1):
        needed = f"num_frames={num_frames} are asked for"
        if num_frames is None:
            needed = f"{NUM_GIVEN + 1} are needed: {NUM_GIVEN} that are given and one to predict"
        raise DataError(f"the walks of {path} have {least} frames, and {needed}.")
    return num_frames or least


def _walks(part: str, array: Tensor) -> Trajectories:
    """Walks with labels, names and times."""
    return Trajectories(
        torch.arange(array.shape[1], dtype=torch.float64) / FRAMES_PER_SECOND,
        array.to(torch.get_default_dtype()),
        series=tuple(f"{part} {k + 1}" for k in range(len(array))),
        names=tuple(f"channel {k}" for k in range(NUM_CHANNELS)),
    )
