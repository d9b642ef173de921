"""Rotating handwritten digits of MNIST: the benchmark of latent differential equations."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from bayesode.datasets._torchvision import mnist
from bayesode.datasets.rotating_frames import RotatingFrames, RotationProtocol, rotating_frames


def rotating_mnist(
    root: str | Path,
    *,
    digit: int = 3,
    num_series: int = 360,
    num_validation: int = 36,
    num_test: int = 360,
    angles: int = 16,
    turns: int = 1,
    hidden_frame: int | None = 4,
    num_hidden: int = 3,
    num_given: int = 1,
    random_start: bool = False,
    speed_spread: float = 0.0,
    binarised: bool = False,
    seed: int = 0,
    download: bool = False,
) -> RotatingFrames:
    """Sequences of 28 x 28 images of one digit that turns, counter-clockwise, at constant speed.

    Training, validation and test share no image: they are, one after the other, the first ones of
    this digit in MNIST's training set. Frames are turned bilinearly about the centre of the image
    and clipped to [0, 1]; multiples of 90 degrees are exact, all other angles a little blurred.
    The last call's sequences stay in memory: change them nowhere in place.

    Args:
        root: Folder that has `MNIST/raw` with the four files of MNIST, unpacked.
        digit: Which digit, 0 to 9.
        num_series: Number of training sequences.
        num_validation: Number of validation sequences.
        num_test: Number of test sequences.
        angles: Frames of one full turn.
        turns: Number of turns, one after the other.
        hidden_frame: Frame that is hidden in all training sequences, in every turn (without
            random_start and speed_spread that is one angle); None hides none.
        num_hidden: Further frames hidden in each training sequence, drawn at random.
        num_given: The first frames, which are never hidden: those that an encoder reads.
        random_start: Whether each sequence begins at an angle of its own, uniform over the circle.
        speed_spread: Speeds are uniform in 1 ± this fraction of the usual one, one per sequence.
        binarised: Whether pixels are 1 above .5 and 0 elsewhere.
        seed: Decides hidden frames, angles and speeds. Frames hidden do not depend on the last two.
        download: Whether missing files may be fetched from the internet, about 12 MB.

    Returns:
        Training, validation and test sequences, values (series, angles * turns, 1, 28, 28) in
        [0, 1], float32; time is the number of the frame. Hidden frames are masked in `train` alone.

    Raises:
        DataError: If files are missing, unreadable or not to be had, for arguments out of range,
            too few images of this digit, or without torchvision.

    Source: The protocol of Casale et al. (2018), "Gaussian process prior variational
        autoencoders", arXiv:1810.11738, and Yildiz et al. (2019), "ODE2VAE", arXiv:1905.10994.
        Their file of images is not public any more: ours are others, and our test digits are no
        training digits. Images: LeCun et al. (1998), MNIST.

    Example:
        >>> rotating_mnist("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        bayesode.errors.DataError: MNIST is not in ...: put train-images-idx3-ubyte, ...
    """
    protocol = RotationProtocol(
        digit=digit,
        num_series=num_series,
        num_validation=num_validation,
        num_test=num_test,
        angles=angles,
        turns=turns,
        hidden_frame=hidden_frame,
        num_hidden=num_hidden,
        num_given=num_given,
        random_start=random_start,
        speed_spread=speed_spread,
        binarised=binarised,
        seed=seed,
    )
    return _sequences(Path(root).expanduser().resolve(), protocol, download)


@lru_cache(maxsize=2)  # 47 MB at the usual size
def _sequences(root: Path, protocol: RotationProtocol, download: bool) -> RotatingFrames:
    images, labels = mnist(root, download=download)
    return rotating_frames(images, labels, protocol, white=255.0)
