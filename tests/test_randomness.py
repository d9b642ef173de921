"""Randomness and global state: fits do not see each other, and nobody sees them."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import bayesode as bo
from bayesode.inference.randomness import seeded
from bayesode.inference.warm_start import attempts


def global_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [*np.random.get_state()[1].tolist(), np.random.get_state()[2]],
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "validation": torch.distributions.Distribution._validate_args,
        "pyro": pyro.settings.get(),
        "store": dict(pyro.get_param_store().items()),
        "environment": dict(os.environ),
    }


# ---- seeds ------------------------------------------------------------------------------------
def numbers() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.rand(), random.random()


@pytest.mark.parametrize("seed", [0, 7, -3, 2**31, 2**40, np.int64(5), torch.tensor(5)])
def test_a_seed_decides_the_three_generators_and_they_are_restored(seed):
    before = global_state()
    with seeded(seed) as used:
        first = numbers()
    with seeded(seed):
        assert numbers() == first
    assert used == seed
    assert type(used) is int
    assert global_state() == before
    with seeded(int(seed) + 1):
        assert all(a != b for a, b in zip(numbers(), first, strict=True))


def test_the_generators_are_restored_after_an_error():
    before = global_state()
    with pytest.raises(ZeroDivisionError), seeded(3):
        numbers()
        _ = 1 / 0
    assert global_state() == before


def test_seeds_can_be_nested():
    with seeded(1):
        numbers()
        after = numbers()
    with seeded(1):
        numbers()
        with seeded(2):
            numbers()
        assert numbers() == after


def test_without_a_seed_torchs_generator_decides_and_moves_on():
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        with seeded(None) as one:
            pass
        with seeded(None) as other:
            pass
        found.append((one, other))
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


# ---- importing --------------------------------------------------------------------------------
IMPORT = """
import json, os, random, sys
import numpy as np, pyro, torch

def state():
    return [
        torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), str(random.getstate()),
        str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.distributions.Distribution._validate_args, str(pyro.settings.get()),
        sorted(os.environ), sorted(pyro.get_param_store().keys()),
    ]

before = state()
import bayesode
sys.exit(before != state())
"""


def test_importing_the_package_changes_no_global_state():
    assert subprocess.run([sys.executable, "-c", IMPORT]).returncode == 0


# ---- fits -------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def one_attempt(monkeypatch):
    monkeypatch.setattr(attempts, "MAX_ATTEMPTS", 1)


@pytest.fixture(autouse=True)
def two_threads():
    """More than the one that small problems run on: whether it comes back shows."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def problem(seed: int = 0, hidden: int = 2, stock: bool = False):
    """Few numbers and long steps: nothing here is about a good fit."""
    train = bo.datasets.van_der_pol(
        num_series=3, num_times=5, horizon=3.0, seed=seed, missing=0.1
    ).observed
    plan = replace(bo.plan(train), hidden=(hidden,), step=0.6)
    model, guide = bo.neural_ode(train, plan=plan, verbose=False)
    return model, AutoNormal(model) if stock else guide, train


def fit(model, guide, train, **changes) -> bo.Posterior:
    settings = {"seed": 5, "num_steps": 6, "progress": False, **changes}
    return bo.fit_svi(model, guide, train, **settings)


def bits(posterior: bo.Posterior) -> list[torch.Tensor]:
    """All that was learned and all that is predicted."""
    state = posterior.state["params"] if posterior.state["params"] else posterior.guide.state_dict()
    ensemble = posterior.predict(posterior.train, num_draws=3, seed=1)
    learned = [value.detach() for value in state.values()]
    return [*learned, ensemble.values, torch.tensor(posterior.history.elbo)]


def same(a: bo.Posterior, b: bo.Posterior) -> bool:
    pairs = list(zip(bits(a), bits(b), strict=True))
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


KINDS = {
    "ours": (False, {}),
    "ours in minibatches": (False, {"batch_size": 2, "num_particles": 2, "warm_start": False}),
    "Pyro's": (True, {"warm_start": False}),
    "Pyro's in minibatches": (True, {"batch_size": 2, "warm_start": False}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_does_not_depend_on_the_fits_before_it(kind: str):
    is_stock, settings = KINDS[kind]
    model, guide, train = problem()
    if is_stock:
        guide = AutoNormal(model, create_plates=lambda data: data.plate())
    first = fit(model, guide, train, **settings)
    fit(*problem(seed=1, hidden=3, stock=not is_stock), seed=8, warm_start=False)
    torch.manual_seed(99)
    again = fit(model, guide, train, **settings)
    assert same(first, again)
    assert not same(first, fit(model, guide, train, **settings | {"seed": 6}))
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("stock", [False, True])
def test_a_fit_changes_nothing_outside_its_posterior(stock: bool):
    model, guide, train = problem(stock=stock)
    parts = [copy.deepcopy(model.state_dict()), copy.deepcopy(dict(guide.named_parameters()))]
    values, solver = train.values.clone(), model.solver
    before = global_state()
    posterior = fit(model, guide, train)
    posterior.predict(train, num_draws=2, seed=0)
    assert global_state() == before
    now = [model.state_dict(), dict(guide.named_parameters())]
    for old, new in zip(parts, now, strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert torch.equal(values.nan_to_num(), train.values.nan_to_num())
    assert model.solver is solver
    assert posterior.model is not model and posterior.guide is not guide
    assert all(parameter.grad is None for parameter in guide.parameters())


def test_a_stock_guide_keeps_its_model_and_can_be_used_again():
    model, guide, train = problem(stock=True)
    first = fit(model, guide, train, warm_start=False)
    assert guide.prototype_trace is None
    assert same(first, fit(model, guide, train, warm_start=False))
    with pyro.get_param_store().scope():
        drawn = guide(train)
    assert set(drawn) == {"field.weights", "likelihood.noise_scale", "x0"}


def test_without_a_seed_a_fit_follows_torchs_generator():
    model, guide, train = problem()
    fits = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        fits.append(fit(model, guide, train, seed=None, warm_start=False))
    assert same(fits[0], fits[1])
    assert not same(fits[0], fits[2])
    # the seed that was drawn is kept, and makes the same fit again
    again = fit(model, guide, train, seed=fits[0].settings["seed"], warm_start=False)
    assert same(fits[0], again)


def test_the_users_parameters_survive_a_fit():
    model, guide, train = problem()
    with pyro.get_param_store().scope():
        mine = pyro.param("field.weights", torch.tensor([1.0, 2.0]))
        fit(model, guide, train, warm_start=False)
        assert list(pyro.get_param_store().keys()) == ["field.weights"]
        assert torch.equal(pyro.param("field.weights"), mine)


@pytest.mark.parametrize("error", [RuntimeError("from inside"), KeyboardInterrupt()])
def test_state_is_restored_when_a_fit_ends_in_an_error(error, monkeypatch):
    model, guide, train = problem()
    before = global_state()

    def broken(*arguments, **keywords):
        torch.rand(3), random.random(), np.random.rand()
        raise error

    monkeypatch.setattr("bayesode.inference.objectives.find_start", broken)
    with pytest.raises(type(error)):
        fit(model, guide, train)
    assert global_state() == before
