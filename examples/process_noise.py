"""Predators and prey under random weather: a neural SDE beside a neural ODE."""

import os

import torch

import bayesode as bo

SMALL = "BAYESODE_SMALL" in os.environ  # few data, to see that the script runs
num_series, num_times, horizon = (3, 30, 4.0) if SMALL else (10, 75, 9.0)
hidden, num_draws = ([4], 100) if SMALL else (None, 1000)  # None: as planned

# dx = f(x) dt + .1 x dW, seen with noise of sd .1; the last third of the time is held out
data = bo.datasets.stochastic_lotka_volterra(
    num_series=num_series, num_times=num_times, horizon=horizon, seed=0
)
train, test = data.observed.split(time=2 / 3 * horizon)
truth, _ = data.truth.split(time=2 / 3 * horizon)

fits = {}
for name, system in (("SDE", bo.neural_sde), ("ODE", bo.neural_ode)):
    model, guide = system(train, hidden=hidden)  # prints the plan
    fits[name] = bo.fit_laplace(model, train, seed=0)
    print(f"\nneural {name}: log evidence {fits[name].log_evidence:.1f}")

    inside = fits[name].smooth(num_draws=num_draws, seed=0)  # given all data, before and after
    error = (inside.mean - truth.values).square().mean().sqrt()
    print(f"rmse of the smoothed path {error:.3f}, beside measurement noise of .1")

    ahead = fits[name].forecast(train.at(test), num_draws=num_draws, seed=0)  # after the data
    print(bo.diagnostics.score_table(ahead, test))
    print(f"where the variance of the forecast comes from\n{ahead.variance_parts()}\n")

# --- Two kinds of noise, told apart ---------------------------------------------------------------
sde, size = fits["SDE"], truth.values.square().mean((0, 1)).sqrt()
draws = sde.draws(num_draws, seed=0)
for site, exact in (
    ("likelihood.noise_scale", data.noise_scale),
    ("field.diffusion.scale", 0.1 * size),  # the noise multiplies the state: its root mean square
):
    for name, scales, true in zip(train.names, draws[site].T, exact, strict=True):
        low, high = scales.quantile(scales.new_tensor([0.05, 0.95])).tolist()
        print(f"{site} of {name}: 90 % {low:.3f} to {high:.3f}, in truth {true:.3f}")

# --- Pictures -------------------------------------------------------------------------------------
fine = train.at(torch.linspace(0, horizon, 181, dtype=torch.float64))
for name, fit in fits.items():  # smoothed up to the end of training, a forecast behind it
    bands = fit.predict(fine, num_draws=num_draws, seed=0)
    figure = bo.diagnostics.fan_chart(bands, train, test, series=[0, 1, 2], num_paths=40)
    figure.savefig(f"forecast-{name}.png", dpi=150)
bo.diagnostics.vector_field(sde, truth=data.field).savefig("drift.png", dpi=150)
