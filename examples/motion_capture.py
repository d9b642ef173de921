"""Walks by motion capture: ODE²VAE predicts how they go on from their first 3 frames.

python examples/motion_capture.py [--root FOLDER]: the folder with mocap/mocap35.npz, by default
that of BAYESODE_DATA; without the file, simulated videos of pendulums take the place of walks.
"""

import argparse
import os
from pathlib import Path

import torch

import bayesode as bo
from bayesode.datasets.motion_capture import given_frames

SMALL = "BAYESODE_SMALL" in os.environ  # few steps, to see that the script runs
NUM_GIVEN, NUM_DRAWS = 3, 20 if SMALL else 50  # one frame does not show velocities
CYCLE = 135  # frames between two steps of the same foot in the training walks, about


def fit(train, steps, **settings):
    torch.manual_seed(0)  # networks begin at random
    model, guide = bo.ode2vae(train, num_frames=NUM_GIVEN, **settings)
    return bo.fit_svi(model, guide, train, seed=0, **({"num_steps": 5} if SMALL else steps))


def forecast(posterior, new):
    """New series at all their times, from their first frames."""
    conditioned = posterior.condition(given_frames(new, NUM_GIVEN))
    return conditioned.predict(new, num_draws=NUM_DRAWS, seed=0)


def compare(new, unit, ensemble, rules):
    """Errors of the frames that were not given, beside rules that need no model."""
    for name, values in ({"ODE²VAE": ensemble.mean} | rules).items():
        error = (values - new.values)[:, NUM_GIVEN:].square().mean()
        print(f"{name:<20} mean squared error {error:.4g} {unit}")
    varies = new.values.flatten(0, 1).std(0) > 1e-3  # constants tell nothing
    covers = ensemble.covers(new, 0.9)[:, NUM_GIVEN:][:, :, varies].double().mean()
    print(f"90 % bands cover {covers:.2f} of what varies")


def mean_and_last(train, new):
    last, mean = new.values[:, [NUM_GIVEN - 1]], train.values.mean((0, 1))
    rules = {"training mean": mean, "last given frame": last}
    return {name: values.expand_as(new.values) for name, values in rules.items()}


def time_aligned(train, new, num=8):
    """Mean of the training walks that fit the given frames best, each from its best frame on."""
    windows = train.unfold(1, NUM_GIVEN, 1).movedim(-1, 2)  # (walk, first frame, given, channel)
    gap = (new[:, None, None, :NUM_GIVEN] - windows).square().mean((-2, -1))
    nearest, first = gap.min(-1)
    walk = nearest.topk(min(num, len(train)), largest=False).indices
    frame = first.gather(1, walk)[..., None] + torch.arange(new.shape[1])
    late = frame - train.shape[1]  # where a walk ends it goes on a cycle earlier
    frame = torch.where(late < 0, frame, train.shape[1] - CYCLE + late % CYCLE)
    return train[walk[..., None], frame].mean(1)


def walks(root):
    data = bo.datasets.motion_capture(root)  # values in degrees
    train, new = data.train, data.validation  # test walks are for the benchmark
    posterior = fit(train, {})  # as many steps as the guide suggests
    ensemble = forecast(posterior, new)
    rules = mean_and_last(train, new)
    rules["time-aligned walks"] = time_aligned(train.values, new.values)
    compare(new, "squared degrees", ensemble, rules)
    bo.diagnostics.channel_panel(ensemble, new, given=NUM_GIVEN).savefig("channels.png", dpi=150)
    posterior.save("walks")


def pendulums():
    few = {"num_series": 12, "num_validation": 2, "num_test": 3, "num_frames": 12}
    video = bo.datasets.pendulum_video(**(few if SMALL else {}))
    train, new = video.train, video.test
    settings = {"dim_latent": 4, "network": "auto", "likelihood": "clipped_gaussian"}
    posterior = fit(train, {"num_steps": 300}, **settings)
    ensemble = forecast(posterior, new)
    compare(new, "per pixel", ensemble, mean_and_last(train, new))
    picture = bo.diagnostics.frame_rows(ensemble, new, num_series=3, every=1 if SMALL else 2)
    picture.savefig("frames.png", dpi=150)
    posterior.save("pendulums")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--root", type=Path, default=Path(os.environ.get("BAYESODE_DATA", ".")))
root = parser.parse_args().root
if (root / "mocap" / "mocap35.npz").is_file():
    walks(root)
else:
    print(f"there is no {root / 'mocap' / 'mocap35.npz'}: simulated videos of pendulums instead")
    pendulums()
