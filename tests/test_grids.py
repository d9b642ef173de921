"""Grids of knots through the times of a fit and of a question."""

import pytest
import torch

from bayesode.inference.warm_start.grids import QuestionGrid

DOUBLE = torch.float64
START = torch.tensor([0.0, -1.0], dtype=DOUBLE)


def grid(asked, longest=None, start=START):
    return QuestionGrid.of(start, torch.as_tensor(asked, dtype=DOUBLE), longest)


def knots(found):
    return torch.cat([found.start.unsqueeze(-1), found.times], -1)


@pytest.mark.parametrize("longest", [None, 0.3, 0.07, 5.0])
def test_asked_times_are_knots_exactly_in_any_order_and_repeated(longest):
    generator = torch.Generator().manual_seed(0)
    asked = 3 * torch.rand(2, 9, generator=generator, dtype=DOUBLE)
    asked[:, 4] = asked[:, 1]
    asked[0, 7] = START[0]
    found = grid(asked, longest)
    assert torch.equal(knots(found).gather(-1, found.reached), asked)
    assert torch.equal(found.reached[:, 4], found.reached[:, 1])
    assert found.reached[0, 7] == 0


@pytest.mark.parametrize("longest", [0.3, 0.07])
def test_no_step_is_longer_than_asked_and_steps_between_asked_times_are_equal(longest):
    asked = [[0.5, 0.61, 2.0], [0.0, 1.0, 4.0]]
    found = grid(asked, longest)
    lengths = found.times - found.begins
    assert found.longest <= longest * (1 + 1e-4)
    assert found.longest == lengths.max()
    for row in range(2):
        for first, last in zip(
            [0, *found.reached[row, :-1].tolist()], found.reached[row].tolist(), strict=False
        ):
            own = lengths[row, first:last]
            torch.testing.assert_close(own, own[:1].expand_as(own))
            # as few as allowed
            gap = own.sum().item()
            assert last - first == 1 or gap / (last - first - 1) > longest


def test_without_a_longest_step_the_knots_are_the_asked_times_alone():
    asked = [[0.5, 2.0, 0.7], [0.0, 1.0, 4.0]]
    found = grid(asked)
    assert torch.equal(found.times, torch.tensor(asked, dtype=DOUBLE).sort(-1).values)


def test_times_that_differ_by_rounding_are_one_knot():
    near = 0.1 + 0.2
    assert near != 0.3
    found = grid([[near, 0.3, 1.0], [0.3, 2.0, 2.0 + 1e-12]])
    assert found.reached.tolist() == [[1, 1, 2], [1, 2, 2]]
    apart = grid([[0.3, 0.3 + 1e-6, 1.0], [0.3, 2.0, 3.0]])
    assert apart.reached.tolist() == [[1, 2, 3], [1, 2, 3]]


def test_an_asked_start_is_the_first_knot():
    found = grid([[0.0, 1.0], [-1.0 + 1e-13, 3.0]])
    assert found.reached.tolist() == [[0, 1], [0, 1]]
    assert found.times.shape == (2, 1)


@pytest.mark.parametrize("longest", [None, 0.4])
def test_padding_stands_at_the_end_and_has_no_length(longest):
    found = grid([[0.5, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 5.0]], longest)
    lengths = found.times - found.begins
    count = found.reached.amax(-1)
    for row in range(2):
        assert (lengths[row, : count[row]] > 0).all()
        assert (lengths[row, count[row] :] == 0).all()
        assert (found.times[row, count[row] :] == found.times[row, count[row] - 1]).all()
    assert count[1] == found.times.shape[1]


def test_a_question_of_the_start_alone_has_no_interval():
    found = grid([[0.0], [-1.0]])
    assert found.times.shape == (2, 0)
    assert found.longest == 0
    assert found.reached.tolist() == [[0], [0]]


def test_series_do_not_see_each_others_times():
    alone = QuestionGrid.of(START[:1], torch.tensor([[0.5, 2.0]], dtype=DOUBLE), 0.4)
    both = grid([[0.5, 2.0], [0.1, 9.0]], 0.4)
    count = alone.times.shape[1]
    assert torch.equal(both.times[:1, :count], alone.times)
