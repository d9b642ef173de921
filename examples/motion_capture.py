"""Walks by motion capture: ODE²VAE predicts how they go on from their first 3 frames.

python examples/motion_capture.py [--root FOLDER]: the folder with mocap/mocap35.npz, by default
that of BAYESODE_DATA; without the file, simulated videos of pendulums take the place of walks.
One to two minutes on two cores. Bands are made of what the model misses series by that it has not
seen: its own noise is that of the series of the fit.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

import bayesode as bo
from bayesode.datasets.motion_capture import given_frames

SMALL = "BAYESODE_SMALL" in os.environ  # few steps, to see that the script runs
NUM_GIVEN, NUM_DRAWS = 3, 20 if SMALL else 100  # one frame does not show velocities
NUM_FOLDS = 3  # a fit each; 5 leave more walks to each fit and take nearly twice as long
CYCLE = 135  # frames between two steps of the same foot in the training walks, about


def fit(train, seed=0, **settings):
    torch.manual_seed(seed)  # networks begin at random
    model, guide = bo.ode2vae(train, num_frames=NUM_GIVEN, **settings)
    return bo.fit_svi(model, guide, train, seed=seed, **({"num_steps": 5} if SMALL else {}))


def forecast(posterior, new):
    """New series at all their times, from their first frames."""
    conditioned = posterior.condition(given_frames(new, NUM_GIVEN))
    ensemble = conditioned.predict(new.at(new.times), num_draws=NUM_DRAWS, seed=0)
    mask = new.mask.clone()
    mask[:, :NUM_GIVEN] = False  # what was given is no forecast
    return bo.HeldOut(replace(new, mask=mask), ensemble)


def with_noise(forecast, others):
    """The same forecast, its bands as wide as others turned out to need."""
    noise = bo.HorizonNoise.of(others)  # per channel and third of the horizon
    return bo.HeldOut(forecast.truth, noise.applied(forecast.ensemble))


def compare(held, rules, unit, smallest_sd):
    """Errors of the frames that were not given, beside rules that need no model."""
    errors, covers = {}, []
    for fold, guesses in zip(held, rules, strict=True):
        truth, ensemble = fold.truth, fold.ensemble
        for name, values in ({"ODE²VAE": ensemble.mean} | guesses).items():
            off = (values - truth.values)[:, NUM_GIVEN:].square().flatten(1).mean(1)
            errors.setdefault(name, []).append(off)
        varies = truth.values.flatten(0, 1).std(0) > smallest_sd  # constants tell nothing
        covers.append(ensemble.covers(truth, 0.9)[:, NUM_GIVEN:][:, :, varies].flatten())
    print(f"\nMean squared error of {sum(map(len, errors['ODE²VAE']))} new series, {unit}")
    for name, parts in errors.items():
        print(f"  {name:<20} {torch.cat(parts).mean():.3g}")
    print(f"90 % bands cover {torch.cat(covers).double().mean():.2f} of what varies")


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
    """Each of the 16 training walks is forecast by a fit that has not seen it."""
    data = bo.datasets.motion_capture(root).train  # the other walks are for the benchmark
    plain = bo.leave_series_out(
        lambda part, seed: fit(part, seed, verbose=False),
        data,
        given=lambda new: given_frames(new, NUM_GIVEN),
        num_folds=NUM_FOLDS,
        num_draws=NUM_DRAWS,
    )
    held = [with_noise(fold, plain[:k] + plain[k + 1 :]) for k, fold in enumerate(plain)]
    rules = []
    for fold in held:
        is_seen = [label not in fold.truth.series for label in data.series]
        seen = data.rows(torch.tensor(is_seen))
        aligned = {"time-aligned walks": time_aligned(seen.values, fold.truth.values)}
        rules.append(mean_and_last(seen, fold.truth) | aligned)
    compare(held, rules, "squared degrees", smallest_sd=1e-3)
    shown = data.rows(data.positions(held[0].truth.series))
    picture = bo.diagnostics.channel_panel(held[0].ensemble, shown, given=NUM_GIVEN)
    picture.savefig("channels.png", dpi=150)


def pendulums():
    """Other pendulums are forecast by a fit of 40, and get the bands that validation ones need."""
    # frames so close that the line through 3 of them has the slope with which they begin
    many = {"num_series": 40, "num_frames": 80, "gap": 0.06}
    few = {"num_series": 8, "num_validation": 2, "num_test": 3, "num_frames": 12}
    video = bo.datasets.pendulum_video(**(few if SMALL else many))
    posterior = fit(video.train, dim_latent=4)
    held = with_noise(forecast(posterior, video.test), [forecast(posterior, video.validation)])
    compare([held], [mean_and_last(video.train, video.test)], "per pixel", smallest_sd=0.05)
    picture = bo.diagnostics.frame_rows(
        held.ensemble, video.test, num_series=3, every=1 if SMALL else 4
    )
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
