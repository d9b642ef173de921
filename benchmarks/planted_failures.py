"""Whether reports find what is wrong, and are silent where nothing is.

Eight failures are planted in simulated data or settings; each has to appear in the report by name.
Good fits are five clean systems at their usual data, asked over twice the horizon of the data: an
alarm there is a false one.

    python -m benchmarks.planted_failures [--failures NAMES] [--seeds 1,2] [--good-seeds 1,2]
        [--json FILE]
"""

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

import bayesode as bo
from bayesode.datasets.simulated import System, simulate, uniform_initial
from benchmarks.tasks import SYSTEMS

Fitted = tuple[bo.Posterior, bo.Trajectories]
GOOD = ("van_der_pol", "fitzhugh_nagumo", "lotka_volterra", "damped_pendulum", "glycolysis")
WIDTH = 16


class Failure(NamedTuple):
    """A planted failure.

    Args:
        plant: From a seed to a fit and a question.
        finding: Name of the finding that has to be among the alarms.
    """

    plant: Callable[[int], Fitted]
    finding: str


def laplace(train: bo.Trajectories, seed: int, hidden: list[int] | None = None) -> bo.Posterior:
    """The Laplace posterior of a neural ODE."""
    model, _ = bo.neural_ode(train, hidden=hidden, verbose=False)
    return bo.fit_laplace(model, train, seed=seed, progress=False)


def beyond(train: bo.Trajectories, factor: float) -> bo.Trajectories:
    """A question over a multiple of the horizon of the data."""
    horizon, num_times = float(train.times.max()), train.times.shape[-1]
    return train.at(torch.linspace(0, factor * horizon, int(factor * num_times)))


def few_points(seed: int) -> Fitted:
    """Ten times on a circuit and a half of van der Pol, three series."""
    train = bo.datasets.van_der_pol(num_series=3, num_times=10, seed=seed).observed
    return laplace(train, seed), train


def wide_network(seed: int) -> Fitted:
    """322 weights by mean field for 300 numbers."""
    train = bo.datasets.van_der_pol(num_series=3, num_times=50, seed=seed).observed
    model, guide = bo.neural_ode(train, hidden=[64], verbose=False)
    return bo.fit_svi(model, guide, train, seed=seed, progress=False), train


UNSTABLE_SPIRAL = System(
    lambda x, y: (0.5 * x + 2 * y, 0.5 * y - 2 * x),
    ("x", "y"),
    {},
    uniform_initial(-1.0, 1.0, 2),
    4.0,
    0.05,
)


def explosive_field(seed: int) -> Fitted:
    """A spiral that grows e-fold every two time units, asked over three horizons."""
    settings = dict(noise_scale=None, times=None, missing=0.0, horizon=None)
    data = simulate(UNSTABLE_SPIRAL, num_series=5, num_times=40, seed=seed, **settings)
    return laplace(data.observed, seed, [WIDTH]), beyond(data.observed, 3)


def chaotic_forecast(seed: int) -> Fitted:
    """Lorenz, fitted over 2 time units and asked over 10."""
    train = bo.datasets.lorenz(num_series=5, seed=seed).observed
    return laplace(train, seed, [WIDTH]), beyond(train, 5)


def mixed_units(seed: int) -> Fitted:
    """One of ten series in thousandths, or, for odd seeds, in tenths and from another zero."""
    train = bo.datasets.van_der_pol(seed=seed).observed
    values = train.values.clone()
    row = seed % train.num_series
    values[row] = 10 * values[row] + 50 if seed % 2 else 1000 * values[row]
    mixed = bo.Trajectories(train.times, values, names=train.names)
    return laplace(mixed, seed, [WIDTH]), mixed


def constant_component(seed: int) -> Fitted:
    """A third component that rests at 5 and is measured with noise."""
    train = bo.datasets.van_der_pol(seed=seed).observed
    generator = torch.Generator().manual_seed(seed)
    rest = 5 + 0.1 * torch.randn(*train.values.shape[:2], 1, generator=generator)
    values = torch.cat([train.values, rest], -1)
    three = bo.Trajectories(train.times, values, names=[*train.names, "constant"])
    return laplace(three, seed, [WIDTH]), three


def process_noise(seed: int, num_series: int = 10, num_times: int = 50) -> Fitted:
    """An ODE for a system with 10 % process noise."""
    simulate_noisy = bo.datasets.stochastic_lotka_volterra
    train = simulate_noisy(num_series=num_series, num_times=num_times, seed=seed).observed
    return bo.fit(*bo.neural_ode(train, verbose=False), train, seed=seed, progress=False), train


FAILURES = {
    "too few points": Failure(few_points, "too few points"),
    "too wide a network": Failure(wide_network, "too wide"),
    "explosive field": Failure(explosive_field, "blow-up"),
    "chaotic forecast": Failure(chaotic_forecast, "chaotic forecast"),
    "wrong units mixed": Failure(mixed_units, "wrong units mixed"),
    "constant component": Failure(constant_component, "constant component"),
    "process noise": Failure(process_noise, "structure in residuals"),
    "process noise in few data": Failure(
        partial(process_noise, num_series=3, num_times=40), "structure in residuals"
    ),
}


def good_fit(system: str, seed: int) -> Fitted:
    """A clean system at its usual data, asked over twice the horizon."""
    train = SYSTEMS[system].simulate(seed=seed).observed
    return laplace(train, seed, [WIDTH]), beyond(train, 2)


def record(case: str, seed: int, make: Callable[[], Fitted]) -> dict:
    """The alarms of a report, and its seconds."""
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is the report's to say
        posterior, question = make()
    fitted = time.perf_counter()
    report = bo.diagnostics.diagnose(posterior, question)
    return {
        "case": case,
        "seed": seed,
        "alarms": [finding.name for finding in report.alarms],
        "sentences": [finding.sentence for finding in report.findings],
        "numbers": report.numbers,
        "seconds_fit": fitted - begin,
        "seconds_report": time.perf_counter() - fitted,
    }


def _whole(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main(arguments: list[str] | None = None) -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--failures", default=",".join(FAILURES), help="names, comma-separated")
    parser.add_argument("--seeds", type=_whole, default=list(range(5)), help="of the failures")
    parser.add_argument("--good-seeds", type=_whole, default=list(range(10)), help="of good fits")
    parser.add_argument("--json", help="file for the records")
    chosen = parser.parse_args(arguments)
    records = []
    print(f"{'planted failure':<22}{'found':<9}other alarms")
    for name in filter(None, chosen.failures.split(",")):
        plant, finding = FAILURES[name]
        some = [record(name, seed, partial(plant, seed)) for seed in chosen.seeds]
        found = sum(finding in one["alarms"] for one in some)
        others = Counter(alarm for one in some for alarm in set(one["alarms"]) - {finding})
        print(f"{name:<22}{f'{found} of {len(some)}':<9}{dict(others) or ''}", flush=True)
        records += some
    print(f"\n{'good fits':<22}{'alarmed':<9}alarms")
    for name in GOOD:
        some = [record(name, s, partial(good_fit, name, s)) for s in chosen.good_seeds]
        alarms = Counter(alarm for one in some for alarm in set(one["alarms"]))
        count = sum(bool(one["alarms"]) for one in some)
        print(f"{name:<22}{f'{count} of {len(some)}':<9}{dict(alarms) or ''}", flush=True)
        records += some
    if chosen.json:
        with open(chosen.json, "w") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    main()
