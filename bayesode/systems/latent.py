"""Systems whose state is latent: what is observed is decoded from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bayesode.data_checks import as_list, check_positive
from bayesode.errors import DataError
from bayesode.inference.amortized import AmortizedGuide
from bayesode.models.dynamical import DynamicalModel
from bayesode.systems.latent_parts import (
    DECODERS,
    LIKELIHOODS,
    check_choices,
    check_sizes,
    decoder_of,
    encoder_of,
    frame_units,
    initial_law,
    latent_field,
    network_for,
    solver_for,
)
from bayesode.systems.latent_starts import start_of
from bayesode.trajectories import Trajectories

BATCH_SIZE, NUM_STEPS = 32, 1000
# Adam's: linear maps are right from the start, and larger steps make them worse
NETWORK_RATE, LINEAR_RATE = 1e-3, 1e-4


def ode_vae(
    train: Trajectories,
    *,
    dim_latent: int = 8,
    likelihood: str = "bernoulli",
    hidden: Sequence[int] = (32,),
    network: str = "auto",
    decoder: str = "deterministic",
    dim_content: int = 0,
    gap: float | str | None = "auto",
    verbose: bool = True,
) -> tuple[DynamicalModel, AmortizedGuide]:
    """An ODE-VAE, or latent Bayesian neural ODE: encoder, latent dynamics, decoder.

    The first frame of a series is encoded into a normal law of the latent state x0; the field is a
    random linear map plus a network with random weights; the decoder turns states into frames.
    Encoder and decoder are linear maps plus networks. A fit starts where linear algebra on the
    visible frames would have it: principal components that the motion keeps together, and the
    rotation that takes each frame to the next. Without networks (`hidden=(), network="none"`) the
    model is linear, and right where the motion is one: rotating an image is a linear map of it.

    Frames at even gaps do not determine the motion between them (aliasing), so such a model answers
    at frames only.

    Args:
        train: Values (series, time, *event), in [0, 1] under the two Bernoulli laws; the first
            frame of each series has to be visible.
        dim_latent: Size of the dynamic part of the state.
        likelihood: "bernoulli" (pixels that are on or off, or probabilities),
            "continuous_bernoulli" (grey pixels), "clipped_gaussian" (grey pixels; normal noise
            around intensities that are cut off to [0, 1]) or "gaussian" (any real numbers).
        hidden: Widths of the field's network; empty for a linear field.
        network: Of encoder and decoder beside their linear parts: "conv" for images (channels,
            height, width), "mlp", "none", or "auto": "conv" for images of 16 x 16 or more.
        decoder: "deterministic" weights of the decoder, or "bayesian" ones.
        dim_content: Components of the state that stand still along a series and that field and
            decoder see: what a video shows, beside how it moves.
        gap: Time between two frames, in the unit of the data: the model answers at whole multiples
            of it. "auto" finds it in the data; with None, as "auto" finds for irregular times, it
            answers at any time.
        verbose: Print what was composed.

    Returns:
        Model and guide, ready for `fit` or `fit_svi`; the guide knows what settings suit it.

    Raises:
        DataError: For data without values, an unknown likelihood, network, decoder or gap.
        ShapeError: For "conv" on what is no image.

    Source: Yildiz et al. (2019), arXiv:1905.10994, for the first-order model with a Bayesian field;
        Chen et al. (2018), arXiv:1806.07366, for the latent ODE.

    Example:
        >>> import bayesode as bo
        >>> frames = bo.datasets.rotating_digits(num_series=12, num_validation=2, num_test=2)
        >>> model, guide = bo.ode_vae(frames.train, dim_latent=4, verbose=False)
        >>> posterior = bo.fit_svi(model, guide, frames.train, seed=0, num_steps=3, progress=False)
        >>> new = posterior.condition(frames.test.until(0))
        >>> new.predict(frames.test.at([0.0, 5.0]), num_draws=7, seed=0).signal.shape
        torch.Size([7, 2, 2, 1, 20, 20])
    """
    arguments = {
        "dim_latent": dim_latent,
        "likelihood": likelihood,
        "hidden": as_list(hidden),
        "network": network,
        "decoder": decoder,
        "dim_content": dim_content,
    }
    _check(train, arguments | {"gap": gap})
    event, dim = train.event_shape, dim_latent + dim_content
    kind = network_for(network, event)
    units, gap = frame_units(train, gap)
    model = DynamicalModel(
        initial=initial_law(dim_latent, dim_content),
        field=latent_field(dim_latent, dim_content, arguments["hidden"]),
        likelihood=LIKELIHOODS[likelihood](DECODERS[decoder], decoder_of(kind, event, dim)),
        solver=solver_for(gap, is_linear=not arguments["hidden"]),
        units=units,
    ).to(train.values.dtype)  # type: ignore[union-attr]
    # with the gap: a saved run may hold new series, which do not tell that of the training data
    model.recipe = {"system": "ode_vae", "arguments": arguments | {"gap": gap}}
    guide = AmortizedGuide(
        model,
        encoder_of(kind, event, dim),
        start=start_of(dim_latent),
        defaults=_defaults(train, kind),
    ).to(train.values.dtype)  # type: ignore[union-attr]
    if verbose:
        print(_told(train, arguments, kind, gap, guide.defaults))
    return model, guide


def _check(train: Trajectories, arguments: dict[str, Any]) -> None:
    if not isinstance(train, Trajectories) or train.num_observed == 0:
        raise DataError("an ODE-VAE needs observed frames, Trajectories with values.")
    check_choices(arguments)
    check_sizes(arguments, "dim_content")
    if arguments["gap"] not in ("auto", None):
        check_positive(gap=arguments["gap"])


def _defaults(train: Trajectories, kind: str) -> dict[str, Any]:
    """What suits these fits: a draw per step and random series, where all would take hours."""
    return {
        "num_steps": NUM_STEPS,
        "num_particles": 1,
        "batch_size": min(BATCH_SIZE, train.num_series),
        "learning_rate": {"networks": NETWORK_RATE if kind != "none" else LINEAR_RATE},
    }


def _told(
    train: Trajectories,
    arguments: dict[str, Any],
    kind: str,
    gap: float | None,
    defaults: dict[str, Any],
) -> str:
    """What was composed, in a few lines."""
    hidden, content = arguments["hidden"], arguments["dim_content"]
    linear = "linear" + (f" plus a network {hidden}" if hidden else "")
    maps = "linear" + ("" if kind == "none" else f" plus a network ({kind})")
    when = "at irregular times" if gap is None else f"every {gap:g}, answers at frames only"
    return "\n".join(
        [
            f"ODE-VAE of {train.num_series} series of frames {tuple(train.event_shape)} {when}",
            f"  state      {arguments['dim_latent']} dynamic components, {content} constant",
            f"  field      {linear}, Bayesian weights",
            f"  maps       encoder and decoder {maps}; decoder {arguments['decoder']}",
            f"  likelihood {arguments['likelihood']}",
            f"  fit        {', '.join(f'{name} {value}' for name, value in defaults.items())}",
        ]
    )
