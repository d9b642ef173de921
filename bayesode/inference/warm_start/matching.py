"""A first fit of a field without solving it: its derivative is matched to that of a smoother."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesode.inference.warm_start.flat import FlatField
from bayesode.smoothing import Smoothed

MAX_POINTS = 1000
FLOOR = 0.05  # sd of the derivative below which a point weighs no more, dimensionless


def match_gradients(
    field: FlatField,
    times: Tensor,
    smoothed: Smoothed,
    *,
    num_steps: int = 800,
    learning_rate: float = 1e-2,
) -> Tensor:
    """Numbers of a field whose derivative agrees with that of a smoothed path.

    Minimises the squared difference weighted by 1 / (sd of the derivative^2 + .05^2), with a weak
    pull to 0, by Adam with a cosine schedule from a random start.

    Args:
        field: The field as a function of one vector.
        times: Grid of the smoothed path, shape (series, grid), dimensionless; repeated times (of
            padding) are left out.
        smoothed: Path and derivative on this grid, dimensionless.
        num_steps: Full-batch steps.
        learning_rate: Of Adam.

    Returns:
        The vector, shape (num_numbers,).

    Source: Varah (1982), "A spline least squares method for numerical parameter estimation in
    differential equations", SIAM J. Sci. Stat. Comput. 3(1).
    """
    x, t, target, weight = _points(times, smoothed)
    vector = field.random_start().requires_grad_()
    optimizer = torch.optim.Adam([vector], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    with torch.enable_grad():
        for _ in range(num_steps):
            optimizer.zero_grad()
            error = field.build(vector)(t, x) - target
            loss = (weight * error.square()).mean() + 1e-5 * vector.square().sum()
            loss.backward()
            optimizer.step()
            schedule.step()
    return vector.detach()


def _points(times: Tensor, smoothed: Smoothed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At most MAX_POINTS points of the smoothed paths: state, time, derivative and weight."""
    is_new = torch.nn.functional.pad(times.diff(dim=-1), (1, 0), value=1.0) > 0
    index = is_new.flatten().nonzero().squeeze(-1)
    if len(index) > MAX_POINTS:
        order = torch.randperm(len(index))[:MAX_POINTS].sort().values
        index = index[order.to(index.device)]
    weight = 1 / (smoothed.derivative_scale.square() + FLOOR**2)
    columns = (smoothed.path, times.unsqueeze(-1), smoothed.derivative, weight / weight.mean())
    state, time, target, share = (column.flatten(0, 1)[index] for column in columns)
    return state, time, target, share
