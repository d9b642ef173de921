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
        jitter: By how much a unit of jitter moves each feature, shape (features,) or a scalar.
    """

    features: Tensor
    mean: Tensor
    sd: Tensor
    jitter: Tensor

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
    """

    data: FitData
    noise: Tensor
    heads: Sequence[Head]

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
        return Point(weights, torch.cat([h.states(m) for h, m in pairs], -1).unsqueeze(1))

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

        A series knows field and encoder through the sensitivities of its path to weights and x0:
        these are squared first, and the features that x0 is a map of come in once per series.
        """
        size = len(vector)
        hessian, slope = vector.new_zeros(size, size), vector.new_zeros(size)
        for rows, gram, pull in self.local_information(vector):
            expand = self._expansion(rows)
            hessian += expand.matrix(gram)
            slope += expand.vector(pull)
        return hessian, slope

    def local_information(self, vector: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Gauss-Newton matrices (series, n, n) and slopes (series, n) by weights and x0.

        Yields:
            Some series at a time, since sensitivities of all may not fit into memory.
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
            both = torch.cat(slopes, -1)[:, :, :num_seen].flatten(1, 2)
            measured = (part.measurement.pull, part.measurement.information)
            pull, seen = (f(path, self.noise)[..., :num_seen].flatten(1) for f in measured)
            root = both * seen.sqrt().unsqueeze(-1)
            yield rows, root.mT @ root, (both.mT @ pull.unsqueeze(-1)).squeeze(-1)

    def _expansion(self, rows: slice) -> _Expansion:
        return _Expansion(
            len(self.data.field.mean), [(len(h.mean), h.features[rows]) for h in self.heads]
        )


@dataclass(frozen=True, eq=False)
class _Expansion:
    """From derivatives by (weights, x0) of each series to those by (weights, matrices).

    Args:
        num_weights: Of the field.
        heads: Number of components and features (series, features) of each head.
    """

    num_weights: int
    heads: list[tuple[int, Tensor]]

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Places of each head among (weights, x0), and its features."""
        first = self.num_weights
        for size, features in self.heads:
            yield slice(first, first + size), features
            first += size

    def vector(self, pull: Tensor) -> Tensor:
        """Sum over series of a slope (series, n)."""
        parts = [(pull[:, at].mT @ features).flatten() for at, features in self._blocks()]
        return torch.cat([pull[:, : self.num_weights].sum(0), *parts])

    def matrix(self, gram: Tensor) -> Tensor:
        """Sum over series of a matrix (series, n, n)."""
        own, blocks = slice(self.num_weights), list(self._blocks())
        rows = [torch.cat([gram[:, own, own].sum(0), *self._border(gram, own, blocks)], -1)]
        for at, features in blocks:
            left = torch.einsum("nwd,nf->dfw", gram[:, own, at], features).flatten(0, 1)
            parts = [
                torch.einsum("nde,nf,ng->dfeg", gram[:, at, to], features, others)
                .flatten(2, 3)
                .flatten(0, 1)
                for to, others in blocks
            ]
            rows.append(torch.cat([left, *parts], -1))
        return torch.cat(rows)

    @staticmethod
    def _border(gram: Tensor, own: slice, blocks: list[tuple[slice, Tensor]]) -> list[Tensor]:
        return [torch.einsum("nwd,nf->wdf", gram[:, own, at], f).flatten(1) for at, f in blocks]
