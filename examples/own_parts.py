"""The same kind of model spelled out, and its parts inside a hand-written Pyro program."""

import os

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, Predictive

import bayesode as bo
from bayesode.models.contracts import draw

SMALL = "BAYESODE_SMALL" in os.environ
simulated = bo.datasets.van_der_pol(num_series=4, num_times=30, seed=0)
train = simulated.observed

# --- 1. A composition of parts --------------------------------------------------------------------
model = bo.DynamicalModel(
    initial=bo.NormalInitial(2),
    field=bo.BayesianMLP(2, [8], 2, activation="tanh"),
    likelihood=bo.GaussianLikelihood(2),
    solver=bo.FixedGridSolver("rk4", step=0.1),
    units=bo.Units.from_data(train),
)
guide = bo.MeanFieldGuide(model, train)
posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=20 if SMALL else None)
print(posterior.elbo_terms())
ensemble = posterior.predict(train, num_draws=100, seed=0)
error = (ensemble.mean - simulated.truth.values).square().mean().sqrt() / simulated.noise_scale[0]
print(f"rmse of the mean path: {error:.2f} noise sds")

# --- 2. Parts inside your own Pyro program: two groups share one field, each has its own noise ----
field, solver = bo.BayesianMLP(2, [3], 2, prior_scale=1.0), bo.FixedGridSolver("rk4", step=0.2)
start, times = torch.zeros(4), train.grid.float()
values = (train.values - train.values.mean()) / train.values.std()


def program(values):
    f = field.build(draw("field", field.priors()))  # drawn once, outside the plate
    noise = pyro.sample("noise", dist.LogNormal(torch.full((2,), -2.0), 1.0).to_event(1))
    group = torch.tensor([0, 0, 1, 1])
    with pyro.plate("trajectories", 4, dim=-1):
        x0 = pyro.sample("x0", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        path = solver(f, x0, start, times)
        law = dist.Normal(path, noise[..., group, None, None]).to_event(2)
        pyro.sample("values", law, obs=values)


pyro.set_rng_seed(0)
steps = 3 if SMALL else 100
chain = MCMC(NUTS(program, max_tree_depth=4), num_samples=steps, warmup_steps=steps)
chain.run(values)
draws = Predictive(program, chain.get_samples())(None)
print("noise of the two groups:", chain.get_samples()["noise"].mean(0).tolist())
print("replicated data:", tuple(draws["values"].shape))
