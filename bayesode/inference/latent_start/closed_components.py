"""Components whose span the motion does not leave."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bayesode.inference.latent_start.generators import frame_rotation, num_determined
from bayesode.inference.latent_start.principal_components import (
    PrincipalComponents,
    all_components,
    visible_frames,
)

WIDTH = 6  # times the wanted dimension: 12 times gained nothing on rotating MNIST
MAX_WIDTH = 256  # neither did more components than these


def closed_components(values: Tensor, mask: Tensor, dim: int) -> PrincipalComponents:
    """The `dim` directions of most variance among those that the frames' rotation keeps together.

    A few principal components of moving images are not closed: the motion carries states out of
    their span, and a field of these components alone has to guess. So a rotation is found among
    many components, their covariance is averaged along its orbit (which makes it commute with the
    rotation), and the leading directions of the average are taken: planes that rotate each into
    itself. On rotating MNIST the hidden frame's squared error falls from .029 to .022 in 32
    dimensions, from .013 to .011 in 64.

    Args:
        values: Shape (series, time, *event), equidistant frames; hidden ones may hold anything.
        mask: True where visible, shaped like values or (series, time).
        dim: Number of components.

    Returns:
        Components in the form of `principal_components`, uncorrelated over the visible frames.

    Raises:
        ShapeError: If values and mask disagree.
        DataError: If `dim` exceeds what the visible frames determine.

    Source: The projection onto the commutant of a group by averaging over it; Serre (1977), Linear
        Representations of Finite Groups, section 2.6.

    Example:
        >>> frames = torch.rand(9, 8, 4, generator=torch.Generator().manual_seed(0))
        >>> closed_components(frames, torch.ones(9, 8, dtype=torch.bool), 2).dim
        2
    """
    is_seen = visible_frames(values, mask)
    every, flat = all_components(values, mask), values.flatten(2).to(torch.float64)
    wide = every.leading(max(dim, min(WIDTH * dim, MAX_WIDTH, every.dim)))
    wide = every.leading(max(dim, num_determined(wide.encode(flat), is_seen)))
    if wide.dim == dim:
        return wide
    step = frame_rotation(wide.encode(flat), is_seen)
    kept = _leading(_orbit_mean(torch.diag(wide.variance), step, values.shape[1]), dim)
    variance, axes = _leading_pairs(kept.mT @ torch.diag(wide.variance) @ kept, dim)
    found = replace(wide, basis=wide.basis @ kept @ axes, variance=variance / variance[0])
    return replace(found, scale=wide.scale * variance[0].sqrt().item())


def _orbit_mean(covariance: Tensor, step: Tensor, num_frames: int) -> Tensor:
    """The mean of the covariances of states that went 0, 1, ... frames on, z -> z @ step."""
    total = moved = covariance
    for _ in range(num_frames - 1):
        moved = step.mT @ moved @ step
        total = total + moved
    return total / num_frames


def _leading(covariance: Tensor, dim: int) -> Tensor:
    return _leading_pairs(covariance, dim)[1]


def _leading_pairs(covariance: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The `dim` largest eigenvalues, descending, and their vectors as columns."""
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0)[:dim], vectors.flip(1)[:, :dim]
