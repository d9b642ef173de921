"""Likelihoods of what a decoder makes of the state: images, spectra, many sensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.distributions import observed_law
from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Observe, Priors, Tuning, Values, nest, resolve, unnest
from bayesode.models.modules import BayesianModule

Decode = Callable[[Tensor], Tensor]
NOISES = ("shared", "channel", "entry")
SMALLEST_NOISE = 1e-3  # of the prior's median, seven of its sds below it


class DecodedLikelihood(nn.Module):
    """Entries of a value are independent given the decoded state; for likelihoods to inherit.

    A subclass gives the law of single entries. The latent state is dimensionless: units of values
    have no effect. The decoder sees the leading components of the state, as many as it takes.

    Args:
        decoder: A module from rows (rows, dim) to (rows, *event), whose parameters are fitted; or a
            random part such as `BayesianModule(network)`, whose weights are drawn at the sites
            `decoder.*`.

    Raises:
        DataError: If the decoder does not tell the size of the state, or is no function of it.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        is_random = hasattr(decoder, "priors") and hasattr(decoder, "build")
        self.decoder: Any = decoder if is_random else BayesianModule(decoder, layers=())
        self.dim = dim_of(decoder)
        self.event_shape = probe(self.decoder, self.dim)

    def entry_law(self, decoded: Tensor, values: Values) -> dist.TorchDistribution:
        """Law of single entries (*draws, series, time, *event) given what was decoded."""
        raise NotImplementedError

    @property
    def config(self) -> dict[str, Any]:
        """Type and settings of the decoder."""
        told = getattr(self.decoder, "config", {})
        return {"decoder": {"type": type(self.decoder).__name__, **told}}

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site."""
        return {f"decoder.{s}": names for s, names in getattr(self.decoder, "labels", {}).items()}

    def with_units(self, units: Any) -> None:
        """Take on the units of a model, of which the time alone matters."""
        if hasattr(self.decoder, "with_units"):
            self.decoder.with_units(units)

    def priors(self) -> Priors:
        """The sites of the decoder, as `decoder.site`."""
        return nest("decoder", self.decoder.priors())

    def tunable(self) -> dict[str, Tuning]:
        """The prior scales of the decoder that may be set by the evidence."""
        own = self.decoder.tunable() if hasattr(self.decoder, "tunable") else {}
        return {f"decoder.{s}": Tuning(t.groups, f"decoder.{t.buffer}") for s, t in own.items()}

    def build(self, values: Values, inputs: Inputs | None = None) -> Observe:
        """The law of values along a path (*draws, series, time, state)."""
        run: Decode = self.decoder.build(unnest("decoder", values), inputs)
        event_dim = 1 + len(self.event_shape)

        def entries(path: Tensor) -> dist.TorchDistribution:
            return self.entry_law(run(self._seen(path)), values)

        def law(path: Tensor, mask: Tensor | None) -> dist.TorchDistribution:
            return observed_law(entries(path), mask, event_dim=event_dim, fill=0.0)

        return Observe(law, lambda path: entries(path).mean)

    def _seen(self, path: Tensor) -> Tensor:
        if path.shape[-1] < self.dim:
            raise ShapeError(
                f"the decoder takes a state of {self.dim} components, the model's has "
                f"{path.shape[-1]}: build the decoder with dim={path.shape[-1]}."
            )
        return path[..., : self.dim]


class DecodedGaussian(DecodedLikelihood):
    """What `GaussianLikelihood(decoder=...)` is: decoded means plus normal noise.

    No scale acts as less than a thousandth of `prior_median`: a channel that never varies is
    decoded without error, and its likelihood would grow without bound.

    Args:
        decoder: Of means; see `DecodedLikelihood`.
        noise: One latent scale for all entries ("shared"), one per "channel" (the first dimension
            of an event), or one per "entry".
        prior_median: Of the noise scales; .1 suits values in [0, 1].
        prior_log_scale: Sd of their logarithms.

    Raises:
        DataError: For an unknown noise, or settings that are no positive numbers.
    """

    log_median: Tensor
    log_scale: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        *,
        noise: str = "shared",
        prior_median: float = 0.1,
        prior_log_scale: float = 1.0,
    ) -> None:
        super().__init__(decoder)
        if noise not in NOISES:
            raise DataError(f"noise must be one of {NOISES}, not {noise!r}.")
        for name, number in {
            "prior_median": prior_median,
            "prior_log_scale": prior_log_scale,
        }.items():
            if not 0 < number < math.inf:
                raise DataError(f"{name} must be a positive number, not {number}.")
        self.noise, self.prior_median, self.prior_log_scale = noise, prior_median, prior_log_scale
        first, *rest = self.event_shape
        shape = {"shared": (1, *[1] * len(rest)), "channel": (first, *[1] * len(rest))}
        size = shape.get(noise, self.event_shape)
        self.register_buffer("log_median", torch.full(size, math.log(prior_median)))
        self.register_buffer("log_scale", torch.full(size, prior_log_scale))

    @property
    def config(self) -> dict[str, Any]:
        """Settings of decoder and noise."""
        names = ("noise", "prior_median", "prior_log_scale")
        return super().config | {name: getattr(self, name) for name in names}

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site that is a vector."""
        size = self.log_median.shape
        own = ["all"] if self.noise == "shared" else [f"x{i + 1}" for i in range(size[0])]
        return ({"noise_scale": own} if len(size) == 1 else {}) | super().labels

    def priors(self) -> Priors:
        """The log-normal prior of the noise scale, broadcastable to an event, and the decoder's."""
        law = dist.LogNormal(self.log_median, self.log_scale).to_event(len(self.event_shape))
        return {"noise_scale": law, **super().priors()}

    def entry_law(self, decoded: Tensor, values: Values) -> dist.TorchDistribution:
        """Normal around what was decoded."""
        scale = values["noise_scale"].clamp_min(SMALLEST_NOISE * self.prior_median)
        return dist.Normal(decoded, scale.unsqueeze(-1 - len(self.event_shape)))  # the time's place


