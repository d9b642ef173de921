"""The Gauss-Newton posterior of weights and initial states, with linearised predictions."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bayesode.errors import DataError, FitError
from bayesode.inference.copies import own_copies
from bayesode.inference.posterior import Posterior
from bayesode.inference.randomness import seeded
from bayesode.inference.svi import check_data
from bayesode.inference.threads import threads_for
from bayesode.inference.warm_start.evidence import Covariance, LaplaceFit
from bayesode.inference.warm_start.flat import FlatField
from bayesode.inference.warm_start.levenberg_marquardt import Point
from bayesode.inference.warm_start.problem import FitData
from bayesode.inference.warm_start.start import MAX_ATTEMPTS, MAX_WEIGHTS, attempts, prepare
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories
from bayesode.units import Float64Module

PRIOR_SCALES = ("mackay", "fixed")
CLIMATE = 2.0  # sd, in data sds, of what is believed where the data determine nothing
SMALLEST_FREEDOM = 3.0  # of the Student t: below that its variance does not exist


@dataclass
class LaplaceHistory:
    """What happened during a fit.

    Args:
        log_evidence: Of each random start, nats, values in users' units.
        num_rounds: Rounds of the best start until fit and scales agreed.
        num_weights_used: Numbers of the field and initial states that the data determine.
        seconds: Wall time.
    """

    log_evidence: list[float]
    num_rounds: int
    num_weights_used: float
    seconds: float = 0.0


class LaplaceGuide(Float64Module):
    """Mean and covariance of weights and initial states, and the posterior of the noise.

    Args:
        model: The fit's own copy of the model.
        train: The series whose initial states it holds.
    """

    weights: Tensor
    x0: Tensor
    covariance_weights: Tensor
    gain: Tensor
    own: Tensor
    noise_scale: Tensor
    freedom: Tensor
    log_evidence: Tensor

    def __init__(self, model: DynamicalModel, train: Trajectories) -> None:
        super().__init__()
        data = FitData.of(model, train)
        num_weights, (num_series, dim) = len(data.field.mean), data.x0_mean.shape
        shapes = {
            "weights": (num_weights,),
            "x0": (num_series, dim),
            "covariance_weights": (num_weights, num_weights),
            "gain": (num_series, dim, num_weights),
            "own": (num_series, dim, dim),
            "noise_scale": (data.response.shape[-1],),
            "freedom": (data.response.shape[-1],),
            "log_evidence": (),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.series = train.series

    def fill(self, fit: LaplaceFit, log_evidence: float) -> None:
        """Take on a fit."""
        count = fit.data.mask.sum((0, 1))
        values = {
            "weights": fit.point.weights,
            "x0": fit.point.states[:, 0],
            "covariance_weights": fit.covariance.weights,
            "gain": fit.covariance.gain,
            "own": fit.covariance.own,
            "noise_scale": fit.noise_scale,
            "freedom": (count - fit.leverage).clamp_min(SMALLEST_FREEDOM),
            "log_evidence": torch.tensor(log_evidence),
        }
        for name, value in values.items():
            getattr(self, name).copy_(value)

    def rows(self, trajectories: Trajectories) -> Tensor:
        """Rows of the initial states that belong to these series, (series,).

        Raises:
            DataError: For a series that was not in the fit.
        """
        known = {label: row for row, label in enumerate(self.series)}
        unknown = [label for label in trajectories.series if label not in known]
        if unknown:
            raise DataError(
                f"series {unknown[0]!r} was not in the fit, so nothing is known of its initial "
                f"state; the fit knows {list(self.series[:8])}. Fit again with it included."
            )
        return torch.tensor([known[label] for label in trajectories.series]).to(self.x0.device)

    def sample(
        self, model: DynamicalModel, trajectories: Trajectories, num_draws: int
    ) -> dict[str, Tensor]:
        """Draws per site, global ones (draws, 1, *event): weights, x0 and noise scales.

        A noise variance is inverse chi-square with (observations - leverage) degrees of freedom,
        so that values are Student t: the scale is integrated, not plugged in.
        """
        field, rows = FitData.of(model, trajectories).field, self.rows(trajectories)
        weights, x0 = self._covariance(rows).sample(num_draws)
        values = {f"field.{s}": v for s, v in field.unpack(self.weights + weights).items()}
        freedom = self.freedom.expand(num_draws, -1)
        chi_square = torch.distributions.Chi2(freedom).sample()
        noise = self.noise_scale * (freedom / chi_square).sqrt()
        for site, value in model.likelihood.starting_values(noise).items():
            values[f"likelihood.{site}"] = value
        values = {site: value.unsqueeze(1) for site, value in values.items()}
        return values | {"x0": self.x0[rows] + x0}

    def path(
        self, model: DynamicalModel, values: dict[str, Tensor], question: Trajectories
    ) -> tuple[Tensor, Tensor]:
        """Linearised paths of draws, within the climate.

        The solved path of the mean plus its Jacobian times the deviation of the draw. Weights that
        are drawn and solved again are useless: the linearisation is the posterior. Where its sd
        exceeds the data's, mean and sd shrink towards the data's own mean and twice their sd.

        Returns:
            Paths (draws, series, time, state) and which draws failed: none.
        """
        data, rows = FitData.of(model, question), self.rows(question)
        point = Point(self.weights, self.x0[rows].unsqueeze(1))
        path, by_weights, by_x0 = (part[:, 1:] for part in data.sensitivities(point))
        drawn = data.field.pack({s: values[f"field.{s}"].squeeze(1) for s in data.field.sites})
        change = torch.einsum("ntsp,dp->dnts", by_weights, drawn - self.weights)
        change += torch.einsum("ntsk,dnk->dnts", by_x0, values["x0"] - self.x0[rows])
        variance = self._covariance(rows).along(by_weights, by_x0)
        share = 1 / (1 + variance / CLIMATE**2)  # of the variance that the cap leaves
        frozen = _frozen(path, data.solver.max_state)
        paths = path * share + change * share.sqrt()
        climate = CLIMATE * torch.randn_like(paths)
        return torch.where(frozen, climate, paths), torch.zeros(
            len(paths), len(rows), dtype=torch.bool, device=paths.device
        )

    def center(self, model: DynamicalModel, question: Trajectories) -> dict[str, Tensor]:
        """The fit itself as one draw."""
        field, rows = FitData.of(model, question).field, self.rows(question)
        values = {f"field.{s}": v for s, v in field.unpack(self.weights).items()}
        for site, value in model.likelihood.starting_values(self.noise_scale).items():
            values[f"likelihood.{site}"] = value
        values = {site: value[None, None] for site, value in values.items()}
        return values | {"x0": self.x0[rows][None]}

    def rates(
        self, model: DynamicalModel, values: dict[str, Tensor], t: Tensor, points: Tensor
    ) -> Tensor:
        """Linearised fields dz/ds of draws at dimensionless points (draws, points, state)."""
        field = FlatField.of(model.field)

        def rate(weights: Tensor, point: Tensor) -> Tensor:
            return field.build(weights)(t.double(), point.unsqueeze(0)).squeeze(0)

        place = points[0].double()
        mean = torch.func.vmap(rate, (None, 0))(self.weights, place)
        slope = torch.func.vmap(torch.func.jacrev(rate), (None, 0))(self.weights, place)
        drawn = field.pack({s: values[f"field.{s}"].squeeze(1) for s in field.sites})
        return mean + torch.einsum("nsp,dp->dns", slope, drawn - self.weights)

    def uncapped_sd(self, model: DynamicalModel, question: Trajectories) -> Tensor:
        """Posterior sd of the path in data sds, (series, time, state); above 1: not determined."""
        data, rows = FitData.of(model, question), self.rows(question)
        point = Point(self.weights, self.x0[rows].unsqueeze(1))
        path, by_weights, by_x0 = (part[:, 1:] for part in data.sensitivities(point))
        sd = self._covariance(rows).along(by_weights, by_x0).sqrt()
        return torch.where(_frozen(path, data.solver.max_state), torch.inf, sd)

    def _covariance(self, rows: Tensor) -> Covariance:
        return Covariance(self.covariance_weights, self.gain, self.own).rows(rows)


def fit_laplace(
    model: DynamicalModel,
    train: Trajectories,
    *,
    seed: int | None = None,
    prior_scale: str = "mackay",
    progress: bool = True,
) -> Posterior:
    """The Gauss-Newton (Laplace) posterior of weights and initial states at the trajectory fit.

    Random starts, each brought to convergence together with noise scales and prior scales; the
    largest evidence wins. Predictions are linearised around the fit.

    Args:
        model: A model in data space with at most 2,000 random numbers in its field.
        train: Training data.
        seed: Same seed, same posterior; None takes one from torch's generator.
        prior_scale: "mackay" sets one prior scale per weight matrix by the evidence; "fixed" keeps
            the model's priors.
        progress: Show a bar on anything over two seconds.

    Raises:
        DataError: If the data cannot be fitted as they are.
        FitError: If the model has too many weights, or does not fit the data's units.

    Source: MacKay (1992); linearised predictions: Immer, Korzepa, Bauer (2021), arXiv:2008.08400;
    for neural ODEs Ott, Tiemann, Hennig (2023), arXiv:2305.13290.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=40).observed
        >>> model, _ = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_laplace(model, train, seed=0, progress=False)
        >>> posterior.predict(train, num_draws=50, seed=0).values.shape
        torch.Size([50, 3, 40, 2])
    """
    if prior_scale not in PRIOR_SCALES:
        raise DataError(f"prior_scale must be one of {PRIOR_SCALES}, not {prior_scale!r}.")
    check_data(model, train)
    begin = time.perf_counter()
    device = train.start.device
    with seeded(seed) as used_seed, pyro.get_param_store().scope(), torch.no_grad():
        model, _ = own_copies(model, None, dtype=train.values.dtype, device=device)  # type: ignore
        with threads_for(train.grid.numel()):
            tries = _fit(model, train, prior_scale == "mackay", progress)
        best = max(tries, key=lambda fit: fit.log_evidence)
        best.data.field.write_prior(model.field)
        shift = _to_users(model, train, best)
        guide = LaplaceGuide(model, train).to(device)
        guide.fill(best, best.log_evidence + shift)
        used = float(best.leverage.sum())
    history = LaplaceHistory([fit.log_evidence + shift for fit in tries], best.num_rounds, used)
    history.seconds = time.perf_counter() - begin
    settings = {"engine": "laplace", "seed": used_seed, "prior_scale": prior_scale}
    return Posterior(model, guide, train, history=history, settings=settings)


def _fit(
    model: DynamicalModel, train: Trajectories, is_tuned: bool, progress: bool
) -> list[LaplaceFit]:
    data, grid, smoothed = prepare(model, train)
    if len(data.field.mean) > MAX_WEIGHTS:
        raise FitError(
            f"the field has {len(data.field.mean)} random numbers, Laplace takes at most "
            f"{MAX_WEIGHTS}: make it narrower or take fit_svi."
        )
    prior = model.likelihood.noise_prior() if hasattr(model.likelihood, "noise_prior") else None
    tries = []
    with tqdm(total=MAX_ATTEMPTS, desc="Laplace", delay=2, disable=not progress) as bar:
        for fit in attempts(data, grid, smoothed, noise_prior=prior, is_tuned=is_tuned):
            tries.append(fit)
            best = max(tries, key=lambda one: one.log_evidence)
            bar.set_postfix(log_evidence=f"{best.log_evidence:.1f}", refresh=False)
            bar.update()
        bar.total = len(tries)
    return tries


def _to_users(model: DynamicalModel, train: Trajectories, fit: LaplaceFit) -> float:
    """What the evidence changes by when values are in users' units, nats."""
    data = fit.data
    path = data.path(fit.point)[:, 1:]
    noise = {k: v.double() for k, v in model.likelihood.starting_values(fit.noise_scale).items()}
    law = model.likelihood.build(noise)(path, train.mask)
    raw = law.log_prob(train.values.double()).sum()  # type: ignore[union-attr]
    plain = torch.distributions.Normal(path[..., : data.response.shape[-1]], fit.noise_scale)
    own = plain.log_prob(data.response[:, 1:])
    return float(raw - torch.where(data.mask[:, 1:], own, 0.0).sum())


def _frozen(path: Tensor, bound: float) -> Tensor:
    """Times from which on a path stands still because it left the bound, (series, time, 1)."""
    is_outside = ~(path.abs() <= bound * (1 - 1e-6)).all(-1, keepdim=True)
    stands = (path == path[:, -1:]).all(-1, keepdim=True)
    near = (path[:, -1:].abs() > bound / 2).any(-1, keepdim=True)
    return is_outside | (stands & near)
