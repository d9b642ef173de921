"""Sequences of rotating digits from images of digits: angles, hidden frames, disjoint splits."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from bayesode.data_checks import shape_of
from bayesode.datasets.arguments import check_whole
from bayesode.errors import DataError, ShapeError
from bayesode.trajectories import Trajectories


class RotatingFrames(NamedTuple):
    """Sequences of images, values (series, time, 1, height, width) in [0, 1], by disjoint digits.

    Time is the number of the frame, from 0. The labels are the positions of the images in the set
    they come from. Only `train` has hidden frames: masked, their values kept to be scored.
    """

    train: Trajectories
    validation: Trajectories
    test: Trajectories


@dataclass(frozen=True)
class RotationProtocol:
    """How digits rotate, what is hidden and who is trained on; the arguments of the data sets."""

    digit: int
    num_series: int
    num_validation: int
    num_test: int
    angles: int
    turns: int
    hidden_frame: int | None
    num_hidden: int
    num_given: int
    random_start: bool
    speed_spread: float
    binarised: bool
    seed: int

    def __post_init__(self) -> None:
        least = {"num_series": 1, "num_validation": 1, "num_test": 1, "angles": 2, "turns": 1}
        least |= {"num_hidden": 0, "num_given": 1, "digit": 0, "seed": 0}
        for name, bound in least.items():
            check_whole(name, getattr(self, name), least=bound)
        if self.digit > 9:
            raise DataError(f"digit must be one of 0, 1, ..., 9, not {self.digit}.")
        spread = self.speed_spread
        if not isinstance(spread, Real) or not 0 <= spread < 1:
            raise DataError(f"speed_spread is a fraction, at least 0 and below 1, not {spread!r}.")
        self._check_hidden()

    def _check_hidden(self) -> None:
        if self.hidden_frame is not None:
            check_whole("hidden_frame", self.hidden_frame)
            if not self.num_given <= self.hidden_frame < self.angles:
                raise DataError(
                    f"hidden_frame must lie between {self.num_given} (the first num_given= frames "
                    f"are never hidden) and {self.angles - 1}, or be None, not {self.hidden_frame}."
                )
        most = int(self.may_be_hidden().sum())
        if self.num_hidden > most:
            raise DataError(
                f"num_hidden must be at most {most}, the frames that are neither given nor hidden "
                f"in all sequences, not {self.num_hidden}."
            )

    @property
    def num_digits(self) -> int:
        """Digits of all three parts."""
        return self.num_series + self.num_validation + self.num_test

    @property
    def num_frames(self) -> int:
        """Frames of a sequence."""
        return self.angles * self.turns

    def always_hidden(self) -> Tensor:
        """Frames that are hidden in every training sequence, in every turn, shape (time,)."""
        frame = torch.arange(self.num_frames)
        if self.hidden_frame is None:
            return frame < 0
        return frame % self.angles == self.hidden_frame

    def may_be_hidden(self) -> Tensor:
        """Frames of which `num_hidden` are drawn for each training sequence, shape (time,)."""
        return (torch.arange(self.num_frames) >= self.num_given) & ~self.always_hidden()


def rotating_frames(
    images: Tensor, labels: Tensor, protocol: RotationProtocol, *, white: float = 1.0
) -> RotatingFrames:
    """Rotate the first digits of a class and divide them into training, validation and test.

    Args:
        images: Shape (image, height, width), numbers from 0 to `white`.
        labels: The digits that they show, shape (image,).
        protocol: What to make of them.
        white: Value of a pixel that becomes 1.

    Raises:
        DataError: If there are too few images of this digit.

    Example:
        >>> images, labels = torch.rand(5, 8, 8), torch.tensor([3, 1, 3, 3, 3])
        >>> settings = RotationProtocol(3, 2, 1, 1, 4, 1, 2, 1, 1, False, 0.0, False, seed=0)
        >>> frames = rotating_frames(images, labels, settings)
        >>> frames.train.series, frames.test.series, frames.train.values.shape
        ((0, 2), (4,), torch.Size([2, 4, 1, 8, 8]))
    """
    chosen = first_digits(labels, protocol)
    generator = Generator().manual_seed(protocol.seed)
    degrees, visible = draw_degrees(protocol, generator), draw_visible(protocol, generator)
    frames = rotate_frames(images[chosen].unsqueeze(1) / white, degrees)
    if protocol.binarised:
        frames = (frames > 0.5).to(frames.dtype)
    end_train = protocol.num_series
    end_validation = end_train + protocol.num_validation

    def part(first: int, last: int, mask: Tensor | None = None) -> Trajectories:
        times, series = torch.arange(protocol.num_frames), tuple(chosen[first:last].tolist())
        return Trajectories(times, frames[first:last], mask=mask, series=series)

    return RotatingFrames(
        part(0, end_train, visible),
        part(end_train, end_validation),
        part(end_validation, len(chosen)),
    )


def first_digits(labels: Tensor, protocol: RotationProtocol) -> Tensor:
    """Positions of the images that are used, shape (series,): the first ones of the class.

    Raises:
        DataError: If there are too few.
    """
    positions = (labels == protocol.digit).nonzero().flatten()
    needed = protocol.num_digits
    if len(positions) < needed:
        raise DataError(
            f"num_series + num_validation + num_test = {needed} images of the digit "
            f"{protocol.digit} are asked for, and there are {len(positions)}; ask for fewer."
        )
    return positions[:needed]


def draw_degrees(protocol: RotationProtocol, generator: Generator) -> Tensor:
    """Angle of every frame in degrees, counter-clockwise, float64, shape (series, time).

    Start and speed are drawn in any case, so that neither option changes the other's draws.
    """
    uniform = torch.rand(2, protocol.num_digits, 1, generator=generator, dtype=torch.float64)
    start = 360.0 * uniform[0] * protocol.random_start
    speed = 1.0 + protocol.speed_spread * (2.0 * uniform[1] - 1.0)
    steps = torch.arange(protocol.num_frames, dtype=torch.float64)
    return (start + speed * steps * (360.0 / protocol.angles)) % 360.0


def draw_visible(protocol: RotationProtocol, generator: Generator) -> Tensor:
    """Which frames of the training sequences are seen, True there, shape (series, time)."""
    shape = (protocol.num_series, protocol.num_frames)
    rank = torch.rand(shape, generator=generator, dtype=torch.float64)
    rank = torch.where(protocol.may_be_hidden(), rank, torch.inf)
    hidden = protocol.always_hidden().expand(shape).clone()
    return ~hidden.scatter_(1, rank.argsort(1)[:, : protocol.num_hidden], True)


def rotate_frames(images: Tensor, degrees: Tensor) -> Tensor:
    """Every image turned by its own angles about its centre, bilinear, clipped to [0, 1].

    Equal to torchvision's `rotate`, which turns all images of a call by one angle.

    Args:
        images: Shape (series, channel, height, width).
        degrees: Counter-clockwise, float64, shape (series, time).

    Returns:
        Frames, shape (series, time, channel, height, width); 0 where nothing was.

    Raises:
        ShapeError: If there is not one row of angles per image.

    Example:
        >>> turned = rotate_frames(torch.eye(2).view(1, 1, 2, 2), torch.tensor([[0.0, 90.0]]))
        >>> turned[0, 1, 0].round().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    if images.dim() != 4 or degrees.dim() != 2 or len(degrees) != len(images):
        raise ShapeError(
            f"images need (series, channel, height, width) and degrees (series, time), not "
            f"{shape_of(images)} and {shape_of(degrees)}."
        )
    ratio = images.shape[-2] / images.shape[-1]
    cosine, sine = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    rows = (cosine, -sine * ratio, 0 * sine, sine / ratio, cosine, 0 * sine)
    maps = torch.stack(rows, -1).unflatten(-1, (2, 3)).to(images.dtype)  # of places in [-1, 1]^2
    shape = list(images.shape)

    def frame(maps: Tensor) -> Tensor:
        grid = functional.affine_grid(maps, shape, align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)

    frames = [frame(maps[:, k]) for k in range(degrees.shape[1])]  # one by one: memory
    return torch.stack(frames, 1).clamp(0.0, 1.0)
