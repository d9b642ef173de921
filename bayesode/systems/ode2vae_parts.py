"""What an ODE2VAE is composed of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bayesode.errors import DataError
from bayesode.inference.amortized import AmortizedGuide
from bayesode.inference.encoders import (
    LineEncoder,
    SeriesEffects,
    StackedEncoder,
    SumEncoder,
)
from bayesode.inference.latent_start import PathFit, PathStart, time_unit_of
from bayesode.inference.thinning import ThinnedFrames
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.fields import BayesianMLP, LinearField, Paced, SecondOrder, Sum, WithConstants
from bayesode.models.initial import NormalInitial
from bayesode.models.likelihoods import GaussianLikelihood
from bayesode.models.rescaled import Rescaled
from bayesode.models.solvers import FixedGridSolver
from bayesode.systems.latent_parts import (
    DECODERS,
    LIKELIHOODS,
    NETWORKS,
    decoder_of,
    network_for,
)
from bayesode.trajectories import Trajectories
from bayesode.units import Units

STEP = 0.2  # of RK4, in units of time in which states move by two of their sds
PRIOR_SCALE = 3.0  # as of fields in data space
READ_SD = {"own": (0.01, 1e-4), "read": (0.01, 0.003)}  # of read-outs of style and pace
OWN_SD = (0.3, 0.05)  # of styles and paces of series
CLIP = 5.0  # sds of a feature that styles and paces are read from
NUM_STEPS, LEARNING_RATE, NETWORK_RATE = 100, 0.02, 1e-4  # the start is close: a short way
FEWEST_FRAMES = 40  # of a series, from which neighbours say nearly the same
ROUNDING = 1e-12  # of the largest value: what is left of constant values less their mean
SMALLEST_NOISE = 0.1  # prior median of the noise, in sds of the data


@dataclass(frozen=True)
class Measured:
    """What a system takes from the data of its fit.

    Args:
        time_unit: Of dimensionless time, in the unit of the data.
        scale: Sd of the values, which the decoder learns in units of it.
        series: Labels of the series that have effects.
    """

    time_unit: float
    scale: float
    series: Sequence[str | int]

    @classmethod
    def of(cls, train: Trajectories, dim_latent: int) -> Measured:
        """What the data of a fit tell.

        Raises:
            DataError: If frames do not vary, or in fewer directions than `dim_latent`.
        """
        scale = _spread(train)
        return cls(time_unit_of(train, dim_latent), scale, train.series)


@dataclass(frozen=True)
class Settings:
    """Arguments of `ode2vae`, as there."""

    order: int
    dim_latent: int
    hidden: Sequence[int]
    dim_style: int
    num_frames: int
    likelihood: str
    network: str
    decoder: str
    temper: float
    jitter: float
    spread: float
    constants: str


def compose(
    train: Trajectories, made: Settings, measured: Measured, *, verbose: bool
) -> tuple[DynamicalModel, AmortizedGuide]:
    """Model and guide, of values of the shape and dtype of these data."""
    event, dtype = train.event_shape, train.values.dtype  # type: ignore[union-attr]
    model = DynamicalModel(
        initial=WithConstants.initial(
            NormalInitial(made.order * made.dim_latent), NormalInitial(made.dim_style + 1)
        ),
        field=_field(made),
        likelihood=_likelihood(made, event, measured.scale),
        solver=FixedGridSolver("rk4", step=STEP),
        units=Units(time_origin=train.start.min().item(), time_unit=measured.time_unit),
    ).to(dtype)
    guide = AmortizedGuide(
        model,
        _encoder(made, event, measured),
        start=_start(made, progress=verbose),
        defaults=_defaults(train, made),
    ).to(dtype)
    found = asdict(measured) | {"series": list(measured.series)}
    arguments = asdict(made) | {"hidden": list(made.hidden), "measured": found}
    model.recipe = {"system": "ode2vae", "arguments": arguments}
    return model, guide


def rebuilt_ode2vae(
    train: Trajectories, *, measured: dict[str, Any], verbose: bool, **arguments: Any
) -> tuple[DynamicalModel, AmortizedGuide]:
    """The system of a saved run, whose data may be a few frames of new series.

    Args:
        train: Data of the run.
        measured: In the data of the fit, as the recipe tells.
        verbose: As in `ode2vae`.
        arguments: Of `ode2vae`.
    """
    return compose(train, Settings(**arguments), Measured(**measured), verbose=verbose)


# ---- parts ---------------------------------------------------------------------------------------
def _field(made: Settings) -> nn.Module:
    """Linear forces plus a network, at the pace of a series."""
    dim, read = made.dim_latent, made.order * made.dim_latent
    linear = LinearField(dim, dim_in=read, prior_scale=PRIOR_SCALE * read**-0.5)
    network = BayesianMLP(read + made.dim_style, made.hidden, dim, prior_scale=PRIOR_SCALE)
    forces = Sum(linear=linear, network=network)
    moving = forces if made.order == 1 else SecondOrder(forces, dim_constants=made.dim_style)
    return WithConstants(Paced(moving), made.dim_style + 1)


def _likelihood(made: Settings, event: torch.Size, scale: float) -> nn.Module:
    """The law of values; normal ones have any unit, and vectors a noise scale per channel."""
    part = DECODERS[made.decoder]
    network = decoder_of(network_for(made.network, event), event, made.dim_latent)
    if made.likelihood != "gaussian":
        return LIKELIHOODS[made.likelihood](part, network)
    return GaussianLikelihood(
        decoder=part(Rescaled(network, scale)),
        noise="channel" if len(event) == 1 else "shared",
        prior_median=SMALLEST_NOISE * scale,
    )


def _encoder(made: Settings, event: torch.Size, measured: Measured) -> nn.Module:
    """Positions, velocities and constants, each from an encoder of its own."""
    dim, num_frames = made.dim_latent, made.num_frames
    settings: Any = {"num_frames": num_frames, "time_unit": measured.time_unit}
    network = NETWORKS[network_for(made.network, event)]

    def moving() -> nn.Module:
        line = LineEncoder(event, dim, **settings)
        return SumEncoder(line, network[0](event, dim, num_frames=num_frames)) if network else line

    read = LineEncoder(event, made.dim_style + 1, clip=CLIP, **settings)
    is_own = made.constants == "own"
    constants = SeriesEffects(read, measured.series, share=made.spread) if is_own else read
    return StackedEncoder(moving(), moving() if made.order == 2 else None, constants)


def _start(made: Settings, *, progress: bool) -> PathStart:
    """Least squares in the space of principal components."""
    style, pace = READ_SD[made.constants]
    is_own, num = made.constants == "own", made.dim_style
    if is_own and not num:
        pace = 0.0  # nothing is read: features are columns, and columns are time
    return PathStart(
        PathFit(temper=made.temper, jitter=made.jitter, progress=progress),
        num_frames=made.num_frames,
        constants=[style] * num + [pace],
        effects=[OWN_SD[0]] * num + [OWN_SD[1]] if is_own else (),
    )


def _defaults(train: Trajectories, made: Settings) -> dict[str, Any]:
    """What suits these fits: few steps of small size, since the start is close."""
    settings: dict[str, Any] = {
        "num_steps": NUM_STEPS,
        "num_particles": 1,
        "learning_rate": {"locations": LEARNING_RATE, "networks": NETWORK_RATE},
        "kl_weight": made.temper,
    }
    if train.grid.shape[1] >= FEWEST_FRAMES:
        every = train.grid.shape[1] // (FEWEST_FRAMES // 2)
        settings["schedule"] = ThinnedFrames(every, first=made.num_frames)
    return settings


def _spread(train: Trajectories) -> float:
    """Root mean square of visible values around the mean of each entry.

    Raises:
        DataError: If nothing varies.
    """
    values: Any = train.values
    seen = torch.where(train.mask, values.double(), 0.0)  # type: ignore[arg-type]
    count = train.mask.sum((0, 1)).clamp_min(1)  # type: ignore[union-attr]
    off = torch.where(train.mask, seen - seen.sum((0, 1)) / count, 0.0)  # type: ignore[arg-type]
    found = (off.square().sum() / train.num_observed).sqrt().item()
    largest = seen.abs().max().item()
    if not found > ROUNDING * largest:
        raise DataError("all visible frames are the same: there is no motion to fit.")
    return found
