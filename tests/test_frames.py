"""Decoders of frames."""

import json

import pytest
import torch

from bayesode.distributions import ContinuousBernoulli
from bayesode.errors import DataError, ShapeError
from bayesode.models.frames import (
    ConvDecoder,
    GreyLogits,
    LinearDecoder,
    Logits,
    MLPDecoder,
    SumDecoder,
)

SHAPES = [(1, 28, 28), (3, 9, 6), (1, 1, 7), (50,), (2, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("network", [LinearDecoder, MLPDecoder, ConvDecoder])
def test_every_decoder_makes_frames_of_the_asked_shape(network, shape):
    if network is ConvDecoder and len(shape) != 3:
        with pytest.raises(ShapeError, match=r"images are \(channels, height, width\)"):
            network(shape, 4)
        return
    decoder = network(shape, 4)
    assert decoder(torch.randn(6, 4)).shape == (6, *shape)
    assert (decoder.event_shape, decoder.dim) == (shape, 4)


@pytest.mark.parametrize("network", [LinearDecoder, MLPDecoder, ConvDecoder])
def test_a_row_does_not_see_the_others(network):
    decoder, rows = network((2, 9, 6), 4).double(), torch.randn(6, 4).double()
    alone = torch.cat([decoder(row[None]) for row in rows])
    torch.testing.assert_close(decoder(rows), alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (7, 9)])
def test_every_pixel_of_a_convolutional_decoder_depends_on_the_state(size):
    decoder = ConvDecoder((2, *size), 3).double()
    state = torch.randn(1, 3).double()
    for step in 1e-3 * torch.eye(3).double():
        assert (decoder(state + step) != decoder(state)).all()


def test_a_linear_decoder_is_the_affine_map_that_it_is_set_to():
    decoder = LinearDecoder((2, 3), 4).double()
    basis, mean = torch.randn(6, 4).double(), torch.randn(6).double()
    decoder.set_linear(basis, mean, 1.7)
    z = torch.randn(5, 4).double()
    expected = torch.stack([mean + 1.7 * basis @ row for row in z])
    torch.testing.assert_close(decoder(z).flatten(1), expected, rtol=1e-13, atol=1e-13)
    assert all(parameter.requires_grad for parameter in decoder.parameters())
    with pytest.raises(ShapeError, match=r"a basis of shape \(6, 4\)"):
        decoder.set_linear(basis.mT, mean, 1.0)


def test_logits_are_the_slope_times_the_distance_from_one_half():
    decoder = LinearDecoder((3,), 2)
    rows = torch.randn(5, 2)
    expected = 6.0 * decoder(rows) - 3.0
    torch.testing.assert_close(Logits(decoder, slope=6.0)(rows), expected)
    with pytest.raises(DataError, match="slope must be a positive number, not 0"):
        Logits(decoder, slope=0)


def test_grey_logits_are_those_of_the_means_and_have_gradients_everywhere():
    decoder = LinearDecoder((1,), 1).double()
    decoder.set_linear(torch.ones(1, 1), torch.zeros(1), 1.0)
    intensity = torch.linspace(-0.5, 1.5, 201, dtype=torch.float64)[:, None].requires_grad_()
    logits = GreyLogits(decoder, margin=0.03)(intensity)
    expected = 0.03 + 0.94 * intensity.clamp(0.0, 1.0)
    inside = (intensity >= 0) & (intensity <= 1)
    assert (ContinuousBernoulli(logits=logits).mean - expected)[inside].abs().max() < 0.01
    assert (logits.diff(dim=0) > 0).all()
    assert torch.autograd.grad(logits.sum(), intensity)[0].min() >= 8.0
    for margin in (0.0, 0.5):
        with pytest.raises(DataError, match=r"margin must lie between 0 and 1/2"):
            GreyLogits(decoder, margin=margin)


def test_a_sum_adds_and_its_network_falls_silent_when_the_linear_part_is_set():
    shape, dim = (1, 9, 6), 4
    parts = {
        "linear": LinearDecoder(shape, dim),
        "network": ConvDecoder(shape, dim),
        "other": MLPDecoder(shape, dim),
    }
    decoder, rows = SumDecoder(**parts), torch.randn(5, dim)
    torch.testing.assert_close(decoder(rows), sum(part(rows) for part in parts.values()))
    decoder.set_linear(torch.randn(54, dim), torch.randn(54), 1.0)
    torch.testing.assert_close(decoder(rows), parts["linear"](rows))
    decoder(rows).square().sum().backward()  # and training wakes it
    assert (parts["network"].layers[-1].weight.grad != 0).all()
    assert (parts["other"].layers[-1].weight.grad != 0).all()


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"a": MLPDecoder((3,), 2), "b": MLPDecoder((4,), 2)},
        {"a": MLPDecoder((3,), 2), "b": MLPDecoder((3,), 3)},
    ],
)
def test_a_sum_of_unlike_decoders_is_refused(parts):
    with pytest.raises(ShapeError, match="a sum needs decoders of one event_shape and one dim"):
        SumDecoder(**parts)


def test_a_sum_without_one_linear_part_cannot_be_set():
    for linear in ({}, {"a": LinearDecoder((3,), 2), "b": LinearDecoder((3,), 2)}):
        decoder = SumDecoder(net=MLPDecoder((3,), 2), **linear)
        with pytest.raises(DataError, match="exactly one has to be a LinearDecoder"):
            decoder.set_linear(torch.zeros(3, 2), torch.zeros(3), 1.0)


@pytest.mark.parametrize("network", [LinearDecoder, MLPDecoder, ConvDecoder])
def test_settings_are_plain_and_rebuild_the_decoder(network):
    decoder = network((1, 9, 6), 4)
    twin = network(**json.loads(json.dumps(decoder.config)))
    twin.load_state_dict(decoder.state_dict())
    assert torch.equal(twin(torch.ones(1, 4)), decoder(torch.ones(1, 4)))
    whole = Logits(SumDecoder(only=decoder), slope=3.0)
    assert json.loads(json.dumps(whole.config))["slope"] == 3.0
    assert GreyLogits(decoder).config == {
        "decoder": {"type": network.__name__, **decoder.config},
        "margin": 0.02,
    }
    assert whole.config["decoder"]["only"]["event_shape"] == [1, 9, 6]
    assert "event_shape=[1, 9, 6], dim=4" in repr(whole)


@pytest.mark.parametrize(("shape", "dim"), [((), 2), ((3, 0, 4), 2), ((3,), 0)])
def test_sizes_that_are_not_positive_are_refused(shape, dim):
    with pytest.raises(ShapeError, match="a decoder needs positive sizes"):
        LinearDecoder(shape, dim)
    with pytest.raises(ShapeError, match="positive numbers"):
        ConvDecoder((1, 8, 8), 2, channels=[])
