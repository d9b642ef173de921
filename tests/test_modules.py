"""A module's parameters as one random site."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from bayesode.errors import DataError, ShapeError
from bayesode.models.contracts import draw
from bayesode.models.frames import ConvDecoder, LinearDecoder, Logits, MLPDecoder, SumDecoder
from bayesode.models.modules import BayesianModule

DRAWS, SERIES, TIMES, DIM = 3, 4, 5, 2


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 6), nn.Tanh(), nn.Linear(6, 7))


NETWORKS = {
    "linear layers": perceptron,
    "convolutions": lambda: ConvDecoder((2, 9, 6), DIM, channels=[3, 2]),
    "a sum under logits": lambda: Logits(
        SumDecoder(a=LinearDecoder((2, 3), DIM), b=MLPDecoder((2, 3), DIM, [4, 3]))
    ),
}
each_network = pytest.mark.parametrize("network", NETWORKS)


def looped(part: BayesianModule, network: nn.Module, weights: Tensor, x: Tensor) -> Tensor:
    """A network per draw, called for each series and time alone."""
    out = []
    for flat, states in zip(weights.reshape(-1, weights.shape[-1]), x, strict=True):
        own, place = {}, 0
        for piece in part.pieces:
            own[piece.names[0]] = flat[place : place + piece.size].view(piece.shape)
            place += piece.size
        frames = [functional_call(network, own, (row[None],))[0] for row in states.flatten(0, 1)]
        out.append(torch.stack(frames).unflatten(0, states.shape[:2]))
    return torch.stack(out)


@each_network
@pytest.mark.parametrize("num_draws", [1, DRAWS])
def test_all_draws_at_once_equal_a_loop_over_draws_series_and_times(network: str, num_draws: int):
    network = NETWORKS[network]()
    part = BayesianModule(network)
    weights = torch.randn(num_draws, 1, part.num_weights)
    x = torch.randn(num_draws, SERIES, TIMES, DIM)
    found = part.build({"weights": weights})(x)
    torch.testing.assert_close(
        found, looped(part, network, weights, x), rtol=1e-12, atol=1e-12, check_dtype=True
    )


@each_network
def test_one_path_is_decoded_by_every_draw_and_every_path_by_one_network(network: str):
    part = BayesianModule(NETWORKS[network]())
    weights, x = torch.randn(DRAWS, 1, part.num_weights), torch.randn(SERIES, TIMES, DIM)
    every = part.build({"weights": weights})
    torch.testing.assert_close(every(x), every(x.expand(DRAWS, *x.shape)), rtol=1e-12, atol=1e-12)
    x = torch.randn(DRAWS, SERIES, TIMES, DIM)
    one = part.build({"weights": weights[0, 0]})
    kept = part.build({"weights": weights[:1]})
    assert torch.equal(one(x), kept(x))
    torch.testing.assert_close(one(x)[1], one(x[1]), rtol=1e-12, atol=1e-12)


def test_two_dimensions_of_draws_stay_apart():
    part = BayesianModule(perceptron())
    weights = torch.randn(2, DRAWS, 1, part.num_weights)
    x = torch.randn(2, DRAWS, SERIES, TIMES, DIM)
    out = part.build({"weights": weights})(x)
    assert out.shape == (2, DRAWS, SERIES, TIMES, 7)
    alone = part.build({"weights": weights[1, 2, 0]})(x[1, 2])
    torch.testing.assert_close(out[1, 2], alone, rtol=1e-12, atol=1e-12)


class Largest(TorchDispatchMode):
    """Counts calls of an operation, and the largest tensor that anything returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket.__name__ in ("bmm", "baddbmm", "mm", "addmm")
        if isinstance(out, Tensor) and out.untyped_storage().nbytes():
            # an expanded view has a small storage: what counts is what lies in memory
            self.largest = max(self.largest, out.untyped_storage().nbytes() // out.element_size())
        return out


def test_a_layer_is_one_product_and_weights_are_not_copied_for_series_or_times():
    part = BayesianModule(nn.Sequential(nn.Linear(DIM, 50), nn.Tanh(), nn.Linear(50, 40)))
    weights = torch.randn(DRAWS, 1, part.num_weights)
    run = part.build({"weights": weights})
    for series, times in ((SERIES, TIMES), (20, 30)):
        with Largest() as seen:
            run(torch.randn(DRAWS, series, times, DIM))
        assert seen.products == 2
        # the hidden layer of all rows, or the weights once: never weights per row
        assert seen.largest <= max(DRAWS * series * times * 50, DRAWS * part.num_weights)


# ---- gradients ----------------------------------------------------------------------------------
@each_network
def test_gradients_of_weights_are_those_of_the_loop(network: str):
    network = NETWORKS[network]()
    part = BayesianModule(network)
    weights = torch.randn(DRAWS, 1, part.num_weights, requires_grad=True)
    x = torch.randn(DRAWS, SERIES, TIMES, DIM, requires_grad=True)
    by_part = part.build({"weights": weights})(x).square().sum()
    by_loop = looped(part, network, weights, x).square().sum()
    found = torch.autograd.grad(by_part, [weights, x])
    expected = torch.autograd.grad(by_loop, [weights, x])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [[], ["2"], ["0"]])
