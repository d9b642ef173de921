"""What can go wrong in a fit: not reached, too wide, not converged, a coarse solver."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesode.diagnostics.facts import Facts
from bayesode.diagnostics.finding import Checked, Finding, numbers_of
from bayesode.inference.predictive import LARGEST_SOLVER_ERROR
from bayesode.inference.warm_start.attempts import GOOD_RATIO, LITTLE_DATA, MAX_ATTEMPTS

LARGEST_INFLATION = 1.2  # fitted noise over the best residual; good mean-field fits: 1.03-1.13
LARGEST_SHARE_USED = 0.5  # of the observations that the fit takes up; 50 good fits: .05-.08
# Of residuals, lag one. Without structure its sd is 1 / sqrt(pairs), so 4 of them mean 3 false
# alarms in 100,000 components; with much data a trace of structure is no reason for an alarm.
LARGEST_CORRELATION, NUM_SDS = 0.25, 4.0
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
    """Residuals of neighbouring times that are alike, and residuals of another size than noise."""
    names = facts.train.names
    scaled = facts.residual * facts.precision.sqrt()
    pairs = scaled[:, 1:] * scaled[:, :-1]
    count = pairs.isfinite().sum((0, 1)).clamp_min(1)
    correlation = pairs.nanmean((0, 1)) / scaled.square().nanmean((0, 1))
    numbers = {
        "residual correlation": numbers_of(names, correlation.tolist()),
        "residual / fitted noise": numbers_of(
            names, scaled.square().nanmean((0, 1)).sqrt().tolist()
        ),
    }
    is_large = (correlation > LARGEST_CORRELATION) & (correlation * count.sqrt() > NUM_SDS)
    if not is_large.any():
        return Checked([], numbers)
    worst = int(torch.where(is_large, correlation, -1.0).argmax())
    sentence = (
        f"residuals of {names[worst]} at neighbouring times are alike (correlation "
        f"{correlation[worst].item():.2g}, where noise alone stays below "
        f"{NUM_SDS / math.sqrt(count[worst].item()):.2g}): the fit misses something that lasts."
    )
    mend = (
        "if random starts disagree, fit again with more width or a shorter horizon; else the truth "
        "may not be an ODE with independent noise (process noise, hidden states, drifting "
        "instruments), and forecasts are over-confident."
    )
    return Checked([Finding("structure in residuals", sentence, mend, "alarm")], numbers)


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
