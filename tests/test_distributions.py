"""Laws that Pyro lacks."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from bayesode.distributions import CensoredNormal, ObservedWhere, observed_law
from bayesode.errors import ShapeError


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def exponential(rate):
    return dist.Exponential(rate)


MASK = torch.tensor([[True, False, True], [False, False, True]])


def test_masked_entries_have_density_one_and_no_gradient():
    rate = torch.rand(2, 3, requires_grad=True)
    values = torch.tensor([[0.5, math.nan, 2.0], [-1.0, math.inf, 0.0]])
    law = ObservedWhere(exponential(rate), MASK, 1.0)
    seen = rate.log() - rate * torch.where(MASK, values, 0.0)
    expected = torch.where(MASK, seen, 0.0)
    torch.testing.assert_close(law.log_prob(values), expected)
    (gradient,) = torch.autograd.grad(law.log_prob(values).sum(), rate)
    by_hand = torch.where(MASK, 1 / rate - torch.where(MASK, values, 0.0), 0.0)
    torch.testing.assert_close(gradient, by_hand.detach())


def test_a_value_has_no_gradient_where_it_is_masked():
    values = torch.tensor([[0.5, math.nan, 2.0], [-1.0, 9.0, 0.3]], requires_grad=True)
    law = ObservedWhere(exponential(torch.full((2, 3), 2.0)), MASK, 1.0)
    (gradient,) = torch.autograd.grad(law.log_prob(values).sum(), values)
    assert torch.equal(gradient, torch.where(MASK, -2.0, 0.0))


def test_the_fill_changes_nothing():
    values = torch.rand(2, 3)
    one, other = (ObservedWhere(exponential(torch.ones(2, 3)), MASK, f) for f in (0.1, 50.0))
    assert torch.equal(one.log_prob(values), other.log_prob(values))


def test_an_observed_entry_outside_the_support_is_refused():
    values = torch.where(MASK, -1.0, 1.0)
    with pytest.raises(ValueError, match="support"):
        ObservedWhere(exponential(torch.ones(2, 3)), MASK, 1.0).log_prob(values)


def test_everything_is_drawn():
    law = ObservedWhere(exponential(torch.ones(4, 2, 3)), MASK, 1.0)
    draws = law.sample((1000,))
    assert draws.shape == (1000, 4, 2, 3)
    # mean of 24 averages of 1000 exponentials: sd .032; 5 standard errors, 1 in 7e4 seeds
    assert ((draws.mean(0) - 1).abs() < 5 / math.sqrt(1000)).all()
    assert law.has_rsample


def test_a_mask_of_one_series_serves_all_draws():
    rate = torch.rand(4, 2, 3)
    law = ObservedWhere(exponential(rate), MASK, 1.0)
    assert law.batch_shape == (4, 2, 3)
    values = torch.rand(2, 3)
    expected = torch.where(MASK, exponential(rate).log_prob(values), 0.0)
    assert torch.equal(law.log_prob(values), expected)


def test_an_expanded_law_keeps_mask_and_fill():
    values = torch.where(MASK, 0.5, torch.nan)
    law = ObservedWhere(exponential(torch.tensor(2.0)), MASK, 1.0).expand([5, 2, 3])
    assert isinstance(law, ObservedWhere)
    assert law.batch_shape == (5, 2, 3)
    expected = torch.where(MASK, math.log(2) - 1, 0.0).expand(5, 2, 3)
    torch.testing.assert_close(law.log_prob(values), expected)
    event = law.to_event(2).expand([7, 5])
    assert event.batch_shape == (7, 5)
    torch.testing.assert_close(event.log_prob(values), expected.sum((-1, -2)).expand(7, 5))


@pytest.mark.parametrize("shape", [(4, 2, 1), (4, 1, 3), (4, 2, 4)])
def test_a_law_of_another_shape_than_the_values_is_refused(shape):
    # a single component would be broadcast, and the second one scored against the first state
    with pytest.raises(ShapeError, match="as many components"):
        observed_law(exponential(torch.rand(shape)), MASK.expand(4, 2, 3), event_dim=2, fill=1.0)


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_law_of_a_series_sums_the_observed_entries(mask):
    rate, values = torch.rand(4, 2, 3), torch.rand(2, 3)
    law = observed_law(exponential(rate), mask, event_dim=1, fill=1.0)
    assert law.batch_shape == (4, 2)
    assert law.event_shape == (3,)
    scored = exponential(rate).log_prob(values)
    scored = scored if mask is None else torch.where(mask, scored, 0.0)
    assert torch.equal(law.base_dist.log_prob(values), scored)
    torch.testing.assert_close(law.log_prob(values), scored.sum(-1))
    assert law.sample().shape == (4, 2, 3)


# ---- censored normal -----------------------------------------------------------------------------
CASES = [(0.3, 0.2), (-0.4, 0.5), (1.7, 0.3), (0.5, 5.0), (0.02, 0.01)]


def censored(location, scale):
    return CensoredNormal(torch.tensor(location), torch.tensor(scale), 0.0, 1.0)


@pytest.mark.parametrize(("location", "scale"), CASES)
def test_a_censored_normal_has_mass_one_and_the_moments_of_its_density(location, scale):
    law = censored(location, scale)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x, weight = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    inside = weight * law.log_prob(x).exp()
    ends = law.log_prob(torch.tensor([0.0, 1.0])).exp()
    assert inside.sum() + ends.sum() == pytest.approx(1.0, abs=1e-9)
    mean = (inside * x).sum() + ends[1]
    assert law.mean.item() == pytest.approx(mean.item(), abs=1e-9)
    variance = (inside * (x - mean) ** 2).sum() + ends[0] * mean**2 + ends[1] * (1 - mean) ** 2
    assert law.variance.item() == pytest.approx(variance.item(), abs=1e-9)


def test_draws_of_a_censored_normal_follow_its_law():
    law = censored(0.1, 0.3)
    draws = law.expand([100_000]).rsample()
    assert draws.min() == 0 and draws.max() == 1
    share = (draws == 0).double().mean().item()
    expected = law.log_prob(torch.tensor(0.0)).exp().item()
    assert share == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 1e5))
    error = 5 * (law.variance / 1e5).sqrt().item()
    assert draws.mean().item() == pytest.approx(law.mean.item(), abs=error)
    median = law.icdf(torch.tensor(0.5)).item()
    assert (draws <= median).double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 316)


def test_a_censored_normal_far_beyond_an_end_has_finite_gradients():
    location = torch.tensor([-40.0, 0.5, 60.0], requires_grad=True)
    law = CensoredNormal(location, torch.full((3,), 0.5), 0.0, 1.0)
    (gradient,) = torch.autograd.grad(law.log_prob(torch.tensor([1.0, 1.0, 0.0])).sum(), location)
    assert gradient.isfinite().all()
    assert law.support.check(law.rsample()).all()
