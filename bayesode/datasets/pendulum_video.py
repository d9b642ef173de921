"""Videos of damped pendulums: images that move by an equation, and the truth behind them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from bayesode.data_checks import check_positive
from bayesode.datasets.arguments import check_whole, noise_scales
from bayesode.datasets.damped_pendulum import SYSTEM
from bayesode.datasets.simulated import simulate
from bayesode.trajectories import Trajectories

# In half sides of the image, from its centre, where the pivot is: a bob anywhere stays inside.
LENGTH, BOB_SCALE, ROD_SCALE = 0.6, 0.15, 0.075
ROD_LIGHT = 0.5  # of the bob's
LEAST_SCALE = 0.6  # of a pixel: what a Gaussian blur of this sd lets through does not alias
NOISE_STREAM = 7_919  # another stream of random numbers than that of the initial states


class PendulumVideo(NamedTuple):
    """Videos, values (series, time, 1, size, size) in [0, 1], in parts that share no series.

    `truth` has the series of all three parts: values (series, time, 2), float64, the angle in
    radians (0 hangs down) and its rate; of one part it is
    `truth.rows(truth.positions(part.series))`.
    """

    train: Trajectories
    validation: Trajectories
    test: Trajectories
    truth: Trajectories


def pendulum_video(
    *,
    num_series: int = 60,
    num_validation: int = 10,
    num_test: int = 10,
    num_frames: int = 40,
    size: int = 16,
    gap: float = 0.25,
    noise_scale: float = 0.02,
    seed: int = 0,
) -> PendulumVideo:
    """Videos of damped pendulums, each with its own amplitude and phase.

    q'' = -2 sin q - 0.1 q', (q, q')(0) ~ U(-1.5, 1.5)^2, the system of `damped_pendulum`: small
    swings take 4.4 units of time, 18 frames, and lose a fifth of their amplitude meanwhile. A frame
    shows the angle alone; how it moves takes a second one.

    Args:
        num_series: Training videos.
        num_validation: Videos to choose settings by.
        num_test: Videos to score.
        num_frames: Frames of each video.
        size: Pixels along a side, 8 at least.
        gap: Time between two frames, in the unit of the pendulum's time.
        noise_scale: Standard deviation of the normal noise of a pixel, which is then clipped to
            [0, 1]; 0 for none.
        seed: Decides everything random; noise, frames and pixels leave its angles as they are.

    Returns:
        Videos, float32, the frame k at time k gap, labelled "train 1", ..., and the truth.

    Raises:
        DataError: For arguments out of range.

    Source: Simulated; the equation is in Strogatz (2015), "Nonlinear Dynamics and Chaos", section
        6.7, there with stiffness 1.

    Example:
        >>> video = pendulum_video(num_series=4, num_validation=1, num_test=2, num_frames=12)
        >>> video.train.values.shape, video.test.series, video.truth.names
        (torch.Size([4, 12, 1, 16, 16]), ('test 1', 'test 2'), ('angle', 'velocity'))
    """
    parts = {"train": num_series, "validation": num_validation, "test": num_test}
    least = {"num_series": 1, "num_validation": 1, "num_test": 1, "num_frames": 2, "size": 8}
    given = (*parts.values(), num_frames, size)
    for (name, bound), value in zip(least.items(), given, strict=True):
        check_whole(name, value, least=bound)
    check_positive(gap=gap)
    labels = tuple(f"{part} {k + 1}" for part, count in parts.items() for k in range(count))
    truth = _swings(labels, num_frames, gap, seed)
    frames = _noisy(render(truth.values[..., 0], size), noise_scale, seed)  # type: ignore[index]
    videos = Trajectories(truth.times, frames, series=labels)
    rows = torch.arange(len(labels)).split(list(parts.values()))
    train, validation, test = (videos.rows(chosen) for chosen in rows)
    return PendulumVideo(train, validation, test, truth)


def render(angle: Tensor, size: int) -> Tensor:
    """Images of a pendulum: a bright bob at the end of a dim rod, on black.

    Both are blurred by Gaussians, so that every pixel is a smooth function of the angle. Where they
    overlap, their shadows multiply: nothing exceeds 1.

    Args:
        angle: In radians, shape (...); 0 hangs down, a quarter turn points to the right.
        size: Pixels along a side.

    Returns:
        Shape (..., 1, size, size), in [0, 1].

    Example:
        >>> image = render(torch.tensor(0.0), 16)[0]
        >>> (image == image.max()).nonzero().tolist()  # below the centre
        [[12, 7], [12, 8]]
    """
    pixel = 2 / size
    places = (torch.arange(size, dtype=angle.dtype, device=angle.device) + 0.5) * pixel - 1
    sine, cosine = angle.sin()[..., None, None], angle.cos()[..., None, None]
    along = places * sine + places[:, None] * cosine  # the rod, as rows count downwards
    across = places * cosine - places[:, None] * sine
    bob_scale, rod_scale = (max(s, LEAST_SCALE * pixel) for s in (BOB_SCALE, ROD_SCALE))
    bob = torch.exp(-0.5 * ((along - LENGTH).square() + across.square()) / bob_scale**2)
    begin, end = (torch.special.ndtr(x / rod_scale) for x in (along, along - LENGTH))
    lit = begin - end  # a line from 0 to LENGTH under the same blur
    rod = ROD_LIGHT * lit * torch.exp(-0.5 * (across / rod_scale).square())
    return (1 - (1 - bob) * (1 - rod)).unsqueeze(-3)


def _swings(labels: tuple[str, ...], num_frames: int, gap: float, seed: int) -> Trajectories:
    """Angle and velocity of all series, (series, time, 2)."""
    settings: dict[str, Any] = {"num_series": len(labels), "num_times": num_frames, "seed": seed}
    settings |= {"noise_scale": 0.0, "missing": 0.0, "times": None}
    swings = simulate(SYSTEM, **settings, horizon=gap * (num_frames - 1)).truth
    names = ("angle", "velocity")
    return Trajectories(swings.times, swings.values, series=labels, names=names)


def _noisy(frames: Tensor, noise_scale: float, seed: int) -> Tensor:
    """Frames with noise, clipped, float32."""
    generator = Generator().manual_seed(seed + NOISE_STREAM)
    noise = torch.randn(frames.shape, generator=generator, dtype=frames.dtype)
    scale = noise_scales(noise_scale, 1)
    return (frames + scale * noise).clamp(0.0, 1.0).to(torch.float32)
