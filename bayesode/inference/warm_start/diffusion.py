"""Fits of drift, states and noise scales together, for models with additive process noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bayesode.errors import DataError
from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.chains import ChainFactor
from bayesode.inference.warm_start.covariance import ChainCovariance
from bayesode.inference.warm_start.evidence import Rounds
from bayesode.inference.warm_start.fit_data import FitData
from bayesode.inference.warm_start.flat import MAX_WEIGHTS, FlatField
from bayesode.inference.warm_start.grids import QuestionGrid
from bayesode.inference.warm_start.levenberg_marquardt import Point
from bayesode.inference.warm_start.measurement import Measurement
from bayesode.inference.warm_start.problem import Around, StateProblem, mean_span
from bayesode.inference.warm_start.scales import Scales, log_volume, most_probable_scales
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

# Sds of the miss in a mean interval at which fits begin, in data sds: from below the drift explains
# all that it can, from above the noise does, and the evidence decides.
FIRST_SCALES = (0.1, 0.4)
# the same below which it is none: smaller scales change nothing and lose the digits of the weights
SMALLEST_SCALE = 1e-3
SMALLEST_SHARE = 0.02  # of the intervals, that always counts as degrees of freedom
CERTAIN = 1e6  # degrees of freedom
LARGEST_DROP = math.log(3)  # of the logarithm of a process scale in one round
SHRINKING = (0.03, 0.01, 0.003)  # stages on the way to no process noise, as FIRST_SCALES
ROUNDS = Rounds(most=25, first=30, later=8, tolerance=1e-4, damping=1e-2, last=5, stride=4.0)


@dataclass(frozen=True, eq=False)
class ProcessNoise:
    """What additive process noise adds to the states over the intervals of a fit.

    Args:
        sites: Its scales as one vector, with their prior.
        begins: Times at which the intervals begin, shape (series, interval).
        gaps: Their lengths, shape (series, interval).
        dim: Size of the state.
    """

    sites: FlatField
    begins: Tensor
    gaps: Tensor
    dim: int

    def spread(self, scales: Tensor) -> Tensor:
        """Sd of what is added over each interval, shape (series, interval, state)."""
        noise = self.sites.build(scales)
        nowhere = self.gaps.new_zeros(*self.gaps.shape, self.dim).flatten(0, 1)
        scale = noise((self.begins + self.gaps).reshape(-1, 1), nowhere).expand_as(nowhere)
        # padding bears no data; a stiff one would hold the last real state where a step begins
        gaps = torch.where(self.gaps > 0, self.gaps, mean_span(self.gaps))
        return scale.view(*self.gaps.shape, self.dim) * gaps.sqrt().unsqueeze(-1)

    def scales_of(self, scale: float) -> Tensor:
        """The vector at which a miss in a mean interval has this sd."""
        gaps = self.gaps[self.gaps > 0]
        rate = torch.full((self.dim,), scale).to(gaps) / gaps.mean().sqrt()
        return self.sites.pack(self.sites.field.starting_values(rate))  # type: ignore[operator]

    @property
    def num_free(self) -> int:
        """Number of scales that are not fixed."""
        return len(self.sites.mean)

    @cached_property
    def floor(self) -> Tensor:
        """The vector below which there is no process noise."""
        return self.scales_of(SMALLEST_SCALE).minimum(self.sites.mean)

    def better(self, miss: Tensor, scales: Tensor, variance: Tensor) -> Scales:
        """The scales of largest evidence at a fit.

        Args:
            miss: Of the fit, shape (series, interval, state).
            scales: At which the variance was found.
            variance: Posterior variance of the misses.
        """
        is_real = (self.gaps > 0).unsqueeze(-1).expand_as(miss)

        def log_prob(place: Tensor) -> Tensor:
            law = torch.distributions.Normal(0.0, self.spread(place))
            return torch.where(is_real, law.log_prob(miss), 0.0).sum()

        found = most_probable_scales(
            log_prob,
            lambda place: (self.spread(place).pow(-2), is_real),
            variance,
            self.sites,
            scales,
            smallest_share=SMALLEST_SHARE,
        )
        return found._replace(best=found.best.maximum(scales - LARGEST_DROP).maximum(self.floor))

    def log_volume(self, scales: Tensor, freedom: Tensor) -> float:
        """The share of the scales in the log evidence."""
        return log_volume(self.sites, scales, freedom)


class NoProcess(ProcessNoise):
    """Process noise of the smallest scale: a model that has none, as likely beforehand as others.

    A scale that is drawn from a continuous prior is never 0, so this possibility has to be put in
    by hand; without it paths that are those of an ODE would be forecast with noise.
    """

    @property
    def num_free(self) -> int:
        """None."""
        return 0

    def better(self, miss: Tensor, scales: Tensor, variance: Tensor) -> Scales:
        """The scales as they are, known to the last digit."""
        certain, none = torch.full_like(scales, CERTAIN), torch.zeros_like(scales)
        return Scales(scales, certain, none, scales[:0])

    def log_volume(self, scales: Tensor, freedom: Tensor) -> float:
        """There is nothing to integrate over."""
        return 0.0


@dataclass(frozen=True, eq=False)
class DiffusionProblem:
    """Weights and states at all knots, with the scales of measurement and process noise.

    Args:
        data: The fit, its field the drift.
        noise: Scales of the likelihood, then of the process noise, unconstrained.
        process: The process noise.
    """

    data: FitData
    noise: Tensor
    process: ProcessNoise

    @classmethod
    def of(cls, model: DynamicalModel, train: Trajectories) -> DiffusionProblem:
        """The fit of a model to data at its first scales, those of likelihood at their prior's.

        Raises:
            DataError: If the noise depends on the state, or enters in other steps than "split" has.
        """
        check_additive(model)
        start, times = model.units.dimensionless_times(train)
        grid = QuestionGrid.of(start, times, model.solver.noise_step)  # type: ignore[attr-defined]
        measurement = Measurement.of(model, train, grid.reached)
        drift = FlatField.of(model.field.drift)  # type: ignore[arg-type]
        if len(drift.mean) > MAX_WEIGHTS:
            raise DataError(
                f"the drift has {len(drift.mean)} random numbers; fit_laplace takes {MAX_WEIGHTS} "
                "with process noise: make it narrower, or fit by SVI with SDEGuide."
            )
        data = FitData.through(model, train, grid.times, drift, measurement)
        process = process_of(model, data, grid)
        first = torch.cat([measurement.sites.mean, process.scales_of(FIRST_SCALES[0])])
        return cls(data, first, process)

    @cached_property
    def states(self) -> StateProblem:
        """The fit for these scales."""
        seen, moved = self._split(self.noise)
        return StateProblem(self.data, seen, self.process.spread(moved))

    @property
    def is_vanishing(self) -> Tensor:
        """The scales of the process; measurement noise that is hurried may collapse."""
        first = len(self.data.measurement.sites.mean)
        return torch.arange(len(self.noise), device=self.noise.device) >= first

    @property
    def num_free(self) -> int:
        """All scales, or those of the likelihood alone."""
        return len(self.data.measurement.sites.mean) + self.process.num_free

    def log_volume(self, freedom: Tensor) -> float:
        """The share of the scales in the log evidence."""
        scales, degrees = self._split(self.noise), self._split(freedom)
        own = log_volume(self.data.measurement.sites, scales[0], degrees[0])
        return own + self.process.log_volume(scales[1], degrees[1])

    def without_process(self) -> DiffusionProblem:
        """The same fit where the process noise is none at all."""
        own = self.process
        process = NoProcess(own.sites, own.begins, own.gaps, own.dim)
        seen, _ = self._split(self.noise)
        return DiffusionProblem(self.data, torch.cat([seen, process.floor]), process)

    def within(self, scale: float) -> StateProblem:
        """The fit of the states with process noise that misses by at most this."""
        seen, moved = self._split(self.noise)
        wide = StateProblem.shrunk(self.data, seen, scale).spread
        return StateProblem(self.data, seen, self.process.spread(moved).maximum(wide))

    @property
    def best(self) -> float:
        """Log density of data and path through the data with no miss."""
        return self.states.best - float(self.states.spread.log().sum())

    def at(self, data: FitData, noise: Tensor) -> DiffusionProblem:
        """The same fit under other prior scales and another noise."""
        seen, moved = self._split(noise)
        noise = torch.cat([seen, moved.maximum(self.process.floor)])
        return DiffusionProblem(data, noise, self.process)

    def cost(self, point: Point) -> float:
        """Deviance and volume: minus twice the log density of weights, states integrated over."""
        ends, by_states = self.data.flow_by_states(point.weights, point.states[:, :-1])
        chain = ChainFactor.of(*self.states.precision(point.states, by_states))
        deviance = self.states.cost(point, ends)
        return math.inf if chain is None else deviance + chain.log_determinant

    def deviance(self, point: Point) -> float:
        """Deviance of the data and sum of squared misses, prior included."""
        return self.states.cost(point)

    def linearise(self, point: Point) -> BorderedChain:
        """Normal equations of a step.

        The weights are fitted for states that are integrated over: at the joint mode of both the
        drift would be too weak, all the more on fine grids.

        Source: of continuous paths, Onsager and Machlup (1953), Physical Review 91.
        """
        system = self.states.linearise(point)
        chain = ChainFactor.of(system.diagonal, system.upper)
        if chain is None:
            return system
        slope = self._slope_of_volume(point, chain, system.border)
        return replace(system, weights=system.weights - slope / 2)

    def _slope_of_volume(self, point: Point, chain: ChainFactor, border: Tensor) -> Tensor:
        """Derivative of the log determinant of the states' precision by the weights, (weight,).

        It is that of the expected squares of e_{k+1} - F_z e_k for the chain e as it is; the states
        at which F_z is taken follow the weights.
        """
        roots = torch.linalg.cholesky(chain.blocks()[:, :-1])
        linked, spread = chain.links @ roots, self.states.spread.unsqueeze(-1)
        with torch.enable_grad():
            weights = point.weights.detach().requires_grad_()
            begins = point.states[:, :-1].detach().requires_grad_()
            _, by_states = self.data.flow_by_states(weights, begins, create_graph=True)
            squares = ((linked - by_states @ roots) / spread).square().sum()
            if not squares.requires_grad:  # a linear drift without random numbers
                return torch.zeros_like(point.weights)
            own, moved = torch.autograd.grad(squares, (weights, begins), materialize_grads=True)
        followed = torch.nn.functional.pad(moved, (0, 0, 0, 1)).unsqueeze(-1)
        return own - torch.einsum("nksp,nks->p", border, chain.solve(followed).squeeze(-1))

    def around(self, point: Point) -> Around:
        """Covariance and better scales at the optimum."""
        states, measurement = self.states, self.data.measurement
        seen, moved = self._split(self.noise)
        ends, by_weights, by_states = self.data.flow_jacobians(point.weights, point.states[:, :-1])
        system = states.assemble(point, ends, by_weights, by_states)
        covariance = ChainCovariance.of(system)
        variance = covariance.of_states()
        observed = measurement.at_data(variance)[..., : measurement.response.shape[-1]]
        better = measurement.better_noise(point.states, seen, observed)
        of_misses = covariance.of_misses(by_weights, by_states)
        process = self.process.better(point.states[:, 1:] - ends, moved, of_misses)
        num_used = float((variance * measurement.information(point.states, seen)).sum())
        best, freedom, slope = (
            torch.cat([getattr(better, name), getattr(process, name)])
            for name in ("best", "freedom", "slope")
        )
        return Around(covariance, best, freedom, slope, num_used)

    def _split(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        first = len(self.data.measurement.sites.mean)
        return noise[:first], noise[first:]


def process_of(model: DynamicalModel, data: FitData, grid: QuestionGrid) -> ProcessNoise:
    """The process noise of a model over the intervals of a grid."""
    sites = FlatField.of(model.field.diffusion)  # type: ignore[arg-type]
    return ProcessNoise(sites, grid.begins, data.gaps, data.x0_mean.shape[-1])


def check_additive(model: DynamicalModel) -> None:
    """Refuse what Laplace cannot take.

    Raises:
        DataError: If the noise depends on the state, or the solver is not "split".
    """
    diffusion = getattr(model.field, "diffusion", None)
    if diffusion is None or not hasattr(diffusion, "starting_values"):
        raise DataError(
            "fit_laplace takes process noise that is additive, SDEField(drift, AdditiveNoise(dim)) "
            "(in log units that is multiplicative noise); other noise is fitted by "
            "fit_svi(model, SDEGuide(model, train), train)."
        )
    method = getattr(model.solver, "method", None)
    if method != "split":
        raise DataError(
            f"fit_laplace takes paths with noise by SDESolver(method='split'), not {method!r}: the "
            "others are for simulation and SVI."
        )
