"""The linear field: its layout, its matrix, its place inside other fields."""

import pytest
import torch

import bayesode as bo

FLAT = torch.tensor([1.0, 2.0, 3.0, 4.0])  # A = [[1, 2], [3, 4]]
NOW = torch.tensor(0.0)


def test_the_site_is_the_matrix_row_by_row():
    field = bo.LinearField(2).build({"weights": FLAT})
    assert field(NOW, torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert field.matrix.tolist() == [[1.0, 3.0], [2.0, 4.0]]  # a state is a row
    labels = bo.LinearField(2).labels["weights"]
    assert labels == ["matrix[0,0]", "matrix[0,1]", "matrix[1,0]", "matrix[1,1]"]


def test_the_matrix_says_the_same_as_the_function():
    weights, x = torch.randn(3, 1, 16), torch.randn(3, 5, 4)
    field = bo.LinearField(4).build({"weights": weights})
    assert field.matrix.shape == (3, 4, 4)
    torch.testing.assert_close(field(NOW, x), x @ field.matrix)


def test_the_prior_and_its_one_group():
    part = bo.LinearField(3, prior_scale=0.2)
    law = part.priors()["weights"]
    assert law.event_shape == (9,) and torch.equal(law.variance.sqrt(), torch.full((9,), 0.2))
    tuning = part.tunable()["weights"]
    assert tuning.groups.tolist() == [0] * 9
    part.get_buffer(tuning.buffer).fill_(7.0)
    assert torch.equal(part.priors()["weights"].variance.sqrt(), torch.full((9,), 7.0))


def test_components_behind_its_own_are_not_read():
    field = bo.LinearField(2).build({"weights": FLAT})
    assert field(NOW, torch.tensor([[1.0, 0.0, 9.0]])).tolist() == [[1.0, 3.0]]


def test_a_sum_is_linear_if_all_of_it_is():
    both = bo.Sum(a=bo.LinearField(2), b=bo.LinearField(2))
    values = {"a.weights": FLAT.expand(3, 1, 4), "b.weights": -FLAT / 2}
    field, x = both.build(values), torch.randn(3, 5, 2)
    torch.testing.assert_close(field(NOW, x), x @ field.matrix)
    mixed = bo.Sum(linear=bo.LinearField(2), network=bo.BayesianMLP(2, [3], 2))
    zeros = {"linear.weights": FLAT, "network.weights": torch.zeros(17)}
    assert mixed.build(zeros).matrix is None


def test_the_site_of_the_matrix_is_found_inside_sums():
    network = bo.BayesianMLP(2, [3], 2)
    assert bo.LinearField(2).linear_site() == "weights"
    assert bo.Sum(network=network, linear=bo.LinearField(2)).linear_site() == "linear.weights"
    inner = bo.Sum(linear=bo.LinearField(2))
    assert bo.Sum(network=network, both=inner).linear_site() == "both.linear.weights"
    assert bo.Sum(network=network).linear_site() is None
    constants = bo.WithConstants(bo.Sum(linear=bo.LinearField(2), network=network), 1)
    assert constants.linear_site() == "dynamics.linear.weights"
    assert not hasattr(network, "linear_site")


def test_fields_of_different_sizes_do_not_add_up():
    wrong = bo.Sum(linear=bo.LinearField(2), one=bo.BayesianMLP(2, [], 1))
    field = wrong.build({"linear.weights": FLAT, "one.weights": torch.zeros(3)})
    with pytest.raises(bo.ShapeError, match=r"rates of \{'linear': 2, 'one': 1\} components"):
        field(NOW, torch.zeros(5, 2))


def test_settings_that_are_not_positive_are_one_clear_error():
    with pytest.raises(bo.DataError, match="dim must be a positive whole number"):
        bo.LinearField(0)
    with pytest.raises(bo.DataError, match="prior_scale must be a positive number"):
        bo.LinearField(2, prior_scale=-1.0)
