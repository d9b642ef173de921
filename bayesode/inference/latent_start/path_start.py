"""The warm start of a latent model whose encoder reads lines through the first frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesode.errors import DataError
from bayesode.inference.latent_start.amortised import Head
from bayesode.inference.latent_start.line_components import LineComponents
from bayesode.inference.latent_start.path_fit import (
    PathFit,
    Sideways,
    at_residuals,
    smoothed_states,
)
from bayesode.inference.latent_start.path_found import PathFound
from bayesode.inference.latent_start.principal_components import (
    PrincipalComponents,
    principal_components,
)
from bayesode.inference.latent_start.visible import visible_values
from bayesode.inference.latent_start.windows import Windows
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.flat import FlatField
from bayesode.inference.warm_start.matching import match_gradients
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.likelihoods import GaussianLikelihood
from bayesode.threads import threads_for
from bayesode.trajectories import Trajectories
from bayesode.units import Units

MOVED = 2.0  # sds of the states in one unit of time
MAP_SD = 0.1  # prior sd of the maps to positions and velocities, in sds of these


@dataclass(frozen=True)
class PathStart:
    """Puts a latent model where least squares in the space of principal components would have it.

    1. Principal components of the visible frames make the decoder and the encoder's first guess.
    2. The field is matched to the gradients of smoothed components.
    3. Levenberg-Marquardt fits field and encoder together, over windows that begin all along the
       series and grow, see `PathFit`.
    4. Noise and posterior scales are set at what was reached.

    The decoder takes the leading components of the state. The guide has a `StackedEncoder` of
    `LineEncoder`s (or sums with one): position, velocity if there are any, constants likewise.

    Args:
        fit: Settings of the third step, `temper` being a number of frames that count as one.
        num_frames: Frames that the encoder reads.
        constants: Of the constants at the end of the state the prior sd of their read-out from
            standardised features, one for each. Small ones: a few frames hardly tell how a series
            differs from others. All 0: there is no read-out.
        effects: Of the constants the prior sd of what a training series has beyond its read-out:
            nothing that a new series could have, but field and read-out need not bend to it. Empty
            for an encoder without `SeriesEffects`.
    """

    fit: PathFit
    num_frames: int = 3
    constants: Sequence[float] = ()
    effects: Sequence[float] = ()

    @torch.no_grad()
    def __call__(self, model: DynamicalModel, guide: Any, train: Trajectories) -> None:
        """Set model and guide, the fit's own copies.

        Raises:
            DataError: If the frames do not vary in so many directions, no window can be read, or
                the state has other components than the encoder.
        """
        values, is_seen = visible_values(train)
        components = principal_components(values, is_seen, model.likelihood.dim)  # type: ignore
        view = _of_components(model, components.dim)
        unit = view.units.time_unit.item()
        windows = Windows.of(train, components, num_frames=self.num_frames, time_unit=unit)
        for part in guide.encoder.children():
            part.set_features(windows.lines)
        line = LineComponents.of(components, windows.lines)
        with threads_for(windows.components.grid.numel()):
            data = FitData.of(view, windows.components)
            heads = self._heads(guide, line, windows, train.num_series)
            _check_state(data, heads)
            weights = self._matched(guide, view, data.field, components, train)
            vector = torch.cat([weights, *(m.flatten() for m in self._first(heads))])
            # every frame counts once, in however many windows and at however few knots
            share = (windows.components.mask[..., 0].sum() / is_seen.sum()).item()  # type: ignore
            fit = replace(self.fit, temper=self.fit.temper * share)
            vector = fit.run(data, heads, vector, self._sideways(line, windows, heads))
            problem = at_residuals(data, heads, torch.zeros_like(data.x0_mean), vector)
        found = PathFound(line, windows, problem, vector, len(self.constants), self.fit.temper)
        found.put(model, guide, train)

    def _matched(
        self,
        guide: Any,
        view: DynamicalModel,
        field: FlatField,
        components: PrincipalComponents,
        train: Trajectories,
    ) -> Tensor:
        """Numbers of the field that agree with the gradients of smoothed components."""
        values, is_seen = visible_values(train)
        times, smoothed = smoothed_states(
            view.units.dimensionless_times(train)[1],
            components.encode(values.flatten(2).double()),
            is_seen,
            has_velocities=hasattr(guide.encoder, "velocity"),
            num_constants=len(self.constants),
        )
        return match_gradients(field, times, smoothed)

    # ---- the maps to initial states --------------------------------------------------------------
    def _heads(
        self, guide: Any, line: LineComponents, windows: Windows, num_series: int
    ) -> list[Head]:
        """Positions and velocities by components of the line, constants by all its entries."""
        features = line.features(windows.lines)
        own = line.own()[: 1 + hasattr(guide.encoder, "velocity")]
        # in sds of what is read: components of small variance stay as near to their own
        heads = [Head(features, m, MAP_SD * m.sum(-1, keepdim=True)) for m in own]
        if self.constants:
            heads.append(self._constants(guide, windows, num_series))
        return heads

    def _constants(self, guide: Any, windows: Windows, num_series: int) -> Head:
        """What stands still: read off the line, plus what each training series has of its own."""
        read = guide.encoder.constants.reader.standardised(windows.lines.double())
        if not any(self.constants):  # thousands of columns that stay at 0 would take all the time
            read = read[:, :0]
        own = torch.nn.functional.one_hot(windows.row, num_series).double()
        parts = [(self.constants, read), *([(self.effects, own)] if self.effects else [])]
        sd = torch.cat([_rows(sds, features) for sds, features in parts], -1)
        features = torch.cat([columns for _, columns in parts], -1)
        return Head(features, torch.zeros_like(sd), sd)

    def _sideways(self, line: LineComponents, windows: Windows, heads: Sequence[Head]) -> Sideways:
        """Noise across the speed that is seen; constants have none."""
        size = sum(len(head.mean) for head in heads)
        dim, num_moving = line.components.dim, size - len(self.constants)
        speed = line.features(windows.lines) @ line.own()[1].mT
        sd = pad(line.sd[:num_moving], (0, len(self.constants)))
        return Sideways(sd, pad(speed, (0, size - dim)))

    def _first(self, heads: Sequence[Head]) -> list[Tensor]:
        """Where the maps begin."""
        first = [head.mean for head in heads]
        if self.constants:
            first[-1] = heads[-1].sd * torch.randn_like(first[-1])
        return first


def _check_state(data: FitData, heads: Sequence[Head]) -> None:
    """Refuse a state of other components than are encoded."""
    size, dim_state = sum(len(head.mean) for head in heads), data.x0_mean.shape[-1]
    if dim_state != size:
        raise DataError(
            f"the encoder gives {size} components, the model's state has {dim_state}: positions, "
            "velocities, constants, in this order."
        )


def _rows(sds: Sequence[float], features: Tensor) -> Tensor:
    """A number for each row of a map of features, shape (rows, features)."""
    rows = torch.tensor(sds, dtype=features.dtype, device=features.device).unsqueeze(-1)
    return rows.expand(-1, features.shape[-1])


def time_unit_of(train: Trajectories, dim: int) -> float:
    """The time in which the leading components of frames move by two of their sds.

    Args:
        train: Frames.
        dim: Number of components.

    Returns:
        In the unit of the data; 1 if nothing tells it.
    """
    values, is_seen = visible_values(train)
    components = principal_components(values, is_seen, dim)
    usual = train.grid.diff()[train.grid.diff() > 0].median() if train.grid.shape[1] > 1 else 1.0
    elapsed = (train.grid - train.grid[:, :1]) / usual
    states = components.encode(values.flatten(2).double())
    _, smoothed = smoothed_states(elapsed, states, is_seen, has_velocities=False, num_constants=0)
    size = (smoothed.path - smoothed.path.mean((0, 1))).square().mean().sqrt()
    speed = smoothed.derivative.square().mean().sqrt()
    unit = (MOVED * size / speed * usual).item()
    return unit if 0 < unit < math.inf else 1.0


def _of_components(model: DynamicalModel, dim: int) -> DynamicalModel:
    """The model with its leading components observed as they are."""
    times = model.units
    return DynamicalModel(
        initial=model.initial,
        field=model.field,
        likelihood=GaussianLikelihood(dim, shared=True),
        solver=model.solver,
        units=Units(time_origin=times.time_origin.item(), time_unit=times.time_unit.item()),
    )
