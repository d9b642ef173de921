"""Trajectory fits whose initial states are linear maps of what an encoder reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import Point

MAX_NUMBERS = 4_000_000  # of the sensitivities of one portion of series, 32 MB; a few are alive


@dataclass(frozen=True, eq=False)
class Head:
    """Some components of x0 as a linear map of features, with a normal prior of its entries.

    Args:
        features: Shape (series, features).
        mean: Prior mean of the map, shape (components, features).
        sd: Prior sd of its entries, broadcastable to these.
    """

    features: Tensor
    mean: Tensor
    sd: Tensor

    def states(self, matrix: Tensor) -> Tensor:
        """The components, shape (series, components)."""
        return self.features @ matrix.mT


@dataclass(frozen=True, eq=False)
class AmortisedProblem:
    """Weights of a field and of an encoder, fitted together; nothing belongs to a single series.

    x0 of each series stacks the components of the heads. The point that is fitted has no states:
    its weights are the field's numbers and then the matrices of the heads, row by row. Initial
    states enter as encoded, so what is fitted is what new series will get, and series of which an
    encoder reads little do not get states of their own that no new series could have.

    Args:
        data: The fit, one series per window of the data.
        noise: Of the observations, unconstrained, see `Measurement`. Residuals of smooth paths hang
            together over many frames: noise above their size tempers the likelihood.
        heads: In the order of the components of the state.
        offset: Added to what the heads give, shape (series, state) or a scalar.
    """

    data: FitData
    noise: Tensor
    heads: Sequence[Head]
    offset: Tensor

    @cached_property
    def best(self) -> float:
        """Log likelihood of the path through the data."""
        return self.data.measurement.largest(self.noise, self.data.x0_mean.shape[-1])

    @property
    def prior(self) -> tuple[Tensor, Tensor]:
        """Prior means and sds of everything that is fitted, shape (numbers,) each."""
        field = self.data.field
        sds = [head.sd.expand_as(head.mean).flatten() for head in self.heads]
        return (
            torch.cat([field.mean, *(head.mean.flatten() for head in self.heads)]),
            torch.cat([field.sd, *sds]),
        )

    def split(self, vector: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Numbers of the field, and the matrix of each head."""
        sizes = [len(self.data.field.mean), *(head.mean.numel() for head in self.heads)]
        weights, *parts = vector.split(sizes)
        pairs = zip(parts, self.heads, strict=True)
        return weights, [part.view_as(head.mean) for part, head in pairs]

    def start(self, vector: Tensor) -> Point:
        """Weights and encoded first states (series, 1, state) of what is fitted."""
        weights, matrices = self.split(vector)
        pairs = zip(self.heads, matrices, strict=True)
        x0 = torch.cat([head.states(matrix) for head, matrix in pairs], -1) + self.offset
        return Point(weights, x0.unsqueeze(1))

    def path(self, vector: Tensor) -> Tensor:
        """Paths of all series, shape (series, knot, state)."""
        return self.data.path(self.start(vector))

    def cost(self, point: Point) -> float:
        """Deviance of the data, prior included."""
        mean, sd = self.prior
        pull = ((point.weights - mean) / sd).square().sum()
        seen = self.data.measurement.log_prob(self.path(point.weights), self.noise)
        return float(2 * (self.best - seen) + pull)

    def linearise(self, point: Point) -> BorderedChain:
        """Normal equations of a step."""
        mean, sd = self.prior
        hessian, right = self.information(point.weights)
        corner = hessian + torch.diag(sd.pow(-2))
        return BorderedChain.without_states(corner, right - (point.weights - mean) / sd.square())

    def information(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Newton matrix of the data and slope of their log likelihood.

        A series knows the encoder through the sensitivities of its path to x0: these are squared
        first, and the features that x0 is a map of come in once per series.
        """
        size, num_weights = len(vector), len(self.data.field.mean)
        hessian, slope = vector.new_zeros(size, size), vector.new_zeros(size)
        for rows, root, miss in self.portions(vector):
            by_weights, by_x0 = root.split([num_weights, root.shape[-1] - num_weights], -1)
            flat = by_weights.flatten(0, 1)
            hessian[:num_weights, :num_weights] += flat.mT @ flat
            slope[:num_weights] += flat.mT @ miss.flatten()
            local = _Local(by_x0.mT @ by_weights, by_x0.mT @ by_x0, (by_x0.mT @ miss)[..., 0])
            border, corner, right = local.by_maps([(h.mean, h.features[rows]) for h in self.heads])
            hessian[num_weights:, :num_weights] += border
            hessian[num_weights:, num_weights:] += corner
            slope[num_weights:] += right
        hessian[:num_weights, num_weights:] = hessian[num_weights:, :num_weights].mT
        return hessian, slope

    def portions(self, vector: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Sensitivities of observed states to (weights, x0), and misses, in sds of the noise.

        Yields:
            Some series at a time, since those of all may not fit into memory: their rows, shapes
            (series, knots x components, weights + state) and (series, knots x components, 1).
        """
        start, num_knots = self.start(vector), self.data.gaps.shape[1] + 1
        num_weights, num_states = len(start.weights), start.states.shape[-1]
        size = max(1, MAX_NUMBERS // (num_knots * num_states * (num_weights + num_states)))
        num_seen = self.data.measurement.response.shape[-1]  # the leading ones
        for first in range(0, len(start.states), size):
            rows = slice(first, first + size)
            part = self.data.rows(rows)
            part = part.until(int((part.gaps > 0).sum(-1).max()))  # without padding of all
            path, *slopes = part.sensitivities(Point(start.weights, start.states[rows]))
            both = torch.cat([slope[:, :, :num_seen] for slope in slopes], -1).flatten(1, 2)
            measured = (part.measurement.pull, part.measurement.information)
            pull, seen = (f(path, self.noise)[..., :num_seen].flatten(1) for f in measured)
            root = seen.sqrt()
            miss = torch.where(seen > 0, pull / root, 0.0)
            yield rows, both * root.unsqueeze(-1), miss.unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class _Local:
    """What each series says of its x0.

    Args:
        cross: Between x0 and the weights, shape (series, state, weights).
        own: Of x0, shape (series, state, state).
        slope: Of the log likelihood, shape (series, state).
    """

    cross: Tensor
    own: Tensor
    slope: Tensor

    def by_maps(self, maps: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """The same of maps from features to x0, summed over series, their entries row by row.

        Args:
            maps: A map (components, features) and the features (series, features) for each block of
                components of x0.

        Returns:
            Shapes (entries, weights), (entries, entries) and (entries,).
        """
        sizes = [len(matrix) for matrix, _ in maps]
        features = [f for _, f in maps]
        pairs = list(zip(self.cross.split(sizes, 1), features, strict=True))
        border = [torch.einsum("ndw,nf->dfw", cross, f).flatten(0, 1) for cross, f in pairs]
        rows = []
        for row, left in zip(self.own.split(sizes, 1), features, strict=True):
            blocks = zip(row.split(sizes, 2), features, strict=True)
            parts = [torch.einsum("nde,nf,ng->dfeg", b, left, right) for b, right in blocks]
            rows.append(torch.cat([part.flatten(2).flatten(0, 1) for part in parts], -1))
        slopes = zip(self.slope.split(sizes, 1), features, strict=True)
        right = [(slope.mT @ f).flatten() for slope, f in slopes]
        return torch.cat(border), torch.cat(rows), torch.cat(right)
