"""Networks whose weights are one flat vector, shared by every part that needs one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bayesode.errors import DataError, ShapeError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "elu": functional.elu,
}


@dataclass(frozen=True)
class Layout:
    """Where the matrices of a multilayer perceptron lie in one flat vector.

    Per layer the matrix (output, input) in row order, then the bias; the optional linear path
    from input to output comes last.

    Args:
        sizes: Widths, input first and output last.
        is_linear: Whether there is a linear path beside the network.
    """

    sizes: tuple[int, ...]
    is_linear: bool = False

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ShapeError(f"a network needs positive widths, not {self.sizes}.")

    @property
    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the pieces, in order."""
        pieces: list[tuple[str, tuple[int, ...]]] = []
        for layer, (fan_in, fan_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            pieces += [
                (f"layer{layer}.weight", (fan_out, fan_in)),
                (f"layer{layer}.bias", (fan_out,)),
            ]
        if self.is_linear:
            pieces.append(("linear.weight", (self.sizes[-1], self.sizes[0])))
        return pieces

    @property
    def num_weights(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def labels(self) -> list[str]:
        """A readable name per weight, such as `layer0.weight[3,1]` (output, input)."""
        return [
            f"{name}[{','.join(map(str, index))}]"
            for name, shape in self.tensors
            for index in itertools.product(*map(range, shape))
        ]

    def per_weight(self, weight: Callable[[int], float], bias: float) -> Tensor:
        """A number per weight: `weight(fan_in)` in matrices, `bias` in biases."""
        return torch.cat(
            [
                torch.full((math.prod(shape),), weight(shape[1]) if len(shape) == 2 else bias)
                for _, shape in self.tensors
            ]
        )

    @property
    def groups(self) -> Tensor:
        """The index of the matrix or bias that each weight belongs to, (num_weights,)."""
        sizes = torch.tensor([math.prod(shape) for _, shape in self.tensors])
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def unpack(self, weights: Tensor) -> list[Tensor]:
        """Views of a flat vector (*draws, num_weights), matrices ready for x @ matrix."""
        if weights.shape[-1] != self.num_weights:
            raise ShapeError(f"{self.num_weights} weights are needed, not {weights.shape[-1]}.")
        pieces = weights.split([math.prod(shape) for _, shape in self.tensors], dim=-1)
        return [
            piece.unflatten(-1, shape).mT if len(shape) == 2 else piece.unsqueeze(-2)
            for piece, (_, shape) in zip(pieces, self.tensors, strict=True)
        ]

    def run(self, pieces: Sequence[Tensor], activation: str, x: Tensor) -> Tensor:
        """The network's output; one batched product per layer for all draws and rows of x.

        Args:
            pieces: From `unpack`, shapes (*draws, in, out) and (*draws, 1, out).
            activation: A key of `ACTIVATIONS`.
            x: Shape (*draws, rows, in).
        """
        nonlinearity, num_layers = ACTIVATIONS[activation], len(self.sizes) - 1
        hidden = x
        for layer in range(num_layers):
            hidden = affine(hidden, pieces[2 * layer], pieces[2 * layer + 1])
            if layer < num_layers - 1:
                hidden = nonlinearity(hidden)
        return hidden + x @ pieces[-1] if self.is_linear else hidden


def affine(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """X @ matrix + bias for all draws at once."""
    if x.dim() == matrix.dim() == 3 and len(x) == len(matrix):
        return torch.baddbmm(bias, x, matrix)
    if x.dim() == matrix.dim() == 2:
        return torch.addmm(bias, x, matrix)
    return x @ matrix + bias


def check_activation(activation: str) -> str:
    """The name of an activation, or a DataError that lists those there are."""
    if activation not in ACTIVATIONS:
        raise DataError(f"activation must be one of {sorted(ACTIVATIONS)}, not {activation!r}.")
    return activation
