"""What a fit of windows found, put into a latent model and its guide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayesode.inference.latent_start.amortised import AmortisedProblem
from bayesode.inference.latent_start.line_components import LineComponents
from bayesode.inference.latent_start.start import DECODER, set_noise
from bayesode.inference.latent_start.windows import Windows
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

SMALLEST_SD = 0.01  # of an initial state's prior


@dataclass(frozen=True, eq=False)
class PathFound:
    """Field and maps to initial states at which least squares ended.

    Args:
        line: Features that positions and velocities are maps of.
        windows: That were fitted.
        problem: With the noise that the fit left, untempered.
        vector: What was found, shape (numbers,).
        num_constants: Components at the end of the state that stand still.
        temper: Frames that count as one in posterior scales.
    """

    line: LineComponents
    windows: Windows
    problem: AmortisedProblem
    vector: Tensor
    num_constants: int
    temper: float

    def put(self, model: DynamicalModel, guide: Any, train: Trajectories) -> None:
        """Set decoder, field, law of x0, encoder and noise, in this order."""
        components, likelihood = self.line.components, model.likelihood
        likelihood.decoder.set_linear(components.basis, components.mean, components.scale)  # type: ignore
        if DECODER in model.global_priors():
            guide.set_site(DECODER, likelihood.decoder.starting_weights())  # type: ignore
        field = self.problem.data.field
        by_weights, by_x0 = self._information()
        scales = field.split((by_weights + field.sd.pow(-2)).rsqrt())
        for site, value in field.unpack(self.problem.split(self.vector)[0]).items():
            guide.set_site(f"field.{site}", value, scales[site])
        model.initial.set_moments(*self._moments())  # type: ignore[operator]
        self._put_moving(guide, by_x0)
        if self.num_constants:
            self._put_constants(guide, train, by_x0)
        set_noise(model, guide, train)

    @property
    def states(self) -> Tensor:
        """Encoded initial states of all windows, shape (window, state)."""
        return self.problem.start(self.vector).states[:, 0]

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Means and sds of the law of x0: around 0 for what moves, the median for constants."""
        x0 = self.states
        num_moving = x0.shape[-1] - self.num_constants
        middle = pad(x0[:, num_moving:].median(0).values, (num_moving, 0))
        return middle, (x0 - middle).square().mean(0).sqrt().clamp_min(SMALLEST_SD)

    def _information(self) -> tuple[Tensor, Tensor]:
        """Gauss-Newton diagonals of the tempered likelihood.

        Returns:
            Of the field's numbers, shape (numbers,), and of x0 of each series that has a window
            from its first frame on, shape (series, state).
        """
        num_numbers = len(self.problem.data.field.sd)
        by_weights, by_x0 = self.vector.new_zeros(num_numbers), []
        for rows, root, _ in self.problem.portions(self.vector):
            # every frame counts, and once: windows that begin later see the same ones again
            diagonal = root[self.windows.is_first[rows]].square().sum(1)
            diagonal = diagonal * self.windows.stride / self.temper
            by_weights = by_weights + diagonal[:, :num_numbers].sum(0)
            by_x0.append(diagonal[:, num_numbers:])
        return by_weights, torch.cat(by_x0)

    @property
    def _prior(self) -> Tensor:
        """Precision of initial states before a series is seen, shape (state,)."""
        return self.states.square().mean(0).clamp_min(SMALLEST_SD**2).reciprocal()

    def _put_moving(self, guide: Any, information: Tensor) -> None:
        """Encoders of positions, and of velocities if there are any."""
        _, maps = self.problem.split(self.vector)
        parts = list(guide.encoder.children())
        sds = (information.mean(0) + self._prior).rsqrt().split([len(m) for m in maps])
        moving = len(maps) - bool(self.num_constants)
        for part, matrix, sd in zip(parts[:moving], maps[:moving], sds[:moving], strict=True):
            part.set_affine(*self.line.affine(matrix))
            part.hold()  # the ELBO has no prior for it, and would learn series by heart
            part.log_scale.copy_(sd.log())

    def _put_constants(self, guide: Any, train: Trajectories, information: Tensor) -> None:
        """The read-out of constants, and what each series has beside it."""
        part, matrix = guide.encoder.constants, self.problem.split(self.vector)[1][-1]
        has_effects = hasattr(part, "set_effects")
        num_read = matrix.shape[-1] - train.num_series * has_effects
        read, own = matrix.tensor_split([num_read], -1)
        # 0 without read-out
        whole = pad(read, (0, part.reader.weight.shape[-1] - num_read))
        part.reader.set_standardised(whole, torch.zeros_like(whole[:, 0]))
        part.reader.hold()
        # a series without a window, so short that nothing follows what is read: the prior alone
        every = self._prior.expand(train.num_series, -1).clone()
        every[self.windows.row[self.windows.is_first]] += information
        scale = every.rsqrt()[:, -self.num_constants :]
        if has_effects:
            part.set_effects(train, own.mT, scale)
        else:
            part.log_scale.copy_(scale.square().mean(0).sqrt().log())
