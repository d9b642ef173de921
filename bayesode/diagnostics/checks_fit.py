"""What can go wrong in a fit: not reached, too wide, not converged, a coarse solver."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from bayesode.diagnostics.facts import Facts
from bayesode.diagnostics.finding import Checked, Finding, numbers_of
from bayesode.inference.predictive import LARGEST_SOLVER_ERROR
from bayesode.inference.warm_start.attempts import GOOD_RATIO, LITTLE_DATA, MAX_ATTEMPTS

LARGEST_INFLATION = 1.2  # fitted noise over the best residual; good mean-field fits: 1.03-1.13
LARGEST_SHARE_USED = 0.5  # of the observations that the fit takes up; 50 good fits: .05-.08
NUM_SDS = 4.0  # of a difference of means that is no chance
FALSE_ALARM_RATE = 1e-3  # of structure in residuals, per fit, where the noise is white
# Between neighbouring residuals. With much data a trace of structure is no reason for an alarm: 60
# clean fits gave -.06 to .05, 20 with process noise .23 to .64.
LARGEST_CORRELATION = 0.1
EXACT_COVARIANCE = ("laplace",)  # engines whose covariance along a path is that of the posterior
PROCESS_NOISE = (
    "most likely the system is no ODE with independent measurement noise (process noise, unknown "
    "influences, drifting instruments). Fit the same data with process noise, bo.fit("
    "*bo.neural_sde(train), train): its bands allow for it, and where there is none it comes back "
    'to the ODE. If "fit not reached" is said too, a shorter horizon or more width may do.'
)
LARGEST_SHARE_SKIPPED = 0.05  # of the steps of a fit
LAST_STEPS = 25  # whose mean tells the ELBO at the end
LARGEST_GAIN = 10.0  # nats between the last steps and those before, and four standard errors
SMALLEST_NUM_STEPS = 50  # for the course of an ELBO to be judged


def check_reached(facts: Facts) -> Checked:
    """Whether the path comes as close to the data as the smoother says it can."""
    names = facts.train.names
    ratio = facts.residual_scale / facts.smoothers_noise
    numbers = {
        "residual / smoother's noise": numbers_of(names, ratio.tolist()),
        "fitted noise / smoother's noise": numbers_of(
            names, (facts.noise / facts.smoothers_noise).tolist()
        ),
    }
    worst = ratio.max().item()
    name, history = names[int(ratio.argmax())], facts.posterior.history
    # a start that was reached and then left is over-regularised: the check of the width says so
    if worst < GOOD_RATIO or _start_ratio(facts) < GOOD_RATIO:
        return Checked([], numbers)
    tries = _num_attempts(history)
    # starts end early when two of them agree; with little data all are made and tell nothing
    is_doubtful = facts.train.num_observed < LITTLE_DATA or 0 < tries < MAX_ATTEMPTS
    if is_doubtful:
        sentence = (
            f"noise estimate of the smoother and of the fit differ: the residual of {name} is "
            f"{worst:.2g} times the smoother's noise, while random starts agree on it or the data "
            "are few. Most likely the smoother's estimate is too small."
        )
        return Checked([Finding("noise estimates differ", sentence, "", "note")], numbers)
    sentence = (
        f"no trajectory fit: the residual of {name} is {worst:.2g} times the smoother's noise, and "
        "random starts do not agree."
    )
    mend = "fit a shorter horizon first (train.until(...)), take more width, or finer data."
    return Checked([Finding("fit not reached", sentence, mend, "alarm")], numbers)


def _start_ratio(facts: Facts) -> float:
    """Noise of the warm start over the smoother's; infinite if that is not known."""
    ratio = getattr(facts.posterior.history, "start_ratio", None)
    return math.inf if ratio is None else float(ratio)


def _num_attempts(history: Any) -> int:
    """Random starts of a fit, 0 if not known."""
    evidences = getattr(history, "log_evidence", None)
    return len(evidences) if evidences else int(getattr(history, "num_attempts", 0) or 0)


