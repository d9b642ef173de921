"""A guide for models with process noise: it steers the paths of an SDE towards the data."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayesode.errors import DataError, ShapeError
from bayesode.inference.guides import MeanFieldGuide, draw_declared
from bayesode.inference.sde_noise import ShiftedNoise
from bayesode.inference.sde_predictive import SDEPredictive
from bayesode.inference.warm_start import match_drift
from bayesode.models.contracts import rate_of
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.solvers import FixedGridSolver, SDESolver
from bayesode.smoothing import smooth
from bayesode.trajectories import Trajectories
from bayesode.units import Float64Module

CONTEXTS = ("free",)
FIRST_RATE = 2.0  # at which paths are pulled to the data before the fit, per dimensionless time
SMALLEST_NOISE = 1e-6  # nearer to 0 a steered path has no density; so its KL is huge, but finite


class TrainingGrid(Float64Module):
    """The dimensionless times that the noise of a fit was laid through.

    Args:
        start: Shape (series,).
        times: Shape (series, time), padded with the last time.
    """

    start: Tensor
    times: Tensor

    def __init__(self, start: Tensor, times: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.clone())
        self.register_buffer("times", times.clone())

    @property
    def longest(self) -> float:
        """Longest interval between two times."""
        return torch.cat([self.start.unsqueeze(-1), self.times], -1).diff().max().item()

    def through(self, rows: Tensor, asked: Tensor) -> Tensor:
        """The times of some series, continued by what is asked (series, asked) after them."""
        known = self.times[rows]
        return torch.cat([known, torch.maximum(asked.to(known), known[:, -1:])], -1)


class SDEGuide(PyroModule):
    """Mean-field posteriors of every global site and x0, and paths steered towards the data.

    The increments `path.noise` are shifted by sqrt(h) u. With context "free", without an encoder,
    each series has for each noise step a learned target c and a learned share r in (0, 1), and the
    noise step of length h moves the state x by r (c - x) beside its noise: u = r (c - x) / (g h).
    The path of a linear SDE under Gaussian noise has a posterior of this form as h goes to 0, if
    its components do not interact. Targets start at the smoothed data. Beyond the training data
    nothing is steered: paths go on with the prior's noise.

    Args:
        model: With an `SDEField` and an `SDESolver`.
        trajectories: The series that get initial states and targets, on their noise grid.
        context: What the steering knows of the data: "free".

    Raises:
        DataError: If the model's paths are not random, for another context, or if a component has
            no noise.
        ShapeError: If drift, noise, solver and x0 have states of different sizes.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=10).observed
        >>> model = bo.DynamicalModel(
        ...     initial=bo.NormalInitial(2),
        ...     field=bo.SDEField(bo.BayesianMLP(2, [4], 2), bo.AdditiveNoise(2)),
        ...     likelihood=bo.GaussianLikelihood(2),
        ...     solver=bo.SDESolver(2, step=0.1),
        ...     units=bo.Units.from_data(train),
        ... )
        >>> guide = bo.SDEGuide(model, train)
        >>> sorted(bo.elbo_terms(model, guide, train).kl)[:2]
        ['field.diffusion.scale', 'field.drift.weights']
    """

    def __init__(
        self, model: DynamicalModel, trajectories: Trajectories, context: str = "free"
    ) -> None:
        super().__init__()
        if context not in CONTEXTS:
            raise DataError(f"context must be one of {CONTEXTS}, not {context!r}.")
        if not hasattr(getattr(model, "solver", None), "noise_grid"):
            raise DataError(
                "SDEGuide is for models with process noise, field=SDEField(...) and "
                "solver=SDESolver(...); for an ODE take MeanFieldGuide."
            )
        self._model = (model,)  # in a tuple: no submodule, its parameters are not the guide's
        self.shared = MeanFieldGuide(_without_noise(model), trajectories)
        self.times = TrainingGrid(*model.units.dimensionless_times(trajectories))
        grid = self.solver.noise_grid(self.times.start, self.times.times)
        shape = (*grid.lengths.shape, self.solver.dim)
        self.register_buffer("num_steps", grid.reached[:, -1].clone())
        self.register_buffer(
            "origin", _smoothed(model, trajectories, grid.begins + grid.lengths, shape)
        )
        _check_noise(model, trajectories, self.origin)
        share = -(-FIRST_RATE * grid.lengths.clamp_min(1e-12)).expm1().unsqueeze(-1).expand(shape)
        self.offset = nn.Parameter(torch.zeros(shape))
        self.share_logit = nn.Parameter(torch.logit(share).clone())
        self.to(dtype=None if trajectories.values is None else trajectories.values.dtype)

    # ---- the declaration -------------------------------------------------------------------------
    @property
    def solver(self) -> SDESolver:
        """The model's solver."""
        return self._model[0].solver  # type: ignore[return-value]

    def posteriors(self, trajectories: Trajectories) -> dict[str, Any]:
        """The posterior of each site, in the model's order; `path.noise` given the others.

        Its noise grid goes through all training times of the asked series, and on through later
        asked times.

        Raises:
            DataError: For a series that was not in the fit.
        """
        laws: dict[str, Any] = dict(self.shared.posteriors(trajectories))
        return laws | {"path.noise": lambda values: self._noise(values, trajectories)}

    def solver_on(self, trajectories: Trajectories) -> SDESolver:
        """The solver on the noise grid of `posteriors`, for paths at any times."""
        _, asked = self._model[0].units.dimensionless_times(trajectories)
        grid = self.times.through(self.rows(trajectories), asked)
        return self.solver.on(grid, self.solver.noise_step or self.times.longest or None)

    def _noise(self, values: dict[str, Tensor], trajectories: Trajectories) -> ShiftedNoise:
        model, rows = self._model[0], self.rows(trajectories)
        _, field, _ = model.build(values, trajectories)
        sde: Any = field
        start, asked = model.units.dimensionless_times(trajectories)
        solver = self.solver_on(trajectories)
        grid = solver.noise_grid(start, asked)
        x0 = values["x0"]
        ends = (grid.begins + grid.lengths).to(x0).mT.unsqueeze(-1)  # (steps, series, 1)
        roots = grid.lengths.to(x0).sqrt().mT.unsqueeze(-1)
        targets, shares = self.origin[rows] + self.offset[rows], self.share_logit[rows].sigmoid()
        is_steered = self.num_steps[rows]

        def shift(k: int, x: Tensor) -> Tensor:
            if k >= targets.shape[1]:
                return torch.zeros_like(x)
            scale = sde.diffusion(ends[k], x)
            scale = torch.where(scale.abs() < SMALLEST_NOISE, SMALLEST_NOISE, scale)
            steered = shares[:, k] * (targets[:, k] - x) / (scale * roots[k].clamp_min(1e-12))
            return torch.where((k < is_steered).unsqueeze(-1), steered, 0.0)

        def walk(x0: Tensor, increments: Any) -> None:
            solver.walk(sde, x0, grid, increments)

        return ShiftedNoise(walk, shift, x0, grid.num_steps)

    def forward(self, trajectories: Trajectories) -> dict[str, Tensor]:
        """The guide as a Pyro program."""
        return draw_declared(self.posteriors(trajectories), trajectories)

    # ---- what fits and posteriors ask of a guide -------------------------------------------------
    @property
    def series(self) -> tuple[str | int, ...]:
        """Labels of the series of the fit."""
        return self.shared.series

    @property
    def supports(self) -> dict[str, Any]:
        """Support and event dimensions of each global site."""
        return self.shared.supports

    def location(self, site: str) -> Tensor:
        """Location of an unconstrained site."""
        return self.shared.location(site)

    def warm_start(self, model: DynamicalModel, train: Trajectories) -> None:
        """Match the drift to the smoothed data and put x0 on them; no path is solved."""
        order = train.positions(self.series)
        for site, start in match_drift(model, train).items():
            value, scale = start.value, start.scale
            if site == "x0":
                value, scale = value[order], scale[order]
            self.shared.set_site(site, value, scale, start.unit)

    def rows(self, trajectories: Trajectories) -> Tensor:
        """Rows of the tables that belong to these series, (series,)."""
        return self.shared.rows(trajectories)

    def row_parameters(self) -> list[nn.Parameter]:
        """Parameters with one row per series, in the order of `series`."""
        return [*self.shared.row_parameters(), self.offset, self.share_logit]

    def predictive(self, model: DynamicalModel, train: Trajectories) -> SDEPredictive:
        """How the fitted guide predicts."""
        return SDEPredictive(model, self)


