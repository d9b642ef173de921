"""Motion capture: what the files hold, which one leaks, and what is refused."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from bayesode import datasets
from bayesode.errors import DataError, ShapeError

module = importlib.import_module("bayesode.datasets.motion_capture")
SHARED = Path(
    os.environ.get("BAYESODE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
needs_walks = pytest.mark.skipif(
    not all((SHARED / "mocap" / f"mocap35.{file}").is_file() for file in module.KEYS),
    reason=f"no mocap in {SHARED}; set BAYESODE_DATA to the folder that has mocap/mocap35.npz",
)


def arrays(num_frames=6, walks=(3, 2, 2)):
    """Numbers that tell where they belong: part, walk, frame, channel."""
    count = num_frames * 50
    return {
        part: 1e4 * k + np.arange(num * count, dtype=float).reshape(num, num_frames, 50)
        for k, (part, num) in enumerate(zip(("train", "validation", "test"), walks, strict=True))
    }


@pytest.fixture
def write(tmp_path):
    """Writes arrays as a file of some subject, and gives the root."""

    def write(file, subject="35", **changed):
        folder = tmp_path / "mocap"
        folder.mkdir(exist_ok=True)
        stored = {module.KEYS[file].get(k, k): v for k, v in (arrays() | changed).items()}
        stored = {k: v for k, v in stored.items() if v is not None}
        save = np.savez if file == "npz" else lambda path, **kept: scipy.io.savemat(path, kept)
        save(folder / f"mocap{subject}.{file}", **stored)
        return tmp_path

    return write


# ---- what is read --------------------------------------------------------------------------------
@pytest.mark.parametrize("file", module.KEYS)
def test_walks_are_those_of_the_file_with_labels_names_and_seconds(write, file):
    data = datasets.motion_capture(write(file, subject="09"), "09", file=file)
    for part, walks in zip(("train", "validation", "test"), data, strict=True):
        assert np.array_equal(walks.values.numpy(), arrays()[part].astype(np.float32))
        assert walks.series == tuple(f"{part} {k + 1}" for k in range(walks.num_series))
        assert walks.times.tolist() == [k / 120 for k in range(6)]
        assert walks.names[24] == "channel 24" and len(walks.names) == 50
    assert [part.num_series for part in data] == [3, 2, 2]


def test_values_have_the_default_dtype(write):
    root = write("npz")
    torch.set_default_dtype(torch.float64)
    try:
        data = datasets.motion_capture(root)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(data.test.values.numpy(), arrays()["test"])


def test_the_first_frames_are_taken_and_given(write):
    data = datasets.motion_capture(write("npz"), num_frames=5)
    assert np.array_equal(data.train.values.numpy(), arrays()["train"][:, :5].astype("float32"))
    given = module.given_frames(data.test)
    assert torch.equal(given.values, data.test.values[:, :3]) and given.series == data.test.series
    assert torch.equal(module.given_frames(data.test, 1).values, data.test.values[:, :1])
    for frames in range(1, 301):  # no rounding of seconds loses a frame
        walks = module.Trajectories(torch.arange(300) / 120.0, torch.zeros(1, 300, 1))
        assert module.given_frames(walks, frames).times.shape[0] == frames


# ---- what is refused -----------------------------------------------------------------------------
def test_a_missing_file_is_named_with_what_it_holds(tmp_path):
    for file, key in (("npz", "validation"), ("mat", "Xval")):
        with pytest.raises(DataError, match=rf"mocap35.{file}: put .*{key}.*\(walk, frame, 50\)"):
            datasets.motion_capture(tmp_path, file=file)
    with pytest.raises(DataError, match="'npz' or 'mat', not 'csv'"):
        datasets.motion_capture(tmp_path, file="csv")


@pytest.mark.parametrize("file", module.KEYS)
def test_a_file_of_another_kind_cannot_be_read(tmp_path, file):
    (tmp_path / "mocap").mkdir()
    path = tmp_path / "mocap" / f"mocap35.{file}"
    for content in (b"", b"no such format" * 50):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read .*replace the file"):
            datasets.motion_capture(tmp_path, file=file)


def pickled():
    return np.array([[[None] * 50] * 6] * 2)


@pytest.mark.parametrize(
    ("file", "changed", "message", "kind"),
    [
        ("npz", dict(test=None), "needs an array test, and it has train, validation;", DataError),
        ("mat", dict(validation=None, u=np.eye(2)), "needs an array Xval, and it has", DataError),
        ("npz", dict(test=np.zeros((2, 6, 49))), r"test of .*\(walk, frame, 50\)", ShapeError),
        ("npz", dict(test=np.zeros((6, 50))), r"not \(6, 50\)", ShapeError),
        ("npz", dict(test=np.zeros((0, 6, 50))), r"not \(0, 6, 50\)", ShapeError),
        ("mat", dict(test=np.zeros((2, 7, 50))), "as many frames each", ShapeError),
        ("npz", dict(test=1j * np.zeros((2, 6, 50))), "real numbers, not complex", DataError),
        ("npz", dict(test=pickled()), "cannot be read", DataError),
        ("npz", arrays(3), "have 3 frames, and 4 are needed", DataError),
    ],
)
def test_other_keys_shapes_and_kinds_are_one_clear_error(write, file, changed, message, kind):
    with pytest.raises(kind, match=message):
        datasets.motion_capture(write(file, **changed), file=file)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_none_is_located(write, number):
    broken = arrays()["test"]
    broken[1, 4, 7] = number
    with pytest.raises(DataError, match=r"1 numbers .*walk 1, frame 4, channel 7"):
        datasets.motion_capture(write("npz", test=broken))


def test_more_frames_than_there_are_cannot_be_had(write):
    root = write("npz")
    with pytest.raises(DataError, match="have 6 frames, and num_frames=7 are asked for"):
        datasets.motion_capture(root, num_frames=7)
    for wrong in (3, 4.5):
        with pytest.raises(DataError, match="whole number of at least 4"):
            datasets.motion_capture(root, num_frames=wrong)
    walks = datasets.motion_capture(root).test
    with pytest.raises(DataError, match="num_frames=7 frames are to be given"):
        module.given_frames(walks, 7)


# ---- the real files ------------------------------------------------------------------------------
@needs_walks
def test_the_published_file_centres_each_walk_by_its_own_future():
    leaky, honest = (datasets.motion_capture(SHARED, file=file) for file in ("mat", "npz"))
    for with_leak, without in zip(leaky, honest, strict=True):
        means = with_leak.values.double().mean(1)
        assert means.abs().max() < 2e-5  # 1e-5 is what the file adds to two of its parts
        assert without.values.double().mean(1).abs().amax(1).min() > 1  # degrees
        # The mean of a walk is what is missing: the same walks otherwise, rounded.
        difference = without.values.double() - with_leak.values.double()
        assert (difference - difference.mean(1, keepdim=True)).abs().median() < 1e-3
    everything = torch.cat([part.values.double() for part in honest])
    assert everything.mean((0, 1)).abs().max() < 1e-5


@needs_walks
@pytest.mark.parametrize("file", module.KEYS)
def test_the_real_walks_have_the_published_split_and_four_constant_channels(file):
    data = datasets.motion_capture(SHARED, file=file)
    assert [tuple(part.values.shape) for part in data] == [(n, 300, 50) for n in (16, 3, 4)]
    spread = torch.cat([part.values.double() for part in data]).flatten(0, 1).std(0)
    assert (spread < 1e-5).nonzero().flatten().tolist() == list(module.CONSTANT_CHANNELS)
    assert data.test.times[-1].item() == 299 / 120
