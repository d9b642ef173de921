"""Chains of normal states against dense matrices."""

import dataclasses

import pytest
import torch

from bayesode.inference.warm_start.blocks import BorderedChain
from bayesode.inference.warm_start.chains import ChainFactor
from bayesode.inference.warm_start.covariance import ChainCovariance

DOUBLE = torch.float64
SERIES, KNOTS, STATE, WEIGHTS = 2, 5, 2, 3


def residual_jacobian(num_knots=KNOTS, num_weights=WEIGHTS):
    """Derivatives of residuals that tie neighbours and weights, per series.

    Returns:
        By states (series, row, knot * state), by weights (series, row, weight).
    """
    generator = torch.Generator().manual_seed(num_knots)
    blocks = []
    for k in range(num_knots):
        rows = torch.zeros(SERIES, 3, num_knots, STATE, dtype=DOUBLE)
        rows[:, :, k : k + 2] = torch.randn(
            SERIES, 3, min(2, num_knots - k), STATE, generator=generator, dtype=DOUBLE
        )
        blocks.append(rows.flatten(2))
    by_states = torch.cat(blocks, 1)
    shape = (SERIES, by_states.shape[1], num_weights)
    return by_states, torch.randn(shape, generator=generator, dtype=DOUBLE)


def system(num_knots=KNOTS, num_weights=WEIGHTS):
    """Normal equations J'J + I as blocks, and dense: series by series, weights last."""
    by_states, by_weights = residual_jacobian(num_knots, num_weights)
    size = num_knots * STATE
    own = by_states.mT @ by_states + torch.eye(size, dtype=DOUBLE)
    blocks = own.view(SERIES, num_knots, STATE, num_knots, STATE)
    knots = range(num_knots)
    border = by_states.mT @ by_weights
    flat = by_weights.flatten(0, 1)
    corner = flat.mT @ flat + torch.eye(num_weights, dtype=DOUBLE)
    upper = [blocks[:, k, :, k + 1] for k in knots[:-1]]
    chain = BorderedChain(
        torch.stack([blocks[:, k, :, k] for k in knots], 1),
        torch.stack(upper, 1) if upper else own.new_zeros(SERIES, 0, STATE, STATE),
        border.view(SERIES, num_knots, STATE, num_weights),
        corner,
        own.new_zeros(SERIES, num_knots, STATE),
        own.new_zeros(num_weights),
    )
    total = SERIES * size
    dense = torch.zeros(total + num_weights, total + num_weights, dtype=DOUBLE)
    dense[:total, :total] = torch.block_diag(*own)
    dense[:total, total:] = border.flatten(0, 1)
    dense[total:, :total] = border.flatten(0, 1).mT
    dense[total:, total:] = corner
    return chain, dense


def factor_and_dense(num_knots=KNOTS):
    chain, dense = system(num_knots, 0)
    factor = ChainFactor.of(chain.diagonal, chain.upper)
    assert factor is not None
    size = num_knots * STATE
    return factor, torch.stack([dense[:size, :size], dense[size:, size:]])


@pytest.mark.parametrize("num_knots", [1, 2, 6])
def test_solutions_blocks_and_determinant_are_those_of_the_dense_matrix(num_knots):
    factor, dense = factor_and_dense(num_knots)
    right = torch.randn(SERIES, num_knots, STATE, 4, dtype=DOUBLE)
    exact = torch.linalg.solve(dense, right.flatten(1, 2))
    torch.testing.assert_close(factor.solve(right).flatten(1, 2), exact)
    inverse = torch.linalg.inv(dense).view(SERIES, num_knots, STATE, num_knots, STATE)
    for k in range(num_knots):
        torch.testing.assert_close(factor.blocks()[:, k], inverse[:, k, :, k])
    assert factor.log_determinant == pytest.approx(dense.logdet().sum().item(), rel=1e-12)


def test_links_and_own_noise_are_the_regressions_on_the_knot_before():
    factor, dense = factor_and_dense()
    covariance = torch.linalg.inv(dense).view(SERIES, KNOTS, STATE, KNOTS, STATE)
    for k in range(KNOTS - 1):
        before, across = covariance[:, k, :, k], covariance[:, k + 1, :, k]
        link = across @ torch.linalg.inv(before)
        torch.testing.assert_close(factor.links[:, k], link)
        rest = covariance[:, k + 1, :, k + 1] - link @ across.mT
        torch.testing.assert_close(factor.own[:, k + 1], rest)


def within_five_errors(draws, exact):
    """Whether draws (draws, number) have mean 0 and this covariance."""
    sds = exact.diagonal().sqrt()
    error = ((torch.outer(sds, sds).square() + exact.square()) / len(draws)).sqrt()
    has_mean = (draws.mean(0).abs() < 5 * sds / len(draws) ** 0.5 + 1e-12).all()
    return bool(has_mean and ((draws.mT.cov() - exact).abs() < 5 * error + 1e-12).all())


