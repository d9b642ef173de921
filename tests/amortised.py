"""A small guide that encodes series, on a model whose paths are polynomials."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import bayesode as bo
from bayesode.distributions import observed_law
from bayesode.models.contracts import Observe, VectorField, without_plate

DOUBLE = torch.float64
NOISE = 0.3


class Rising(nn.Module):
    """dx/dt = b + t/20, b ~ N(0, 1): paths x0 + b (t - s) + (t^2 - s^2) / 40, exact under RK4."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sd", torch.ones(2, dtype=DOUBLE))

    def priors(self):
        return {"b": dist.Normal(torch.zeros_like(self.sd), self.sd).to_event(1)}

    def build(self, values, inputs=None):
        b = without_plate(values["b"]).unsqueeze(-2)
        return VectorField(lambda t, x: b + t / 20 + 0 * x, (b,))


class Shifted(nn.Module):
    """Normal noise of sd .3 around the path plus a shift, which is a parameter and not random."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2, dtype=DOUBLE))

    def priors(self):
        return {}

    def build(self, values, inputs=None):
        def law(path, mask):
            return observed_law(dist.Normal(path + self.shift, NOISE), mask, event_dim=2, fill=0.0)

        return Observe(law, lambda path: path + self.shift)

    def fisher(self, path, values):
        return torch.full_like(path, NOISE**-2)


class Still(dist.Normal):
    """A Normal law that is always drawn at its mean: latents are conditioned, KLs stay."""

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.loc.expand(self._extended_shape(sample_shape))


class TinyGuide(nn.Module):
    """x0 by a linear map of the first value of a series; b has a table of one row."""

    def __init__(self, family: type = dist.Normal) -> None:
        super().__init__()
        self.family = family
        self.location = nn.Parameter(torch.tensor([0.4, -0.7], dtype=DOUBLE))
        self.log_scale = nn.Parameter(torch.full((2,), math.log(0.2), dtype=DOUBLE))
        self.weight = nn.Parameter(torch.tensor([[0.9, 0.1], [-0.2, 0.8]], dtype=DOUBLE))
        self.log_scale_x0 = nn.Parameter(torch.full((2,), math.log(0.25), dtype=DOUBLE))

    def posteriors(self, trajectories: bo.Trajectories):
        first = trajectories.values[:, 0]
        return {
            "field.b": self.family(self.location, self.log_scale.exp()).to_event(1),
            "x0": self.family(first @ self.weight.mT, self.log_scale_x0.exp()).to_event(1),
        }

    def row_parameters(self):
        return []

    def parameter_groups(self):
        return {
            "locations": [self.location],
            "log_scales": [self.log_scale, self.log_scale_x0],
            "networks": [self.weight],
        }


def tiny_model(**parts) -> bo.DynamicalModel:
    parts = {"likelihood": Shifted(), "field": Rising()} | parts
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2), solver=bo.FixedGridSolver("rk4", step=0.5), **parts
    )
    return model.double()


def ragged_data(num_series: int = 4, *, seed: int = 0) -> bo.Trajectories:
    """Irregular times of their own, gaps, single missing components, and starts before the data."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    steps = 0.3 + noise(num_series, 7).abs()
    times = 3.0 * torch.arange(num_series, dtype=DOUBLE).unsqueeze(-1) + steps.cumsum(-1)
    values = noise(num_series, 7, 2)
    mask = torch.rand(num_series, 7, 2, generator=generator) > 0.2
    mask[0, 3] = mask[1, 0] = False  # hidden frames, one of them the first
    mask[:, 1] = True
    start = times[:, 0] - torch.tensor([0.0, 0.5] * num_series)[:num_series]
    labels = [f"s{i}" for i in range(num_series)]
    count = [7, 6, 3, 5, 7, 4][:num_series]
    return bo.Trajectories(times, values, mask=mask, start=start, series=labels, num_times=count)


def plain_data(num_series: int = 6, *, shift: float = 0.0, seed: int = 0) -> bo.Trajectories:
    """Noisy paths at b = (.5, -1)."""
    generator = torch.Generator().manual_seed(seed)
    times = torch.arange(6.0, dtype=DOUBLE) / 2
    x0 = torch.randn(num_series, 1, 2, generator=generator, dtype=DOUBLE)
    path = x0 + torch.tensor([0.5, -1.0]) * times[:, None] + times[:, None].square() / 40
    values = path + NOISE * torch.randn(path.shape, generator=generator, dtype=DOUBLE)
    return bo.Trajectories(times, values + shift, series=[f"s{i}" for i in range(num_series)])
