"""Linear SDEs with normal measurements, and their posterior by dense linear algebra."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import bayesode as bo
from bayesode.models.contracts import VectorField, without_plate

DOUBLE = torch.float64
MATRIX = torch.tensor([[-0.3, 1.1], [-0.9, -0.2]], dtype=DOUBLE)
OFFSET = torch.tensor([0.2, -0.1], dtype=DOUBLE)
PROCESS = torch.tensor([0.4, 0.25], dtype=DOUBLE)  # per square root of time
NOISE = torch.tensor([0.15, 0.3], dtype=DOUBLE)
FIRST = 2.0  # sd of x0 around 0
STEP = 0.13  # of the drift
KNOWN = 1e-6  # log sd of a prior that leaves nothing open


class Linear(nn.Module):
    """dx/dt = A x + b with nothing random in it."""

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        return VectorField(lambda t, x: x @ MATRIX.mT + OFFSET, (MATRIX, OFFSET))


class ConstantDrift(nn.Module):
    """dx/dt = rate, random: paths are linear in all that is random."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sd", torch.full((2,), 0.7, dtype=DOUBLE))

    def priors(self):
        return {"rate": dist.Normal(torch.zeros_like(self.sd), self.sd).to_event(1)}

    def build(self, values, inputs=None):
        rate = without_plate(values["rate"])
        return VectorField(lambda t, x: rate.unsqueeze(-2).expand_as(x), (rate,))


def known_model(drift=None, *, noise_step=None, process=PROCESS, noise=NOISE, step=STEP):
    """A linear model whose scales are known."""
    diffusion = bo.AdditiveNoise(2, prior_log_scale=KNOWN)
    likelihood = bo.GaussianLikelihood(2, prior_log_scale=KNOWN)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.SDEField(drift or Linear(), diffusion),
        likelihood=likelihood,
        solver=bo.SDESolver(2, step, noise_step=noise_step),
    ).double()
    model.field.diffusion.log_median.copy_(process.log())
    model.likelihood.log_median.copy_(noise.log())
    return model


def random_data(kind: str = "plain") -> bo.Trajectories:
    """Three series of noisy linear paths, roughly simulated: which ones does not matter."""
    generator = torch.Generator().manual_seed(3)
    times = torch.linspace(0.0, 4.0, 13, dtype=DOUBLE)
    x, states = 1.5 * torch.randn(3, 2, generator=generator, dtype=DOUBLE), []
    for _ in times:
        states.append(x)
        kick = 0.2 * torch.randn(3, 2, generator=generator, dtype=DOUBLE)
        x = x + 0.33 * (x @ MATRIX.mT + OFFSET) + kick
    white = torch.randn(3, 13, 2, generator=generator, dtype=DOUBLE)
    values = torch.stack(states, 1) + NOISE * white
    settings: dict = {"series": ["a", "b", "c"], "names": ["x", "y"]}
    if kind in ("irregular", "late start"):
        jitter = 0.3 * torch.rand(3, 13, generator=generator, dtype=DOUBLE)
        stretch = torch.tensor([1.0, 0.6, 1.4], dtype=DOUBLE)[:, None]
        times = (times + jitter) * stretch + torch.tensor([0.0, 2.0, -1.0])[:, None]
        settings["num_times"] = torch.tensor([13, 6, 10])
        if kind == "late start":
            settings["start"] = times[:, 0] - torch.tensor([0.5, 0.0, 1.7], dtype=DOUBLE)
    if kind in ("masked", "irregular"):
        mask = torch.rand(3, 13, 2, generator=generator) > 0.35
        mask[2, 0] = mask[0, -1] = False
        settings["mask"] = mask
    return bo.Trajectories(times, values, **settings)


