"""The parts that latent systems are composed of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bayesode.data_checks import check_size
from bayesode.errors import DataError, ShapeError
from bayesode.inference.encoders import ConvEncoder, LinearEncoder, MLPEncoder, SumEncoder
from bayesode.models.fields import BayesianMLP, LinearField, Sum, WithConstants
from bayesode.models.frames import (
    Clipped,
    ConvDecoder,
    GreyLogits,
    LinearDecoder,
    Logits,
    MLPDecoder,
    SumDecoder,
)
from bayesode.models.initial import NormalInitial
from bayesode.models.likelihoods import (
    BernoulliLikelihood,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
)
from bayesode.models.modules import BayesianModule
from bayesode.models.solvers import FixedGridSolver, MatrixExponentialSolver, OnFrames
from bayesode.trajectories import Trajectories
from bayesode.units import Units

FEWEST_PIXELS = 16  # along a side, from which convolutions pay
STEP = 0.25  # of RK4, in gaps between frames: with .5 a second turn errs by a quarter more
EVEN = 1e-6  # of a gap: what rounding of times may move equidistant frames
NETWORKS: dict[str, Any] = {
    "auto": None,
    "conv": (ConvEncoder, ConvDecoder),
    "mlp": (MLPEncoder, MLPDecoder),
    "none": (),
}
DECODERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deterministic": lambda network: BayesianModule(network, layers=()),
    "bayesian": BayesianModule,
}
# (deterministic or Bayesian, decoder of intensities) -> likelihood
LIKELIHOODS: dict[str, Callable[[Any, nn.Module], nn.Module]] = {
    "bernoulli": lambda part, decoder: BernoulliLikelihood(part(Logits(decoder))),
    "continuous_bernoulli": lambda part, decoder: ContinuousBernoulliLikelihood(
        part(GreyLogits(decoder))
    ),
    "gaussian": lambda part, decoder: GaussianLikelihood(decoder=part(decoder)),
    "clipped_gaussian": lambda part, decoder: GaussianLikelihood(decoder=part(Clipped(decoder))),
}


def check_choices(arguments: dict[str, Any], **more: Sequence[Any]) -> None:
    """Refuse unknown names of likelihood, network and decoder, and of what else has choices.

    Raises:
        DataError: With the names that are known.
    """
    known = {"likelihood": LIKELIHOODS, "network": NETWORKS, "decoder": DECODERS} | more
    for name, names in known.items():
        if arguments[name] not in list(names):  # of a list: what cannot be hashed is unknown too
            raise DataError(f"{name} must be one of {list(names)}, not {arguments[name]!r}.")


def check_sizes(arguments: dict[str, Any], constants: str) -> None:
    """Refuse sizes that are not positive; the number of constants, by its name, may be 0.

    Raises:
        DataError: For another size.
    """
    widths = {f"hidden[{k}]": width for k, width in enumerate(arguments["hidden"])}
    check_size(dim_latent=arguments["dim_latent"], **widths)
    if arguments[constants] != 0:
        check_size(**{constants: arguments[constants]})


def network_for(asked: str, event_shape: Sequence[int]) -> str:
    """The kind of network beside the linear maps: convolutions for images that are not tiny.

    Raises:
        ShapeError: For "conv" on what is no image.
    """
    if asked == "conv" and len(event_shape) != 3:
        raise ShapeError(
            f'network="conv" needs images (channels, height, width), not {tuple(event_shape)}: '
            'take "mlp", or (1, height, width) for grey pictures.'
        )
    if asked != "auto":
        return asked
    is_image = len(event_shape) == 3 and min(event_shape[1:]) >= FEWEST_PIXELS
    return "conv" if is_image else "mlp"


def encoder_of(kind: str, event_shape: Sequence[int], dim: int) -> nn.Module:
    """A linear encoder of the first frame, plus a network of a kind."""
    linear = LinearEncoder(event_shape, dim)
    return SumEncoder(linear, NETWORKS[kind][0](event_shape, dim)) if NETWORKS[kind] else linear


def decoder_of(kind: str, event_shape: Sequence[int], dim: int) -> nn.Module:
    """A linear decoder of intensities, plus a network of a kind."""
    linear = LinearDecoder(event_shape, dim)
    if not NETWORKS[kind]:
        return linear
    return SumDecoder(linear=linear, network=NETWORKS[kind][1](event_shape, dim))


def initial_law(dim_latent: int, dim_content: int) -> nn.Module:
    """The law of x0: normal, its moments set by the start."""
    state = NormalInitial(dim_latent)
    if not dim_content:
        return state
    return WithConstants.initial(state, NormalInitial(dim_content, scale=[1.0] * dim_content))


def latent_field(dim_latent: int, dim_content: int, hidden: Sequence[int]) -> nn.Module:
    """A linear field, plus a network where it has widths; what stands still has its say in it."""
    linear = LinearField(dim_latent)
    if hidden:
        network = BayesianMLP(dim_latent + dim_content, hidden, dim_latent, prior_scale=1.0)
    field = Sum(linear=linear, network=network) if hidden else linear
    return WithConstants(field, dim_content) if dim_content else field


def frame_units(train: Trajectories, gap: float | str | None) -> tuple[Units, float | None]:
    """Units in which one gap between frames is 1, and the gap, if frames are to have one.

    Args:
        train: Frames.
        gap: "auto" takes that of the data, None where they have no common one.
    """
    found = _common_gap(train) if gap == "auto" else gap
    unit: Any = _usual_gap(train) if found is None else found
    return Units(time_origin=train.start.min().item(), time_unit=unit), found  # type: ignore


def _usual_gap(train: Trajectories) -> float:
    """The median time between two frames; 1 if no series has two."""
    is_real = torch.arange(train.grid.shape[-1] - 1) < train.num_times.cpu()[:, None] - 1
    gaps = train.grid.cpu().diff()[is_real]
    return gaps.median().item() if len(gaps) else 1.0


def _common_gap(train: Trajectories) -> float | None:
    """The usual gap if all frames are whole multiples of it after their starts."""
    gap = _usual_gap(train)
    offsets = (train.grid - train.start.unsqueeze(-1)).cpu() / gap
    is_even = ((offsets - offsets.round()).abs() < EVEN * (1 + offsets.abs())).all()
    return gap if is_even else None


def solver_for(gap: float | None, *, is_linear: bool) -> Any:
    """Exact for linear fields on even frames, else RK4; on even frames it answers there alone."""
    if gap is None:
        return FixedGridSolver("rk4", step=STEP)
    return OnFrames(MatrixExponentialSolver() if is_linear else FixedGridSolver("rk4", step=STEP))
