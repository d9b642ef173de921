"""Flat networks against torch's own, with the same numbers."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import jacfwd, jacrev, vmap

from bayesode.errors import DataError, ShapeError
from bayesode.models.networks import ACTIVATIONS, Layout, affine, check_activation

MODULES = {"tanh": nn.Tanh, "silu": nn.SiLU, "softplus": nn.Softplus, "elu": nn.ELU}
SIZES = [(2, 2), (3, 1), (2, 8, 2), (3, 4, 5, 2), (1, 3, 3, 3, 1)]


# torch 2.13 scripts its decompositions for jvp when the first one is needed, and warns about it
TORCHS_OWN = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Reference(nn.Module):
    """The network in torch's modules, with the linear path as a bias-free layer."""

    def __init__(self, sizes, activation, is_linear):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.activation = MODULES[activation]()
        self.path = nn.Linear(sizes[0], sizes[-1], bias=False) if is_linear else None

    def forward(self, x):
        hidden = x
        for layer in self.layers[:-1]:
            hidden = self.activation(layer(hidden))
        out = self.layers[-1](hidden)
        return out if self.path is None else out + self.path(x)

    @property
    def flat(self):
        return nn.utils.parameters_to_vector(self.parameters()).detach()


def output(layout, weights, x, activation="tanh"):
    return layout.run(layout.unpack(weights), activation, x)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("is_linear", [False, True])
def test_a_flat_vector_of_torchs_parameters_gives_torchs_output(sizes, activation, is_linear):
    reference, layout = Reference(sizes, activation, is_linear), Layout(sizes, is_linear)
    assert layout.num_weights == reference.flat.numel()
    x = 2 * torch.randn(7, sizes[0])
    own = output(layout, reference.flat, x, activation)
    torch.testing.assert_close(own, reference(x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("is_linear", [False, True])
def test_a_label_names_the_entry_that_it_stands_for(is_linear):
    sizes = (3, 4, 2)
    reference, layout = Reference(sizes, "tanh", is_linear), Layout(sizes, is_linear)
    owners = {
        "layer0": reference.layers[0],
        "layer1": reference.layers[1],
        "linear": reference.path,
    }
    assert len(layout.labels) == len(set(layout.labels)) == layout.num_weights
    for label, number in zip(layout.labels, reference.flat, strict=True):
        owner, _, rest = label.partition(".")
        kind, _, index = rest.removesuffix("]").partition("[")
        tensor = getattr(owners[owner], kind)
        assert tensor[tuple(int(i) for i in index.split(","))] == number


def test_labels_count_output_first():
    assert Layout((2, 1)).labels == ["layer0.weight[0,0]", "layer0.weight[0,1]", "layer0.bias[0]"]


def test_per_weight_gives_matrices_their_fan_in_and_biases_the_bias():
    numbers = Layout((3, 4, 2), True).per_weight(lambda fan_in: 10.0 * fan_in, -1.0)
    expected = [30.0] * 12 + [-1.0] * 4 + [40.0] * 8 + [-1.0] * 2 + [30.0] * 6
    assert numbers.tolist() == expected


@pytest.mark.parametrize("sizes", SIZES)
def test_all_draws_at_once_are_the_draws_one_by_one(sizes):
    layout = Layout(sizes, True)
    weights, x = torch.randn(2, 3, layout.num_weights), torch.randn(2, 3, 5, sizes[0])
    together = output(layout, weights, x)
    assert together.shape == (2, 3, 5, sizes[-1])
    flat = output(layout, weights.flatten(0, 1), x.flatten(0, 1))
    torch.testing.assert_close(flat.view_as(together), together, rtol=1e-13, atol=1e-13)
    for i in range(2):
        for j in range(3):
            alone = output(layout, weights[i, j], x[i, j])
            torch.testing.assert_close(alone, together[i, j], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("draws_of_weights", "draws_of_x"), [((), (4,)), ((4,), ()), ((4,), (1,)), ((1,), (4,))]
)
def test_weights_and_states_broadcast_over_draws(draws_of_weights, draws_of_x):
    layout = Layout((2, 3, 2))
    weights = torch.randn(*draws_of_weights, layout.num_weights)
    x = torch.randn(*draws_of_x, 5, 2)
    out = output(layout, weights, x)
    assert out.shape == (4, 5, 2)
    for index in range(4):
        own = weights.expand(4, -1)[index]
        torch.testing.assert_close(out[index], output(layout, own, x.expand(4, 5, 2)[index]))


def test_unpacked_tensors_are_views():
    layout = Layout((2, 3, 2), True)
    weights = torch.randn(4, layout.num_weights)
    for piece in layout.unpack(weights):
        assert piece.untyped_storage().data_ptr() == weights.untyped_storage().data_ptr()


def test_affine_is_the_product_and_the_bias():
    x, matrix, bias = torch.randn(3, 5, 2), torch.randn(3, 2, 4), torch.randn(3, 1, 4)
    expected = torch.einsum("dri,dio->dro", x, matrix) + bias
    torch.testing.assert_close(affine(x, matrix, bias), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.filterwarnings(TORCHS_OWN)
@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_jacobians_of_functional_torch_are_those_of_the_tape(activation, jacobian):
    layout = Layout((2, 3, 2), True)
    weights, x = torch.randn(layout.num_weights), torch.randn(4, 2)

    def run(w, x):
        return output(layout, w, x, activation)

    by_weights, by_x = jacobian(run, (0, 1))(weights, x)
    tape = torch.autograd.functional.jacobian(run, (weights, x))
    torch.testing.assert_close((by_weights, by_x), tape, rtol=1e-12, atol=1e-12)


def test_vmap_over_weights_and_rows_is_the_batched_product():
    layout = Layout((2, 3, 2), True)
    weights, x = torch.randn(6, layout.num_weights), torch.randn(6, 5, 2)
    mapped = vmap(lambda w, x: output(layout, w, x))(weights, x)
    torch.testing.assert_close(mapped, output(layout, weights, x), rtol=1e-13, atol=1e-13)
    per_row = vmap(lambda row: output(layout, weights[0], row.unsqueeze(0)).squeeze(0))(x[0])
    torch.testing.assert_close(per_row, mapped[0], rtol=1e-13, atol=1e-13)


def test_softplus_survives_large_inputs():
    layout = Layout((1, 1, 1))
    weights = torch.tensor([1.0, 0.0, 1.0, 0.0])  # softplus(x)
    out = output(layout, weights, torch.tensor([[1e4], [-1e4]]), "softplus")
    assert out.flatten().tolist() == [1e4, 0.0]


@pytest.mark.parametrize("sizes", [(2,), (), (2, 0, 2), (2, -1)])
def test_widths_that_are_not_positive_are_refused(sizes):
    with pytest.raises(ShapeError, match="positive widths"):
        Layout(sizes)


def test_a_vector_of_the_wrong_length_is_refused():
    with pytest.raises(ShapeError, match="9 weights are needed, not 8"):
        Layout((2, 2, 1)).unpack(torch.zeros(3, 8))


def test_an_unknown_activation_is_answered_with_the_list():
    assert check_activation("elu") == "elu"
    with pytest.raises(DataError, match=r"\['elu', 'silu', 'softplus', 'tanh'\], not 'relu'"):
        check_activation("relu")
