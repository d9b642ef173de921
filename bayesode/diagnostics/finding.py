"""What a check of a fit returns."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Args:
        name: In two or three words.
        sentence: What was seen.
        mend: What to do about it.
        severity: "alarm" (do not rely on the fit as it is) or "note".
    """

    name: str
    sentence: str
    mend: str
    severity: str


@dataclass(frozen=True)
class Checked:
    """The outcome of a check.

    Args:
        findings: None at all if all is well.
        numbers: What was looked at, ready to print.
    """

    findings: list[Finding] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)


def numbers_of(names: tuple[str, ...], values: list[float]) -> str:
    """Numbers by component, `x1 0.98, x2 1.02`.

    Example:
        >>> numbers_of(("x1", "x2"), [0.981, 12.0])
        'x1 0.98, x2 12'
    """
    return ", ".join(f"{name} {value:.2g}" for name, value in zip(names, values, strict=True))