def test_draws_have_the_covariance_of_the_dense_inverse():
    factor, dense = factor_and_dense()
    torch.manual_seed(0)
    draws = factor.sample(20_000)
    for row in range(SERIES):
        exact = torch.linalg.inv(dense[row])
        assert within_five_errors(draws[:, row].flatten(1), exact)
        assert not within_five_errors(1.05 * draws[:, row].flatten(1), exact)
    across = draws[:, 0].flatten(1).mT @ draws[:, 1].flatten(1) / len(draws)
    sds = [torch.linalg.inv(matrix).diagonal().sqrt() for matrix in dense]
    assert (across.abs() < 5 * torch.outer(*sds) / len(draws) ** 0.5).all()  # independent series


def test_draws_given_the_first_state_have_the_conditional_law():
    factor, dense = factor_and_dense()
    torch.manual_seed(1)
    first = torch.tensor([[0.7, -1.0], [2.0, 0.3]], dtype=DOUBLE)
    draws = factor.sample(20_000, first.expand(20_000, -1, -1))
    torch.testing.assert_close(draws[:, :, 0], first.expand(20_000, -1, -1))
    for row in range(SERIES):
        inverse = torch.linalg.inv(dense[row])
        gain = inverse[STATE:, :STATE] @ torch.linalg.inv(inverse[:STATE, :STATE])
        exact = inverse[STATE:, STATE:] - gain @ inverse[:STATE, STATE:]
        rest = draws[:, row, 1:].flatten(1) - gain @ first[row]
        assert within_five_errors(rest, exact)


def test_a_longer_chain_begins_with_the_same_draws():
    """After the data the links change nothing before: so must the random numbers."""
    factor, _ = factor_and_dense()
    longer = ChainFactor(
        torch.cat([factor.pivots, factor.pivots[:, :1]], 1),
        torch.cat([factor.links, factor.links[:, :1]], 1),
    )
    torch.manual_seed(2)
    short = factor.sample(7)
    torch.manual_seed(2)
    assert torch.equal(longer.sample(7)[:, :, :KNOTS], short)


@pytest.mark.parametrize("where", [0, 2, KNOTS - 1])
def test_what_is_not_positive_has_no_factor(where):
    chain, _ = system(num_weights=0)
    chain.diagonal[1, where, 0, 0] -= 1e3
    assert ChainFactor.of(chain.diagonal, chain.upper) is None


# ---- weights beside the chains -------------------------------------------------------------------
def test_joint_covariance_is_the_inverse_of_the_normal_equations():
    chain, dense = system()
    found, inverse = ChainCovariance.of(chain), torch.linalg.inv(dense)
    total = SERIES * KNOTS * STATE
    torch.testing.assert_close(found.weights, inverse[total:, total:])
    cross = (found.gain @ found.weights).flatten(0, 2)
    torch.testing.assert_close(cross, inverse[:total, total:])
    assert found.log_determinant == pytest.approx(dense.logdet().item(), rel=1e-12)
    variances = inverse.diagonal()[:total].view(SERIES, KNOTS, STATE)
    torch.testing.assert_close(found.of_states(), variances)
    first = found.first
    for row in range(SERIES):
        block = first.own[row] + first.gain[row] @ first.weights @ first.gain[row].mT
        rows = slice(row * KNOTS * STATE, row * KNOTS * STATE + STATE)
        torch.testing.assert_close(block, inverse[rows, rows])


def test_variances_of_misses_are_those_of_the_dense_inverse():
    chain, dense = system()
    by_weights = torch.randn(SERIES, KNOTS - 1, STATE, WEIGHTS, dtype=DOUBLE)
    by_states = torch.randn(SERIES, KNOTS - 1, STATE, STATE, dtype=DOUBLE)
    found = ChainCovariance.of(chain)
    inverse, size = torch.linalg.inv(dense), KNOTS * STATE
    misses = found.of_misses(by_weights, by_states)
    for row in range(SERIES):
        for k in range(KNOTS - 1):
            slope = torch.zeros(STATE, len(dense), dtype=DOUBLE)
            at = row * size + k * STATE
            slope[:, at : at + STATE] = -by_states[row, k]
            slope[:, at + STATE : at + 2 * STATE] = torch.eye(STATE, dtype=DOUBLE)
            slope[:, SERIES * size :] = -by_weights[row, k]
            torch.testing.assert_close(misses[row, k], (slope @ inverse @ slope.mT).diagonal())
    broken = dataclasses.replace(found, gain=-found.gain)
    assert not torch.allclose(broken.of_misses(by_weights, by_states), misses, rtol=1e-2)
