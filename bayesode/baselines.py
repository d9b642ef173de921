"""Forecasts that know nothing of dynamics: what a model must beat before it deserves the name."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesode.data_checks import shape_of
from bayesode.errors import DataError, ShapeError
from bayesode.trajectories import Trajectories

Law = tuple[Tensor, Tensor]  # location and scale, on the transformed scale
FAMILIES = {"identity": dist.Normal, "log": dist.LogNormal}
GRID_TOLERANCE = 0.01  # of a step: times that were rounded are still a regular grid
MIN_RELATIVE_SCALE = 1e-12  # of the location: below is a constant, whose scale is rounding error


def baselines(
    train: Trajectories, test: Trajectories, *, transform: str = "identity"
) -> dict[str, dist.Normal | dist.LogNormal]:
    """Climatology, random walk and AR(2), fitted to `train`, as predictive laws at `test`'s times.

    Under the transform "log" all three are fitted to logs and returned as log-normal laws, so that
    `log_prob` is the log density in raw units in either case. Parameters are plugged in.

    - "climatology": mean and sd (n - 1) of each component over all observed training values.
    - "random_walk": from the last observed value of the series and component; the variance grows
      by the mean of (squared increment / elapsed time) per unit of time, per component, pooled
      over series. Missing values are stepped over.
    - "ar2": y_k = c + a y_(k-1) + b y_(k-2) + noise per component, by least squares over all n
      triples of all series; residual variance RSS / (n - 3); mean and variance of several steps
      by recursion and psi weights.

    A baseline that does not apply is left out. "random_walk" needs series that `train` has, with a
    value of every component before each test time; "ar2" also needs all times on one regular grid
    (one step for all series), no missing training value, n >= 4 and two values of each series;
    "climatology" needs two values of every component. A law whose sd is zero or whose forecast
    overflows is left out too.

    Args:
        train: Data to fit, values (series, time, component).
        test: Where to forecast; its values are not read, it may be a question.
        transform: "identity" or "log".

    Returns:
        Distributions with the batch shape (series, time, component) of test's values, in the dtype
        of train's values, by name.

    Raises:
        ShapeError: If values are not (series, time, component).
        DataError: If train has no values, the transform is unknown, or it is "log" and an observed
            training value is not positive.

    Source: Brockwell and Davis (2016), "Introduction to Time Series and Forecasting", chapters 3
        and 5. doi:10.1007/978-3-319-29854-2

    Example:
        >>> from bayesode.datasets import lynx_hare
        >>> train, test = lynx_hare().split(time=1914)
        >>> for name, law in baselines(train, test, transform="log").items():
        ...     print(f"{name:<12}{law.log_prob(test.values).sum():.1f}")
        climatology -52.4
        random_walk -60.0
        ar2         -43.0
    """
    if train.values is None or train.mask is None:
        raise DataError("train is a question without values; baselines need observed data.")
    values, mask = _transformed(train.values, train.mask, transform), train.mask
    shape = torch.Size([*test.grid.shape, values.shape[-1]])
    laws: dict[str, Law | None] = {"climatology": _climatology(values, mask)}
    if set(test.series) <= set(train.series):
        laws["random_walk"] = _random_walk(values, mask, train, test)
        laws["ar2"] = _ar2(values, mask, train, test)
    cast = {
        name: tuple(parameter.to(train.values.dtype).expand(shape) for parameter in law)
        for name, law in laws.items()
        if law is not None
    }
    return {name: FAMILIES[transform](*law) for name, law in cast.items() if _is_usable(*law)}


def _transformed(observed: Tensor, mask: Tensor, transform: str) -> Tensor:
    """Values in float64 on the scale of the transform; 0 where nothing was observed."""
    if observed.dim() != 3:
        raise ShapeError(
            f"baselines need values (series, time, component), not {shape_of(observed)}; "
            "flatten each observation first."
        )
    if transform not in FAMILIES:
        raise DataError(f"transform must be one of {list(FAMILIES)}, not {transform!r}.")
    values = torch.where(mask, observed.to(torch.float64), 1.0)
    if transform == "log":
        if not (values > 0).all():
            raise DataError(
                f"transform='log' needs positive values, but the smallest is {values.min():g}; "
                "use transform='identity'."
            )
        values = values.log()
    return torch.where(mask, values, 0.0)


def _is_usable(location: Tensor, scale: Tensor) -> bool:
    is_spread = scale > MIN_RELATIVE_SCALE * location.abs()  # False for NaN and infinite locations
    return bool((is_spread & torch.isfinite(scale)).all())


def _climatology(values: Tensor, mask: Tensor) -> Law:
    count = mask.sum((0, 1))
    mean = values.sum((0, 1)) / count
    squares = torch.where(mask, values - mean, 0.0).square().sum((0, 1))
    return mean, (squares / (count - 1)).sqrt()


def _random_walk(
    values: Tensor, mask: Tensor, train: Trajectories, test: Trajectories
) -> Law | None:
    grid = train.grid.unsqueeze(-1).expand_as(values)
    steps = torch.arange(values.shape[1], device=values.device).view(1, -1, 1)
    latest = torch.where(mask, steps, -1).cummax(1).values  # last observed until then, -1: none
    before = latest[:, :-1].clamp_min(0)
    increment = values[:, 1:] - values.gather(1, before)
    elapsed = grid[:, 1:] - grid.gather(1, before)
    is_increment = mask[:, 1:] & (latest[:, :-1] >= 0)
    rate = torch.where(is_increment, increment.square() / elapsed, 0.0).sum((0, 1))
    rate = rate / is_increment.sum((0, 1))
    rows = train.positions(test.series)
    last = latest[rows, -1:]
    if (last < 0).any():
        return None
    # A time that is not ahead has a scale of 0 or NaN, so that the law is left out.
    elapsed = test.grid.unsqueeze(-1) - grid[rows].gather(1, last)
    return values[rows].gather(1, last), (rate * elapsed).sqrt()


def _ar2(values: Tensor, mask: Tensor, train: Trajectories, test: Trajectories) -> Law | None:
    is_real = torch.arange(values.shape[1], device=values.device) < train.num_times[:, None]
    is_triple = is_real[:, 2:]
    rows = train.positions(test.series)
    last = train.num_times[rows] - 1
    if not mask[is_real].all() or is_triple.sum() < 4 or (last < 1).any():
        return None
    horizon = _steps_ahead(train.grid.diff(dim=1)[is_real[:, 1:]], train, test)
    if horizon is None:
        return None
    response, first, second = (
        lagged[is_triple].T for lagged in (values[:, 2:], values[:, 1:-1], values[:, :-2])
    )
    design = torch.stack([torch.ones_like(first), first, second], -1)  # (component, triple, 3)
    fitted = torch.linalg.lstsq(design, response.unsqueeze(-1)).solution
    residual = response - (design @ fitted).squeeze(-1)
    variance = residual.square().sum(-1) / (response.shape[-1] - 3)
    latest, previous = values[rows, last], values[rows, last - 1]
    return _iterate(fitted[:, :, 0].T, variance, latest, previous, horizon)


def _steps_ahead(intervals: Tensor, train: Trajectories, test: Trajectories) -> Tensor | None:
    """Steps from each series' last training time to the test times, or None: no regular grid."""
    step = intervals.mean()
    rows = train.positions(test.series)
    last = train.grid[rows].gather(1, train.num_times[rows, None] - 1)
    ahead = (test.grid - last) / step
    is_regular = ((intervals / step - 1).abs() < GRID_TOLERANCE).all()
    is_ahead = ((ahead - ahead.round()).abs() < GRID_TOLERANCE) & (ahead.round() >= 1)
    return ahead.round().long() if is_regular and is_ahead.all() else None


def _iterate(
    coefficients: Tensor, variance: Tensor, latest: Tensor, previous: Tensor, horizon: Tensor
) -> Law:
    """Mean and sd of AR(2) `horizon` steps ahead, shape (series, time, component)."""
    constant, first, second = coefficients
    psi, psi_before = torch.ones_like(variance), torch.zeros_like(variance)
    means, variances, total = [], [], torch.zeros_like(variance)
    for _ in range(int(horizon.max())):
        latest, previous = constant + first * latest + second * previous, latest
        total = total + psi.square()
        psi, psi_before = first * psi + second * psi_before, psi
        means.append(latest)
        variances.append(variance * total)
    chosen = (horizon - 1).unsqueeze(-1).expand(*horizon.shape, len(variance))
    mean = torch.stack(means, 1).gather(1, chosen)
    return mean, torch.stack(variances)[horizon - 1].sqrt()
