"""A likelihood whose noise was found afterwards, from residuals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayesode.distributions import CensoredNormal, observed_law
from bayesode.inputs import Inputs
from bayesode.models.contracts import Observe, Priors, Tuning, Values


class CalibratedNoise(nn.Module):
    """The signal of another likelihood, with noise of its own: a scale per entry and intensity.

    Values are normal around the signal with log sd = log_scale[entry] + c₁ u + c₂ u² + log_factor,
    where u runs from 0 to 1 over the intensities that were predicted for the training data; cut off
    at `bounds`, if there are any, where the signal is too. All of it is constant, set by
    `calibrate_noise`. The other likelihood's sites stay declared, so that its guide serves on, but
    its own noise is not used.

    Args:
        likelihood: What decodes states; its `signal` is kept.
        event_shape: Of one observation.
        bounds: Smallest and largest possible value, or None.

    Example:
        >>> from bayesode.models.likelihoods import GaussianLikelihood
        >>> part = CalibratedNoise(GaussianLikelihood(2), (2,), bounds=(0.0, 1.0))
        >>> observe = part.build({"noise_scale": torch.ones(2)})
        >>> observe.signal(torch.full((3, 4, 2), 7.0)).max()
        tensor(1.)
    """

    log_scale: Tensor
    coefficients: Tensor
    intensities: Tensor
    log_factor: Tensor

    def __init__(
        self,
        likelihood: nn.Module,
        event_shape: Sequence[int],
        *,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.likelihood: Any = likelihood
        self.event_shape = torch.Size(event_shape)
        self.bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        self.register_buffer("log_scale", torch.zeros(self.event_shape))
        self.register_buffer("coefficients", torch.zeros(2))
        self.register_buffer("intensities", torch.tensor([0.0, 1.0]))
        self.register_buffer("log_factor", torch.zeros(()))

    @property
    def config(self) -> dict[str, Any]:
        """Settings, and those of the likelihood inside."""
        inside = {"type": type(self.likelihood).__name__, **getattr(self.likelihood, "config", {})}
        bounds = None if self.bounds is None else list(self.bounds)
        return {"event_shape": list(self.event_shape), "bounds": bounds, "likelihood": inside}

    # ---- as the likelihood inside --------------------------------------------------------------
    @property
    def labels(self) -> dict[str, list[str]]:
        """Readable names of the entries of each site."""
        return getattr(self.likelihood, "labels", {})

    def with_units(self, units: Any) -> None:
        """Take on the units of a model."""
        if hasattr(self.likelihood, "with_units"):
            self.likelihood.with_units(units)

    def priors(self) -> Priors:
        """The sites of the likelihood inside."""
        return self.likelihood.priors()

    def tunable(self) -> dict[str, Tuning]:
        """Its prior scales that may be set by the evidence."""
        own = self.likelihood.tunable() if hasattr(self.likelihood, "tunable") else {}
        return {site: Tuning(t.groups, f"likelihood.{t.buffer}") for site, t in own.items()}

    # ---- the noise -------------------------------------------------------------------------------
    def within(self, signal: Tensor) -> Tensor:
        """A signal, cut off at the bounds."""
        return signal if self.bounds is None else signal.clamp(*self.bounds)

    def shares(self, signal: Tensor) -> Tensor:
        """Where a signal lies among the intensities of the training data, from 0 to 1."""
        lowest, highest = self.intensities.to(signal)
        return ((signal - lowest) / (highest - lowest)).clamp(0, 1)

    def noise_scale(self, signal: Tensor) -> Tensor:
        """Sd of the noise around a signal (..., *event), cut off already."""
        share, (linear, quadratic) = self.shares(signal), self.coefficients.to(signal)
        bend = (linear + quadratic * share) * share
        return (self.log_scale.to(signal) + bend + self.log_factor.to(signal)).exp()

    def build(self, values: Values, inputs: Inputs | None = None) -> Observe:
        """The law of values along a path; the drawn noise scale is not used."""
        inner: Observe = self.likelihood.build(values, inputs)

        def law(path: Tensor, mask: Tensor | None) -> dist.TorchDistribution:
            signal = self.within(inner.signal(path))
            scale = self.noise_scale(signal)
            base: Any = dist.Normal(signal, scale)
            if self.bounds is not None:
                base = CensoredNormal(signal, scale, *self.bounds)
            fill = 0.0 if self.bounds is None else sum(self.bounds) / 2
            return observed_law(base, mask, event_dim=1 + len(self.event_shape), fill=fill)

        return Observe(law, lambda path: self.within(inner.signal(path)))
