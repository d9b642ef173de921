"""Rotating digits: the rotation, who is hidden, who is trained on, and what is missing."""

import importlib
import os
import re
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from bayesode import datasets
from bayesode.datasets import _torchvision
from bayesode.datasets.rotating_frames import RotationProtocol, draw_degrees, rotate_frames
from bayesode.errors import DataError, ShapeError

digits_module = importlib.import_module("bayesode.datasets.rotating_digits")
SHARED = Path(
    os.environ.get("BAYESODE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
)
needs_mnist = pytest.mark.skipif(
    not (SHARED / "MNIST" / "raw" / _torchvision.FILES[0]).is_file(),
    reason=f"no MNIST in {SHARED}; set BAYESODE_DATA to the folder that has MNIST/raw",
)
USUAL = dict(digit=3, num_series=6, num_validation=3, num_test=4, angles=16, turns=1)
USUAL |= dict(hidden_frame=4, num_hidden=3, num_given=1, random_start=False, speed_spread=0.0)
USUAL |= dict(binarised=False, seed=0)


@pytest.fixture(scope="module")
def images():
    """Ten images of no symmetry, float64."""
    return torch.rand(10, 1, 12, 12, generator=torch.Generator().manual_seed(1)).double()


def write_mnist(root, num_images=200):
    """Files in the format of MNIST with random pixels; image k shows the digit k % 9, never a 9."""
    folder, random = root / "MNIST" / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    pixels = random.integers(0, 256, (num_images, 28, 28), dtype=np.uint8)
    labels = (np.arange(num_images) % 9).astype(np.uint8)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return torch.from_numpy(pixels) / 255.0


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """A folder with files in the format of MNIST, and the images in them."""
    root = tmp_path_factory.mktemp("data")
    return root, write_mnist(root)


@pytest.fixture
def no_network(monkeypatch):
    """The addresses that were asked for; none of them answers."""
    asked = []

    def refuse(request, *_, **__):
        asked.append(request)
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


# ---- rotation ------------------------------------------------------------------------------------
def test_a_quarter_turn_is_exact_and_counter_clockwise(images):
    degrees = torch.tensor([0.0, 90.0, 180.0, 270.0, 360.0], dtype=torch.float64)
    frames = rotate_frames(images, degrees.expand(len(images), 5))
    for quarter in range(5):
        turned = torch.rot90(images, quarter, (-2, -1))  # counter-clockwise as one sees an image
        torch.testing.assert_close(frames[:, quarter], turned, rtol=0, atol=1e-12)


def test_rotation_is_that_of_torchvision(images):
    torchvision = _torchvision.torchvision()
    degrees = torch.arange(16, dtype=torch.float64) * 22.5
    frames = rotate_frames(images[:, :, :, :9], degrees.expand(len(images), 16))  # no square
    turn, bilinear = torchvision.transforms.functional.rotate, torchvision.transforms
    for k, angle in enumerate(degrees.tolist()):
        turned = turn(images[:, :, :, :9], angle, bilinear.InterpolationMode.BILINEAR)
        torch.testing.assert_close(frames[:, k], turned, rtol=0, atol=1e-5)  # its grid is float32


def test_every_image_has_its_own_angles(images):
    degrees = torch.rand(len(images), 3, dtype=torch.float64) * 360
    together = rotate_frames(images, degrees)
    alone = [rotate_frames(images[k : k + 1], degrees[k : k + 1]) for k in range(len(images))]
    torch.testing.assert_close(together, torch.cat(alone))
    with pytest.raises(ShapeError, match="degrees"):
        rotate_frames(images, degrees[:4])


def test_a_second_turn_repeats_the_first(fake):
    frames = datasets.rotating_mnist(fake[0], **USUAL | dict(turns=2, angles=7))
    for part in frames:
        first, second = part.values[:, :7], part.values[:, 7:]
        torch.testing.assert_close(first, second, rtol=0, atol=2e-5)
        assert part.times.tolist() == list(range(14))


def test_speeds_and_starts_are_drawn_as_they_say():
    generator = torch.Generator()

    def degrees(**options):
        protocol = RotationProtocol(**USUAL | dict(num_series=5000) | options)
        return draw_degrees(protocol, generator.manual_seed(1))

    still, usual = torch.arange(16) * 22.5, degrees()
    torch.testing.assert_close(usual, still.double().expand_as(usual))
    own_start = degrees(random_start=True)
    start = own_start[:, 0]
    assert 0 <= start.min() < 1 and 359 < start.max() < 360  # false alarm below 1e-5
    assert abs(start.mean() - 180) < 5 * 360 / (12 * len(start)) ** 0.5
    torch.testing.assert_close((own_start - start[:, None]) % 360, usual)
    both = degrees(random_start=True, speed_spread=0.2)
    assert torch.equal(both[:, 0], start)
    speed = ((both[:, 1] - start) % 360) / 22.5
    assert 0.8 <= speed.min() < 0.801 and 1.199 < speed.max() <= 1.2
    torch.testing.assert_close(both, (start[:, None] + speed[:, None] * still) % 360)


# ---- splits and hidden frames --------------------------------------------------------------------
def test_frames_are_the_images_that_the_labels_name_and_parts_share_none(fake):
    root, images = fake
    frames = datasets.rotating_mnist(root, **USUAL | dict(random_start=False))
    labels = [label for part in frames for label in part.series]
    assert labels == list(range(3, 9 * 13, 9))  # every ninth image shows a 3: the first 13 of them
    shown = torch.cat([part.values[:, 0, 0] for part in frames])
    torch.testing.assert_close(shown, images[labels], rtol=0, atol=1e-5)
    assert [part.num_series for part in frames] == [6, 3, 4]
    assert frames.train.values.shape == (6, 16, 1, 28, 28) and frames.train.names == ()
    assert frames.train.values.dtype == torch.float32


def test_every_training_sequence_hides_the_frame_and_three_others_but_never_the_first(fake):
    train, *others = datasets.rotating_mnist(fake[0], **USUAL)
    seen = train.mask.flatten(2)
    assert torch.equal(seen.all(-1), seen.any(-1))  # whole frames
    hidden = ~seen.all(-1)
    assert hidden[:, 4].all() and not hidden[:, 0].any()
    assert (hidden.sum(1) == 4).all() and len(hidden.unique(dim=0)) > 1
    assert all(part.mask.all() for part in others)
    assert torch.isfinite(train.values).all() and train.values[:, 4].std() > 0  # kept, to be scored


def test_other_frames_are_hidden_equally_often():
    protocol = RotationProtocol(**USUAL | dict(num_series=3000, num_given=2))
    module = importlib.import_module("bayesode.datasets.rotating_frames")
    often = (~module.draw_visible(protocol, torch.Generator().manual_seed(2))).double().mean(0)
    assert often[:2].tolist() == [0, 0] and often[4] == 1
    rest, expected = often[[2, 3, *range(5, 16)]], 3 / 13
    error = (expected * (1 - expected) / 3000) ** 0.5
    assert (rest - expected).abs().max() < 5 * error  # false alarm 1e-5


def test_every_turn_hides_the_frame():
    train = datasets.rotating_digits(num_series=5, turns=3, num_hidden=0, num_given=2).train
    hidden = ~train.mask[:, :, 0, 0, 0]
    assert (hidden == (torch.arange(48) % 16 == 4)).all()
    nothing = datasets.rotating_digits(num_series=5, hidden_frame=None, num_hidden=0).train
    assert nothing.mask.all()


def test_the_seed_decides_and_no_option_moves_what_is_hidden(fake):
    def hidden(**options):
        return datasets.rotating_mnist(fake[0], **USUAL | options).train.mask[..., 0, 0, 0]

    before = torch.get_rng_state()
    assert not torch.equal(hidden(), hidden(seed=1))
    for options in (dict(random_start=True), dict(speed_spread=0.3), dict(binarised=True)):
        assert torch.equal(hidden(), hidden(**options))
    assert torch.equal(before, torch.get_rng_state())


def test_binarised_pixels_are_on_above_a_half(fake):
    grey, black = (
        datasets.rotating_mnist(fake[0], **USUAL | dict(binarised=on)).test.values
        for on in (False, True)
    )
    assert torch.equal(black, (grey > 0.5).float())


def test_sequences_stay_in_memory(fake):
    first = datasets.rotating_mnist(fake[0], **USUAL)
    assert datasets.rotating_mnist(str(fake[0]), **USUAL) is first
    assert datasets.rotating_mnist(fake[0], **USUAL | dict(digit=2)) is not first


# ---- scikit-learn's digits -----------------------------------------------------------------------
def test_small_digits_keep_their_ink_and_lose_little_of_their_sharpness():
    frames = torch.cat([part.values for part in datasets.rotating_digits()])
    assert frames.shape == (170, 16, 1, 20, 20) and frames.min() >= 0 and frames.max() <= 1
    ink, energy = frames.sum((0, 2, 3, 4)), frames.square().sum((0, 2, 3, 4))
    assert (ink / ink[0] - 1).abs().max() < 0.005  # no corner is cut off
    assert (energy / energy[0]).min() > 0.93  # rotated with 8 x 8 pixels it is .8


def test_small_digits_are_those_of_scikit_learn():
    frames = datasets.rotating_digits(digit=8, num_series=104)  # all 174
    from sklearn.datasets import load_digits

    digits = load_digits()
    originals = torch.from_numpy(digits.data / 16).float()
    for part in frames:
        assert (digits.target[list(part.series)] == 8).all()
        small = torch.nn.functional.avg_pool2d(part.values[:, 0, :, 2:-2, 2:-2], 2).flatten(1)
        nearest = torch.cdist(small, originals).argmin(1)
        assert nearest.tolist() == list(part.series)


def test_all_small_digits_can_be_used_at_the_usual_sizes():
    for digit in range(10):
        frames = datasets.rotating_digits(digit=digit, angles=2, hidden_frame=None, num_hidden=0)
        assert frames.train.num_series == 100


# ---- real MNIST ----------------------------------------------------------------------------------
@needs_mnist
def test_real_threes_keep_the_protocol():
    frames = datasets.rotating_mnist(SHARED)
    train, validation, test = frames
    assert [part.num_series for part in frames] == [360, 36, 360]
    assert train.series[:4] == (7, 10, 12, 27) and train.mask[:, :, 0, 0, 0].sum() == 360 * 12
    assert len({*train.series, *validation.series, *test.series}) == 756
    first = torch.cat([part.values[:, 0].flatten(1) for part in frames])
    assert len(first.unique(dim=0)) == 756  # nor does MNIST hold an image twice
    torch.testing.assert_close(
        test.values[:, 4], torch.rot90(test.values[:, 0], 1, (-2, -1)), rtol=0, atol=1e-5
    )
    assert train.values.min() >= 0 and train.values.max() <= 1


# ---- errors --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(digit=10), "digit must be one of 0"),
        (dict(digit=-1), "digit must be a whole number of at least 0"),
        (dict(digit="3"), "digit must be a whole number"),
        (dict(digit=9), "9 are asked for, and there are 0"),
        (dict(num_series=5000), "there are 22; ask for fewer"),
        (dict(num_test=0), "num_test must be a whole number of at least 1"),
        (dict(num_validation=1.5), "num_validation must be"),
        (dict(angles=1), "angles must be a whole number of at least 2"),
        (dict(turns=0), "turns must be"),
        (dict(hidden_frame=0), "hidden_frame must lie between 1"),
        (dict(hidden_frame=16), "and 15"),
        (dict(hidden_frame=4, num_given=5), "hidden_frame must lie between 5"),
        (dict(num_hidden=15), "num_hidden must be at most 14"),
        (dict(num_given=0), "num_given must be"),
        (dict(speed_spread=1.0), "speed_spread is a fraction"),
        (dict(speed_spread="fast"), "speed_spread is a fraction"),
        (dict(seed=0.5), "seed must be"),
    ],
)
def test_wrong_arguments_are_one_clear_error(fake, options, words):
    with pytest.raises(DataError, match=re.escape(words)):
        datasets.rotating_mnist(fake[0], **USUAL | options)


