"""What can be wrong with the data of a fit: units, components that rest, too few points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesode.diagnostics.facts import Facts
from bayesode.diagnostics.finding import Checked, Finding, numbers_of

# A series' spread beside the median series': on the simulated systems at most 3.
LARGEST_FACTOR = 8.0
OUTLYING = 5.0  # robust sds between series: data that vary by factors must not look like units
FEWEST_SERIES = 3  # to say which one is the odd one out
MAD_TO_SD = 1.4826  # of a normal
# Mean squared change between neighbours over twice the variance: 1 for noise, 0 for slow movement.
NOTHING_BUT_NOISE = 0.8  # that is movement of half a noise sd, which nothing can be learned from
# A wave with k points a turn has 1 - cos(2 pi / k). 50 good fits have 20 and more, and lengthscales
# of 3.3 gaps and more; ten points on van der Pol have 6.
FEWEST_PER_TURN = 8.0
RESTS = 1e-20  # a variance that is rounding
FEWEST_POINTS = 12  # of a series, below which noise and quick movement look the same
SMOOTHEST = 1e-3  # 140 points a turn: no noise estimate tells more
SHORTEST_LENGTHSCALE = 2.0  # gaps: below that the smoother interpolates noise


def check_units(facts: Facts) -> Checked:
    """Series in another unit than the rest, found by their spread and level in users' units."""
    if facts.train.num_series < FEWEST_SERIES:
        return Checked()
    values = facts.values
    level = values.nanmedian(1).values  # (series, component)
    spread = (values - level.unsqueeze(1)).abs().nanmedian(1).values * MAD_TO_SD
    jitter = values.diff(dim=1).diff(dim=1).abs().nanmedian(1).values
    size = values.square().nanmean(1).sqrt()
    findings = []
    for column, name in enumerate(facts.train.names):
        wide = _outlying(spread[:, column])
        # noise knows no dynamics: a series at rest has little movement, but the noise of the others
        small = [_outlying(number[:, column]) for number in (size, jitter)]
        factors = torch.where(torch.maximum(*small) < 0, torch.maximum(*small), wide.clamp_min(0))
        shift = _shifts(level[:, column], spread[:, column])
        for row in (factors.ne(0) | shift.ne(0)).nonzero().flatten().tolist():
            factor, distance = factors[row].exp().item(), shift[row].item()
            label = facts.train.series[row]
            findings.append(_odd_series(label, name, factor, distance))
    return Checked(findings)


def _outlying(numbers: Tensor) -> Tensor:
    """Log ratio to the median series where it is out of all proportion, else 0, (series,)."""
    logs = numbers.clamp_min(1e-300).log()
    deviation = logs - logs.nanmedian()
    between = MAD_TO_SD * deviation.abs().nanmedian()
    is_odd = deviation.abs() > max(math.log(LARGEST_FACTOR), float(OUTLYING * between))
    return torch.where(is_odd & (numbers > 0), deviation, 0.0)


def _shifts(level: Tensor, spread: Tensor) -> Tensor:
    """Distance from the median series' level where it is out of all proportion, else 0."""
    distance = level - level.nanmedian()
    between = MAD_TO_SD * distance.abs().nanmedian()
    usual = torch.maximum(spread.nanmedian(), between)
    return torch.where(distance.abs() > LARGEST_FACTOR * usual, distance, 0.0)


def _odd_series(label: str | int, name: str, factor: float, distance: float) -> Finding:
    seen = []
    if factor != 1:
        seen.append(f"varies {factor:.3g} times as much as the median series")
    if distance:
        seen.append(f"lies {distance:+.3g} away from it")
    return Finding(
        "wrong units mixed",
        f"{name} of series {label!r} {' and '.join(seen)}: it looks recorded in another unit.",
        "bring all series to one unit before the fit; if the series is right, fit it on its own "
        "or on a log scale (likelihood='lognormal').",
        "alarm",
    )


def check_movement(facts: Facts) -> Checked:
    """Components that do not move beyond their noise."""
    change, variance = _movement(facts.response)
    # summed over series, so that one series that moves is enough
    roughness = _ratio(change.nansum(0), variance.nansum(0))
    if _points_per_series(facts.response) < FEWEST_POINTS:
        roughness = torch.where(variance.nansum(0) <= RESTS, roughness, 0.0)
    findings = [
        Finding(
            "constant component",
            f"{name} does not move beyond its noise (or faster than it was sampled): nothing about "
            "its dynamics can be learned from it.",
            "leave the component out, and give its level as an input if the others depend on it.",
            "alarm",
        )
        for name, rough in zip(facts.train.names, roughness.tolist(), strict=True)
        if rough > NOTHING_BUT_NOISE
    ]
    return Checked(findings)


def check_sampling(facts: Facts) -> Checked:
    """Points too far apart to see how the path turns between them."""
    change, variance = _movement(facts.response)  # first: says what a likelihood lacks
    names, smoothed = facts.train.names, facts.smoothed
    rough = _ratio(change, variance).nanmedian(0).values  # of a series that is not the odd one
    is_short = _points_per_series(facts.response) < FEWEST_POINTS
    noise = torch.minimum(facts.smoothers_noise, facts.noise).square()
    moving = rough - noise / variance.nanmedian(0).values.clamp_min(1e-300)
    if is_short:  # a noise estimate from movement that was not seen is no estimate
        moving = torch.where(rough > NOTHING_BUT_NOISE, rough, moving)
    moving = moving.clamp(SMOOTHEST, 2.0)
    per_turn = 2 * math.pi / torch.arccos(1 - moving)
    lengths = smoothed.lengthscale / facts.gap
    numbers = {
        "points a turn": numbers_of(names, per_turn.tolist()),
        "smoother's lengthscale / gap": numbers_of(names, lengths.tolist()),
    }
    findings = []
    for name, few, length, rough_one in zip(
        names, per_turn.tolist(), lengths.tolist(), rough.tolist(), strict=True
    ):
        is_sparse = few < FEWEST_PER_TURN or length < SHORTEST_LENGTHSCALE
        if is_sparse and (is_short or rough_one <= NOTHING_BUT_NOISE):  # else it is noise
            findings.append(
                Finding(
                    "too few points",
                    f"{name} has about {few:.2g} points a turn (needed: {FEWEST_PER_TURN:g}) and a "
                    f"lengthscale of {length:.2g} gaps: how it moves between them is not in the "
                    "data.",
                    "sample more densely; more series at the same spacing help less. Until then "
                    "trust neither derivatives nor the noise estimate.",
                    "alarm",
                )
            )
    return Checked(findings, numbers)


def _movement(response: Tensor) -> tuple[Tensor, Tensor]:
    """Half the mean squared change between neighbours, and the variance, (series, component).

    Source: von Neumann (1941), "Distribution of the ratio of the mean square successive difference
    to the variance", Annals of Mathematical Statistics 12(4).
    """
    deviation = response - response.nanmean(1, keepdim=True)
    change = response.diff(dim=1).square().nanmean(1) / 2
    return change, deviation.square().nanmean(1)


def _points_per_series(response: Tensor) -> float:
    return response.isfinite().sum(1).double().median().item()


def _ratio(change: Tensor, variance: Tensor) -> Tensor:
    """1 for what does not move but for noise, or not by a digit."""
    return torch.where(variance <= RESTS, 1.0, change / variance.clamp_min(1e-300))
