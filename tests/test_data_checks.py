"""The checks at the border of `Trajectories`: what is refused, and how numbers are read."""

import numpy as np
import pytest
import torch

from bayesode.errors import DataError, ShapeError
from bayesode.inputs import Inputs
from bayesode.trajectories import Trajectories

NAN, INF = float("nan"), float("inf")
TIMES = [0.0, 1.0, 2.0]
VALUES = torch.arange(12.0, dtype=torch.float64).view(2, 3, 2)


# ---- what is refused -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([0.0, NAN, 2.0], "drop those rows"),
        ([0.0, 1.0, INF], "drop those rows"),
        ([0.0, 2.0, 1.0], "series 0 are not sorted: 2.0 is followed by 1.0. Sort them"),
        ([0.0, 1.0, 1.0], "series 0 are repeated: 1.0 is followed by 1.0"),
        ([[0.0, 1.0, 2.0], [0.0, 2.0, 2.0]], "series 1 are repeated"),
        ([True, False, True], "real numbers, not bool"),
        (torch.tensor([True, False, True]), "real numbers, not torch.bool"),
        ([0j, 1j, 2j], "real numbers, not complex128"),
        (torch.zeros(3, dtype=torch.complex64), "real numbers, not torch.complex64"),
        (np.array([0.0, 1.0, 2.0], dtype=object), "not object; convert"),
        (np.array(["2020-01-01"] * 3, dtype="datetime64[D]"), "convert text, dates"),
        (["a", "b", "c"], "convert text, dates"),
        ([[0.0, 1.0, 2.0], [0.0, 1.0]], "cannot be read as an array"),
        (None, "times must be real numbers"),
    ],
    ids=str,
)
def test_times_that_are_no_increasing_numbers_are_refused(times, words):
    with pytest.raises(DataError, match=words):
        Trajectories(times, VALUES)
    with pytest.raises(DataError, match=words):
        Trajectories(times, None, series=[0, 1])


