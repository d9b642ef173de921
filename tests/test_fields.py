"""Random fields: BayesianMLP."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.func import jacfwd, jacrev, vmap

from bayesode.errors import DataError, ShapeError
from bayesode.models.fields import BayesianMLP
from bayesode.models.networks import ACTIVATIONS

FUNCTIONS = {
    "tanh": torch.tanh,
    "silu": nn.functional.silu,
    "softplus": nn.functional.softplus,
    "elu": nn.functional.elu,
}


# torch 2.13 scripts its decompositions for jvp when the first one is needed, and warns about it
TORCHS_OWN = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def field_and_weights(*draws, **options):
    field = BayesianMLP(2, [3], 2, **options)
    lead = (*draws, 1) if draws else ()
    return field, torch.randn(*lead, field.num_weights)


def by_hand(weights, x, activation, linear=False):
    """Two inputs or three, three hidden, two outputs: nn.Linear's order, written out."""
    dim = x.shape[-1]
    first, weights = weights[: 3 * dim].view(3, dim), weights[3 * dim :]
    hidden = FUNCTIONS[activation](nn.functional.linear(x, first, weights[:3]))
    out = nn.functional.linear(hidden, weights[3:9].view(2, 3), weights[9:11])
    return out + nn.functional.linear(x, weights[11:].view(2, dim)) if linear else out


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("time", [False, True])
def test_the_field_is_torchs_network_of_the_same_weights(activation, linear, time):
    field, weights = field_and_weights(activation=activation, linear=linear, time=time)
    f, x, t = field.build({"weights": weights}), torch.randn(5, 2), 0.7
    inputs = torch.cat([x, torch.full((5, 1), t)], -1) if time else x
    expected = by_hand(weights, inputs, activation, linear)
    torch.testing.assert_close(f(torch.tensor(t), x), expected, rtol=1e-13, atol=1e-13)


def test_an_empty_hidden_layer_is_an_affine_field():
    field = BayesianMLP(2, [], 3)
    assert field.num_weights == 9
    weights, x = torch.randn(9), torch.randn(5, 2)
    expected = x @ weights[:6].view(3, 2).T + weights[6:]
    out = field.build({"weights": weights})(torch.tensor(0.0), x)
    torch.testing.assert_close(out, expected, rtol=1e-14, atol=1e-14)


def test_each_series_has_its_own_time():
    field, weights = field_and_weights(4, time=True)
    f, x, t = field.build({"weights": weights}), torch.randn(4, 5, 2), torch.rand(5, 1)
    together = f(t, x)
    assert together.shape == (4, 5, 2)
    for row in range(5):
        alone = f(t[row, 0], x[:, row : row + 1])
        torch.testing.assert_close(together[:, row : row + 1], alone, rtol=1e-13, atol=1e-13)
    assert not torch.allclose(f(t[0, 0], x), together)


def test_time_may_be_a_number_and_keeps_the_dtype_of_the_state():
    field, weights = field_and_weights(time=True)
    f, x = field.float().build({"weights": weights.float()}), torch.randn(5, 2).float()
    expected = f(torch.tensor(0.25), x)
    assert expected.dtype == torch.float32
    assert torch.equal(f(0.25, x), expected)
    assert torch.equal(f(torch.tensor(0.25, dtype=torch.float64), x), expected)


def test_an_autonomous_field_does_not_read_the_time():
    field, weights = field_and_weights(4)
    f, x = field.build({"weights": weights}), torch.randn(4, 5, 2)
    assert torch.equal(f(torch.tensor(math.nan), x), f(torch.zeros(5, 1), x))


def test_all_draws_at_once_are_the_draws_one_by_one():
    field, weights = field_and_weights(6, time=True, linear=True)
    x, t = torch.randn(6, 5, 2), torch.rand(5, 1)
    together = field.build({"weights": weights})(t, x)
    for index in range(6):
        alone = field.build({"weights": weights[index, 0]})(t, x[index])
        torch.testing.assert_close(together[index], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("prior_scale", [1.0, 3.0])
def test_the_prior_of_a_weight_is_the_scale_over_the_root_of_its_fan_in(prior_scale):
    field = BayesianMLP(2, [8, 5], 3, time=True, linear=True, prior_scale=prior_scale)
    prior = field.priors()["weights"]
    assert prior.event_shape == (field.num_weights,)
    fan_in = {"layer0": 3, "layer1": 8, "layer2": 5, "linear": 3}
    for label, mean, sd in zip(
        field.labels["weights"], prior.mean.tolist(), prior.stddev.tolist(), strict=True
    ):
        layer, _, kind = label.partition(".")
        variance = prior_scale**2 / (fan_in[layer] if kind.startswith("weight") else 1)
        assert mean == 0
        assert sd == pytest.approx(math.sqrt(variance), rel=1e-15)


def test_the_prior_reads_the_buffer_when_it_is_asked():
    field = BayesianMLP(2, [3], 2)
    field.prior_sd.mul_(2)
    assert isinstance(field.priors()["weights"], dist.Independent)
    assert torch.equal(field.priors()["weights"].base_dist.scale, field.prior_sd)


@pytest.mark.filterwarnings(TORCHS_OWN)
@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
@pytest.mark.parametrize("time", [False, True])
def test_functional_jacobians_pass_through_build(jacobian, time):
    field, weights = field_and_weights(time=time, linear=True)
    x, t = torch.randn(5, 2), torch.rand(5, 1)

    def run(w, x):
        return field.build({"weights": w})(t, x)

    own = jacobian(run, (0, 1))(weights, x)
    tape = torch.autograd.functional.jacobian(run, (weights, x))
    torch.testing.assert_close(own, tape, rtol=1e-12, atol=1e-12)


def test_vmap_over_weights_is_the_field_of_all_draws():
    field, weights = field_and_weights(6, time=True)
    x, t = torch.randn(6, 5, 2), torch.rand(5, 1)
    mapped = vmap(lambda w, x: field.build({"weights": w})(t, x))(weights.squeeze(1), x)
    together = field.build({"weights": weights})(t, x)
    torch.testing.assert_close(mapped, together, rtol=1e-13, atol=1e-13)


def test_a_field_is_the_same_function_at_every_call():
    field, weights = field_and_weights(4)
    f, x = field.build({"weights": weights}), torch.randn(4, 5, 2)
    before = torch.get_rng_state()
    assert torch.equal(f(torch.tensor(0.0), x), f(torch.tensor(1.0), x))
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_arguments_are_refused():
    with pytest.raises(DataError, match="activation"):
        BayesianMLP(2, [3], 2, activation="relu")
    with pytest.raises(ShapeError, match="positive widths"):
        BayesianMLP(2, [0], 2)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(DataError, match=f"prior_scale must be a positive number, not {scale}"):
            BayesianMLP(2, [3], 2, prior_scale=scale)
    with pytest.raises(ShapeError, match="17 weights are needed, not 16"):
        BayesianMLP(2, [3], 2).build({"weights": torch.zeros(16)})