def _without_noise(model: DynamicalModel) -> DynamicalModel:
    """A copy whose paths are not random, to declare what is random beside them."""
    plain = copy.deepcopy(model)
    plain.solver = FixedGridSolver()
    return plain


def _check_noise(model: DynamicalModel, trajectories: Trajectories, states: Tensor) -> None:
    """Refuse a model whose paths cannot be steered, seen at smoothed data and prior medians.

    Args:
        model: With process noise.
        trajectories: Its data.
        states: Shape (series, steps, state).
    """
    model, states = copy.deepcopy(model).double(), states.double()  # parts may differ in dtype
    with torch.no_grad():
        law, sde, _ = model.build(model.prototype(), trajectories)
        equation: Any = sde
        start, _ = model.units.dimensionless_times(trajectories)
        mean, begin = law.mean, start.to(states).unsqueeze(-1)
        try:
            model.solver.check(equation, mean, start)  # type: ignore[attr-defined]
            x = torch.cat([mean.expand(1, len(begin), -1), states.movedim(-2, 0)])
            rate_of(equation.drift, begin, x)
            noise = equation.diffusion(begin, x).expand_as(x)
        except RuntimeError as error:  # of torch, as a network for other states raises it
            raise ShapeError(
                f"drift and noise cannot be evaluated at states of {mean.shape[-1]} components: "
                f"{error}"
            ) from error
    is_silent = (noise == 0).all(0).all(0)
    if not noise.isfinite().all() or is_silent.any():
        raise DataError(
            f"the process noise of component {int(is_silent.int().argmax())} is 0 everywhere, or "
            "not a finite number somewhere: such paths cannot be steered to the data. Give each "
            "component noise (StateNoise has a floor); an ODE takes FixedGridSolver and "
            "MeanFieldGuide."
        )


def _smoothed(
    model: DynamicalModel, trajectories: Trajectories, at: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """Smoothed data in model units at some times (series, steps); 0, the mean, without data."""
    path, response = torch.zeros(shape), getattr(model.likelihood, "working_response", None)
    values, mask = trajectories.values, trajectories.mask
    if response is None or values is None or mask is None or values.dim() != 3:
        return path
    _, times = model.units.dimensionless_times(trajectories)
    seen = smooth(times, response(values), mask, at).path
    path = path.to(seen)
    path[..., : seen.shape[-1]] = seen
    return path
