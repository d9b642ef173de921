"""Simulated walks in the form of motion capture: what needs no files runs on these."""

import math

import torch

import bayesode as bo
from bayesode.datasets.motion_capture import CONSTANT_CHANNELS, FRAMES_PER_SECOND, NUM_CHANNELS

NUM_WAVES = 3
LEAST_CYCLE, MOST_CYCLE = 95.0, 110.0  # frames
SCALE, NOISE_SCALE = 5.0, 0.1  # degrees


def simulated_walks(
    num_train: int = 8,
    num_validation: int = 2,
    num_test: int = 2,
    *,
    num_frames: int = 120,
    seed: int = 0,
) -> bo.datasets.MotionCapture:
    """Walks that are mixtures of three waves of one cycle, each at its own speed and phase.

    Channels that are constant in the real files are so here. The labels are those of
    `bo.datasets.motion_capture`, the dtype is torch's default.
    """
    generator = torch.Generator().manual_seed(seed)
    mixing = SCALE * torch.randn(NUM_WAVES, NUM_CHANNELS, generator=generator)
    mixing[:, list(CONSTANT_CHANNELS)] = 0.0

    def part(name: str, num: int) -> bo.Trajectories:
        cycle = LEAST_CYCLE + (MOST_CYCLE - LEAST_CYCLE) * torch.rand(num, 1, generator=generator)
        start = 2 * math.pi * torch.rand(num, 1, generator=generator)
        phase = start + 2 * math.pi * torch.arange(num_frames) / cycle
        waves = torch.stack([phase.cos(), phase.sin(), (2 * phase).cos() / 2], -1)
        values = waves @ mixing
        noise = NOISE_SCALE * torch.randn(values.shape, generator=generator)
        noise[..., list(CONSTANT_CHANNELS)] = 0.0
        return bo.Trajectories(
            torch.arange(num_frames, dtype=torch.float64) / FRAMES_PER_SECOND,
            values + noise,
            series=tuple(f"{name} {k + 1}" for k in range(num)),
            names=tuple(f"channel {k}" for k in range(NUM_CHANNELS)),
        )

    return bo.datasets.MotionCapture(
        part("train", num_train), part("validation", num_validation), part("test", num_test)
    )