def test_missing_files_are_named_and_nothing_is_downloaded_unasked(tmp_path, no_network):
    with pytest.raises(DataError, match=r"put train-images-idx3-ubyte.*download=True") as caught:
        datasets.rotating_mnist(tmp_path)
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)
    assert no_network == [] and list(tmp_path.iterdir()) == []


def test_only_the_missing_file_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"put t10k-labels-idx1-ubyte \(unpacked\)"):
        datasets.rotating_mnist(tmp_path)


def test_a_failed_download_says_where_to_put_the_files(tmp_path, no_network):
    with pytest.raises(DataError, match=r"could not be downloaded .*put train-images") as caught:
        datasets.rotating_mnist(tmp_path, download=True)
    assert no_network and str(tmp_path / "MNIST" / "raw") in str(caught.value)


def test_broken_files_are_to_be_replaced(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot be read .* replace them"):
        datasets.rotating_mnist(tmp_path)


def test_absent_scikit_learn_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r'scikit-learn .*pip install "bayesode\[vision\]"'):
        digits_module._digits()


# ---- torchvision ---------------------------------------------------------------------------------
@pytest.fixture
def without_torchvision(monkeypatch):
    """As if it had never been imported; what was imported comes back after the test."""
    _torchvision.torchvision()  # Its operators, if it has them, before the test declares any.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    _torchvision.torchvision.cache_clear()
    yield monkeypatch
    _torchvision.torchvision.cache_clear()


def test_absent_torchvision_is_named_with_its_extra(without_torchvision, tmp_path):
    without_torchvision.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r'torchvision.*pip install "bayesode\[vision\]"'):
        datasets.rotating_mnist(tmp_path)


def test_torchvision_that_stays_broken_is_named_with_its_reason(without_torchvision, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('compiled for CUDA 99')")
    without_torchvision.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match=r"compiled for CUDA 99.*pip install"):
        datasets.rotating_mnist(tmp_path)


FAKE = """
import torch
for name in ("nms", "qnms"):
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", "Meta"):
        pass  # dies, as torchvision does, of an operator that nobody declared
"""
IMPORT = """
import bayesode.datasets._torchvision as door
try:
    import torchvision
except RuntimeError as error:
    print(error)
print(door.torchvision().datasets.NAME)
"""


@pytest.mark.slow
def test_torchvision_without_its_compiled_operators_works(tmp_path):
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").write_text(FAKE)
    (folder / "datasets.py").write_text("NAME = 'imported'")
    package = str(Path(_torchvision.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), package])}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["operator torchvision::nms does not exist", "imported"]
