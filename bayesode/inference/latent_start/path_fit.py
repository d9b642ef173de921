"""Field and encoder by least squares over windows that grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from bayesode.inference.latent_start.amortised import AmortisedProblem, Head
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.levenberg_marquardt import Point, levenberg_marquardt
from bayesode.smoothing import Smoothed, smooth, with_rates

# Share of the windows that is fitted, and steps there: a long path through a field that is still
# wrong has useless gradients.
STAGES = ((0.13, 4), (0.27, 4), (0.5, 4), (1.0, 4), (1.0, 6))
TOLERANCE = 1e-3
MAX_MATCHED = 120  # times of a series at which gradients are matched
SMALLEST_NOISE = 0.01  # of the leading component's sd


@dataclass(frozen=True)
class PathFit:
    """How field and encoder are fitted to windows of components.

    Args:
        temper: Knots that count as one, by which the likelihood is tempered: residuals of smooth
            paths hang together over many frames, and counted as independent they let the encoder
            learn single series by heart.
        jitter: Of initial states, in their sds, drawn anew in each stage, so that paths come back
            from states that are a little off.
        progress: Show a bar on anything over two seconds.
    """

    temper: float = 20.0
    jitter: float = 0.2
    progress: bool = True

    def run(
        self, data: FitData, heads: Sequence[Head], vector: Tensor, sideways: Sideways
    ) -> Tensor:
        """Numbers of the field and maps of the heads, from a first guess of them.

        Args:
            data: Windows, the measurement a normal one with one scale.
            heads: Maps to the initial states.
            vector: Where the fit begins, shape (numbers,).
            sideways: Draws what initial states are jittered by.
        """
        num_intervals = data.gaps.shape[1]
        with tqdm(STAGES, desc="start", delay=2, disable=not self.progress) as bar:
            for share, most in bar:
                part = data.until(min(num_intervals, max(2, math.ceil(share * num_intervals))))
                offset = self.jitter * sideways.draw()
                problem = at_residuals(part, heads, offset, vector, self.temper)
                point = Point(vector, vector.new_zeros(0, 1, 1))
                found = levenberg_marquardt(
                    problem, point, max_iterations=most, tolerance=TOLERANCE
                )
                vector = found.point.weights
                bar.set_postfix(horizon=f"{share:.0%}", cost=f"{found.cost:.4g}", refresh=False)
        return vector


@dataclass(frozen=True, eq=False)
class Sideways:
    """Noise of initial states across their motion.

    Along it a state would only be early or late, which no field could mend.

    Args:
        sd: In which states are measured, shape (state,); 0 for those without noise.
        motion: Rates of states, shape (series, state).
    """

    sd: Tensor
    motion: Tensor

    def draw(self) -> Tensor:
        """Noise of one sd in each direction but that of the motion, shape (series, state)."""
        is_free = self.sd > 0
        noise = torch.where(is_free, torch.randn_like(self.motion), 0.0)
        along = torch.where(is_free, self.motion / self.sd, 0.0)
        along = torch.nn.functional.normalize(along, dim=-1)
        return self.sd * (noise - (noise * along).sum(-1, keepdim=True) * along)


def at_residuals(
    data: FitData, heads: Sequence[Head], offset: Tensor, vector: Tensor, temper: float = 1.0
) -> AmortisedProblem:
    """The fit with the noise that residuals at a point have, see `noise_of`."""
    problem = AmortisedProblem(data, data.measurement.sites.mean, heads, offset)
    return replace(problem, noise=noise_of(problem, vector, temper))


def noise_of(problem: AmortisedProblem, vector: Tensor, temper: float = 1.0) -> Tensor:
    """The noise, unconstrained: the residuals' root mean square, times the root of `temper`."""
    measurement = problem.data.measurement
    scale = measurement.residual_scale(problem.path(vector)).square().mean().sqrt()
    scale = temper**0.5 * scale.clamp_min(SMALLEST_NOISE)
    return measurement.noise_of(scale.expand(measurement.response.shape[-1]))


def smoothed_states(
    times: Tensor, states: Tensor, mask: Tensor, *, has_velocities: bool, num_constants: int
) -> tuple[Tensor, Smoothed]:
    """Smoothed components at some of their times, velocities behind them, constants being 0.

    Args:
        times: Dimensionless, shape (series, time).
        states: Components, shape (series, time, component).
        mask: Frames that are visible, shape (series, time).
        has_velocities: Whether states have velocities.
        num_constants: Number of constants behind all else.
    """
    every = max(1, math.ceil(times.shape[1] / MAX_MATCHED))
    at, some = times[:, ::every].double(), states[:, ::every]
    is_seen = mask[:, ::every].unsqueeze(-1).expand_as(some)
    found = smooth(at, some, is_seen, at)
    if has_velocities:
        found = with_rates(found, found.derivative, at, is_seen, at)
    room = (0, num_constants)
    names = ("path", "derivative", "derivative_scale")
    return at, replace(found, **{name: pad(getattr(found, name), room) for name in names})
