"""Videos of turning digits: an ODE-VAE predicts new digits from their first frame.

python examples/rotating_mnist.py [FOLDER]: the folder with MNIST/raw, by default that of
BAYESODE_DATA; without MNIST the handwritten digits of scikit-learn take its place.
"""

import os
import sys
from pathlib import Path

import torch

import bayesode as bo

SMALL = "BAYESODE_SMALL" in os.environ  # few digits, to see that the script runs
root = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("BAYESODE_DATA", "."))
num_series, num_new = (24, 4) if SMALL else (120, 20)
dim_latent, num_steps, num_draws = (4, 5, 20) if SMALL else (32, 300, 100)

# Threes that turn once in 16 frames; frame 4 is hidden in all training sequences, 3 more in each.
sizes = {"num_series": num_series, "num_validation": num_new, "num_test": num_new}
if (root / "MNIST" / "raw").is_dir():
    frames = bo.datasets.rotating_mnist(root, digit=3, **sizes)
else:
    frames = bo.datasets.rotating_digits(digit=3, **sizes)
train, test = frames.train, frames.test
print(train)

# --- Fit ------------------------------------------------------------------------------------------
torch.manual_seed(0)  # networks begin at random
model, guide = bo.ode_vae(train, dim_latent=dim_latent, likelihood="clipped_gaussian")
posterior = bo.fit_svi(
    model, guide, train, seed=0, num_steps=num_steps, validation=frames.validation
)
print(bo.diagnostics.latent_account(posterior))  # the ELBO in nats, and what x0 carries

# --- Hidden frames of the training sequences ------------------------------------------------------
hidden = ~train.mask
inside = posterior.predict(train, num_draws=num_draws, seed=0)
blend = (train.values.roll(1, 1) + train.values.roll(-1, 1)) / 2  # reads neighbours, hidden or not
for name, video in (("ODE-VAE", inside.mean), ("blend of the frames beside it", blend)):
    error = (video - train.values)[hidden].square().mean()
    print(f"hidden frames of training digits, {name}: squared error per pixel {error:.4f}")

# --- New digits, from their first frame, over two turns -------------------------------------------
# Draws differ by less than the model errs: the noise is calibrated on other digits, where it errs
# most, at the frame that was hidden.
calibrated = bo.calibrate_noise(posterior, frames.validation, level=0.9, at=[4.0])
new = calibrated.condition(test)  # the encoder reads frame 0 alone
turns = torch.arange(32, dtype=torch.float64)  # whole frames: nothing is known between them
ensemble = new.predict(test.at(turns), num_draws=num_draws, seed=0)
low, high = ensemble.interval(0.9)
truth = test.values.repeat(1, 2, 1, 1, 1)
active = train.values.flatten(0, 1).std(0) > 0.05  # without the black margin
for name, when in (
    ("frame 4, hidden in training", [4]),
    ("a second turn", list(range(16, 32))),
):
    error = (ensemble.mean - truth)[:, when].square().mean()
    covers = ((low <= truth) & (truth <= high))[:, when][:, :, active].double().mean()
    print(f"new digits, {name}: squared error {error:.4f}, 90 % bands cover {covers:.2f}")

# --- Pictures -------------------------------------------------------------------------------------
mask = (turns != 4).expand(len(truth), -1)
known = bo.Trajectories(turns, truth, mask=mask, series=test.series)
bo.diagnostics.frame_rows(ensemble, known, num_series=3).savefig("frames.png", dpi=150)
bo.diagnostics.latent_paths(ensemble, num_series=3, num_paths=10).savefig("latent.png", dpi=150)
calibrated.save("rotating-digits")