def dim_of(decoder: nn.Module) -> int:
    """Size of the state that a decoder takes: its attribute `dim`, or its first linear layer's.

    Raises:
        DataError: If neither is there.
    """
    owners = [decoder, *decoder.modules()]
    sizes = [s for m in owners for s in (getattr(m, "dim", None), getattr(m, "in_features", None))]
    found = next((size for size in sizes if isinstance(size, int)), None)
    if found is None:
        raise DataError(
            f"how large a state {type(decoder).__name__} takes cannot be seen: give it an "
            "attribute dim, the number of latent components."
        )
    return found


@torch.no_grad()
def probe(decoder: Any, dim: int) -> tuple[int, ...]:
    """The event shape of a decoder, which is run on a few states.

    Raises:
        DataError: If the same state gives other outputs at a second call or beside other states.
        ShapeError: If single numbers come out.
    """
    dtypes = [t.dtype for t in (*decoder.parameters(), *decoder.buffers()) if t.is_floating_point()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn: dict[str, Tensor] = {}
        for site, prior in decoder.priors().items():
            drawn[site] = resolve(prior, drawn).sample()
        states = torch.randn(64, 1, dim, dtype=dtypes[0] if dtypes else None)
        run = decoder.build(drawn)
        out, again, alone = run(states), run(states), run(states[:32])
    # far above rounding, which depends on the number of rows, far below any dropout
    room = 1e-3 * out.abs().max()
    if (out - again).abs().max() > room or (out[:32] - alone).abs().max() > room:
        raise DataError(
            "the decoder gives the same state other outputs at a second call or beside other "
            "states: leave out dropout and normalisation over the batch."
        )
    if out.dim() < 3:
        raise ShapeError(
            "the decoder gives a single number per state: it has to give (rows, *event), such as "
            "(rows, features)."
        )
    return tuple(out.shape[2:])
