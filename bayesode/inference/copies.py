"""Copies of models and guides for a fit to change."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide


def own_copies(
    model: torch.nn.Module, guide: Any, *, dtype: torch.dtype, device: torch.device | str
) -> tuple[Any, Any]:
    """Deep copies of a model and a guide, on one dtype and device; the originals stay whole.

    Copying an autoguide sets the model inside it to None, in the copy and in the original. That
    model is copied along, with the rule by which the guide begins, and the original is mended.
    """
    parts = autoguides(guide)
    inside = [(part._model, part.master) for part in parts]
    memo: dict[int, Any] = {}
    model = copy.deepcopy(model, memo)
    models = copy.deepcopy([pair[0] for pair in inside], memo)
    try:
        guide = copy.deepcopy(guide, memo)
    finally:
        for part, (inner, master) in zip(parts, inside, strict=True):
            part._model, part.master = inner, master
    for part, inner in zip(autoguides(guide), models, strict=True):
        part._model = inner
    model.to(device=device, dtype=dtype)
    if isinstance(guide, torch.nn.Module):
        guide.to(device=device, dtype=dtype)
    return model, guide


def autoguides(guide: Any) -> list[AutoGuide]:
    """The guide itself and its parts, as far as they are autoguides."""
    modules = guide.modules() if isinstance(guide, torch.nn.Module) else ()
    return [module for module in modules if isinstance(module, AutoGuide)]
