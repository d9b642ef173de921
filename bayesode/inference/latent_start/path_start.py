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
from bayesode.inference.latent_start.amortised import AmortisedProblem, Head
from bayesode.inference.latent_start.line_components import LineComponents
from bayesode.inference.latent_start.path_fit import (
    PathFit,
    Sideways,
    noise_of,
    smoothed_states,
)
from bayesode.inference.latent_start.principal_components import principal_components
from bayesode.inference.latent_start.start import DECODER, set_noise
from bayesode.inference.latent_start.visible import visible_values
from bayesode.inference.latent_start.windows import Windows
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.matching import match_gradients
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.likelihoods import GaussianLikelihood
from bayesode.threads import threads_for
from bayesode.trajectories import Trajectories
from bayesode.units import Units

MOVED = 2.0  # sds of the states in one unit of time
SMALLEST_SD = 0.01  # of an initial state's prior
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
            differs from others.
        effects: Of the constants the prior sd of what a training series has beyond its read-out:
            nothing that a new series could have, but field and read-out need not bend to it.
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
            data, heads = (
                FitData.of(view, windows.components),
                self._heads(guide, line, windows, train.num_series),
            )
            size = sum(len(head.mean) for head in heads)
            if data.x0_mean.shape[-1] != size:
                raise DataError(
                    f"the encoder gives {size} components, the model's state has "
                    f"{data.x0_mean.shape[-1]}: positions, velocities, constants, in this order."
                )
            times, smoothed = smoothed_states(
                view.units.dimensionless_times(train)[1],
                components.encode(values.flatten(2).double()),
                is_seen,
                has_velocities=hasattr(guide.encoder, "velocity"),
                num_constants=len(self.constants),
            )
            weights = match_gradients(data.field, times, smoothed)
            first = [matrix.flatten() for matrix in self._first(heads)]
            # every frame counts once, in however many windows and at however few knots
            share = (windows.components.mask[..., 0].sum() / is_seen.sum()).item()  # type: ignore
            fit = replace(self.fit, temper=self.fit.temper * share)
            vector = torch.cat([weights, *first])
            vector = fit.run(data, heads, vector, self._sideways(line, windows, size))
            problem = AmortisedProblem(data, vector, heads, torch.zeros_like(data.x0_mean))
            problem = replace(problem, noise=noise_of(problem, vector))
        self._set_maps(model, guide, train, line, problem, vector)
        self._set_scales(guide, problem, vector, windows)

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
        read = guide.encoder.constants.encoder.standardised(windows.lines.double())
        own = torch.nn.functional.one_hot(windows.row, num_series).double()
        parts = ((self.constants, read), (self.effects, own))
        sd = torch.cat([_rows(sds, features) for sds, features in parts], -1)
        return Head(torch.cat([read, own], -1), torch.zeros_like(sd), sd)

    def _sideways(self, line: LineComponents, windows: Windows, size: int) -> Sideways:
        """Noise across the speed that is seen; constants have none."""
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

    # ---- what was found --------------------------------------------------------------------------
    def _set_maps(
        self,
        model: DynamicalModel,
        guide: Any,
        train: Trajectories,
        line: LineComponents,
        problem: AmortisedProblem,
        vector: Tensor,
    ) -> None:
        """Decoder, encoder, field and the law of x0."""
        components, likelihood = line.components, model.likelihood
        likelihood.decoder.set_linear(components.basis, components.mean, components.scale)  # type: ignore
        if DECODER in model.global_priors():
            guide.set_site(DECODER, likelihood.decoder.starting_weights())  # type: ignore
        weights, maps = problem.split(vector)
        parts = list(guide.encoder.children())
        for part, matrix in zip(parts, maps[: len(maps) - bool(self.constants)], strict=False):
            part.set_affine(*line.affine(matrix))
            part.hold()  # the ELBO has no prior for it, and would learn series by heart
        if self.constants:
            part = guide.encoder.constants
            read, own = maps[-1].split([part.encoder.weight.shape[-1], train.num_series], -1)
            part.encoder.set_standardised(read, torch.zeros_like(read[:, 0]))
            part.encoder.hold()
            part.set_effects(train, own.mT)
        for site, value in problem.data.field.unpack(weights).items():
            guide.set_site(f"field.{site}", value)
        x0 = problem.start(vector).states[:, 0]
        num_moving = x0.shape[-1] - len(self.constants)
        middle = pad(x0[:, num_moving:].median(0).values, (num_moving, 0))
        sd = (x0 - middle).square().mean(0).sqrt().clamp_min(SMALLEST_SD)
        model.initial.set_moments(middle, sd)  # type: ignore[operator]
        set_noise(model, guide, train)

    def _set_scales(
        self, guide: Any, problem: AmortisedProblem, vector: Tensor, windows: Windows
    ) -> None:
        """Posterior scales from the Gauss-Newton diagonal of the tempered likelihood."""
        field = problem.data.field
        by_weights, by_x0 = torch.zeros_like(field.sd), []
        for rows, root, _ in problem.portions(vector):
            # every frame counts, and once: windows that begin later see the same ones again
            diagonal = root[windows.is_first[rows]].square().sum(1)
            diagonal = diagonal * windows.stride / self.fit.temper
            by_weights = by_weights + diagonal[:, : len(field.sd)].sum(0)
            by_x0.append(diagonal[:, len(field.sd) :])
        scales = field.split((by_weights + field.sd.pow(-2)).rsqrt())
        values = field.unpack(problem.split(vector)[0])
        for site, scale in scales.items():
            guide.set_site(f"field.{site}", values[site], scale)
        prior = problem.start(vector).states[:, 0].square().mean(0).clamp_min(SMALLEST_SD**2)
        information = torch.cat(by_x0)
        sd = (information.mean(0) + prior.reciprocal()).rsqrt()
        parts = list(guide.encoder.children())
        sizes = [len(head.mean) for head in problem.heads]
        moving = len(sizes) - bool(self.constants)
        for part, own in zip(parts[:moving], sd.split(sizes), strict=False):
            part.log_scale.copy_(own.log())
        if self.constants:
            every = (information + prior.reciprocal()).rsqrt()[:, -sizes[-1] :]
            parts[-1].set_scales(windows.row[windows.is_first], every)


def _rows(sds: Sequence[float], features: Tensor) -> Tensor:
    """A number for each row of a map of features, shape (rows, features)."""
    rows = torch.tensor(sds, dtype=features.dtype).unsqueeze(-1)
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
