"""What to fit, decided by arithmetic on the data before any model is built."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from bayesode.errors import DataError
from bayesode.trajectories import Trajectories
from bayesode.units import Units

TRANSFORM_OF = {"gaussian": "identity", "lognormal": "log"}
LARGEST_STEP = 0.15  # of the time unit: RK4 follows a field of unit speed to .1 noise sd
MAX_SUBSTEPS = 8  # per gap between times, at its 99 % quantile


@dataclass(frozen=True)
class FitPlan:
    """Settings of a neural ODE and the reason for each; change one with `dataclasses.replace`.

    `print(plan)` shows both; `neural_ode(train, plan=plan)` takes it.

    Args:
        likelihood: "gaussian" or "lognormal".
        units: Constructor arguments of `Units`.
        hidden: Widths of the hidden layers.
        step: Largest solver step, in dimensionless time.
        prior_scale: Of the weights, see `BayesianMLP`.
        reasons: A sentence per setting.
    """

    likelihood: str
    units: dict[str, Any]
    hidden: tuple[int, ...]
    step: float
    prior_scale: float
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Plain numbers, for saving."""
        return asdict(self)

    def __str__(self) -> str:
        units = self.units
        shown = {
            "likelihood": self.likelihood,
            "units": f"time unit {units['time_unit']:.4g}, {units['transform']} transform",
            "hidden": "x".join(map(str, self.hidden)) or "none",
            "step": f"{self.step:.3g}",
            "prior_scale": f"{self.prior_scale:g}",
        }
        width = max(map(len, shown.values()))
        lines = [f"  {k:<13}{v:<{width}}  {self.reasons.get(k, '')}" for k, v in shown.items()]
        return "\n".join(["Plan", *map(str.rstrip, lines)])


def plan(train: Trajectories, likelihood: str = "gaussian") -> FitPlan:
    """Units, width, step and prior scale for a neural ODE of these data.

    Args:
        train: Training data, values (series, time, component).
        likelihood: "gaussian", or "lognormal" for positive data that vary by factors.

    Raises:
        DataError: For an unknown likelihood, too little data, a constant component, or values <= 0
            with "lognormal".

    Example:
        >>> import bayesode as bo
        >>> bo.plan(bo.datasets.van_der_pol().observed).hidden
        (32,)
    """
    check_likelihood(likelihood)
    units = Units.from_data(train, transform=TRANSFORM_OF[likelihood])
    width, why_width = _width(train.num_observed, len(train.names))
    step, why_step = _step(units, train)
    reasons = {
        "likelihood": "as asked",
        "units": "data have mean 0 and sd 1, the smoothed path moves one sd per time unit",
        "hidden": why_width,
        "step": why_step,
        "prior_scale": "weights N(0, scale² / fan_in), biases N(0, scale²); scale 1 bends fits",
    }
    return FitPlan(likelihood, units.config, (width,), step, 3.0, reasons)


def check_likelihood(likelihood: str) -> None:
    """Refuse an unknown likelihood.

    Raises:
        DataError: Then.
    """
    if likelihood not in list(TRANSFORM_OF):
        raise DataError(f"likelihood must be one of {sorted(TRANSFORM_OF)}, not {likelihood!r}.")


def _width(num_observed: int, dim: int) -> tuple[int, str]:
    weights_for_data = (num_observed / 6 - dim) / (2 * dim + 1)
    smallest = 8 if num_observed >= 100 else 3
    width = int(min(32, max(smallest, round(weights_for_data))))
    return width, f"{num_observed} observed numbers, about one weight for six; {smallest} to 32"


def _step(units: Units, train: Trajectories) -> tuple[float, str]:
    start, times = units.dimensionless_times(train)
    gaps = torch.diff(times, dim=-1, prepend=start.unsqueeze(-1))
    gap = gaps[gaps > 0].quantile(0.99).item()
    count = min(MAX_SUBSTEPS, max(1, math.ceil(gap / LARGEST_STEP - 1e-9)))
    step = max(gap / count, 1e-6)
    why = f"of the time unit: {count} in a long gap between times ({gap:.3g})"
    return step, why + (", the most that are taken" if step > LARGEST_STEP * 1.001 else "")
