"""Latent dynamics that a few frames start: positions and velocities, a style and a pace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bayesode.data_checks import as_list, check_from_zero, check_positive, check_size
from bayesode.errors import DataError
from bayesode.inference.amortized import AmortizedGuide
from bayesode.models.dynamical import DynamicalModel
from bayesode.systems.latent_parts import check_choices, check_sizes, network_for
from bayesode.systems.ode2vae_parts import READ_SD, Measured, Settings, compose
from bayesode.trajectories import Trajectories


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
    constants: str = "own",
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
        constants: "own": each series of the fit has a pace and a style of its own, and new ones get
            the typical; "read": all have those that are read off their first frames. In
            cross-validation over walks of which 3 frames are read the first errs by a quarter less;
            the second needs a stronger tempering, 25.
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
        "constants": constants,
    }
    _check(train, arguments)
    measured = Measured.of(train, dim_latent)
    model, guide = compose(train, Settings(**arguments), measured, verbose=verbose)
    if verbose:
        print(_told(train, arguments, guide.defaults))
    return model, guide


def _check(train: Trajectories, arguments: dict[str, Any]) -> None:
    if not isinstance(train, Trajectories) or train.num_observed == 0:
        raise DataError("an ODE2VAE needs observed frames, Trajectories with values.")
    check_choices(arguments, order=(1, 2), constants=list(READ_SD))
    check_sizes(arguments, "dim_style")
    check_size(order=arguments["order"], num_frames=arguments["num_frames"])
    check_positive(temper=arguments["temper"])
    check_from_zero(jitter=arguments["jitter"], spread=arguments["spread"])
    network_for(arguments["network"], train.event_shape)
    if arguments["num_frames"] < 2:
        raise DataError("velocities need two frames at least: num_frames=2 or more.")
    if train.grid.shape[1] <= arguments["num_frames"]:
        raise DataError(
            f"the encoder reads {arguments['num_frames']} frames and one more has to be predicted, "
            f"the series have {train.grid.shape[1]}: take a smaller num_frames, or longer series."
        )


def _told(train: Trajectories, arguments: dict[str, Any], defaults: dict[str, Any]) -> str:
    """What was composed, in a few lines."""
    order, dim, style = (arguments[name] for name in ("order", "dim_latent", "dim_style"))
    state = f"{dim} positions, {dim} velocities" if order == 2 else f"{dim} components"
    hidden, kind = arguments["hidden"], network_for(arguments["network"], train.event_shape)
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
