"""Likelihoods in users' units: densities, masks, information, units."""

import math

import numpy as np
import pyro
import pytest
import torch

from bayesode.errors import DataError
from bayesode.models.likelihoods import GaussianLikelihood, LogNormalLikelihood
from bayesode.units import Units

UNITS = {
    "none": lambda: Units(),
    "one for all": lambda: Units([4.0], [1.5]),
    "identity": lambda: Units([4.0, 9.0], [1.5, 0.7], time_unit=7.0, names=["a", "b"]),
    "log": lambda: Units([0.3, 4.0], [0.8, 0.3], time_unit=7.0, transform="log", names=["a", "b"]),
    "hidden": lambda: Units([4.0, 9.0, 0.0], [1.5, 0.7, 300.0], names=["a", "b", "depot"]),
}
LIKELIHOODS = {"gaussian": GaussianLikelihood, "lognormal": LogNormalLikelihood}
each_units = pytest.mark.parametrize("units", UNITS)
each_likelihood = pytest.mark.parametrize("kind", LIKELIHOODS)
NOISE = torch.tensor([0.2, 0.05], dtype=torch.float64)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def likelihood_in(kind, units, **options):
    part = LIKELIHOODS[kind](2, **options)
    part.with_units(UNITS[units]())
    return part


def positive_path(*lead, units):
    """Dimensionless states whose values in users' units are positive."""
    if units == "none":
        return 0.5 + torch.rand(*lead, 3, 5, 2)
    return torch.randn(*lead, 3, 5, 3 if units == "hidden" else 2).clamp(-2, 2)


def users(path, units):
    """The first two components in users' units, written out."""
    location, scale = {
        "none": ([0.0, 0.0], [1.0, 1.0]),
        "one for all": ([4.0, 4.0], [1.5, 1.5]),
        "identity": ([4.0, 9.0], [1.5, 0.7]),
        "log": ([0.3, 4.0], [0.8, 0.3]),
        "hidden": ([4.0, 9.0], [1.5, 0.7]),
    }[units]
    values = torch.tensor(location) + torch.tensor(scale) * path[..., :2]
    return values.exp() if units == "log" else values