def test_gradients_reach_drawn_weights_and_the_parameters_that_are_not_random(layers: list[str]):
    network = perceptron()
    part = BayesianModule(network, layers=layers)
    names = [name for name, _ in network.named_parameters() if name.split(".")[0] not in layers]
    assert [name for name, _ in part.named_parameters()] == [f"module.{name}" for name in names]
    values = {
        site: torch.randn(DRAWS, 1, part.num_weights, requires_grad=True) for site in part.priors()
    }
    out = part.build(values)(torch.randn(DRAWS, SERIES, TIMES, DIM))
    gradients = torch.autograd.grad(out.square().sum(), [*part.parameters(), *values.values()])
    assert all((gradient != 0).all() for gradient in gradients)


def test_a_random_layer_is_drawn_and_the_others_are_the_networks_own():
    network = perceptron()
    part = BayesianModule(network, layers=["2"])
    weights, x = torch.randn(DRAWS, 1, 6 * 7 + 7), torch.randn(DRAWS, SERIES, TIMES, DIM)
    found = part.build({"weights": weights})(x)
    torch.testing.assert_close(found, looped(part, network, weights, x), rtol=1e-12, atol=1e-12)


def test_a_deterministic_module_is_the_module_itself():
    network = perceptron()
    part = BayesianModule(network, layers=())
    assert part.priors() == part.tunable() == part.labels == {}
    x = torch.randn(DRAWS, SERIES, TIMES, DIM)
    torch.testing.assert_close(part.build({})(x), network(x), rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        network[0].weight.zero_()  # the part has a copy of its own
    assert not torch.equal(part.build({})(x), network(x))


# ---- the site -----------------------------------------------------------------------------------
def test_labels_and_groups_name_each_number():
    part = BayesianModule(perceptron(), layers=["2", "0"])
    labels = part.labels["weights"]
    assert labels[:3] == ["0.weight[0,0]", "0.weight[0,1]", "0.weight[1,0]"]
    assert labels[12] == "0.bias[0]"
    assert labels[-1] == "2.bias[6]"
    assert len(labels) == len(set(labels)) == part.num_weights == 12 + 6 + 42 + 7
    tuning = part.tunable()["weights"]
    assert tuning.groups.bincount().tolist() == [12, 6, 42, 7]
    assert getattr(part, tuning.buffer).shape == (67,)


def test_starting_weights_are_the_modules_own():
    network = perceptron()
    part = BayesianModule(network)
    x = torch.randn(SERIES, TIMES, DIM)
    found = part.build({"weights": part.starting_weights()})(x)
    torch.testing.assert_close(found, network(x), rtol=1e-13, atol=1e-13)
    assert not list(part.parameters())


def test_prior_outputs_of_every_layer_have_the_prior_scale():
    layers = {
        "linear": (nn.Linear(50, 4), (50,)),
        "convolution": (nn.Conv2d(6, 4, 3, bias=False), (6, 3, 3)),
        "transposed": (nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), (8, 6, 6)),
        "grouped transposed": (
            nn.ConvTranspose2d(8, 4, 4, 2, 1, groups=2, bias=False),
            (8, 6, 6),
        ),
    }
    for layer, shape in layers.values():
        part = BayesianModule(layer, prior_scale=0.5)
        weights = part.priors()["weights"].sample((4_000,)).unsqueeze(1)
        signs = 2.0 * torch.randint(2, (4_000, 1, math.prod(shape))) - 1
        rows = signs.view(4_000, *shape)
        out = torch.func.vmap(part._call)(weights[:, 0], rows.unsqueeze(1))[:, 0]
        out = out[..., 3, 3] if out.dim() == 4 and out.shape[-1] > 5 else out.flatten(1)
        is_biased = "bias" in dict(layer.named_parameters())
        expected = 0.5**2 * (2 if is_biased else 1)
        # mean of squares of normals: relative sd sqrt(2 / n); 5 standard errors
        assert abs(out[:, 0].square().mean() / expected - 1) < 5 * math.sqrt(2 / 4_000)