def check_width(facts: Facts) -> Checked:
    """Noise that is inflated to pay for weights, and weights that take up the data."""
    names, count = facts.train.names, facts.train.num_observed
    numbers = {"weights / observed numbers": f"{facts.num_weights} / {count}"}
    findings = []
    used = getattr(facts.posterior.history, "num_weights_used", None)
    if used is not None:
        numbers["numbers that the data determine"] = f"{used:.3g}"
    if used is not None and used > LARGEST_SHARE_USED * count:
        findings.append(
            Finding(
                "too few points",
                f"weights and initial states take up {used:.3g} of {count} observed numbers: "
                "hardly any are left to tell the noise.",
                "get more data, or make the network narrower (hidden=[...]).",
                "alarm",
            )
        )
    inflation = facts.noise / _best_residual(facts)
    numbers["fitted noise / best residual"] = numbers_of(names, inflation.tolist())
    # paths with noise of their own follow the data as closely as they like: nothing is inflated
    is_judged = facts.posterior.settings.get("engine") == "svi" and not facts.has_random_paths
    if is_judged and inflation.max() > LARGEST_INFLATION:
        findings.append(
            Finding(
                "too wide",
                f"the fitted noise of {names[int(inflation.argmax())]} is "
                f"{inflation.max().item():.2g} times what the data need ({facts.num_weights} "
                f"weights for {count} observed numbers): mean field pays for weights that are not "
                "needed by inflating the noise, and bands are as much too wide.",
                "halve the width (hidden=[...]) until the ratio is below 1.2, or take fit_laplace.",
                "alarm",
            )
        )
    return Checked(findings, numbers)


def _best_residual(facts: Facts) -> Tensor:
    """The noise as it would be without the price of weights, (component,).

    That of the warm start, or of the fit itself where it is smaller.
    """
    start = _start_ratio(facts)
    reached = max(1.0, start) if math.isfinite(start) else 1.0
    return torch.minimum(facts.residual_scale, reached * facts.smoothers_noise)


def check_residuals(facts: Facts) -> Checked:
    """Residuals of neighbouring times that are alike, and residuals of another size than noise.

    A fit follows the noise a little, so its residuals are no white noise either: that of y_i and
    y_j has the mean product - Cov(path_i, path_j), the posterior's, and the squares of a residual
    and of the path's posterior sd add up to the noise variance. With both taken into account the
    correlation of n pairs of neighbours (of a series and component, missing values skipped) has
    mean 0 and at most the variance 1/n where noise is white, whatever the fit takes up. Of engines
    whose covariance along the path is not to be trusted (mean field makes it two or three times too
    large) it is not taken into account: the correlation has a mean below 0 then.

    Tested are the correlation of all components together and, where there are several, of each
    alone. The false-alarm rate is at most 1 in 1,000 per fit: half of it goes to the first test,
    half to the others. Paths with noise of their own are not tested: they follow what lasts.
    """
    names = facts.train.names
    is_known = facts.posterior.settings.get("engine") in EXACT_COVARIANCE
    deviation = facts.deviation if is_known else torch.zeros_like(facts.deviation[:1])
    correlation, count = _neighbours(facts.residual, deviation, facts.precision)
    size = (facts.residual.square() * facts.precision).nanmean((0, 1)).sqrt()
    numbers = {
        "residual correlation": numbers_of(names, correlation.tolist()),
        "residual / fitted noise": numbers_of(names, size.tolist()),
    }
    if facts.has_random_paths:
        return Checked([], numbers)
    all_pairs = count.sum().clamp_min(1)
    found = [("all components together", (correlation * count).sum() / all_pairs, all_pairs)]
    found += zip(names, correlation, count, strict=True)
    shares = [FALSE_ALARM_RATE / 2] + [FALSE_ALARM_RATE / 2 / len(names)] * len(names)
    excess = [
        (value.item() * math.sqrt(num) / _normal_quantile(share), name, value.item())
        for (name, value, num), share in zip(found, shares, strict=True)
        if value > LARGEST_CORRELATION
    ]
    worst, name, value = max(excess, default=(0.0, "", 0.0))
    if worst <= 1:
        return Checked([], numbers)
    sentence = (
        f"residuals of {name} at neighbouring times are alike (correlation {value:.2g}, where "
        f"independent noise stays below {value / worst:.2g} in 999 of 1,000 fits): the fit misses "
        "something that lasts, and its forecasts are over-confident."
    )
    return Checked([Finding("structure in residuals", sentence, PROCESS_NOISE, "alarm")], numbers)


