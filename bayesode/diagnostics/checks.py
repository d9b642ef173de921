"""The checks of a report, in the order in which it shows them.

Each takes `Facts`, returns `Checked` and is free to raise where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable

from bayesode.diagnostics.checks_data import check_movement, check_sampling, check_units
from bayesode.diagnostics.checks_fit import (
    check_reached,
    check_residuals,
    check_solver,
    check_steps,
    check_width,
)
from bayesode.diagnostics.checks_forecast import check_blow_up, check_chaos, check_determined
from bayesode.diagnostics.facts import Facts
from bayesode.diagnostics.finding import Checked

CHECKS: dict[str, Callable[[Facts], Checked]] = {
    "units": check_units,
    "movement": check_movement,
    "sampling": check_sampling,
    "fit": check_reached,
    "width": check_width,
    "residuals": check_residuals,
    "steps": check_steps,
    "solver": check_solver,
    "blow-up": check_blow_up,
    "undetermined": check_determined,
    "chaos": check_chaos,
}
