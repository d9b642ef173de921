"""Linear dynamics of latent states, found in closed form: dz/dt = z @ matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.smoothing import smooth

RIDGE = 1e-6  # of the mean information: small beside data, enough for components that never vary


@dataclass(frozen=True, eq=False)
class Generator:
    """A linear field dz/dt = z @ matrix.

    Args:
        matrix: Shape (dim, dim), float64, per frame (`rotation_generator`) or per unit of time
            (`matched_generator`).
        one_step_rms: Root mean square of what it misses of one component from one visible frame to
            the next, in units of z.
    """

    matrix: Tensor
    one_step_rms: float


def rotation_generator(states: Tensor, mask: Tensor) -> Generator:
    """The generator of the rotation that best takes every frame to the next one.

    The orthogonal Procrustes solution over all pairs of visible neighbours in a series, and its
    real logarithm. If that solution has determinant −1 the nearest proper rotation takes its
    place: a reflection has no real logarithm. A rotation neither grows nor decays, so the path is
    bounded for ever; frequencies lie between −π and π per frame.

    Args:
        states: Latent states at equidistant frames, shape (series, time, dim).
        mask: True where the frame is visible, shape (series, time).

    Returns:
        The generator per frame, skew-symmetric.

    Raises:
        DataError: If the pairs of visible neighbours do not determine a rotation of all
            components.

    Source: Schönemann (1966), "A generalized solution of the orthogonal Procrustes problem",
        doi:10.1007/BF02289451; Umeyama (1991), doi:10.1109/34.88573, for the proper rotation.

    Example:
        >>> angle = 0.3 * torch.arange(8, dtype=torch.float64)
        >>> circle = torch.stack([angle.cos(), angle.sin()], -1)[None]
        >>> rotation_generator(circle, torch.ones(1, 8, dtype=torch.bool)).matrix[0, 1].item()
        0.3...
    """
    before, after = _neighbours(states, mask)
    rotation = frame_rotation(states, mask)
    missed = before @ rotation - after
    return Generator(rotation_logarithm(rotation), missed.square().mean().sqrt().item())


def frame_rotation(states: Tensor, mask: Tensor) -> Tensor:
    """The rotation Q of `rotation_generator`, z -> z @ Q from a frame to the next; as there."""
    before, after = _neighbours(states, mask)
    return _proper_rotation(before.mT @ after, len(before))


def num_determined(states: Tensor, mask: Tensor) -> int:
    """Number of components of which visible neighbours determine a rotation; arguments as above."""
    before, after = _neighbours(states, mask)
    return _rank(torch.linalg.svdvals(before.mT @ after))


def _neighbours(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of visible neighbours in a series, (pairs, dim) each."""
    is_pair = mask[:, :-1] & mask[:, 1:]
    before, after = states[:, :-1][is_pair], states[:, 1:][is_pair]
    return before.to(torch.float64), after.to(torch.float64)


def _rank(lengths: Tensor) -> int:
    smallest = lengths[0] * len(lengths) * torch.finfo(lengths.dtype).eps
    return int((lengths > smallest).sum())


def _proper_rotation(product: Tensor, num_pairs: int) -> Tensor:
    """The rotation Q of largest trace(Qᵀ product)."""
    left, lengths, right = torch.linalg.svd(product)
    rank = _rank(lengths)
    if rank < len(lengths):
        raise DataError(
            f"{num_pairs} pairs of visible neighbouring frames determine a rotation of {rank} "
            f"components, not of {len(lengths)}: take a latent dimension of at most {rank}, or "
            "matched_generator for frames that have no visible neighbour."
        )
    if torch.linalg.det(left @ right) < 0:
        left[:, -1] *= -1  # the direction that the pairs determine least
    return left @ right