@pytest.mark.parametrize(
    ("times", "values", "words"),
    [
        ([], VALUES, r"at least one time, not \(0,\)"),
        (1.0, VALUES, r"\(time,\) or \(series, time\)"),
        (torch.zeros(2, 3, 1), VALUES, r"\(time,\) or \(series, time\)"),
        (torch.zeros(0, 3), None, r"at least one time, not \(0, 3\)"),
        (TIMES, VALUES[0], r"values.unsqueeze\(0\)"),
        (TIMES, VALUES[..., 0], r"values.unsqueeze\(-1\)"),
        (TIMES, VALUES[:0], "no empty axis"),
        (TIMES, VALUES[:, :0], "no empty axis"),
        (TIMES, VALUES[:, :, :0], "no empty axis"),
        (TIMES, 1.0, "no empty axis"),
        (TIMES[:2], VALUES, r"\(2, 2, ...\) to go with times \(2,\)"),
        ([TIMES] * 3, VALUES, r"\(3, 3, ...\) to go with times \(3, 3\)"),
        (TIMES, VALUES.transpose(0, 1), r"\(3, 3, ...\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(times, values, words):
    with pytest.raises(ShapeError, match=words):
        Trajectories(times, values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (VALUES > 3, "real numbers, not torch.bool"),
        (np.ones((2, 3, 2), bool), "real numbers, not bool"),
        (VALUES.to(torch.complex64), "not torch.complex64"),
        (VALUES.numpy().astype(object), "not object; convert .* with NaN where one is missing"),
        ([[[None], [1.0], [2.0]]] * 2, "with NaN where one is missing"),
        ("abc", "convert text"),
        ([[[1.0], [2.0], [3.0]], [[1.0], [2.0]]], "cannot be read as an array"),
        (VALUES.to_sparse(), r"take .to_dense\(\)"),
        (torch.full((2, 3, 2), INF), "mark missing values by NaN or mask="),
        (torch.full((2, 3, 2), -INF), "mark missing values by NaN or mask="),
    ],
    ids=str,
)
def test_values_that_are_no_numbers_are_refused(values, words):
    with pytest.raises(DataError, match=words):
        Trajectories(TIMES, values)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"series": ["a", "a"]}, DataError, "'a' is repeated; labels must be unique"),
        ({"series": [1, 1.0]}, DataError, "1 is repeated"),
        ({"series": ["a"]}, ShapeError, "1 labels for 2 series"),
        ({"series": "ab"}, ShapeError, "1 labels for 2 series"),
        ({"series": 3}, ShapeError, "1 labels for 2 series"),
        ({"series": [["a"], ["b"]]}, DataError, r"not \['a'\]; take str"),
        ({"series": [None, "a"]}, DataError, "strings or numbers, not None"),
        ({"series": [True, False]}, DataError, "strings or numbers, not True"),
        ({"series": [NAN, 1.0]}, DataError, "strings or numbers, not nan"),
        ({"start": 0.5}, DataError, "series 0 is asked at 0.0, before its start 0.5"),
        ({"start": [0.0, 0.5]}, DataError, "series 1 .* build the data with an earlier start="),
        ({"start": NAN}, DataError, "start holds NaN or infinity; leave it out"),
        ({"start": -INF}, DataError, "start holds NaN or infinity"),
        ({"start": "a"}, DataError, "start must be real numbers"),
        ({"start": False}, DataError, "start must be real numbers, not bool"),
        ({"start": [0.0, 0.0, 0.0]}, ShapeError, r"one number or one per series \(2\)"),
        ({"start": [[0.0, 0.0]]}, ShapeError, "one number or one per series"),
        ({"mask": torch.ones(2, 3)}, DataError, "boolean .True = observed., not torch.float32"),
        ({"mask": np.ones((2, 3), int)}, DataError, "boolean .True = observed., not int64"),
        ({"mask": "yes"}, DataError, "mask must be boolean"),
        ({"mask": [[True], [True, False]]}, DataError, "mask cannot be read"),
        ({"mask": [True] * 3}, ShapeError, r"\(2, 3, 2\) or \(2, 3\), not \(3,\)"),
        ({"mask": torch.ones(2, 3, 1).bool()}, ShapeError, "mask needs the shape"),
        ({"names": ["a"]}, ShapeError, "1 names for values"),
        ({"names": "ab"}, ShapeError, "1 names for values"),
        ({"names": ["a", "a"]}, DataError, "names must be unique"),
        ({"num_times": [0, 3]}, ShapeError, "between 1 and 3"),
        ({"num_times": [3, 4]}, ShapeError, "between 1 and 3"),
        ({"num_times": [1, 2, 3]}, ShapeError, r"one per series \(2\)"),
        ({"num_times": [[1, 2]]}, ShapeError, r"one per series \(2\)"),
        ({"num_times": [1.5, 2.0]}, DataError, "whole numbers, not "),
        ({"num_times": "all"}, DataError, "num_times must be real numbers"),
        ({"inputs": torch.ones(2, 1)}, DataError, r"inputs must be Inputs\(static=...\)"),
        ({"inputs": Inputs(torch.ones(3, 1))}, ShapeError, "inputs have 3 rows for 2 series"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_right_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        Trajectories(TIMES, VALUES, **arguments)


# ---- how numbers are read ------------------------------------------------------------------------
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_float32_and_float64_stay_and_all_else_gets_the_default_dtype(default):
    torch.set_default_dtype(default)
    try:
        array = VALUES.numpy()
        for dtype in (np.float32, np.float64):
            for values in (array.astype(dtype), torch.from_numpy(array.astype(dtype))):
                data = Trajectories(TIMES, values)
                assert data.values.dtype == torch.from_numpy(array.astype(dtype)).dtype
            rows = list(array.astype(dtype))
            assert Trajectories(TIMES, rows).values.dtype == data.values.dtype
        half = torch.from_numpy(array).to(torch.float16)
        for values in (array.tolist(), array.astype(int), array.astype(np.uint8), half):
            data = Trajectories(TIMES, values)
            assert data.values.dtype == default
            assert torch.equal(data.values.double(), VALUES)
    finally:
        torch.set_default_dtype(torch.float32)


def test_numpy_arrays_of_any_layout_are_read():
    array = VALUES.numpy()
    reversed_axis = np.ascontiguousarray(array[:, ::-1])[:, ::-1]
    read_only = array.copy()
    read_only.setflags(write=False)
    for values in (reversed_axis, read_only, array.astype(">f8"), np.asfortranarray(array)):
        assert torch.equal(Trajectories(TIMES, values).values, VALUES)


def test_masked_numpy_arrays_keep_their_mask():
    masked = np.ma.masked_array(VALUES.numpy(), mask=VALUES.numpy() > 6)
    data = Trajectories(TIMES, masked)
    assert torch.equal(data.mask, VALUES <= 6)
    whole = np.ma.masked_array(np.ones((2, 3, 2), int), mask=VALUES.numpy() > 6)
    assert torch.equal(Trajectories(TIMES, whole).mask, VALUES <= 6)
