"""The script that people write: a Bayesian neural ODE in plain Pyro and torchdiffeq.

Two hidden layers of 50, a prior N(0, 1 / fan_in), a random start, the full horizon from the first
step, 1,000 steps of mean-field SVI from narrow scales and the first observations. Nothing is wrong
with it; it just does not arrive.
"""

import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample, init_to_value
from torch import Tensor
from torchdiffeq import odeint

from bayesode.errors import DataError
from bayesode.trajectories import Trajectories
from benchmarks.scoring import Outcome, Size, score_noisy
from benchmarks.tasks import Task

HIDDEN, NUM_STEPS, LEARNING_RATE, INIT_SCALE = (50, 50), 1000, 0.01, 0.01


class PlainScript:
    """The program: six weight sites, the noise, x0 per series.

    Args:
        train: Values (series, time, state) at times that all series share.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, train: Trajectories, hidden: tuple[int, ...] = HIDDEN) -> None:
        if train.times.dim() > 1:
            raise DataError("the plain script solves all series at once: it needs shared times.")
        self.train, dim = train, len(train.names)
        self.sizes = list(zip([dim, *hidden], [*hidden, dim], strict=True))
        values = torch.where(train.mask, train.values, torch.nan)
        self.center = values.flatten(0, 1).nanmean(0)
        self.spread = (values - self.center).flatten(0, 1).square().nanmean(0).sqrt()
        self.values = torch.where(train.mask, train.values, 0.0)
        self.first = torch.where(train.mask[:, 0], train.values[:, 0], self.center)

    def __call__(self) -> None:
        layers = []
        for i, (fan_in, fan_out) in enumerate(self.sizes):
            scale = torch.full((fan_in, fan_out), fan_in**-0.5)
            weight = pyro.sample(f"weight{i}", dist.Normal(0.0, scale).to_event(2))
            bias = pyro.sample(f"bias{i}", dist.Normal(torch.zeros(fan_out), 1.0).to_event(1))
            layers.append((weight, bias))
        noise = pyro.sample("noise", dist.LogNormal(self.spread.log() - 1, 1.0).to_event(1))
        with pyro.plate("series", self.train.num_series):
            x0 = pyro.sample("x0", dist.Normal(self.center, 2 * self.spread).to_event(1))
            path = solve(layers, x0, self.train.times)
            law = dist.Normal(path, noise).mask(self.train.mask).to_event(2)
            pyro.sample("y", law, obs=self.values)

    def layers_of(self, draws: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of drawn sites, each with the draws first."""
        pairs = [(draws[f"weight{i}"], draws[f"bias{i}"]) for i in range(len(self.sizes))]
        return [(weight, bias.unsqueeze(-2)) for weight, bias in pairs]


def network(layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """dx/dt at x (..., points, state)."""
    for weight, bias in layers[:-1]:
        x = torch.tanh(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def solve(layers: list[tuple[Tensor, Tensor]], x0: Tensor, times: Tensor) -> Tensor:
    """Paths (..., series, time, state), by RK4 from each time to the next."""
    path = odeint(lambda t, x: network(layers, x), x0, times.to(x0.dtype), method="rk4")
    return path.movedim(0, -2)


def plain_pyro(task: Task, size: Size) -> Outcome:
    begin = time.perf_counter()
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        pyro.set_rng_seed(task.seed)
        program = PlainScript(task.train)
        first = init_to_value(values={"x0": program.first}, fallback=init_to_sample)
        guide = AutoNormal(program, init_loc_fn=first, init_scale=INIT_SCALE)
        svi = SVI(program, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())
        for _ in range(size.num_steps or NUM_STEPS):
            svi.step()
        seconds = time.perf_counter() - begin
        with torch.no_grad(), pyro.plate("draws", size.num_draws, dim=-2):
            draws = guide()
        elbo = -Trace_ELBO(num_particles=16).loss(program, guide)
        draws = {site: value.detach() for site, value in draws.items()}
    # a site outside the plate of series has a place of size one there
    shared = {s: v if s == "x0" else v.squeeze(1) for s, v in draws.items()}
    layers, noise = program.layers_of(shared), shared["noise"]
    with torch.no_grad():
        path = solve(layers, shared["x0"], task.target.new.times)
        rates = network(layers, task.visited.float())
    return Outcome(
        seconds=seconds,
        path=score_noisy(path, noise, task.target, task.seed),
        rates=rates,
        noise_scale=noise.double().median(0).values,
        elbo=elbo,
    )
