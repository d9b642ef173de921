"""What can go wrong at the times that were asked: blow-up, chaos, nothing in the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayesode.diagnostics.facts import LARGEST_PARTING, Facts
from bayesode.diagnostics.finding import Checked, Finding

LARGEST_SHARE_FAILED = 0.01  # of draws in a forecast; none may fail at the data
REACH = 3.0  # ranges of the data: paths beyond are the network's invention
LARGEST_SHARE_OUTSIDE = 0.05  # of paths that leave the reach
LARGEST_SHARE_OPEN = 0.2  # of (time, component) that the data do not determine
SMALLEST_GROWTH = 1.5  # of the log distance beyond the data; shear alone: log 2 in a doubled span
SKIPPED = 0.25  # of the span, in which neighbours part by transients, in chaos or not
SMALLEST_NOISE = 0.01  # of a data sd, where an error begins to grow


def check_blow_up(facts: Facts) -> Checked:
    """Paths that leave the model's bound, or the range that the data know."""
    is_forecast = facts.time_beyond > 0
    ensemble = facts.asked if is_forecast else facts.fitted
    outside = _share_outside(facts)
    failed = max(ensemble.share_failed, _share_frozen(facts))
    numbers = {"failed draws": f"{failed:.2%}", "paths far outside the data": f"{outside:.2%}"}
    where = "in the forecast" if is_forecast else "at the data"
    allowed = LARGEST_SHARE_FAILED if is_forecast else 0.0
    if failed <= allowed and outside <= LARGEST_SHARE_OUTSIDE:
        return Checked([], numbers)
    sentence = (
        f"the field explodes {where}: {failed:.2%} of the draws leave the model's bound and "
        f"{outside:.0%} of the paths go further than {REACH:g} times the range of the data. Means "
        "and bands do not show it: failed draws are left out, linearised ones held back by the cap."
    )
    mend = (
        "ask for a shorter horizon, add data where the paths go, or tighten prior_scale (plan) so "
        "that the field stays tame outside the data."
    )
    return Checked([Finding("blow-up", sentence, mend, "alarm")], numbers)


def _share_outside(facts: Facts) -> float:
    """Share of the solved paths that leave the reach of the data."""
    size = facts.response.shape[-1]
    paths, failed = facts.asked_paths
    center = facts.response.nanmean((0, 1))
    reach = REACH * (facts.response - center).abs().nan_to_num(0.0).amax((0, 1))
    is_outside = ((paths[..., :size] - center).abs() > reach).any(-1).any(-1) | failed
    return is_outside.double().mean().item()


def _share_frozen(facts: Facts) -> float:
    """Share of the series whose linearised path is frozen at the bound; 0 for solved draws."""
    sd = _uncapped_sd(facts)
    return 0.0 if sd is None else (~sd.isfinite()).flatten(1).any(1).double().mean().item()


def _uncapped_sd(facts: Facts) -> Tensor | None:
    predictive = facts.posterior.predictive
    if not hasattr(predictive, "uncapped_sd"):
        return None
    with torch.no_grad():
        return predictive.uncapped_sd(facts.question)  # type: ignore[attr-defined]


def check_determined(facts: Facts) -> Checked:
    """How much of the question the data do not determine."""
    sd = _uncapped_sd(facts)
    if sd is None:
        path = torch.where(facts.asked.failed[..., None, None], torch.nan, facts.asked.path)
        sd = (path - path.nanmean(0)).square().nanmean(0).sqrt()
    share = (~(sd <= 1)).double().mean().item()
    numbers = {"not determined by the data": f"{share:.1%} of (time, component)"}
    if share == 0:
        return Checked([], numbers)
    sentence = (
        f"{share:.1%} of the asked (time, component) are not determined by the data: the sd of the "
        "path exceeds that of the data themselves."
    )
    mend = "believe only the widest bands there; ask for a shorter horizon or add data."
    severity = "alarm" if share > LARGEST_SHARE_OPEN else "note"
    return Checked([Finding("not determined", sentence, mend, severity)], numbers)


def check_chaos(facts: Facts) -> Checked:
    """Whether neighbouring paths part so fast that the horizon cannot be predicted.

    Paths with noise of their own part by it, and their bands show it: there is nothing to warn of.
    """
    if facts.has_random_paths:
        return Checked([], {"error doubling time": "not looked at, paths part by their own noise"})
    elapsed, parted = facts.parting
    known = parted.isfinite() & (parted < LARGEST_PARTING)
    last = elapsed[known][-1:].sum()
    late = known & (elapsed > SKIPPED * last)
    if int(late.sum()) < 3:
        return Checked([], {"error doubling time": "not known, the solved paths explode"})
    t, y = elapsed[late].double(), parted[late].double()
    rate = (((t - t.mean()) * (y - y.mean())).sum() / (t - t.mean()).square().sum()).item()
    if rate <= 0:
        return Checked([], {"error doubling time": "none, neighbouring paths approach"})
    doubling = math.log(2) / rate
    noise = facts.noise.square().mean().sqrt().clamp(SMALLEST_NOISE, 1.0).item()
    horizon = -math.log(noise) / rate
    numbers = {
        "error doubling time": f"{doubling:.3g}, a noise sd fills the data's range in {horizon:.3g}"
    }
    beyond = facts.time_beyond
    if beyond <= horizon or rate * beyond < SMALLEST_GROWTH:
        return Checked([], numbers)
    sentence = (
        f"chaos: neighbouring paths double their distance every {doubling:.3g} and an error of the "
        f"size of the noise fills the range of the data after {horizon:.3g} time units, but the "
        f"forecast reaches {beyond:.3g} beyond the data."
    )
    mend = (
        f"read the forecast as weather up to about {horizon:.3g} after the last datum and as "
        "climate after that; rmse says nothing there."
    )
    return Checked([Finding("chaotic forecast", sentence, mend, "alarm")], numbers)