def test_parameters_that_layers_share_are_one_piece():
    network = perceptron()
    tied = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh(), nn.Linear(DIM, DIM))
    tied[2].weight = tied[0].weight
    part = BayesianModule(tied)
    assert [piece.names for piece in part.pieces] == [
        ("0.weight", "2.weight"),
        ("0.bias",),
        ("2.bias",),
    ]
    x = torch.randn(SERIES, TIMES, DIM)
    found = part.build({"weights": part.starting_weights()})(x)
    torch.testing.assert_close(found, tied(x), rtol=1e-13, atol=1e-13)
    assert BayesianModule(tied, layers=["2"]).pieces[0].names == ("0.weight", "2.weight")
    assert BayesianModule(network).num_weights == 67


def test_a_copy_and_a_state_dict_carry_everything(tmp_path):
    part = BayesianModule(perceptron(), layers=["2"])
    torch.save(part.state_dict(), tmp_path / "part.pt")
    other = BayesianModule(perceptron(), layers=["2"])
    x, weights = torch.randn(SERIES, TIMES, DIM), part.starting_weights()
    assert not torch.equal(
        other.build({"weights": weights})(x), part.build({"weights": weights})(x)
    )
    other.load_state_dict(torch.load(tmp_path / "part.pt", weights_only=True))
    for twin in (other, copy.deepcopy(part)):
        assert torch.equal(twin.starting_weights(), part.starting_weights())
        assert torch.equal(twin.build({"weights": weights})(x), part.build({"weights": weights})(x))


def test_settings_are_told_in_plain_words():
    config = BayesianModule(perceptron(), layers=["2"], prior_scale=0.5).config
    assert config["layers"] == ["2"]
    assert "Linear(in_features=2, out_features=6" in config["module"]


# ---- a linear part ------------------------------------------------------------------------------
@pytest.mark.parametrize("layers", [(), None, ["decoder.parts.linear"], ["decoder.parts.net"]])
def test_the_linear_part_is_set_whether_it_is_random_or_not(layers):
    basis, mean = torch.linalg.qr(torch.randn(6, DIM))[0], torch.rand(6)
    network = SumDecoder(linear=LinearDecoder((2, 3), DIM), net=MLPDecoder((2, 3), DIM, [4]))
    part = BayesianModule(Logits(network, slope=5.0), layers=layers)
    part.set_linear(basis, mean, 0.7)
    values = {"weights": part.starting_weights()} if part.pieces else {}
    x = torch.randn(SERIES, TIMES, DIM)
    expected = 5.0 * (mean + 0.7 * x @ basis.mT - 0.5)
    found = part.build(values)(x)
    torch.testing.assert_close(found.flatten(-2), expected, rtol=1e-12, atol=1e-12)
    names = {piece.names[0] for piece in part.pieces}
    assert not any(name.removeprefix("module.") in names for name in dict(part.named_parameters()))


