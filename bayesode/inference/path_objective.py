"""The `path` objective of ODE2VAE: a divergence at every time, in two halves."""

from __future__ import annotations

import copy
from typing import Any

from bayesode.data_checks import check_from_zero
from bayesode.errors import DataError, FitError
from bayesode.inference.encoder_penalty import EncoderPenalty
from bayesode.inference.encoders.seen import most_frames
from bayesode.inference.path_halves import MEND, PathDensity, PathPrior
from bayesode.models.dynamical import DynamicalModel
from bayesode.models.solvers.density import ExactTrace, Trace


def path_objective(
    model: DynamicalModel,
    guide: Any,
    *,
    trace: Trace = ExactTrace(),  # noqa: B008
    gamma: float = 0.0,
    beta: float = 1.0,
) -> tuple[DynamicalModel, Any]:
    """Model and guide for the `path` objective: the strict ELBO less a KL term at every later time.

    ELBO(path) = ELBO - E_weights sum over t > start of KL[q_t || N(0, I)]

    with q_t the law of x0 in the guide, pushed forward by the drawn field, over the dimensionless
    state. No KL is negative: it is a looser bound of the same model, and draws paths towards the
    unit ball. Every real time counts, seen or hidden, weighted as its likelihood; the start does
    not: x0 has a KL of its own. The model adds log N(x_t; 0, I) at the site `path.prior`, the guide
    log q_t(x_t) at `path.density`; `elbo_terms` shows their difference as `path.objective`.

    Two weights change what this is a bound of, and are off by default. Both are factors of the
    guide and terms of `elbo_terms` by their own names:

    - `gamma`, of ODE2VAE-KL, takes off gamma E sum over t > start of KL[q_t || q_enc(x_t)] at
      `path.encoder`, with q_enc the encoder's law of a series that begins at frame t; a time
      counts where all frames that the encoder reads are visible (within the window, if a fit sees
      one). It is no part of a bound of this model but a regulariser, which makes field and encoder
      agree.
    - `beta` weighs the KL of the field's sites, the paper's weights W: `path.tempering` is
      (beta - 1) times it. This is tempering: below 1 it bounds no evidence. `kl_weight` of
      `fit_svi` weighs the gradient of all KL terms, these among them.

    Args:
        model: The generative model.
        guide: `MeanFieldGuide` or `AmortizedGuide` of it.
        trace: How the trace of the field's Jacobian is taken.
        gamma: Weight of the divergence from the encoder, from 0 on; for guides with an encoder.
        beta: Weight of the KL of the field's sites, from 0 on.

    Returns:
        Copies of both, for `fit_svi` or Pyro. One without the other raises `FitError`. Predictions
        are those of the plain pair. Copy them together, copy.deepcopy((model, guide)), and give
        both to `load`, whose own pair is the plain one.

    Raises:
        DataError: If paths are random, the guide is of another kind, has its half already, or has
            no encoder that gamma could weigh, or a weight is no number from 0 on.

    Source: Yildiz, Heinonen and Lahdesmaki (2019), arXiv:1905.10994, equation 13, and the
    penalised loss after it. There the sum is part of a joint posterior of all states; these are
    functions of x0 and weights, whose strict ELBO has no such terms.

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=10).observed
        >>> model, guide = path_objective(*bo.neural_ode(train, verbose=False))
        >>> sorted(bo.elbo_terms(model, guide, train).kl)
        ['field.weights', 'likelihood.noise_scale', 'path.objective', 'x0']
    """
    if hasattr(model.solver, "noise_grid"):
        raise DataError("random paths have no density that a flow pushes forward; solve an ODE.")
    if not hasattr(guide, "path_half"):
        raise DataError(
            f"{type(guide).__name__} has no place for its half of the objective: take "
            "MeanFieldGuide or AmortizedGuide."
        )
    if model.path_half is not None or guide.path_half is not None:
        raise DataError("model or guide has a half of an objective already: give the plain ones.")
    check_from_zero(gamma=gamma, beta=beta)
    model, guide = copy.deepcopy((model, guide))
    penalty = _penalty(guide, gamma) if gamma > 0 else None
    model.path_half, guide.path_half = PathPrior(), PathDensity(model, trace, penalty, beta)
    return model, guide


def _penalty(guide: Any, gamma: float) -> EncoderPenalty:
    if not hasattr(guide, "encoder"):
        raise DataError(
            f"gamma={gamma:g} weighs the divergence from an encoder, and {type(guide).__name__} "
            "has none: take AmortizedGuide(model, encoder), or leave gamma at 0."
        )
    most_frames([guide.encoder])
    return EncoderPenalty(guide.encoder, float(gamma))


def guide_half(model: DynamicalModel, guide: Any) -> PathDensity | None:
    """The guide's half of the `path` objective, None without the objective.

    Raises:
        FitError: If one of them alone has its half.
    """
    half = getattr(guide, "path_half", None)
    if (half is None) != (model.path_half is None):
        who, other = ("guide", "model") if model.path_half is None else ("model", "guide")
        raise FitError(
            f"the {who} has its half of the `path` objective and the {other} has not, which would "
            f"be no bound: {MEND}."
        )
    return half
