"""Little data: several widths are fitted, compared or mixed, and tried on held-out times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bayesode.data_checks import as_list
from bayesode.errors import DataError, FitError
from bayesode.inference.hold_out import HoldOut, hold_out
from bayesode.inference.laplace import fit_laplace
from bayesode.inference.members import has_process_noise
from bayesode.inference.mixture import Mixture
from bayesode.inference.posterior import Posterior
from bayesode.inference.randomness import seeded
from bayesode.models.dynamical import DynamicalModel
from bayesode.plan import LITTLE_DATA, SMALL_WIDTHS, plan
from bayesode.systems import neural_ode
from bayesode.trajectories import Trajectories


def fit_candidates(
    train: Trajectories,
    *,
    likelihood: str = "gaussian",
    system: Callable[..., tuple[DynamicalModel, Any]] = neural_ode,
    widths: Sequence[int] = SMALL_WIDTHS,
    held_out: bool | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Mixture:
    """Networks of several widths, fitted by Laplace: what to take for fewer than 100 numbers.

    One series alone gets an equal mixture of all widths: it does not say which of them is right,
    and the evidence would choose too boldly. Of several series the evidence's best is taken. Then
    the last third of the times is forecast from the others, in the same way: where that went worse
    than the bands say, the variance of forecasts is inflated, and where AR(2) or climatology were
    better, `print(posterior)` says so.

    Args:
        train: Training data, values (series, time, component).
        likelihood: As in `bayesode.plan`.
        system: What composes the models: `neural_ode`, `neural_sde` for paths with process noise,
            or your own `system(train, plan=plan, verbose=False) -> (model, guide)`. Compare two of
            them by the `log_evidence` of their mixtures.
        widths: Of the hidden layer.
        held_out: Whether to forecast the last third of the times, which costs as much again; for
            fewer than 100 observed numbers by default.
        seed: Same seed, same posterior; None takes one from torch's generator.
        progress: Show bars on anything over two seconds.

    Returns:
        A mixture with one member per width, or one member alone; it predicts like a `Posterior`.

    Raises:
        DataError: If the data cannot be fitted as they are, or widths are none.
        FitError: If no width can be fitted.

    Source: mixtures: Hoeting, Madigan, Raftery and Volinsky (1999), "Bayesian model averaging",
        Statistical Science 14(4). doi:10.1214/ss/1009212519

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=1, num_times=12).observed
        >>> posterior = bo.fit_candidates(train, widths=(2, 3), seed=0, progress=False)
        >>> len(posterior.members), posterior.predict(train, num_draws=10, seed=0).values.shape
        (2, torch.Size([10, 1, 12, 2]))
    """
    sizes = as_list(widths)
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise DataError(f"widths must be positive whole numbers, not {sizes}.")
    fit = partial(_fit, likelihood=likelihood, widths=sizes, system=system)
    is_little = train.num_observed < LITTLE_DATA
    with seeded(seed) as used_seed:
        members = fit(train, progress=progress)
        found, note = None, ""
        if is_little if held_out is None else held_out:
            found, note = _hold_out(train, fit)
    name = getattr(system, "__name__", type(system).__name__)
    settings = {"system": name, "widths": sizes, "likelihood": likelihood, "seed": used_seed}
    settings["process_noise"] = has_process_noise(members[0])
    if found is not None and found.inflation > 1:
        settings["inflation"] = f"inflated x{found.inflation:.3g} by hold-out"
    if note:
        settings["hold_out"] = note
    settings["reason"] = (
        "one series: an equal mixture of the widths"
        if train.num_series == 1
        else f"{train.num_series} series: the width with the largest evidence"
    )
    return Mixture(members, hold_out=found, settings=settings)


def _fit(
    train: Trajectories,
    *,
    likelihood: str,
    widths: Sequence[int],
    system: Callable[..., tuple[DynamicalModel, Any]],
    progress: bool = False,
) -> list[Posterior]:
    """The members: all of one series, of several series the one with the largest evidence."""
    planned = plan(train, likelihood, engine="laplace")
    settled = replace(planned, reasons=planned.reasons | {"hidden": f"one of {list(widths)}"})
    fits, failure = [], None
    for width in widths:
        model, _ = system(train, plan=replace(settled, hidden=(width,)), verbose=False)
        try:
            fits.append(fit_laplace(model, train, progress=progress))
        except FitError as error:  # another width may be fitted
            failure = error
    if not fits:
        raise FitError(f"none of the widths {list(widths)} can be fitted: {failure}") from failure
    if train.num_series == 1:
        return fits
    return [max(fits, key=lambda fit: fit.log_evidence)]


def _hold_out(
    train: Trajectories, fit: Callable[[Trajectories], list[Posterior]]
) -> tuple[HoldOut | None, str]:
    try:
        return hold_out(train, lambda part: Mixture(fit(part))), ""
    except (DataError, FitError) as error:
        return None, f"Nothing could be held out: {error}"
