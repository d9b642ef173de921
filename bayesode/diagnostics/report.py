"""A fit's own account of itself: what went wrong or may be wrong, in words, with the mend."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from bayesode.diagnostics.checks import CHECKS
from bayesode.diagnostics.facts import Facts
from bayesode.diagnostics.finding import Finding
from bayesode.inference.posterior import Posterior
from bayesode.trajectories import Trajectories

# By engine; "laplace with process noise" and the like where paths have noise of their own. Measured
# by `python -m benchmarks.dynamics --seeds 3100-3119`; with 10 % process noise on three data sets
# of Lotka-Volterra, and by `python -m benchmarks.process_noise --parts stochastic --seeds
# 4000-4019`.
BANDS = {
    "laplace": (
        "nominal 90 % bands of the path covered .88-.91 of the truth on seven simulated systems of "
        "ODEs, .87-.91 in forecasts over a second horizon; where the truth had process noise .45 "
        "in sample and .37 in forecasts."
    ),
    "svi": (
        "mean field: nominal 90 % bands of the path covered .75-.94 of the truth in sample and "
        ".74-.99 in forecasts on simulated systems of ODEs (.53 and .69 under chaos), bands of "
        "dx/dt only .05-.38. Bands of new noisy values hold, because the noise takes up the error."
    ),
    "laplace with process noise": (
        "nominal 90 % bands of the path covered .89 of the truth in sample and .91 in forecasts "
        "over a second horizon, on 20 data sets of a stochastic Lotka-Volterra system (10 series "
        "of 50 times); with fewer data they are less sure."
    ),
}
UNKNOWN_BANDS = "nothing was measured about the bands of this engine: check them on held-out data."
WIDTH = 100
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class FitReport:
    """What was found, and the numbers that were looked at; `print(report)` shows all of it.

    Args:
        verdict: A sentence.
        findings: Alarms first, then notes.
        numbers: What the checks measured.
        bands: What is known about the bands of this engine.
    """

    verdict: str
    findings: list[Finding] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)
    bands: str = UNKNOWN_BANDS

    @property
    def alarms(self) -> list[Finding]:
        """The findings that forbid to rely on the fit as it is."""
        return [finding for finding in self.findings if finding.severity == "alarm"]

    def __str__(self) -> str:
        lines = _wrapped("Report: ", self.verdict)
        for finding in self.findings:
            lines += _wrapped(f"  {finding.severity} ({finding.name}): ", finding.sentence)
            lines += _wrapped("    mend: ", finding.mend) if finding.mend else []
        pad = max(map(len, self.numbers), default=0) + 2
        lines += [f"  {name:<{pad}}{value}" for name, value in self.numbers.items()]
        return "\n".join(lines + _wrapped("  bands: ", self.bands))


def diagnose(posterior: Posterior, trajectories: Trajectories | None = None) -> FitReport:
    """Everything that is known to go wrong with a fit or a forecast, looked for and said in words.

    It raises for no posterior: a check that cannot be made says so in a note.

    Args:
        posterior: A fit of any engine, loaded or fresh.
        trajectories: The question that is to be asked, as `train.at(times)`; the training data by
            default. Blow-up, chaos and what the data do not determine depend on it.

    Returns:
        Verdict, findings with mends, and the numbers behind them.

    Example:
        >>> import torch, bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=40).observed
        >>> model, _ = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_laplace(model, train, seed=0, progress=False)
        >>> report = diagnose(posterior, train.at(torch.linspace(0, 15, 60)))
        >>> report.numbers["weights / observed numbers"]
        '22 / 240'
    """
    facts = Facts(posterior, posterior.train if trajectories is None else trajectories)
    findings: list[Finding] = []
    numbers: dict[str, str] = {}
    not_made: dict[str, list[str]] = {}
    for name, check in CHECKS.items():
        checked = _attempt(check, facts)
        if isinstance(checked, str):
            not_made.setdefault(checked, []).append(name)
            continue
        findings += checked.findings
        numbers |= checked.numbers
    for reason, names in not_made.items():
        sentence = f"no check of {', '.join(names)}: {reason}."
        findings.append(Finding("not checked", sentence, "", "note"))
    findings.sort(key=lambda finding: finding.severity != "alarm")
    return FitReport(_verdict(findings), findings, numbers, _bands(facts))


def _bands(facts: Facts) -> str:
    """What is known about the bands of the fit's engine."""
    engine = str(facts.posterior.settings.get("engine"))
    is_noisy = _attempt(lambda known: known.has_random_paths, facts) is True
    return BANDS.get(f"{engine} with process noise" if is_noisy else engine, UNKNOWN_BANDS)


def _attempt(check: Callable[[Facts], Outcome], facts: Facts) -> Outcome | str:
    """The outcome of a check, or why it could not be made: one check must not cost the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of is what the checks look for
        try:
            return check(facts)
        except Exception as error:
            return (str(error) or type(error).__name__).rstrip(".")


def _verdict(findings: list[Finding]) -> str:
    alarms = [finding.name for finding in findings if finding.severity == "alarm"]
    missing = [finding for finding in findings if finding.name == "not checked"]
    rest = "; some checks could not be made" if missing else ""
    if not alarms:
        return f"no alarm{rest}."
    return f"do not rely on this yet: {', '.join(dict.fromkeys(alarms))}{rest}."


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * (len(head) - len(head.lstrip()) + 4)
    return textwrap.wrap(head + text, WIDTH, subsequent_indent=indent)