def flow(length: float, step: float = STEP) -> tuple[Tensor, Tensor]:
    """RK4 over an interval in equal steps: x -> F x + c."""
    count = max(1, int(torch.tensor(length / step * (1 - 1e-4)).ceil()))
    h, eye = length / count, torch.eye(2, dtype=DOUBLE)
    power, polynomial, integral = eye, eye, h * eye
    for k in range(1, 5):
        power = power @ MATRIX * h / k
        polynomial = polynomial + power
        if k < 4:
            integral = integral + power * h / (k + 1)
    shift = integral @ OFFSET
    whole, constant = eye, torch.zeros(2, dtype=DOUBLE)
    for _ in range(count):
        whole, constant = polynomial @ whole, polynomial @ constant + shift
    return whole, constant


@dataclass
class Smoother:
    """Exact law of the states of one series at all knots.

    Args:
        times: Of the knots, the start first.
        mean: Shape (knot, state).
        covariance: Shape (knot, state, knot, state).
        log_evidence: Of the observed values.
    """

    times: list[float]
    mean: Tensor
    covariance: Tensor
    log_evidence: float

    def at(self, times) -> tuple[Tensor, Tensor]:
        """Mean and variance at times among the knots, (time, state) each."""
        index = [min(range(len(self.times)), key=lambda k: abs(self.times[k] - t)) for t in times]
        assert all(abs(self.times[k] - t) < 1e-9 for k, t in zip(index, times, strict=True))
        size = self.mean.numel()
        variance = self.covariance.reshape(size, size).diagonal().view_as(self.mean)
        return self.mean[index], variance[index]


def kalman(data: bo.Trajectories, row: int, extra=(), longest=None, **scales) -> Smoother:
    """The smoother of one series by conditioning the dense normal law of all its knots.

    Args:
        data: Observed.
        row: Of the series.
        extra: Further times.
        longest: Knots are no further apart.
        scales: `process`, `noise` (per component), `transition` (length -> F, c, Q).
    """
    process, noise = scales.get("process", PROCESS), scales.get("noise", NOISE)
    move = scales.get("transition") or (lambda h: (*flow(h), torch.diag(process**2) * h))
    start, count = data.start[row].item(), int(data.num_times[row])
    seen_times = data.grid[row, :count].tolist()
    times = [start]
    for t in sorted({*seen_times, *map(float, extra)}):
        gap = t - times[-1]
        if gap < 1e-9:
            continue
        cuts = 1 if longest is None else max(1, int(torch.tensor(gap / longest - 1e-4).ceil()))
        times += [times[-1] + gap * (k + 1) / cuts for k in range(cuts)]
    mean, blocks = [torch.zeros(2, dtype=DOUBLE)], [torch.eye(2, dtype=DOUBLE) * FIRST**2]
    moves = [move(after - before) for before, after in itertools.pairwise(times)]
    for factor, shift, own in moves:
        mean.append(factor @ mean[-1] + shift)
        blocks.append(factor @ blocks[-1] @ factor.mT + own)
    num = len(times)
    prior = torch.zeros(num, 2, num, 2, dtype=DOUBLE)
    for i in range(num):
        block = blocks[i]
        for j in range(i, num):
            prior[j, :, i, :], prior[i, :, j, :] = block, block.mT
            block = moves[j][0] @ block if j < num - 1 else block
    picked, values, sds = [], [], []
    for k, t in enumerate(seen_times):
        knot = min(range(num), key=lambda i: abs(times[i] - t))
        for j in range(2):
            if data.mask[row, k, j]:
                picked.append(2 * knot + j)
                values.append(data.values[row, k, j].double())
                sds.append(noise[j])
    flat, center = prior.reshape(2 * num, 2 * num), torch.stack(mean).flatten()
    if not picked:
        return Smoother(times, center.view(num, 2), prior, 0.0)
    seen, deviation = flat[picked][:, picked], torch.stack(values) - center[picked]
    seen = seen + torch.diag(torch.stack(sds) ** 2)
    gain = torch.linalg.solve(seen, flat[picked]).mT
    law = torch.distributions.MultivariateNormal(torch.zeros_like(deviation), seen)
    posterior = flat - gain @ flat[picked]
    return Smoother(
        times,
        (center + gain @ deviation).view(num, 2),
        posterior.view(num, 2, num, 2),
        law.log_prob(deviation).item(),
    )