def rotation_logarithm(rotation: Tensor) -> Tensor:
    """The real, skew-symmetric logarithm of a proper rotation (dim, dim).

    From the real Schur form, which for a rotation is made of plane rotations and of ±1 on the
    diagonal. Half turns (pairs of −1) get a real logarithm too, where the principal one of
    `scipy.linalg.logm` is complex.
    """
    form, vectors = scipy.linalg.schur(rotation.numpy(), output="real")[:2]
    logarithm, size = torch.zeros_like(rotation), len(form)
    halves: list[int] = []
    column = 0
    while column < size:
        if column + 1 < size and form[column + 1, column] != 0:
            sine = (form[column, column + 1] - form[column + 1, column]) / 2
            cosine = (form[column, column] + form[column + 1, column + 1]) / 2
            _turn(logarithm, column, column + 1, math.atan2(sine, cosine))
            column += 2
            continue
        if form[column, column] < 0:
            halves.append(column)
        column += 1
    for first, second in zip(halves[::2], halves[1::2], strict=True):
        _turn(logarithm, first, second, math.pi)
    basis = torch.from_numpy(vectors)
    return basis @ logarithm @ basis.mT


def _turn(logarithm: Tensor, first: int, second: int, angle: float) -> None:
    logarithm[first, second], logarithm[second, first] = angle, -angle


def matched_generator(states: Tensor, times: Tensor, mask: Tensor) -> Generator:
    """The generator whose rates match those of the smoothed components, for irregular frames.

    Every component is smoothed alone; its derivatives at the visible frames are regressed on the
    smoothed states, weighted by their precision. The smoother flattens what moves by more than
    about a radian between frames: there `rotation_generator` is the right one.

    Args:
        states: Latent states, shape (series, time, dim).
        times: Shape (series, time), not decreasing.
        mask: True where the frame is visible, shape (series, time).

    Returns:
        The generator per unit of `times`.

    Raises:
        DataError: If no series has two visible frames.

    Source: Varah (1982), "A spline least squares method for numerical parameter estimation in
        differential equations", doi:10.1137/0903003; a Gaussian process in place of splines.

    Example:
        >>> times = torch.linspace(0, 6, 40, dtype=torch.float64)[None]
        >>> circle = torch.stack([times.cos(), times.sin()], -1)
        >>> found = matched_generator(circle, times, torch.ones(1, 40, dtype=torch.bool))
        >>> round(found.matrix[0, 1].item(), 2)
        1.0
    """
    if not (mask.sum(-1) > 1).any():
        raise DataError("no series has two visible frames, so nothing is seen of the dynamics.")
    times, states = times.to(torch.float64), states.to(torch.float64)
    is_seen = mask.unsqueeze(-1).expand_as(states)
    smoothed = smooth(times, states, is_seen, times)
    usable = mask & (mask.sum(-1, keepdim=True) > 1)
    path, rate = smoothed.path[usable], smoothed.derivative[usable]
    precision = smoothed.derivative_scale[usable].clamp_min(1e-12).square().reciprocal()
    matrix = torch.stack(
        [_weighted_ridge(path, rate[:, j], precision[:, j]) for j in range(path.shape[1])], -1
    )
    return Generator(matrix, _one_step_rms(matrix, states, times, mask))


def _weighted_ridge(inputs: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Coefficients (dim,) of a linear regression without a constant."""
    weighted = inputs * (weight / weight.mean()).unsqueeze(-1)
    information = weighted.mT @ inputs
    information.diagonal().add_(RIDGE * information.diagonal().mean())
    return torch.linalg.solve(information, weighted.mT @ target)


def _one_step_rms(matrix: Tensor, states: Tensor, times: Tensor, mask: Tensor) -> float:
    """What RK4 in one step misses between neighbouring visible frames, rms over components."""
    before, after = _neighbours(states, mask)
    if len(before) == 0:
        return math.nan
    gap = times.diff()[mask[:, :-1] & mask[:, 1:]].unsqueeze(-1)
    term, step = before, before
    for order in range(1, 5):  # the exponential's series: exact enough for gaps that were matched
        term = gap / order * (term @ matrix)
        step = step + term
    return (step - after).square().mean().sqrt().item()
