"""Small latent linear models with a decoder; members tell themselves apart by their states."""

from __future__ import annotations

import torch
from torch import Tensor

import bayesode as bo
from bayesode.inference.svi import History

DOUBLE = torch.float64
DIM, EVENT = 2, 3
DECODERS = torch.tensor(
    [[[1.0, 0.5], [0.0, -2.0], [0.3, 1.0]], [[-1.0, 2.0], [3.0, 0.2], [0.1, -0.7]]], dtype=DOUBLE
)
OFFSETS = torch.tensor([[0.0, 1.0, -1.0], [5.0, -4.0, 2.0]], dtype=DOUBLE)


def series(num_series: int = 5, num_times: int = 6, *, seed: int = 0) -> bo.Trajectories:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_series, num_times, EVENT, generator=generator, dtype=DOUBLE)
    return bo.Trajectories(torch.arange(float(num_times)), values)


def linear_model(member: int = 0, dim: int = DIM) -> bo.DynamicalModel:
    """A linear field and a decoder y = A z + b of its own."""
    decoder = bo.LinearDecoder((EVENT,), dim).double()
    if dim == DIM:
        decoder.set_linear(DECODERS[member], OFFSETS[member], 1.0)
    return bo.DynamicalModel(
        initial=bo.NormalInitial(dim),
        field=bo.LinearField(dim, prior_scale=0.2),
        likelihood=bo.GaussianLikelihood(decoder=decoder),
        solver=bo.MatrixExponentialSolver(),
    ).double()


def linear_posterior(
    data: bo.Trajectories, member: int = 0, *, scale: float = 0.2, dim: int = DIM
) -> bo.Posterior:
    """Initial states near +10 for member 0 and near -10 for member 1; the field is next to 0."""
    model = linear_model(member, dim)
    guide = bo.AmortizedGuide(model, bo.LinearEncoder((EVENT,), dim)).double()
    with torch.no_grad():
        guide.encoder.weight.mul_(0.1)
        guide.encoder.shift.zero_()
        guide.encoder.log_scale.fill_(scale).log_()
        for site, law in guide.posteriors(data).items():
            if site.startswith("field"):
                zero = torch.zeros(law.event_shape, dtype=DOUBLE)
                guide.set_site(site, zero, zero + 1e-3)
        guide.encoder.shift.copy_(shift_to(guide.encoder.weight, 10.0 * (1 - 2 * member)))
    settings = {"engine": "svi"}
    return bo.Posterior(model, guide, data, history=History(), settings=settings)


def shift_to(weight: Tensor, location: float) -> Tensor:
    """The shift by which weight @ (y - shift) has the mean `location` for y around 0."""
    return -torch.linalg.pinv(weight) @ torch.full((len(weight),), location, dtype=weight.dtype)


def owners(ensemble: bo.Ensemble) -> Tensor:
    """Which member each draw is from, (draws,)."""
    return (ensemble.path[:, 0, 0, 0] < 0).long()


def by_hand(path: Tensor, owner: Tensor) -> Tensor:
    """What draws (draws, series, time, state) are decoded to."""
    decoded = torch.einsum("def,dsnf->dsne", DECODERS[owner], path)
    return decoded + OFFSETS[owner][:, None, None]
