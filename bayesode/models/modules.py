"""Any torch module as a random part: its parameters, or those of some layers, are one site."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bayesode.errors import DataError
from bayesode.inputs import Inputs
from bayesode.models.contracts import Priors, Tuning, Values, without_plate

BATCHED, DROPPED = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd


@dataclass(frozen=True)
class Piece:
    """One random tensor of a module.

    Args:
        names: Of the parameter; several where layers share it.
        shape: Of the parameter.
        fan_in: Numbers that are added up in one output; None for biases and other vectors.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    fan_in: float | None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def labels(self) -> list[str]:
        """A readable name per number, such as `0.weight[3,1]`."""
        places = itertools.product(*map(range, self.shape))
        return [f"{self.names[0]}[{','.join(map(str, place))}]" for place in places]


class BayesianModule(nn.Module):
    """A module whose parameters are random, all of them or those of some layers.

    They are one flat site, `weights`, in the module's own order, with the prior N(0, prior_scale^2
    / fan_in) for matrices and kernels and N(0, prior_scale^2) for biases and other vectors. Other
    parameters stay parameters of this part, for a fit to train. The module is copied; it maps rows
    (rows, in) to (rows, *out), and no row may see another one.

    Args:
        module: The network.
        layers: Names of the submodules whose parameters are random, as `named_modules` has them;
            all by default, none with `()`.
        prior_scale: Of outputs whose inputs have size one.

    Raises:
        DataError: For a prior_scale that is not positive, unknown layers, layers without
            parameters, or a module that is another function at each call or for other batch-mates
            (dropout, batch normalisation).

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh())
        >>> part = BayesianModule(network)
        >>> decode = part.build({"weights": torch.zeros(5, 1, part.num_weights)})
        >>> decode(torch.randn(5, 3, 10, 2)).shape  # (draws, series, time, out)
        torch.Size([5, 3, 10, 8])
    """

    prior_sd: Tensor
    starting: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        layers: Sequence[str] | None = None,
        prior_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < prior_scale < math.inf:
            raise DataError(f"prior_scale must be a positive number, not {prior_scale}.")
        check_is_function(module)
        self.module = copy.deepcopy(module)
        self.pieces = random_pieces(self.module, layers)
        self.config: dict[str, Any] = {
            "module": repr(module),
            "layers": None if layers is None else list(layers),
            "prior_scale": prior_scale,
        }
        self.register_buffer("starting", self._collect())
        sds = [prior_scale * (piece.fan_in or 1.0) ** -0.5 for piece in self.pieces]
        self.register_buffer("prior_sd", self.starting.new_tensor(sds)[self._groups])
        self._place(None)

    # ---- the random part -------------------------------------------------------------------------
    @property
    def num_weights(self) -> int:
        """Length of the site `weights`."""
        return sum(piece.size for piece in self.pieces)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of the site."""
        names = [label for piece in self.pieces for label in piece.labels]
        return {"weights": names} if self.pieces else {}

    def priors(self) -> Priors:
        """The normal prior of the weights (num_weights,); nothing without random layers."""
        if not self.pieces:
            return {}
        return {"weights": dist.Normal(torch.zeros_like(self.prior_sd), self.prior_sd).to_event(1)}

    def tunable(self) -> dict[str, Tuning]:
        """One prior scale per tensor may be set by the evidence."""
        if not self.pieces:
            return {}
        return {"weights": Tuning(self._groups, "prior_sd")}

    @property
    def _groups(self) -> Tensor:
        """The index of the tensor that each weight belongs to, (num_weights,)."""
        sizes = torch.tensor([piece.size for piece in self.pieces], dtype=torch.long)
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def starting_weights(self) -> Tensor:
        """The numbers that the module itself had, a place to start from, (num_weights,)."""
        return self.starting

    def build(self, values: Values, inputs: Inputs | None = None) -> Callable[[Tensor], Tensor]:
        """The network of drawn weights (num_weights,) or (*draws, 1, num_weights).

        Returns:
            x (*draws, series, time, in) -> (*draws, series, time, *out); series and times are rows
            of one product per layer, and weights are never copied for them.
        """
        weights = without_plate(values["weights"]) if self.pieces else self.starting
        return lambda x: self._run(weights, x)

    def _run(self, weights: Tensor, x: Tensor) -> Tensor:
        draws = torch.broadcast_shapes(weights.shape[:-1], x.shape[:-3])
        if weights.numel() == weights.shape[-1]:  # one network: draws are rows too
            out = self._call(weights.flatten(), x.reshape(-1, x.shape[-1]))
            return out.reshape(*draws, *x.shape[-3:-1], *out.shape[1:])
        each = weights.expand(*draws, -1).reshape(-1, weights.shape[-1])
        is_shared = x.dim() == 3
        rows = x if is_shared else x.expand(*draws, *x.shape[-3:])
        rows = rows.reshape(*([] if is_shared else [len(each)]), -1, x.shape[-1])
        # kernels of several draws would become one grouped convolution: three times slower
        chunk = 1 if any(len(piece.shape) > 2 for piece in self.pieces) else None
        out = vmap(self._call, in_dims=(0, None if is_shared else 0), chunk_size=chunk)(each, rows)
        return out.reshape(*draws, *x.shape[-3:-1], *out.shape[2:])

    def _call(self, weights: Tensor, rows: Tensor) -> Tensor:
        return functional_call(self.module, self._unpack(weights), (rows,))

    def _unpack(self, weights: Tensor) -> dict[str, Tensor]:
        parts = weights.split([piece.size for piece in self.pieces]) if self.pieces else ()
        return {
            name: part.view(piece.shape)
            for piece, part in zip(self.pieces, parts, strict=True)
            for name in piece.names
        }

    # ---- the module's own numbers ----------------------------------------------------------------
    def set_linear(self, basis: Tensor, mean: Tensor, scale: float) -> None:
        """Set the linear part of the module to mean + scale basis z, as `LinearDecoder` does.

        Numbers of random layers go to `starting_weights`, others to the parameters.

        Raises:
            DataError: If the module has no linear part.
        """
        if not hasattr(self.module, "set_linear"):
            raise DataError(
                f"{type(self.module).__name__} has no linear part to begin with: take "
                "LinearDecoder, or SumDecoder(linear=LinearDecoder(...), network=...)."
            )
        with self._restored():
            self.module.set_linear(basis, mean, scale)  # type: ignore[operator]

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """The module with all its parameters; what becomes of them is kept."""
        self._place(self._unpack(self.starting.clone()))
        try:
            yield
            self.starting.copy_(self._collect())
        finally:
            self._place(None)

    def _collect(self) -> Tensor:
        own = dict(self.module.named_parameters(remove_duplicate=False))
        flat = [own[piece.names[0]].detach().flatten() for piece in self.pieces]
        return torch.cat(flat) if flat else torch.empty(0)

    def _place(self, tensors: dict[str, Tensor] | None) -> None:
        """Put parameters in the random places, or take them out: drawn ones come with each call."""
        for name in (name for piece in self.pieces for name in piece.names):
            place, _, last = name.rpartition(".")
            value = None if tensors is None else nn.Parameter(tensors[name])
            self.module.get_submodule(place).register_parameter(last, value)


def random_pieces(module: nn.Module, layers: Sequence[str] | None) -> list[Piece]:
    """The parameters of some layers, shared ones once.

    Raises:
        DataError: For layers that do not exist or have no parameters.
    """
    known = dict(module.named_modules())
    asked = [""] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    for layer in asked:
        if layer not in known or not list(known[layer].parameters()):
            has = [name for name, part in known.items() if name and list(part.parameters())]
            raise DataError(
                f"{type(module).__name__} has no parameters in {layer or 'it'!r} that could be "
                f"random; layers with parameters are {has}."
            )
    chosen = {id(p) for layer in asked for p in known[layer].parameters()}
    names: dict[int, list[str]] = {}
    own = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in own.items():
        names.setdefault(id(parameter), []).append(name)
    return [
        Piece(tuple(group), tuple(own[group[0]].shape), _fan_in(module, group[0]))
        for which, group in names.items()
        if which in chosen
    ]


def _fan_in(module: nn.Module, name: str) -> float | None:
    """How many inputs reach one output through a parameter."""
    layer: Any = module.get_submodule(name.rpartition(".")[0])
    parameter = module.get_parameter(name)
    if parameter.dim() < 2:
        return None
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # (in, out / groups, *kernel)
        kernel = math.prod(layer.kernel_size) / math.prod(layer.stride)
        return layer.in_channels / layer.groups * kernel
    return parameter.numel() / parameter.shape[0]


def check_is_function(module: nn.Module) -> None:
    """Refuse layers that make a module another function at each call, or for other rows beside.

    Raises:
        DataError: Then.
    """
    if not isinstance(module, nn.Module):
        raise DataError(f"a module is needed, not {module!r}.")
    for name, layer in module.named_modules():
        has_statistics = isinstance(layer, BATCHED) or getattr(layer, "track_running_stats", False)
        if has_statistics or isinstance(layer, (DROPPED, nn.RReLU)):
            why = (
                "its output depends on the rest of the batch, and differs between training and "
                "prediction: take nn.GroupNorm or nn.LayerNorm"
                if has_statistics
                else "it is another network at each call, so that draws of its weights mean "
                "nothing: leave it out, random weights regularise"
            )
            raise DataError(f"layer {name!r} is {type(layer).__name__}; {why}.")
