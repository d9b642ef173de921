"""The self-test of gradients: right ones pass, an adjoint that misses tensors is found."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import bayesode as bo
from bayesode.models.contracts import VectorField, without_plate

DOUBLE = torch.float64


class Rotation(nn.Module):
    """dx/dt = A x / 5 with a normal matrix: slow, so few steps suffice even at rtol 1e-10."""

    def __init__(self, *, has_tensors: bool = True, noise: float = 0.0) -> None:
        super().__init__()
        self.has_tensors, self.noise = has_tensors, noise
        self.register_buffer("scale", torch.ones(4))

    def priors(self):
        return {"weights": dist.Normal(torch.zeros_like(self.scale), self.scale).to_event(1)}

    def build(self, values, inputs=None):
        matrix = without_plate(values["weights"]).unflatten(-1, (2, 2)) / 5

        def function(t, x):
            moved = x @ matrix
            # a fault that only a finite difference sees: the value has no derivative
            return moved + self.noise * matrix.detach().sum()

        return VectorField(function, (matrix,) if self.has_tensors else ())


def problem(field: nn.Module | None = None, **settings):
    torch.manual_seed(0)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=field or Rotation(**settings),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.25),
    )
    # a short time: a check is hundreds of solves at rtol 1e-10
    data = bo.Trajectories(torch.tensor([0.0, 0.1, 0.25]), torch.randn(2, 3, 2))
    guide = bo.MeanFieldGuide(model, data)
    guide.set_site("likelihood.noise_scale", torch.tensor([0.5, 0.7]), torch.tensor([0.1, 0.2]))
    weights = torch.randn_like(guide.location("field.weights"))
    guide.set_site("field.weights", weights, torch.full_like(weights, 0.1))
    guide.set_site("x0", torch.randn(2, 2), torch.full((2, 2), 0.1))
    return model, guide, data


@pytest.fixture(scope="module")
def plain():
    model, guide, data = problem()
    return bo.check_gradients(model, guide, data)


def test_direct_adjoint_and_finite_differences_agree(plain):
    assert plain.worst <= 1e-6
    assert plain.worst_finite_difference <= 1e-4
    assert plain.own_solver < 0.01
    assert {row["parameter"] for row in plain.rows} == {
        f"sites.{kind}.{site}"
        for kind in ("offset", "log_scale")
        for site in ("field__weights", "likelihood__noise_scale", "x0")
    }
    assert all(row["norm"] > 0 for row in plain.rows)


@pytest.mark.slow
def test_several_particles_of_a_network_agree():
    model, guide, data = problem(bo.BayesianMLP(2, [2], 2, prior_scale=1.0))
    check = bo.check_gradients(model, guide, data, num_particles=3)
    assert check.worst <= 1e-6
    assert check.worst_finite_difference <= 1e-4


def test_a_fitted_posterior_agrees():
    model, guide, data = problem()
    posterior = bo.fit_svi(
        model, guide, data, seed=0, num_steps=20, warm_start=False, progress=False
    )
    check = bo.check_gradients(posterior.model, posterior.guide, data, num_particles=2)
    assert check.worst <= 1e-6
    assert check.worst_finite_difference <= 1e-4


def test_a_stock_guide_agrees():
    model, _, data = problem()
    stock = AutoNormal(model, init_scale=0.1)
    check = bo.check_gradients(model, stock, data)
    assert check.worst <= 1e-6
    assert check.worst_finite_difference <= 1e-4
    assert len(check.rows) == 6
    assert stock.prototype_trace is None and stock.model is not None


def test_an_adjoint_that_misses_tensors_is_found():
    """The loss is the same and no error is raised: only the comparison tells."""
    model, guide, data = problem(has_tensors=False)
    check = bo.check_gradients(model, guide, data, num_particles=2)
    assert check.worst > 0.01
    wrong = {row["parameter"] for row in check.rows if row["adjoint"] > 0.01}
    assert wrong == {"sites.offset.field__weights", "sites.log_scale.field__weights"}
    assert check.worst_finite_difference <= 1e-4


def test_a_derivative_that_is_missing_in_both_is_found_by_finite_differences():
    model, guide, data = problem(noise=0.5)
    check = bo.check_gradients(model, guide, data)
    assert check.worst <= 1e-6
    assert check.worst_finite_difference > 0.01


def test_the_table_names_every_tensor_and_the_tolerances(plain):
    shown = str(plain)
    for row in plain.rows:
        (line,) = [line for line in shown.splitlines() if line.startswith(row["parameter"] + " ")]
        assert f"{row['adjoint']:.2e}" in line
        assert f"{row['finite difference']:.2e}" in line
    assert "adjoint" in shown and "finite difference" in shown and "own solver" in shown
    assert "rtol 1e-10" in shown
    assert f"{plain.worst:.1e}" in shown


def test_the_check_changes_nothing_and_is_reproducible(plain):
    model, guide, data = problem()
    parts = copy.deepcopy((model.state_dict(), guide.state_dict()))
    solver, dtype = model.solver, model.field.scale.dtype
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = bo.check_gradients(model, guide, data)
    assert again.rows == plain.rows
    assert torch.equal(before, torch.get_rng_state())
    assert model.solver is solver and model.field.scale.dtype == dtype
    assert not list(pyro.get_param_store().keys())
    for old, new in zip(parts, (model.state_dict(), guide.state_dict()), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_the_gradient_is_that_of_the_elbo(plain):
    wide, mirror, data = problem()
    wide.double(), mirror.double()
    wide.solver = bo.ODESolver("dopri5", rtol=1e-10, atol=1e-12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss = -bo.elbo_terms(wide, mirror, data.to(dtype=DOUBLE)).elbo
    loss.backward()
    norms = {name: p.grad.norm().item() for name, p in mirror.named_parameters()}
    for row in plain.rows:
        assert math.isclose(row["norm"], norms[row["parameter"]], rel_tol=1e-6)