def _neighbours(residual: Tensor, deviation: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of neighbouring errors, and the number of pairs, each (component,).

    Args:
        residual: NaN where missing, shape (series, time, component).
        deviation: Draws of the path minus their mean, (draws, series, time, component).
        precision: 1 / noise variance, shape (series, time, component).
    """
    # observed values first, in the order of time: then columns side by side are neighbours
    order = residual.isnan().to(torch.uint8).argsort(dim=1, stable=True)
    scaled = (residual * precision.sqrt()).gather(1, order)
    spread = (deviation * precision.sqrt()).gather(2, order.expand_as(deviation))
    variance = (scaled.square() + spread.square().mean(0)).nanmean((0, 1))
    pairs = scaled[:, 1:] * scaled[:, :-1] + (spread[:, :, 1:] * spread[:, :, :-1]).mean(0)
    count = pairs.isfinite().sum((0, 1))
    return pairs.nansum((0, 1)) / (variance * count.clamp_min(1)), count


def _normal_quantile(share: float) -> float:
    """Number of sds that a normal variable exceeds with this probability."""
    return NormalDist().inv_cdf(1 - share)


def check_steps(facts: Facts) -> Checked:
    """Whether the steps of an SVI fit went well."""
    history, findings = facts.posterior.history, []
    elbo = torch.tensor(getattr(history, "elbo", []), dtype=torch.float64)
    if getattr(history, "is_interrupted", False):
        text = f"the fit was stopped by the user after {len(elbo)} steps."
        findings.append(Finding("interrupted", text, "fit again to the end.", "alarm"))
    if len(elbo) == 0:
        return Checked(findings)
    skipped = int(getattr(history, "num_skipped", 0))
    numbers = {"steps, skipped": f"{len(elbo)}, {skipped}"}
    if skipped:
        findings.append(
            Finding(
                "skipped steps",
                f"{skipped} of {len(elbo)} steps had no finite gradient: drawn fields explode.",
                "lower learning_rate, tighten prior_scale, or take a smaller solver step.",
                "alarm" if skipped > LARGEST_SHARE_SKIPPED * len(elbo) else "note",
            )
        )
    if len(elbo) < SMALLEST_NUM_STEPS:
        text = f"{len(elbo)} steps are too few to judge the course of the ELBO."
        findings.append(Finding("few steps", text, "take the default num_steps.", "note"))
        return Checked(findings, numbers)
    findings += _course(elbo[elbo.isfinite()], history)
    return Checked(findings, numbers)


def _course(elbo: Tensor, history: Any) -> list[Finding]:
    """What the course of an ELBO shows: a start that was destroyed, an end that still rises."""
    last, before = elbo[-LAST_STEPS:], elbo[-2 * LAST_STEPS : -LAST_STEPS]
    error = math.hypot(last.std().item(), before.std().item()) / math.sqrt(LAST_STEPS)
    has_start = getattr(history, "start_ratio", None) is not None
    if has_start and last.mean() + NUM_SDS * error < elbo[0]:
        return [
            Finding(
                "warm start destroyed",
                f"the ELBO ends at {last.mean().item():.5g} nats, below the {elbo[0].item():.5g} "
                "at which it began.",
                "lower learning_rate ten times and fit again.",
                "alarm",
            )
        ]
    gain = (last.mean() - before.mean()).item()
    is_converged = getattr(history, "is_converged", None)  # None: the steps were asked for
    if is_converged is False:
        what = f"may gain up to {history.gain_limit:.3g} nats in another 100 steps"
    elif is_converged is None and gain > LARGEST_GAIN + NUM_SDS * error:
        what = f"still rose by {gain:.3g} nats over the last {LAST_STEPS} steps"
    else:
        return []
    return [Finding("ELBO not converged", f"the ELBO {what}.", "raise num_steps.", "alarm")]


def check_solver(facts: Facts) -> Checked:
    """Whether the solver's step is small enough."""
    error = facts.fitted.solver_error
    numbers = {"solver's error / noise": f"{error:.2g}"}
    if error <= LARGEST_SOLVER_ERROR:
        return Checked([], numbers)
    sentence = f"the solver's error is {error:.2g} of the noise: its step is too coarse."
    mend = "halve the solver's step (dataclasses.replace(plan, step=plan.step / 2)) and fit again."
    return Checked([Finding("solver too coarse", sentence, mend, "alarm")], numbers)
