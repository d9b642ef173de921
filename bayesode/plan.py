"""What to fit, decided by arithmetic on the data before any model is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch

from bayesode.errors import DataError
from bayesode.models.likelihoods.counts import SMALLEST_COUNT
from bayesode.trajectories import Trajectories
from bayesode.units import Units

TRANSFORM_OF = {
    "gaussian": "identity",
    "student_t": "identity",
    "lognormal": "log",
    "poisson": "log",
}
SMALLEST = {"poisson": SMALLEST_COUNT}  # zeros have no logarithm
ENGINES = ("auto", "laplace", "svi")
WIDTH_RULES = ("rule", "evidence")
MAX_LAPLACE_WEIGHTS = 2000  # the whole posterior covariance is inverted
LITTLE_DATA = 100  # observed numbers, below which one width is not to be trusted
SMALL_WIDTHS, WIDTHS = (3, 4, 6, 8), (4, 8, 16, 32)  # that compete by evidence, small data first
PRIOR_REASONS = {
    "laplace": "weights N(0, scale² / fan_in), biases N(0, scale²); tuned in the fit",
    "svi": "weights N(0, scale² / fan_in), biases N(0, scale²); scale 1 bends fits",
}
LARGEST_STEP = 0.15  # of the time unit: RK4 follows a field of unit speed to .1 noise sd
MAX_SUBSTEPS = 32  # per gap between times, at its 99 % quantile
MIN_STEPS = 40  # over the longest series: few times say little of the speed between them


@dataclass(frozen=True)
class FitPlan:
    """Settings of a neural ODE and the reason for each; change one with `dataclasses.replace`.

    `print(plan)` shows both; `neural_ode(train, plan=plan)` takes it.

    Args:
        likelihood: "gaussian", "student_t", "lognormal" or "poisson".
        units: Constructor arguments of `Units`.
        hidden: Widths of the hidden layers.
        step: Largest solver step, in dimensionless time.
        prior_scale: Of the weights, see `BayesianMLP`.
        reasons: A sentence per setting.
        engine: "laplace", "svi", or "auto": decided by `fit` from the model.
        candidates: Widths that `bayesode.systems.plan_by_evidence` is to fit and compare; none
            where `hidden` is decided.
    """

    likelihood: str
    units: dict[str, Any]
    hidden: tuple[int, ...]
    step: float
    prior_scale: float
    reasons: dict[str, str] = field(default_factory=dict)
    engine: str = "auto"
    candidates: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FitPlan:
        """The plan whose `config` this is, also after a way through JSON."""
        tuples = {name: tuple(config.get(name, ())) for name in ("hidden", "candidates")}
        settings: dict[str, Any] = {**config, **tuples}
        return cls(**settings)

    @property
    def config(self) -> dict[str, Any]:
        """Plain numbers, for saving."""
        return asdict(self)

    def __str__(self) -> str:
        units = self.units
        shown = {
            "likelihood": self.likelihood,
            "units": f"time unit {units['time_unit']:.4g}, {units['transform']} transform",
            "engine": self.engine,
            "hidden": self._hidden(),
            "step": f"{self.step:.3g}",
            "prior_scale": f"{self.prior_scale:g}",
        }
        width = max(map(len, shown.values()))
        lines = [f"  {k:<13}{v:<{width}}  {self.reasons.get(k, '')}" for k, v in shown.items()]
        return "\n".join(["Plan", *map(str.rstrip, lines)])

    def _hidden(self) -> str:
        if self.candidates:
            return f"one of {', '.join(map(str, self.candidates))}"
        return "x".join(map(str, self.hidden)) or "none"


def plan(
    train: Trajectories,
    likelihood: str = "gaussian",
    *,
    engine: str = "auto",
    width: str | int = "rule",
) -> FitPlan:
    """Units, engine, width, step and prior scale for a neural ODE of these data.

    Args:
        train: Training data, values (series, time, component).
        likelihood: "gaussian", "student_t" (noise with outliers), "lognormal" (positive data that
            vary by factors) or "poisson" (counts).
        engine: "laplace", "svi", or "auto": Laplace for at most 2,000 weights, whose bands hold
            best, else SVI.
        width: Of the hidden layer: "rule", "evidence" (several are fitted before the model is
            made, and the evidence decides), or a number.

    Raises:
        DataError: For an unknown likelihood, engine or width, too little data, a constant
            component, or values <= 0 with "lognormal".

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol().observed
        >>> bo.plan(train).hidden, bo.plan(train, engine="svi").hidden
        ((16,), (32,))
    """
    check_likelihood(likelihood)
    check_engine(engine)
    check_width(width, engine)
    units = Units.from_data(
        train, transform=TRANSFORM_OF[likelihood], smallest=SMALLEST.get(likelihood)
    )
    num_observed, dim = train.num_observed, len(train.names)
    hidden, why_hidden = (
        _width(num_observed, dim, "laplace") if isinstance(width, str) else _asked(width)
    )
    chosen, why_engine = choose_engine(count_weights(dim, hidden), engine)
    if isinstance(width, str) and chosen == "svi":
        hidden, why_hidden = _width(num_observed, dim, "svi")
    candidates: tuple[int, ...] = ()
    if width == "evidence":
        candidates = SMALL_WIDTHS if num_observed < LITTLE_DATA else WIDTHS
        why_hidden = "to be fitted; the evidence decides"
    step, why_step = _step(units, train)
    reasons = {
        "likelihood": "as asked",
        "units": "data have mean 0 and sd 1, the smoothed path moves one sd per time unit",
        "engine": why_engine,
        "hidden": why_hidden,
        "step": why_step,
        "prior_scale": PRIOR_REASONS[chosen],
    }
    return FitPlan(
        likelihood,
        units.config,
        hidden,
        step,
        3.0,
        reasons,
        engine=chosen,
        candidates=candidates,
    )


def check_likelihood(likelihood: str) -> None:
    """Refuse an unknown likelihood.

    Raises:
        DataError: Then.
    """
    if likelihood not in list(TRANSFORM_OF):
        raise DataError(f"likelihood must be one of {sorted(TRANSFORM_OF)}, not {likelihood!r}.")


def check_engine(engine: str) -> None:
    """Refuse an unknown engine.

    Raises:
        DataError: Then.
    """
    if engine not in list(ENGINES):
        raise DataError(f"engine must be one of {ENGINES}, not {engine!r}.")


def check_width(width: Any, engine: str) -> None:
    """Refuse what is no width, and an evidence without the engine that gives one.

    Raises:
        DataError: Then.
    """
    is_number = isinstance(width, int) and not isinstance(width, bool) and width > 0
    if not is_number and width not in list(WIDTH_RULES):
        raise DataError(f"width must be 'rule', 'evidence' or a positive number, not {width!r}.")
    if width == "evidence" and engine == "svi":
        raise DataError("width='evidence' is Laplace's; SVI gives none: take width='rule'.")


def count_weights(dim: int, hidden: Sequence[int]) -> int:
    """Numbers of a network from state to rate, biases included.

    Example:
        >>> count_weights(2, [16])
        82
    """
    sizes = [dim, *hidden, dim]
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))


def choose_engine(num_weights: int, engine: str = "auto") -> tuple[str, str]:
    """The engine for a network with so many random numbers in data space, and why."""
    if engine != "auto":
        return engine, "as asked"
    if num_weights > MAX_LAPLACE_WEIGHTS:
        return "svi", f"{num_weights} random numbers, Laplace takes {MAX_LAPLACE_WEIGHTS}"
    return "laplace", f"{num_weights} random numbers in data space: its bands hold best"


def _asked(width: int) -> tuple[tuple[int, ...], str]:
    return (width,), "as asked"


def _width(num_observed: int, dim: int, engine: str) -> tuple[tuple[int, ...], str]:
    seen = f"{num_observed} observed numbers"
    if num_observed < LITTLE_DATA:
        width = _by_count(num_observed, dim, smallest=3)
        return (width,), f"only {seen}: take fit_candidates, which compares widths"
    if engine == "laplace":
        width, size = (16, "one or two") if dim < 3 else (32, "three or more")
        return (width,), f"{size} components, {seen}; the tuned prior switches off what is idle"
    width = _by_count(num_observed, dim, smallest=8)
    return (width,), f"{seen}, about one weight for six; 8 to 32"


def _by_count(num_observed: int, dim: int, smallest: int) -> int:
    weights_for_data = (num_observed / 6 - dim) / (2 * dim + 1)
    return int(min(32, max(smallest, round(weights_for_data))))


def longest_gap(units: Units, train: Trajectories) -> float:
    """Dimensionless distance of neighbouring times, its 99 % quantile."""
    start, times = units.dimensionless_times(train)
    gaps = torch.diff(times, dim=-1, prepend=start.unsqueeze(-1))
    return gaps[gaps > 0].quantile(0.99).item()


def _step(units: Units, train: Trajectories) -> tuple[float, str]:
    start, times = units.dimensionless_times(train)
    gap = longest_gap(units, train)
    span = (times[:, -1] - start).max().item()
    # so few times that the time unit itself is a guess: the speed between them was not seen
    wanted = max(gap / LARGEST_STEP, MIN_STEPS * gap / span)
    count = min(MAX_SUBSTEPS, max(1, math.ceil(wanted - 1e-9)))
    step = max(gap / count, 1e-6)
    why = f"of the time unit: {count} in a long gap between times ({gap:.3g})"
    if step > LARGEST_STEP * 1.001:
        return step, why + ", the most that are taken"
    is_sparse = count > math.ceil(gap / LARGEST_STEP - 1e-9)
    return step, why + (f", {MIN_STEPS} in all" if is_sparse else "")
