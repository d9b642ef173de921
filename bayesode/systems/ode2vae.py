"""Latent dynamics that a few frames start: positions and velocities, a style and a pace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bayesode.data_checks import (
    as_list,
    check_from_zero,
    check_labels,
    check_positive,
    check_size,
)
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
STYLE_SD, STYLE_EFFECT = 0.01, 0.3  # of a read-out from standardised features, of series
PACE_EFFECT = 0.05
PACE_SD = 1e-4  # a few frames do not tell how fast a walk is
CLIP = 5.0  # sds of a feature that styles and paces are read from
NUM_STEPS, LEARNING_RATE, NETWORK_RATE = 100, 0.02, 1e-4  # the start is close: a short way
FEWEST_FRAMES = 40  # of a series, from which neighbours say nearly the same
SMALLEST_NOISE = 0.1  # prior median of the noise, in sds of the data


def ode2vae(
    train: Trajectories,
    *,
    order: int = 2,
    dim_latent: int = 6,
    hidden: Sequence[int] = (24,),
    dim_style: int = 0,
    num_frames: int = 3,
    likelihood: str = "gaussian",
    network: str = "none",
    decoder: str = "deterministic",
    temper: float = 6.0,
    jitter: float = 0.2,
    spread: float = 1.0,
    time_unit: float | None = None,
    scale: float | None = None,
    series: Sequence[str | int] | None = None,
    verbose: bool = True,
) -> tuple[DynamicalModel, AmortizedGuide]:
    """An ODE2VAE: latent positions and velocities, moved by a Bayesian field of accelerations.

    ds/dt = exp(c) v, dv/dt = exp(c) a(s, v, u); positions s, velocities v and what stands still
    along a series, a style u and the logarithm c of its pace, are encoded from the first frames,
    and the decoder turns s into frames. With order=1 it is ds/dt = exp(c) f(s, u), by the same
    recipe: an ODE-VAE to compare with.

    A fit begins at least squares in the space of principal components (`PathStart`): gradients of
    smoothed components, then Levenberg-Marquardt on field and encoder together over windows that
    grow. The ELBO of all parts follows.

    Args:
        train: Values (series, time, *event) in any unit (in [0, 1] but for "gaussian"); the first
            `num_frames` frames of a series have to be visible when it is encoded.
        order: 2, or 1 for a field of rates.
        dim_latent: Number of positions.
        hidden: Widths of the field's network beside its linear part; empty for an affine field.
        dim_style: Constants of a series that the field reads, beside its pace.
        num_frames: How many frames are encoded: positions and velocities are read off a line
            through them (the paper's positions read one).
        likelihood: As in `ode_vae`; "gaussian" has a noise scale per channel of vectors.
        network: As in `ode_vae`, of encoder and decoder beside their linear parts.
        decoder: As in `ode_vae`.
        temper: Frames that count as one. Misfit of smooth paths hangs together over many frames;
            a likelihood that takes frames for independent is too sure by so much, of the weights
            as of the encoder, and forecasts of new series get worse. It divides the likelihood of
            the start and multiplies the KL terms of the fit (`kl_weight`).
        jitter: Of initial states, in sds, during the start.
        spread: Share of the spread of styles and paces among the series of the fit that new series
            get; 0 predicts all of them at the typical ones, see `SeriesEffects`.
        time_unit: Unit of the dimensionless time, in that of the data; by default the time in which
            states move by two of their sds.
        scale: Of the values, which the decoder learns in units of it; by default their sd. For a
            saved run, as `time_unit`.
        series: Labels of the series of the fit, those of `train`; for a saved run, likewise.
        verbose: Print what was composed, and show the start's progress.

    Returns:
        Model and guide, ready for `fit_svi`; the guide knows what settings suit it. New series:
        `posterior.condition(new)`, which encodes their first frames.

    Raises:
        DataError: For data without values, an unknown name, another order than 1 or 2, fewer frames
            than the encoder reads, frames that vary in fewer directions than `dim_latent`.
        ShapeError: For "conv" on what is no image.

    Source: Yildiz, Heinonen and Lahdesmaki (2019), "ODE2VAE: Deep generative second order ODEs with
        Bayesian neural networks", arXiv:1905.10994. Style, pace and start are ours; the paper's
        objective is `path_objective(model, guide)`.

    Example:
        >>> import torch, bayesode as bo
        >>> times = torch.linspace(0, 6, 31)
        >>> phase = times + torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> frames = torch.stack([phase.sin(), phase.cos(), phase.sin() + phase.cos()], -1)
        >>> walks = bo.Trajectories(times, frames)
        >>> model, guide = bo.ode2vae(walks, dim_latent=1, hidden=[4], dim_style=0, verbose=False)
        >>> posterior = bo.fit_svi(model, guide, walks, seed=0, num_steps=2, progress=False)
        >>> new = posterior.condition(walks.until(0.5))
        >>> new.predict(walks.at([8.0]), num_draws=5, seed=0).signal.shape
        torch.Size([5, 4, 1, 3])
    """
    arguments = {
        "order": order,
        "dim_latent": dim_latent,
        "hidden": as_list(hidden),
        "dim_style": dim_style,
        "num_frames": num_frames,
        "likelihood": likelihood,
        "network": network,
        "decoder": decoder,
        "temper": temper,
        "jitter": jitter,
        "spread": spread,
    }
    _check(train, arguments, {"time_unit": time_unit, "scale": scale})
    kind = network_for(network, train.event_shape)
    if time_unit is None:
        time_unit = time_unit_of(train, dim_latent)
    if scale is None:
        scale = _spread(train)
    series = train.series if series is None else check_labels(series, len(as_list(series)))
    units = Units(time_origin=train.start.min().item(), time_unit=time_unit)
    dtype: Any = train.values.dtype  # type: ignore[union-attr]
    model = DynamicalModel(
        initial=WithConstants.initial(
            NormalInitial(order * dim_latent), NormalInitial(dim_style + 1)
        ),
        field=_field(order, dim_latent, hidden, dim_style),
        likelihood=_likelihood(likelihood, DECODERS[decoder], kind, train, dim_latent, scale),
        solver=FixedGridSolver("rk4", step=STEP),
        units=units,
    ).to(dtype)
    # with what was found in the data: a saved run may hold new series, which tell other numbers
    found = {"time_unit": time_unit, "scale": scale, "series": list(series)}
    model.recipe = {"system": "ode2vae", "arguments": arguments | found}
    guide = AmortizedGuide(
        model,
        _encoder(order, dim_latent, dim_style, kind, train, num_frames, time_unit, series, spread),
        start=PathStart(
            PathFit(temper=temper, jitter=jitter, progress=verbose),
            num_frames=num_frames,
            constants=[STYLE_SD] * dim_style + [PACE_SD],
            effects=[STYLE_EFFECT] * dim_style + [PACE_EFFECT],
        ),
        defaults=_defaults(train, num_frames, temper),
    ).to(dtype)
    if verbose:
        print(_told(train, arguments, kind, guide.defaults))
    return model, guide


def _check(train: Trajectories, arguments: dict[str, Any], found: dict[str, float | None]) -> None:
    if not isinstance(train, Trajectories) or train.num_observed == 0:
        raise DataError("an ODE2VAE needs observed frames, Trajectories with values.")
    known = {
        "likelihood": LIKELIHOODS,
        "network": NETWORKS,
        "decoder": DECODERS,
        "order": (1, 2),
    }
    for name, names in known.items():
        if arguments[name] not in list(names):  # of a list: what cannot be hashed is unknown too
            raise DataError(f"{name} must be one of {list(names)}, not {arguments[name]!r}.")
    widths = {f"hidden[{k}]": width for k, width in enumerate(arguments["hidden"])}
    sizes = {name: arguments[name] for name in ("order", "dim_latent", "num_frames")}
    check_size(**sizes, **widths)  # order=True and order=2.0 are among the orders
    if arguments["dim_style"] != 0:
        check_size(dim_style=arguments["dim_style"])
    check_positive(temper=arguments["temper"])
    check_from_zero(jitter=arguments["jitter"], spread=arguments["spread"])
    check_positive(**{name: value for name, value in found.items() if value is not None})
    if arguments["num_frames"] < 2:
        raise DataError("velocities need two frames at least: num_frames=2 or more.")
    if train.grid.shape[1] <= arguments["num_frames"]:
        raise DataError(
            f"the encoder reads {arguments['num_frames']} frames and one more has to be predicted, "
            f"the series have {train.grid.shape[1]}: take a smaller num_frames, or longer series."
        )


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
    if not found > 0:
        raise DataError("all visible frames are the same: there is no motion to fit.")
    return found


# ---- parts ---------------------------------------------------------------------------------------
def _field(order: int, dim: int, hidden: Sequence[int], dim_style: int) -> nn.Module:
    """Linear forces plus a network, at the pace of a series."""
    read = order * dim
    linear = LinearField(dim, dim_in=read, prior_scale=PRIOR_SCALE * read**-0.5)
    network = BayesianMLP(read + dim_style, hidden, dim, prior_scale=PRIOR_SCALE)
    forces = Sum(linear=linear, network=network)
    moving = forces if order == 1 else SecondOrder(forces, dim_constants=dim_style)
    return WithConstants(Paced(moving), dim_style + 1)


def _likelihood(
    name: str, part: Any, kind: str, train: Trajectories, dim: int, scale: float
) -> nn.Module:
    """The law of values; normal ones have any unit, and vectors a noise scale per channel."""
    network = decoder_of(kind, train.event_shape, dim)
    if name != "gaussian":
        return LIKELIHOODS[name](part, network)
    return GaussianLikelihood(
        decoder=part(Rescaled(network, scale)),
        noise="channel" if len(train.event_shape) == 1 else "shared",
        prior_median=SMALLEST_NOISE * scale,
    )


def _encoder(
    order: int,
    dim: int,
    dim_style: int,
    kind: str,
    train: Trajectories,
    num_frames: int,
    time_unit: float,
    series: Sequence[str | int],
    spread: float,
) -> nn.Module:
    """Positions, velocities and constants, each from an encoder of its own."""
    event, settings = train.event_shape, {"num_frames": num_frames, "time_unit": time_unit}

    def moving() -> nn.Module:
        line = LineEncoder(event, dim, **settings)
        more = NETWORKS[kind]
        return SumEncoder(line, more[0](event, dim, num_frames=num_frames)) if more else line

    read = LineEncoder(event, dim_style + 1, clip=CLIP, **settings)
    constants = SeriesEffects(read, series, share=spread)
    return StackedEncoder(moving(), moving() if order == 2 else None, constants)


def _defaults(train: Trajectories, num_frames: int, temper: float) -> dict[str, Any]:
    """What suits these fits: few steps of small size, since the start is close."""
    settings: dict[str, Any] = {
        "num_steps": NUM_STEPS,
        "num_particles": 1,
        "learning_rate": {"locations": LEARNING_RATE, "networks": NETWORK_RATE},
        "kl_weight": temper,
    }
    if train.grid.shape[1] >= FEWEST_FRAMES:
        every = train.grid.shape[1] // (FEWEST_FRAMES // 2)
        settings["schedule"] = ThinnedFrames(every, first=num_frames)
    return settings


def _told(
    train: Trajectories, arguments: dict[str, Any], kind: str, defaults: dict[str, Any]
) -> str:
    """What was composed, in a few lines."""
    order, dim, style = (arguments[name] for name in ("order", "dim_latent", "dim_style"))
    state = f"{dim} positions, {dim} velocities" if order == 2 else f"{dim} components"
    hidden = arguments["hidden"]
    maps = "linear" + ("" if kind == "none" else f" plus a network ({kind})")
    steps = f"{defaults['num_steps']} steps, KL weight {defaults['kl_weight']:g}"
    return "\n".join(
        [
            f"ODE2VAE of order {order} of {train.num_series} series of values "
            f"{tuple(train.event_shape)}",
            f"  state      {state}, {style} constants of style, 1 pace",
            f"  field      linear plus a network {hidden}, Bayesian weights",
            f"  maps       decoder {maps}, {arguments['decoder']}; encoder the same, of "
            f"{arguments['num_frames']} frames",
            f"  likelihood {arguments['likelihood']}",
            f"  fit        least squares in components, then {steps}",
        ]
    )
