"""Fit the Hudson Bay lynx and hare record by mean-field SVI and forecast six years."""

import os

import bayesode as bo

SMALL = "BAYESODE_SMALL" in os.environ  # a few steps, to see that the script runs

trajectories = bo.datasets.lynx_hare()
train, test = trajectories.split(time=1914)

model, guide = bo.neural_ode(train, likelihood="lognormal", engine="svi")  # prints the plan
posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=20 if SMALL else None)
print(posterior.elbo_terms())

ensemble = posterior.predict(train.at(test.times), num_draws=100 if SMALL else 1000, seed=0)
print(bo.diagnostics.score_table(ensemble, test))  # log score, CRPS, coverage, beside baselines

idata = posterior.to_arviz(train, num_draws=100)  # ArviZ from here
print(idata)

posterior.save("runs/lynx-hare")
again = bo.load("runs/lynx-hare").predict(train.at(test.times), num_draws=10, seed=0)
print(again)

fine = train.at([1900 + month / 12 for month in range(241)])
bands = posterior.predict(fine, num_draws=200, seed=0)
bo.diagnostics.fan_chart(bands, train, test).savefig("forecast.png", dpi=150)
bo.diagnostics.vector_field(posterior).savefig("field.png", dpi=150)