def test_a_module_without_a_linear_part_says_so():
    with pytest.raises(DataError, match=r"Sequential has no linear part.*LinearDecoder"):
        BayesianModule(perceptron()).set_linear(torch.zeros(7, 2), torch.zeros(7), 1.0)


# ---- what is refused ----------------------------------------------------------------------------
IMPURE = {
    "batch normalisation": nn.BatchNorm1d(6),
    "of images": nn.BatchNorm2d(6),
    "synchronised": nn.SyncBatchNorm(6),
    "running statistics of instances": nn.InstanceNorm1d(6, track_running_stats=True),
    "dropout": nn.Dropout(0.1),
    "dropout of channels": nn.Dropout2d(0.1),
    "alpha dropout": nn.AlphaDropout(0.1),
    "random slopes": nn.RReLU(),
}


@pytest.mark.parametrize("layer", IMPURE)
@pytest.mark.parametrize("layers", [(), None])
def test_layers_that_change_from_call_to_call_are_refused(layer: str, layers):
    # in training mode they would decode the same state differently at each call (dropout), or by
    # what else is in the batch, and otherwise at test than in training (batch statistics)
    network = nn.Sequential(nn.Linear(DIM, 6), IMPURE[layer], nn.Linear(6, 7)).eval()
    with pytest.raises(DataError, match=rf"layer '1' is {type(IMPURE[layer]).__name__}"):
        BayesianModule(network, layers=layers)


def test_normalisation_of_a_row_by_itself_is_welcome():
    network = nn.Sequential(nn.Linear(DIM, 6), nn.LayerNorm(6), nn.GroupNorm(2, 6))
    assert BayesianModule(network).num_weights == 18 + 12 + 12
    assert BayesianModule(nn.Sequential(nn.InstanceNorm1d(6), nn.Linear(DIM, 6))).num_weights == 18


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_a_prior_scale_that_is_no_positive_number_is_refused(scale: float):
    with pytest.raises(DataError, match="prior_scale must be a positive number"):
        BayesianModule(perceptron(), prior_scale=scale)


@pytest.mark.parametrize("layers", [["3"], ["1"], ["2", "weight"], "decoder"])
def test_layers_without_parameters_are_refused_with_those_there_are(layers):
    with pytest.raises(DataError, match=r"no parameters in .* are \['0', '2'\]"):
        BayesianModule(perceptron(), layers=layers)


def test_a_module_without_parameters_has_nothing_random():
    with pytest.raises(DataError, match="no parameters in 'it'"):
        BayesianModule(nn.Tanh())
    with pytest.raises(DataError, match="a module is needed"):
        BayesianModule(torch.tanh)


def test_weights_drawn_per_series_are_refused():
    part = BayesianModule(perceptron())
    with pyro.plate("trajectories", SERIES, dim=-1):
        values = draw("part", part.priors())
    with pytest.raises(ShapeError, match="outside the plate"):
        part.build(values)


def test_the_prior_is_normal_with_a_sd_per_number():
    part = BayesianModule(perceptron(), prior_scale=2.0)
    law = part.priors()["weights"]
    assert isinstance(law.base_dist, dist.Normal)
    sds = law.base_dist.scale
    assert sds[:12].tolist() == pytest.approx([2 / math.sqrt(2)] * 12)
    assert sds[12:18].tolist() == [2.0] * 6
    assert sds[18:60].tolist() == pytest.approx([2 / math.sqrt(6)] * 42)