def normal_log_density(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - torch.log(sd) - 0.5 * math.log(2 * math.pi)


def by_hand(kind, values, path, units, noise):
    """Log density of each value, in users' units."""
    if kind == "gaussian":
        return normal_log_density(values, users(path, units), noise)
    logarithm = torch.log(values)
    return normal_log_density(logarithm, users(path, units).log(), noise) - logarithm


def observed(kind, path, units, noise):
    noise = noise.expand(path[..., :2].shape)
    draws = torch.randn(noise.shape)
    if kind == "gaussian":
        return users(path, units) + noise * draws
    return users(path, units) * (noise * draws).exp()


# ---- the density --------------------------------------------------------------------------------
@each_likelihood
@each_units
def test_the_log_density_is_the_formula_in_users_units(kind, units):
    path = positive_path(units=units)
    values = observed(kind, path, units, NOISE)
    law = likelihood_in(kind, units).build({"noise_scale": NOISE})(path)
    assert law.batch_shape == (3,)
    assert law.event_shape == (5, 2)
    expected = by_hand(kind, values, path, units, NOISE)
    torch.testing.assert_close(law.base_dist.log_prob(values), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(law.log_prob(values), expected.sum((-1, -2)), rtol=1e-12, atol=0)


@each_likelihood
@each_units
def test_the_density_in_users_units_integrates_to_one(kind, units):
    path = positive_path(units=units)[:1, :1]
    part = likelihood_in(kind, units)
    observe, sd = part.build({"noise_scale": NOISE}), NOISE
    signal = users(path, units).flatten()
    steps = torch.linspace(-12, 12, 20_001)
    grid = (
        signal[:, None] + sd[:, None] * steps
        if kind == "gaussian"
        else signal[:, None] * (sd[:, None] * steps).exp()
    )
    values = grid.T.unsqueeze(0)  # (series, time, component)
    law = observe(path.expand(1, 20_001, path.shape[-1]))
    density = law.base_dist.log_prob(values)[0].exp()
    total = torch.trapezoid(density, values[0], dim=0)
    torch.testing.assert_close(total, torch.ones(2), rtol=0, atol=1e-5)


@each_likelihood
@each_units
def test_the_signal_is_the_median_of_the_values(kind, units):
    path = positive_path(4, units=units)
    observe = likelihood_in(kind, units).build({"noise_scale": NOISE})
    signal = observe.signal(path)
    torch.testing.assert_close(signal, users(path, units), rtol=1e-12, atol=0)
    below = observe(path).base_dist.cdf(signal)
    torch.testing.assert_close(below, torch.full_like(signal, 0.5), rtol=1e-9, atol=0)


@each_likelihood
def test_all_draws_at_once_are_the_draws_one_by_one(kind):
    part, path = likelihood_in(kind, "log"), positive_path(4, units="log")
    noise = 0.1 + torch.rand(4, 1, 2)
    values = observed(kind, path[0], "log", noise[0, 0])
    together = part.build({"noise_scale": noise})(path).log_prob(values)
    assert together.shape == (4, 3)
    for index in range(4):
        alone = part.build({"noise_scale": noise[index, 0]})(path[index]).log_prob(values)
        torch.testing.assert_close(together[index], alone, rtol=1e-13, atol=0)


@each_likelihood
def test_a_shared_noise_scale_is_one_number_for_all_components(kind):
    part, path = likelihood_in(kind, "log", shared=True), positive_path(units="log")
    assert part.priors()["noise_scale"].event_shape == (1,)
    values = observed(kind, path, "log", NOISE)
    shared = part.build({"noise_scale": torch.tensor([0.3])})(path).log_prob(values)
    own = likelihood_in(kind, "log").build({"noise_scale": torch.tensor([0.3, 0.3])})(path)
    assert torch.equal(shared, own.log_prob(values))


@each_likelihood
def test_draws_have_the_moments_of_the_law(kind):
    part, path = likelihood_in(kind, "log"), positive_path(units="log")
    draws = part.build({"noise_scale": NOISE})(path).sample((20_000,))
    noise = draws if kind == "gaussian" else draws.log()
    centre = users(path, "log") if kind == "gaussian" else users(path, "log").log()
    standard = (noise - centre) / NOISE
    # 30 entries, mean and sd each: 5 standard errors, a false alarm in 3e4 seeds
    assert (standard.mean(0).abs() < 5 / math.sqrt(20_000)).all()
    assert ((standard.std(0) - 1).abs() < 5 / math.sqrt(40_000)).all()


# ---- masks --------------------------------------------------------------------------------------
def masked_case(kind, hidden):
    part, path = likelihood_in(kind, "log"), positive_path(4, units="log")
    values = observed(kind, path[0], "log", NOISE)
    mask = torch.rand(3, 5, 2) > 0.4
    return part, path, torch.where(mask, values, hidden), mask


@each_likelihood
@pytest.mark.parametrize("hidden", [math.nan, -1.0, 0.0, 7.0, math.inf])
def test_a_masked_value_counts_nothing_whatever_it_is(kind, hidden):
    part, path, values, mask = masked_case(kind, hidden)
    noise = NOISE.expand(4, 1, 2).clone().requires_grad_()
    path.requires_grad_()
    law = part.build({"noise_scale": noise})(path, mask)
    pointwise = law.base_dist.log_prob(values)
    expected = by_hand(kind, torch.where(mask, values, 1.0), path, "log", NOISE)
    expected = torch.where(mask, expected, 0.0)
    torch.testing.assert_close(pointwise, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(law.log_prob(values), expected.sum((-1, -2)), rtol=1e-12, atol=0)
    by_noise, by_path = torch.autograd.grad(law.log_prob(values).sum(), [noise, path])
    assert by_noise.isfinite().all()
    assert ((by_path != 0) == mask).all()


@each_likelihood
@pytest.mark.parametrize("hidden", [math.nan, -1.0])
def test_pyros_own_mask_would_lose_the_gradient_or_refuse(kind, hidden):
    # what the replacement of masked values is for
    part, path, values, mask = masked_case(kind, hidden)
    noise = NOISE.clone().requires_grad_()
    plain = part.build({"noise_scale": noise})(path).base_dist.mask(mask).to_event(2)
    if math.isnan(hidden) or kind == "lognormal":
        with pytest.raises(ValueError, match="support"):
            plain.log_prob(values)
        with pyro.validation_enabled(False):
            part, path, values, mask = masked_case(kind, hidden)
            plain = part.build({"noise_scale": noise})(path).base_dist.mask(mask).to_event(2)
            (gradient,) = torch.autograd.grad(plain.log_prob(values).sum(), noise)
        assert not gradient.isfinite().all()
    else:
        assert plain.log_prob(values).isfinite().all()


@each_likelihood
def test_a_value_outside_the_support_that_is_not_masked_is_refused(kind):
    part, path, values, mask = masked_case(kind, 1.0)
    values[mask] = math.nan if kind == "gaussian" else -1.0
    with pytest.raises(ValueError, match="support"):
        part.build({"noise_scale": NOISE})(path, mask).log_prob(values)


@each_likelihood
def test_masked_values_are_drawn_like_the_others(kind):
    part, path, _, mask = masked_case(kind, 1.0)
    observe = part.build({"noise_scale": NOISE})
    with torch.random.fork_rng():
        everything = observe(path).sample((2,))
    assert torch.equal(observe(path, mask).sample((2,)), everything)
    assert everything.shape == (2, 4, 3, 5, 2)
    assert (everything.std(0) > 0).all()


# ---- information --------------------------------------------------------------------------------
def expected_information(kind, path, units, part):
    """E of minus the second derivative of the log density, by Gauss-Hermite quadrature in y.

    The derivative is quadratic in y (or log y): ten nodes are exact.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(10)
    z = path[..., :2].clone()
    if path.shape[-1] > 2:
        hidden = path[..., 2:]
    total = torch.zeros_like(z)
    observe = part.build({"noise_scale": NOISE})
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        shift = NOISE * node
        values = (
            users(path, units) + shift if kind == "gaussian" else users(path, units) * shift.exp()
        )
        x = z.clone().requires_grad_()
        full = torch.cat([x, hidden], -1) if path.shape[-1] > 2 else x
        log_density = observe(full).base_dist.log_prob(values).sum()
        (first,) = torch.autograd.grad(log_density, x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)  # entries do not mix
        total -= weight * second
    return total


@each_likelihood
@each_units
def test_fisher_is_the_expected_second_derivative(kind, units):
    part, path = likelihood_in(kind, units), positive_path(units=units)
    information = part.fisher(path, {"noise_scale": NOISE})
    assert information.shape == (3, 5, 2)
    expected = expected_information(kind, path, units, part)
    torch.testing.assert_close(information, expected, rtol=1e-9, atol=0)


@each_likelihood
@each_units
def test_fisher_of_all_draws_is_that_of_each_draw(kind, units):
    part, path = likelihood_in(kind, units), positive_path(4, units=units)
    noise = 0.1 + torch.rand(4, 1, 2)
    together = part.fisher(path, {"noise_scale": noise})
    for index in range(4):
        alone = part.fisher(path[index], {"noise_scale": noise[index, 0]})
        torch.testing.assert_close(together[index], alone, rtol=1e-13, atol=0)
    shared = likelihood_in(kind, units, shared=True)
    same = shared.fisher(path, {"noise_scale": noise[..., :1]})
    torch.testing.assert_close(same[..., 0], together[..., 0], rtol=1e-13, atol=0)


def test_a_negative_state_says_nothing_through_a_logarithm():
    part = likelihood_in("lognormal", "identity")
    path = torch.tensor([[[-4.0, 0.0]]], requires_grad=True)  # a: 4 - 6 < 0
    law = part.build({"noise_scale": NOISE})(path)
    (gradient,) = torch.autograd.grad(law.log_prob(torch.ones(1, 1, 2)).sum(), path)
    information = part.fisher(path.detach(), {"noise_scale": NOISE})
    assert gradient[0, 0, 0] == information[0, 0, 0] == 0
    assert information[0, 0, 1] == pytest.approx((0.7 / 9 / 0.05) ** 2)


# ---- units and priors ---------------------------------------------------------------------------
@each_likelihood
def test_a_change_of_the_datas_unit_shifts_the_log_density_by_its_logarithm(kind):
    path = positive_path(units="identity")
    values = observed(kind, path, "identity", NOISE)
    small, large = LIKELIHOODS[kind](2), LIKELIHOODS[kind](2)
    small.with_units(Units([4.0, 9.0], [1.5, 0.7]))
    large.with_units(Units([4000.0, 9000.0], [1500.0, 700.0]))
    noise = NOISE * (1000 if kind == "gaussian" else 1)
    before = small.build({"noise_scale": NOISE})(path).base_dist.log_prob(values)
    after = large.build({"noise_scale": noise})(path).base_dist.log_prob(1000 * values)
    torch.testing.assert_close(after, before - math.log(1000), rtol=1e-9, atol=1e-9)


def prior_moments(part):
    law = part.priors()["noise_scale"].base_dist
    return law.icdf(torch.full_like(law.loc, 0.5)).tolist(), law.scale.tolist()


def test_the_prior_of_gaussian_noise_is_three_tenths_of_the_datas_sd():
    assert prior_moments(GaussianLikelihood(2))[0] == pytest.approx([0.3, 0.3])
    part = likelihood_in("gaussian", "identity")
    assert prior_moments(part) == (pytest.approx([0.45, 0.21]), [1.0, 1.0])
    part = likelihood_in("gaussian", "hidden")
    assert prior_moments(part)[0] == pytest.approx([0.45, 0.21])
    part = likelihood_in("gaussian", "one for all")
    assert prior_moments(part)[0] == pytest.approx([0.45, 0.45])
    part = likelihood_in("gaussian", "identity", shared=True)
    assert prior_moments(part)[0] == pytest.approx([0.3 * math.sqrt(1.5 * 0.7)])


def test_under_logarithms_the_datas_sd_is_that_of_a_lognormal():
    part = likelihood_in("gaussian", "log")
    law = torch.distributions.LogNormal(torch.tensor([0.3, 4.0]), torch.tensor([0.8, 0.3]))
    assert prior_moments(part)[0] == pytest.approx((0.3 * law.stddev).tolist())


def test_the_prior_of_lognormal_noise_has_no_unit():
    assert prior_moments(likelihood_in("lognormal", "identity"))[0] == pytest.approx([0.3, 0.3])
    assert prior_moments(likelihood_in("lognormal", "log"))[0] == pytest.approx([0.24, 0.09])


@each_likelihood
@each_units
def test_a_given_prior_stays_whatever_the_units(kind, units):
    part = likelihood_in(kind, units, prior_median=0.25, prior_log_scale=0.5)
    assert prior_moments(part) == (pytest.approx([0.25, 0.25]), [0.5, 0.5])


@each_likelihood
@each_units
def test_starting_values_turn_a_dimensionless_noise_into_the_prior_median(kind, units):
    # .3 of the data's sd is .3 in dimensionless units, but for a logarithm of linear units
    part = likelihood_in(kind, units)
    start = part.starting_values(torch.tensor([0.3, 0.3]))["noise_scale"]
    assert start.tolist() == pytest.approx(prior_moments(part)[0])
    shared = likelihood_in(kind, units, shared=True)
    one = shared.starting_values(torch.tensor([0.3, 0.3]))["noise_scale"]
    assert one.shape == (1,)
    assert one.item() == pytest.approx(sum(start.tolist()) / 2)


@each_likelihood
@each_units
def test_the_working_response_of_a_noiseless_value_is_the_state(kind, units):
    part, path = likelihood_in(kind, units), positive_path(units=units)
    response = part.working_response(users(path, units))
    torch.testing.assert_close(response, path[..., :2], rtol=1e-10, atol=1e-10)


def test_noise_is_labelled_by_the_observed_components():
    assert GaussianLikelihood(2).labels == {"noise_scale": ["x1", "x2"]}
    assert likelihood_in("gaussian", "hidden").labels == {"noise_scale": ["a", "b"]}
    assert likelihood_in("lognormal", "log", shared=True).labels == {"noise_scale": ["all"]}


@pytest.mark.parametrize("name", ["dim", "prior_median", "prior_log_scale"])
@pytest.mark.parametrize("number", [0, -1, math.nan, math.inf])
def test_settings_that_are_no_positive_numbers_are_refused(name, number):
    with pytest.raises(DataError, match=f"{name} must be a positive number, not {number}"):
        GaussianLikelihood(**({"dim": 2} | {name: number}))
