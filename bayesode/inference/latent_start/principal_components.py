"""Principal components of what was observed: the linear map between frames and latent states."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesode.errors import DataError, ShapeError


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """A linear map between frames x, flattened, and latent states z = basisᵀ (x − mean) / scale.

    One scale serves all components, so that lengths and angles stay those of the frames: what
    rotates frames rotates states. The leading component has sd 1.

    Args:
        mean: Of the frames, shape (features,), float64.
        basis: Orthonormal columns, largest variance first, shape (features, dim).
        scale: Sd of the leading component, in the unit of the frames.
        variance: Of each component of z over the frames, shape (dim,); the first one is 1.
    """

    mean: Tensor
    basis: Tensor
    scale: float
    variance: Tensor

    @property
    def dim(self) -> int:
        """Number of components."""
        return self.basis.shape[1]

    def leading(self, dim: int) -> PrincipalComponents:
        """The first `dim` components.

        Raises:
            DataError: If there are fewer.
        """
        if not 1 <= dim <= self.dim:
            raise DataError(
                f"the visible frames, of {len(self.mean)} numbers each, vary in {self.dim} "
                f"directions: take a latent dimension between 1 and {self.dim}, not {dim}."
            )
        return replace(self, basis=self.basis[:, :dim], variance=self.variance[:dim])

    def encode(self, frames: Tensor) -> Tensor:
        """Latent states (..., dim) of frames (..., features)."""
        return (frames - self.mean.to(frames)) @ self.basis.to(frames) / self.scale

    def decode(self, states: Tensor) -> Tensor:
        """Frames (..., features) of latent states (..., dim)."""
        return self.mean.to(states) + self.scale * states @ self.basis.to(states).mT


def principal_components(values: Tensor, mask: Tensor, dim: int) -> PrincipalComponents:
    """The `dim` leading principal components of all frames that are wholly visible.

    Args:
        values: Shape (series, time, *event); hidden frames may hold anything.
        mask: True where visible, shaped like values or (series, time).
        dim: Number of components.

    Returns:
        The components; each one's largest entry is positive.

    Raises:
        ShapeError: If values and mask disagree.
        DataError: If `dim` exceeds the number of directions in which the visible frames vary.

    Source: Jolliffe (2002), Principal Component Analysis, section 3.5, by singular values. One
        scale for all components in place of one each is ours.

    Example:
        >>> frames = torch.rand(5, 8, 3, 3)
        >>> found = principal_components(frames, torch.ones(5, 8, dtype=torch.bool), 2)
        >>> found.encode(frames.flatten(2)).shape
        torch.Size([5, 8, 2])
    """
    return all_components(values, mask).leading(dim)


def all_components(values: Tensor, mask: Tensor) -> PrincipalComponents:
    """As many principal components as the visible frames determine; arguments as above."""
    frames = values[visible_frames(values, mask)].flatten(1).to(torch.float64)
    if len(frames) < 2:
        raise DataError(f"principal components need two visible frames; there are {len(frames)}.")
    mean = frames.mean(0)
    _, lengths, directions = torch.linalg.svd(frames - mean, full_matrices=False)
    smallest = lengths[0] * max(frames.shape) * torch.finfo(frames.dtype).eps
    rank = int((lengths > smallest).sum())
    if rank == 0:
        raise DataError(f"all {len(frames)} visible frames are the same: there is no motion.")
    basis, variance = directions[:rank].mT, lengths[:rank].square() / len(frames)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    scale = variance[0].sqrt().item()
    return PrincipalComponents(mean, basis * largest.sign(), scale, variance / variance[0])


def visible_frames(values: Tensor, mask: Tensor) -> Tensor:
    """Frames of which every entry is visible, (series, time).

    Args:
        values: Shape (series, time, *event).
        mask: Shaped like values or (series, time).

    Raises:
        ShapeError: If the shapes disagree.
    """
    if mask.shape not in (values.shape, values.shape[:2]):
        raise ShapeError(
            f"a mask of shape {tuple(mask.shape)} does not belong to values of shape "
            f"{tuple(values.shape)}: it is shaped like them or (series, time)."
        )
    return mask.reshape(*values.shape[:2], -1).all(-1)
