"""Prior scales set by the data: type-II maximum likelihood under the ELBO."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayesode.errors import DataError, FitError
from bayesode.models.contracts import Tuning, resolve
from bayesode.models.dynamical import DynamicalModel
from bayesode.trajectories import Trajectories

NUM_FROZEN = 50  # last steps, in which the posterior settles under the prior that was found
SMALLEST_SD = 1e-3  # a group whose weights all vanish would end in a prior of width 0
PRIOR_SCALES = ("fixed", "hierarchical", "empirical")


def check_prior_scale(model: DynamicalModel, prior_scale: str, num_steps: int | None) -> None:
    """Refuse a prior scale that the model does not have.

    Raises:
        DataError: For an unknown word, a model without the part that is asked for, or too few
            steps to freeze the last 50.
    """
    if prior_scale not in PRIOR_SCALES:
        raise DataError(f"prior_scale must be one of {PRIOR_SCALES}, not {prior_scale!r}.")
    name = type(model.field).__name__
    if prior_scale == "hierarchical":
        laws = model.field.priors().values()  # type: ignore[operator]
        if all(isinstance(law, torch.distributions.Distribution) for law in laws):
            raise DataError(
                "prior_scale='hierarchical' needs a field whose prior depends on a scale that is "
                f"drawn, and a fit does not change {name}: build it so, "
                "BayesianMLP(..., hierarchical=True)."
            )
    if prior_scale == "empirical":
        if not any(True for _ in _tunable(model)):
            raise DataError(
                "prior_scale='empirical' needs a part with tunable() prior scales: take a plain "
                "BayesianMLP, or prior_scale='fixed'."
            )
        if num_steps is not None and num_steps <= NUM_FROZEN:
            raise DataError(
                f"prior_scale='empirical' freezes the prior before the last {NUM_FROZEN} steps: "
                f"num_steps={num_steps} leaves none to find it."
            )


class EmpiricalScales:
    """Closed-form updates of the prior sds of a fit's own copy of the model.

    For w_i ~ N(mean_i, (p u_i)^2) within a group of scale p the ELBO is highest at
    p^2 = average of E[(w_i - mean_i)^2] / u_i^2 under the posterior. All u_i of a group are equal
    in the fields that we ship, so p u is the root mean square deviation.

    Args:
        model: The fit's own copy, whose buffers are written.
        guide: A guide that declares `posteriors(trajectories)`.
        train: Data of the fit.

    Raises:
        FitError: If the guide does not tell mean and variance of its sites.
        DataError: If the prior of a tunable site is not Normal.

    Source: type-II maximum likelihood: MacKay (1992), Neural Computation 4(3); under a mean-field
    ELBO: Wu et al. (2019), "Deterministic variational inference", arXiv:1810.03958, section 4.
    """

    def __init__(self, model: DynamicalModel, guide: Any, train: Trajectories) -> None:
        if not hasattr(guide, "posteriors"):
            raise FitError(
                f"prior_scale='empirical' needs mean and variance of each site, which "
                f"{type(guide).__name__} does not tell: take MeanFieldGuide(model, train), or "
                "BayesianMLP(..., hierarchical=True) with this guide."
            )
        self.model, self.guide = model, guide
        self.any = train.rows(torch.zeros(1, dtype=torch.long))  # shared sites: all say the same
        self.tunings = list(_tunable(model))
        priors, values = model.global_priors(), model.prototype()
        for site, _, _ in self.tunings:
            law: Any = resolve(priors[site], values)
            while isinstance(law, torch.distributions.Independent):
                law = law.base_dist
            if not isinstance(law, torch.distributions.Normal):
                raise DataError(f"the prior of {site} is {law}, only Normal ones can be tuned.")

    @torch.no_grad()
    def update(self) -> None:
        """Set the prior sds to their optimum under the present posterior."""
        laws, priors = self.guide.posteriors(self.any), self.model.global_priors()
        for site, part, tuning in self.tunings:
            law, prior = laws[site], priors[site]
            squares = law.variance + (law.mean - prior.mean).square()  # type: ignore[union-attr]
            buffer = part.get_buffer(tuning.buffer)
            buffer.copy_(group_means(squares, tuning.groups).sqrt().clamp_min(SMALLEST_SD))


def group_means(values: Tensor, groups: Tensor) -> Tensor:
    """Each value replaced by the mean of its group.

    Example:
        >>> group_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1])).tolist()
        [2.0, 2.0, 5.0]
    """
    flat, index = values.flatten(), groups.flatten().to(values.device)
    size = int(index.max()) + 1
    total = flat.new_zeros(size).index_add_(0, index, flat)
    count = flat.new_zeros(size).index_add_(0, index, torch.ones_like(flat))
    return (total / count)[index].view(values.shape)


def _tunable(model: DynamicalModel) -> Any:
    """Full site name, part and tuning of every site whose prior scale may be set."""
    for name, part in model.parts():
        declared: dict[str, Tuning] = part.tunable() if hasattr(part, "tunable") else {}  # type: ignore[attr-defined]
        for site, tuning in declared.items():
            yield f"{name}.{site}", part, tuning
