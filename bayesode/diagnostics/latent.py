"""What a latent model has learned, in nats: by sequence, by frame, by latent dimension."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from bayesode.errors import DataError
from bayesode.inference import blocks
from bayesode.inference.elbo import elbo_terms, sample_sites
from bayesode.inference.encoder_use import EncoderUse
from bayesode.inference.randomness import seeded
from bayesode.trajectories import Trajectories

NUM_LISTED = 8  # dimensions


@dataclass(frozen=True, eq=False)
class LatentAccount:
    """The ELBO of every sequence, and what its initial state carries. Print it for a table.

    Args:
        series: Labels of the sequences.
        num_frames: Visible ones, shape (series,); a frame counts if any number of it is seen.
        log_likelihood: Expected, nats, shape (series,).
        kl_local: Nats per sequence of the sites that every sequence has for itself, (series,).
        kl_global: Nats of the sites that they share, scalars, for the whole training set.
        num_train: Number of training sequences, over which these are shared out.
        kl_per_dimension: Nats of x0 per sequence and latent dimension, shape (series, state), where
            its laws are normal; else None, and `kl_local["x0"]` has the total.
        use: Which dimensions of x0 differ between sequences.
        is_type_two: As in `ELBOTerms`.
    """

    series: tuple[str | int, ...]
    num_frames: Tensor
    log_likelihood: Tensor
    kl_local: dict[str, Tensor]
    kl_global: dict[str, Tensor]
    num_train: int
    kl_per_dimension: Tensor | None
    use: EncoderUse
    is_type_two: bool = False

    @property
    def elbo_per_series(self) -> Tensor:
        """The bound of each sequence with its share of what all share, nats, shape (series,)."""
        shared = torch.stack(list(self.kl_global.values())).sum() if self.kl_global else 0.0
        return self.log_likelihood - sum(self.kl_local.values()) - shared / self.num_train

    @property
    def elbo(self) -> float:
        """Sum over the sequences, nats; of the training data, it is the ELBO."""
        return self.elbo_per_series.sum().item()

    @property
    def nats_per_frame(self) -> float:
        """The ELBO per visible frame."""
        return self.elbo / max(1, int(self.num_frames.sum()))

    @property
    def is_active(self) -> Tensor:
        """Which dimensions of x0 differ between sequences, booleans, shape (state,)."""
        return self.use.is_active

    @property
    def num_active(self) -> int:
        """Number of active dimensions."""
        return int(self.is_active.sum())

    @property
    def is_encoder_ignored(self) -> bool:
        """Whether x0 is the same for all sequences: then frames after the first are an average."""
        return self.use.is_ignored

    @property
    def warning(self) -> str | None:
        """What is wrong and how to mend it; None if nothing is."""
        return self.use.warning

    def __str__(self) -> str:
        count, frames = len(self.series), max(1, int(self.num_frames.sum()))
        shared = count / self.num_train
        rows = [("log likelihood", self.log_likelihood.sum().item())]
        rows += [(f"- KL {s}", -kl.sum().item()) for s, kl in self.kl_local.items()]
        rows += [
            (f"- KL {s} (shared out)", -shared * kl.item()) for s, kl in self.kl_global.items()
        ]
        rows.append(("ELBO (type-II)" if self.is_type_two else "ELBO", self.elbo))
        head = f"{count} sequences, {frames} visible frames; nats"
        lines = [f"{head:<48}{'total':>12}{'per sequence':>14}{'per frame':>11}"]
        lines += [f"{n:<48}{v:>12.1f}{v / count:>14.2f}{v / frames:>11.3f}" for n, v in rows]
        lines += [self._extremes(), self._dimensions()]
        if self.warning is not None:
            lines.append(f"Warning: {self.warning}")
        return "\n".join(lines)

    def _extremes(self) -> str:
        bound = self.elbo_per_series
        low, high = int(bound.argmin()), int(bound.argmax())
        return (
            f"ELBO of a sequence: from {bound[low].item():.1f} ({self.series[low]!r}) "
            f"to {bound[high].item():.1f} ({self.series[high]!r})."
        )

    def _dimensions(self) -> str:
        told = f"Active dimensions of x0: {self.num_active} of {len(self.is_active)}"
        if self.kl_per_dimension is None:
            return f"{told}."
        mean = self.kl_per_dimension.mean(0)
        order = mean.argsort(descending=True)[:NUM_LISTED].tolist()
        parts = ", ".join(f"z{k} {mean[k].item():.2f}" for k in order)
        return f"{told}; KL per sequence: {parts}{', ...' if len(mean) > NUM_LISTED else '.'}"


def latent_account(
    posterior: Any,
    trajectories: Trajectories | None = None,
    *,
    num_particles: int = 16,
    seed: int = 0,
) -> LatentAccount:
    """The ELBO of every sequence, nats per frame, and which latent dimensions are used.

    A posterior has collapsed where x0 says nothing of its sequence: the KL of its dimensions is 0,
    or they are the same for all sequences. Sequences are looked at in batches that fit into memory.

    Args:
        posterior: Of `fit_svi` with a guide that declares its posteriors.
        trajectories: Observed sequences, the training data by default; others need an amortised
            guide. They pay the same share of the KL of the weights as a training sequence.
        num_particles: Draws to average over.
        seed: Same seed, same numbers.

    Raises:
        DataError: If the guide does not declare its posteriors, it does not know the sequences, or
            nothing is observed.

    Source: Burda, Grosse and Salakhutdinov (2016), "Importance weighted autoencoders", section 5.2.
        arXiv:1509.00519

    Example:
        >>> import bayesode as bo
        >>> train = bo.datasets.van_der_pol(num_series=3, num_times=20).observed
        >>> model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
        >>> posterior = bo.fit_svi(model, guide, train, seed=0, num_steps=5, progress=False)
        >>> account = latent_account(posterior)
        >>> account.elbo_per_series.shape, account.num_active
        (torch.Size([3]), 2)
    """
    data = posterior.train if trajectories is None else trajectories
    if data.values is None or data.mask is None or not data.mask.any():
        raise DataError(f"an account needs observed frames; there are none in {data!r}.")
    if not hasattr(posterior.guide, "posteriors"):
        raise DataError(
            f"the guide {type(posterior.guide).__name__} does not declare its posteriors, so its "
            "ELBO has no terms: take MeanFieldGuide, AmortizedGuide or SDEGuide."
        )
    data = data.to(posterior.train.start.device, posterior.train.values.dtype)
    size = num_particles * data.values[0].numel()  # pyright: ignore[reportOptionalSubscript]
    rows = torch.arange(data.num_series).split(max(1, blocks.MAX_NUMBERS // size))
    parts = [
        _of_batch(posterior, data.batch(some), num_particles, seed + k)
        for k, some in enumerate(rows)
    ]
    return _joined(posterior, data, parts)


@dataclass(frozen=True, eq=False)
class _Part:
    """Terms of one batch; moments of x0 are (series, state)."""

    log_likelihood: Tensor
    kl_local: dict[str, Tensor]
    kl_global: dict[str, Tensor]
    kl_per_dimension: Tensor | None
    mean: Tensor
    variance: Tensor
    prior_variance: Tensor


def _of_batch(posterior: Any, batch: Trajectories, num_particles: int, seed: int) -> _Part:
    model, guide = posterior.model, posterior.guide
    with _active(posterior, seed):
        terms = elbo_terms(model, guide, batch, num_particles=num_particles)
    with _active(posterior, seed):  # again, so that x0 meets the same draws of the weights
        values, laws = sample_sites(guide.posteriors(batch), num_particles, batch.num_series)
        prior, law = model.build(values, batch)[0], laws["x0"]
        shape = (num_particles, batch.num_series, *law.event_shape)
        divergence = _kl_per_dimension(law, prior)
        return _Part(
            log_likelihood=terms.log_likelihood_per_series,  # pyright: ignore
            kl_local=terms.kl_per_series,
            kl_global={s: kl for s, kl in terms.kl.items() if s not in terms.kl_per_series},
            kl_per_dimension=None if divergence is None else divergence.expand(shape).mean(0),
            mean=law.mean.expand(shape).mean(0),
            variance=law.variance.expand(shape).mean(0),
            prior_variance=prior.variance.expand(shape).mean(0),
        )


def _joined(posterior: Any, data: Trajectories, parts: list[_Part]) -> LatentAccount:
    first, mask = parts[0], data.mask
    mean, variance, prior = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("mean", "variance", "prior_variance")
    )
    sizes = torch.tensor([len(part.mean) for part in parts]).to(mean)
    return LatentAccount(
        series=data.series,
        num_frames=mask.flatten(2).any(-1).sum(-1),  # pyright: ignore[reportOptionalMemberAccess]
        log_likelihood=torch.cat([part.log_likelihood for part in parts]),
        kl_local={s: torch.cat([part.kl_local[s] for part in parts]) for s in first.kl_local},
        kl_global={
            s: (torch.stack([part.kl_global[s] for part in parts]) * sizes).sum() / sizes.sum()
            for s in first.kl_global
        },
        num_train=posterior.train.num_series,
        kl_per_dimension=None
        if first.kl_per_dimension is None
        else torch.cat([part.kl_per_dimension for part in parts]),  # pyright: ignore
        use=EncoderUse.of(mean, variance, prior),
        is_type_two=posterior.settings.get("prior_scale") == "empirical",
    )


def _kl_per_dimension(posterior: Any, prior: Any) -> Tensor | None:
    """KL divergence of every entry, (..., state), where both laws are independent normal ones."""
    entries = [_entries(law) for law in (posterior, prior)]
    if not all(isinstance(law, Normal) for law in entries):
        return None
    return kl_divergence(*entries)


def _entries(law: Any) -> Any:
    while isinstance(law, Independent):
        law = law.base_dist
    return law


@contextmanager
def _active(posterior: Any, seed: int) -> Iterator[None]:
    state: Any = dict(posterior.state) or None
    with seeded(seed), pyro.get_param_store().scope(state), torch.no_grad():
        yield
