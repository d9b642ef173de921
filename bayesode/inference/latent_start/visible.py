"""What a warm start may see of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.latent_start.principal_components import visible_frames
from bayesode.trajectories import Trajectories


def visible_values(train: Trajectories) -> tuple[Tensor, Tensor]:
    """Values, hidden ones 0, and which frames are wholly visible, (series, time).

    Raises:
        DataError: For a question without values.
    """
    if train.values is None or train.mask is None:
        raise DataError("a warm start needs observed frames; this is a question without values.")
    mask = train.mask.view(*train.mask.shape, *[1] * (train.values.dim() - train.mask.dim()))
    return torch.where(mask, train.values, 0.0), visible_frames(train.values, train.mask)
