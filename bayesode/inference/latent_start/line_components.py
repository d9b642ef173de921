"""Levels and slopes of frames in principal components."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesode.inference.latent_start.principal_components import PrincipalComponents


@dataclass(frozen=True, eq=False)
class LineComponents:
    """What an encoder may see of a line through frames: place and speed in components, in sds.

    Args:
        components: Of the frames.
        sd: Of places and speeds over the data, shape (2 dim,).
    """

    components: PrincipalComponents
    sd: Tensor

    @classmethod
    def of(cls, components: PrincipalComponents, lines: Tensor) -> LineComponents:
        """Scaled by levels and slopes (windows, 2 features) of the data."""
        plain = cls(components, components.basis.new_ones(2 * components.dim))
        sd = plain.features(lines)[:, :-1].std(0, correction=0)
        return cls(components, torch.where(sd > 0, sd, 1.0))

    def features(self, lines: Tensor) -> Tensor:
        """Features (windows, 2 dim + 1), the last one being 1, of lines (windows, 2 features)."""
        level, slope = lines.double().chunk(2, -1)
        basis, scale = self.components.basis, self.components.scale
        both = torch.cat([self.components.encode(level), slope @ basis / scale], -1)
        return pad(both / self.sd, (0, 1), value=1.0)

    def own(self) -> tuple[Tensor, Tensor]:
        """Maps from features to the places, and to the speeds, shape (dim, 2 dim + 1) each."""
        both = pad(torch.diag(self.sd), (0, 1))
        place, speed = both.chunk(2)
        return place, speed

    def affine(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The map of lines, (dim, 2 features) and (dim,), that a map of features stands for."""
        scaled = matrix[:, :-1] / self.sd
        by_level, by_slope = (part @ self.components.basis.mT for part in scaled.chunk(2, -1))
        by_line = torch.cat([by_level, by_slope], -1) / self.components.scale
        offset = matrix[:, -1] - by_line[:, : len(self.components.mean)] @ self.components.mean
        return by_line, offset
