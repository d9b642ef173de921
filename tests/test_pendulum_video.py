"""Videos of pendulums: what is drawn, how it moves, who is trained on, and what is refused."""

import math
import re

import pytest
import torch

from bayesode import datasets
from bayesode.datasets.pendulum_video import LENGTH, render
from bayesode.errors import DataError

FEW = {"num_series": 3, "num_validation": 2, "num_test": 2, "num_frames": 12}


def centre_of_mass(images):
    """To the right of the pivot and below it, in half sides, each (...)."""
    places = (torch.arange(images.shape[-1]).to(images) + 0.5) * 2 / images.shape[-1] - 1
    mass = images.sum((-2, -1))
    return (images.sum(-2) * places).sum(-1) / mass, (images.sum(-1) * places).sum(-1) / mass


def turned(angle):
    """An angle in (-pi, pi]."""
    return torch.atan2(angle.sin(), angle.cos())


# ---- what is drawn -------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "tolerance"), [(8, 5e-3), (16, 1e-3), (28, 1e-3)])
def test_the_centre_of_mass_lies_at_the_angle(size, tolerance):
    angle = torch.linspace(-math.pi, math.pi, 721, dtype=torch.float64)
    right, below = centre_of_mass(render(angle, size)[:, 0])
    assert turned(torch.atan2(right, below) - angle).abs().max() < tolerance
    distance = torch.hypot(right, below)
    assert (distance / distance.mean() - 1).abs().max() < 5e-3  # bobs at a side lose a rim
    assert LENGTH / 2 < distance.min() and distance.max() < LENGTH  # between rod and bob


def test_a_positive_angle_is_to_the_right_of_the_pivot_and_zero_hangs_down():
    angle = torch.tensor([0.0, math.pi / 2], dtype=torch.float64)
    right, below = centre_of_mass(render(angle, 16)[:, 0])
    assert abs(right[0]) < 1e-12 and abs(below[1]) < 1e-12
    assert below[0] > 0.4 and right[1] > 0.4


def test_a_quarter_turn_of_the_angle_turns_the_image():
    angle = torch.tensor([0.3, 0.3 + math.pi / 2], dtype=torch.float64)
    first, second = render(angle, 17)[:, 0]
    torch.testing.assert_close(second, torch.rot90(first), rtol=0, atol=1e-12)


def test_pixels_are_smooth_in_the_angle():
    step, generator = 1e-4, torch.Generator().manual_seed(0)
    angle = torch.linspace(-3, 3, 200, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 16, 16, generator=generator, dtype=torch.float64)
    ahead, behind = (render(angle + sign * step, 16) * weights for sign in (1, -1))
    (slope,) = torch.autograd.grad((render(angle, 16) * weights).sum(), angle)
    # error: step^2 / 6 of third derivatives, which stay below 1e4
    difference = (ahead - behind).sum((1, 2, 3)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=0, atol=2e-5)
    assert slope.std() > 1


def test_light_does_not_depend_on_the_angle():
    mass = render(torch.linspace(0, 2 * math.pi, 100).double(), 16).sum((1, 2, 3))
    assert (mass / mass.mean() - 1).abs().max() < 3e-3


# ---- how it moves, and who is trained on ---------------------------------------------------------
def test_videos_without_noise_are_drawn_from_the_true_angles():
    video = datasets.pendulum_video(**FEW, noise_scale=0.0)
    for part in (video.train, video.validation, video.test):
        truth = video.truth.rows(video.truth.positions(part.series))
        drawn = render(truth.values[..., 0], 16).float()
        assert torch.equal(part.values, drawn) and part.times.tolist() == truth.times.tolist()
        right, below = centre_of_mass(part.values[:, :, 0].double())
        gap = turned(torch.atan2(right, below) - truth.values[..., 0])
        assert gap.abs().max() < 1e-3


def test_swings_are_those_of_the_damped_pendulum():
    video = datasets.pendulum_video(**FEW, gap=0.5, seed=3)
    swings = datasets.damped_pendulum(num_series=7, num_times=12, horizon=5.5, seed=3).truth
    assert torch.equal(video.truth.values, swings.values)
    assert video.truth.names == ("angle", "velocity")
    assert video.train.times.tolist() == [0.5 * k for k in range(12)]


def test_parts_share_no_series_and_no_swing():
    video = datasets.pendulum_video(**FEW)
    labels = [label for part in video[:3] for label in part.series]
    assert labels == list(video.truth.series) and len(set(labels)) == 7
    assert labels[2:6] == ["train 3", "validation 1", "validation 2", "test 1"]
    starts = video.truth.values[:, 0]
    assert (torch.cdist(starts, starts) + 10 * torch.eye(7)).min() > 0.01
    frames = torch.cat([part.values[:, 0].flatten(1) for part in video[:3]])
    assert len(frames.unique(dim=0)) == 7


def test_one_frame_does_not_tell_the_velocity():
    angle, velocity = datasets.pendulum_video(num_series=2000, num_frames=2).truth.values[:, 0].T
    correlation = (angle * velocity).mean() / (angle.std() * velocity.std())
    assert abs(correlation) < 5 / math.sqrt(len(angle))  # a false alarm in 1e6 seeds
    assert velocity.std() > 0.8  # of U(-1.5, 1.5): .866


def test_the_seed_decides_and_frames_stay_in_range():
    before = torch.get_rng_state()
    first, again = (datasets.pendulum_video(**FEW, seed=1) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.values, other.values)
    other = datasets.pendulum_video(**FEW, seed=2)
    assert not torch.equal(first.train.values, other.train.values)
    assert torch.equal(before, torch.get_rng_state())
    loud = datasets.pendulum_video(**FEW, noise_scale=0.5, seed=1)
    for video in (first, loud):
        for part in video[:3]:
            assert part.values.min() >= 0 and part.values.max() <= 1
            assert part.values.dtype == torch.float32 and part.event_shape == (1, 16, 16)


def test_noise_has_the_stated_scale_and_leaves_the_swings():
    clean, noisy = (datasets.pendulum_video(noise_scale=scale) for scale in (0.0, 0.02))
    assert torch.equal(clean.truth.values, noisy.truth.values)
    inside = (clean.train.values > 0.2) & (clean.train.values < 0.8)  # where nothing is clipped
    noise = (noisy.train.values - clean.train.values)[inside].double() / 0.02
    assert noise.mean().abs() < 5 / math.sqrt(len(noise))  # a false alarm in 1e6 seeds
    assert abs(noise.std() - 1) < 5 / math.sqrt(2 * len(noise))


def test_noise_has_a_seed_too():
    first, second = (
        datasets.pendulum_video(**FEW, seed=seed).train.values
        - datasets.pendulum_video(**FEW, noise_scale=0.0, seed=seed).train.values
        for seed in (0, 1)
    )
    assert not (first == second)[first > 0].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(num_series=0), "num_series must be a whole number of at least 1"),
        (dict(num_validation=0), "num_validation must be"),
        (dict(num_test=1.5), "num_test must be"),
        (dict(num_frames=1), "num_frames must be a whole number of at least 2"),
        (dict(size=7), "size must be a whole number of at least 8"),
        (dict(gap=0.0), "gap must be a positive number"),
        (dict(noise_scale=-0.1), "noise_scale is a standard deviation"),
        (dict(seed=0.5), "seed must be"),
    ],
)
def test_wrong_arguments_are_one_clear_error(options, words):
    with pytest.raises(DataError, match=re.escape(words)):
        datasets.pendulum_video(**FEW | options)
