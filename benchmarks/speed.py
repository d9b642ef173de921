"""How long one SVI step and one prediction take, as ratios within the same run.

    python -m benchmarks.speed [--smoke] [--json FILE]

Table A: one step (ELBO and its gradient, 4 particles, van der Pol 10 x 50, width 32): the script
that people write (a site per weight matrix, torchdiffeq, Pyro's `Trace_ELBO`, a loop over
particles), numpyro with diffrax (compiled; where the `bench` extra is installed), our model
through Pyro's `TraceMeanField_ELBO`, and our `elbo_terms`.
Table B: a prediction of 64 draws x 10 series against 1 draw x 10 series.
"""

import argparse
import json
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torchdiffeq import odeint

import bayesode as bo

NUM_PARTICLES = 4


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median wall time of one call, after one call to warm up."""
    function()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return sorted(seconds)[len(seconds) // 2]


def plain_script(train: bo.Trajectories, width: int) -> Callable[[], object]:
    """What a tutorial would do, without its bugs: six sites, one solve per particle."""
    times, values = train.times.float(), train.values

    def program() -> None:
        sizes = [(2, width), (width, 2)]
        layers = []
        for i, (fan_in, fan_out) in enumerate(sizes):
            weight = torch.full((fan_in, fan_out), fan_in**-0.5)
            layers.append(
                (
                    pyro.sample(f"weight{i}", dist.Normal(0.0, weight).to_event(2)),
                    pyro.sample(f"bias{i}", dist.Normal(torch.zeros(fan_out), 1.0).to_event(1)),
                )
            )
        noise = pyro.sample("noise", dist.LogNormal(-2.0, 1.0))
        with pyro.plate("series", train.num_series):
            x0 = pyro.sample("x0", dist.Normal(torch.zeros(2), 2.0).to_event(1))
            (w0, b0), (w1, b1) = layers
            field = lambda t, x: torch.tanh(x @ w0 + b0) @ w1 + b1  # noqa: E731
            path = odeint(field, x0, times, method="rk4", options={"step_size": 0.1})
            pyro.sample("y", dist.Normal(path.transpose(0, 1), noise).to_event(2), obs=values)

    guide, elbo = AutoNormal(program, init_scale=0.01), Trace_ELBO(num_particles=NUM_PARTICLES)

    def step() -> None:
        elbo.differentiable_loss(program, guide).backward()

    return step


def compiled_script(train: bo.Trajectories, width: int) -> Callable[[], object] | None:
    """The same program in numpyro and diffrax, one compiled step; None where they are missing.

    Tsit5 has six stages where Runge-Kutta 4 has four: its steps are half as long again.
    """
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as law
    except ImportError:
        return None
    times, values = jnp.asarray(train.times.numpy()), jnp.asarray(train.values.numpy())
    steps = diffrax.SaveAt(ts=times)

    def solve(x0, weights):
        w0, b0, w1, b1 = weights
        term = diffrax.ODETerm(lambda t, x, _: jnp.tanh(x @ w0 + b0) @ w1 + b1)
        begin, end = times[0], times[-1]
        solver = diffrax.Tsit5()
        return diffrax.diffeqsolve(term, solver, begin, end, 0.15, x0, saveat=steps).ys

    def program() -> None:
        weights = []
        for i, (fan_in, fan_out) in enumerate([(2, width), (width, 2)]):
            matrix = law.Normal(0.0, jnp.full((fan_in, fan_out), fan_in**-0.5)).to_event(2)
            weights.append(numpyro.sample(f"weight{i}", matrix))
            bias = law.Normal(jnp.zeros(fan_out), 1.0).to_event(1)
            weights.append(numpyro.sample(f"bias{i}", bias))
        noise = numpyro.sample("noise", law.LogNormal(-2.0, 1.0))
        with numpyro.plate("series", train.num_series):
            x0 = numpyro.sample("x0", law.Normal(jnp.zeros(2), 2.0).to_event(1))
            path = jax.vmap(solve, (0, None))(x0, weights)
            numpyro.sample("y", law.Normal(path, noise).to_event(2), obs=values)

    guide = numpyro.infer.autoguide.AutoNormal(program, init_scale=0.01)
    elbo = numpyro.infer.Trace_ELBO(num_particles=NUM_PARTICLES)
    key = jax.random.PRNGKey(0)
    svi = numpyro.infer.SVI(program, guide, numpyro.optim.Adam(1e-3), elbo)
    parameters = svi.get_params(svi.init(key))
    step = jax.jit(jax.value_and_grad(lambda p: elbo.loss(key, p, program, guide)))
    return lambda: jax.block_until_ready(step(parameters))


def step_table(repeats: int, num_times: int) -> list[dict[str, object]]:
    """Table A."""
    train = bo.datasets.van_der_pol(num_times=num_times).observed
    model, guide = bo.neural_ode(train, hidden=[32], verbose=False)
    pyro_elbo = TraceMeanField_ELBO(
        num_particles=NUM_PARTICLES, vectorize_particles=True, max_plate_nesting=1
    )

    def ours() -> None:
        (-bo.elbo_terms(model, guide, train, num_particles=NUM_PARTICLES).elbo).backward()

    ways = {
        "plain script": plain_script(train, 32),
        "numpyro + diffrax": compiled_script(train, 32),
        "ours through Pyro": lambda: pyro_elbo.differentiable_loss(model, guide, train).backward(),
        "ours, elbo_terms": ours,
    }
    with pyro.get_param_store().scope():
        seconds = {n: median_seconds(step, repeats) for n, step in ways.items() if step}
    fastest = seconds["ours, elbo_terms"]
    return [
        {"table": "A step", "way": name, "milliseconds": 1e3 * s, "ratio": s / fastest}
        for name, s in seconds.items()
    ]


def draws_table(repeats: int, num_times: int) -> list[dict[str, object]]:
    """Table B."""
    train = bo.datasets.van_der_pol(num_times=num_times).observed
    model, guide = bo.neural_ode(train, hidden=[16], verbose=False)
    posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)
    seconds = {
        n: median_seconds(lambda n=n: posterior.predict(train, num_draws=n, seed=0), repeats)
        for n in (1, 64)
    }
    return [
        {
            "table": "B predict",
            "way": f"{n} draws x 10 series",
            "milliseconds": 1e3 * s,
            "ratio": s / seconds[1],
        }
        for n, s in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny: only to see that it runs")
    parser.add_argument("--json", help="file for the records")
    options = parser.parse_args()
    repeats, num_times = (2, 10) if options.smoke else (15, 50)
    torch.set_num_threads(1)
    records = step_table(repeats, num_times) + draws_table(repeats, num_times)
    for r in records:
        print(f"{r['table']:<10} {r['way']:<24} {r['milliseconds']:9.1f} ms   x {r['ratio']:.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    main()
