"""What the parts of a model may condition on."""

import dataclasses

import numpy as np
import pytest
import torch

from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs, check_inputs

NAN = float("nan")


def test_features_are_named_and_picked_by_row():
    inputs = Inputs([[79.6, 4.02], [72.4, 4.4], [70.5, 4.53]], ["weight", "dose"])
    chosen = inputs.rows(torch.tensor([2, 0]))
    assert torch.equal(chosen.static, torch.tensor([[70.5, 4.53], [79.6, 4.02]]))
    assert chosen.names == inputs.names == ("weight", "dose")


def test_features_get_names_and_a_floating_dtype():
    for static in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]])):
        inputs = Inputs(static)
        assert inputs.names == ("feature1", "feature2")
        assert torch.equal(inputs.static, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert Inputs(np.ones((2, 1))).static.dtype == torch.float64
    assert Inputs([[1.0]], "dose").names == ("dose",)
    assert Inputs([[1.0]], None).names == ("feature1",)


def test_inputs_change_their_dtype():
    inputs = Inputs([[0.1]], ["dose"]).to(device=None, dtype=torch.float64)
    assert inputs.static.dtype == torch.float64 and inputs.names == ("dose",)


def test_inputs_never_change():
    static = torch.ones(2, 1)
    inputs = Inputs(static)
    static.zero_()
    inputs.rows(torch.tensor([0])).static.zero_()
    inputs.to(device=None, dtype=None).static.zero_()
    assert inputs.static.tolist() == [[1.0], [1.0]]
    with pytest.raises(dataclasses.FrozenInstanceError):
        inputs.static = static


@pytest.mark.parametrize(
    ("static", "names", "error", "words"),
    [
        ([1.0, 2.0], (), ShapeError, r"static.unsqueeze\(-1\)"),
        (torch.ones(2, 0), (), ShapeError, "no empty axis"),
        (torch.ones(0, 2), (), ShapeError, "no empty axis"),
        ([[NAN]], (), DataError, "fill or drop"),
        ([[float("inf")]], (), DataError, "fill or drop"),
        ([["female"]], (), DataError, "convert text"),
        ([[True]], (), DataError, "real numbers, not bool"),
        ([[1.0], [1.0, 2.0]], (), DataError, "cannot be read"),
        ([[1.0, 2.0]], ["dose"], ShapeError, "1 names for 2 features"),
        ([[1.0, 2.0]], ["dose", "dose"], DataError, "must be unique"),
    ],
    ids=str,
)
def test_features_that_cannot_be_used_are_refused(static, names, error, words):
    with pytest.raises(error, match=words):
        Inputs(static, names)


def test_inputs_are_checked_against_the_series():
    check_inputs(None, 3)
    check_inputs(Inputs(torch.ones(3, 1)), 3)
    with pytest.raises(ShapeError, match="inputs have 3 rows for 2 series"):
        check_inputs(Inputs(torch.ones(3, 1)), 2)
    with pytest.raises(DataError, match=r"Inputs\(static=...\), not dict"):
        check_inputs({"dose": 1.0}, 2)
