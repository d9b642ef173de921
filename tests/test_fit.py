"""The choice of an engine."""

import pytest

import bayesode as bo
from bayesode.inference.fit import choose_engine


@pytest.fixture(scope="module")
def train():
    return bo.datasets.van_der_pol(num_series=2, num_times=20).observed


def test_small_models_in_data_space_get_laplace(train):
    model, guide = bo.neural_ode(train, hidden=[3], verbose=False)
    posterior = bo.fit(model, guide, train, seed=0, progress=False)
    assert posterior.settings["engine"] == "laplace"
    assert "17 random numbers" in posterior.settings["reason"]


def test_wide_models_get_svi(train):
    model, _ = bo.neural_ode(train, hidden=[500], verbose=False)
    engine, reason = choose_engine(model, train)
    assert engine == "svi" and "2502" in reason


def test_the_plan_of_a_model_decides(train):
    model, _ = bo.neural_ode(train, hidden=[3], engine="svi", verbose=False)
    assert choose_engine(model, train) == ("svi", "as asked")
    model.recipe["arguments"]["plan"].update(engine="auto")  # saved before there were engines
    assert choose_engine(model, train)[0] == "laplace"
    model.recipe = None  # a model of one's own
    assert choose_engine(model, train)[0] == "laplace"


def test_an_engine_that_is_asked_for_is_taken(train, monkeypatch):
    seen = {}

    def spy(model, guide, data, **settings):
        seen.update(settings, guide=guide)
        raise bo.FitError("enough")

    monkeypatch.setattr("bayesode.inference.fit.fit_svi", spy)
    model, guide = bo.neural_ode(train, hidden=[3], verbose=False)
    with pytest.raises(bo.FitError, match="enough"):
        bo.fit(model, guide, train, engine="svi", seed=5, progress=False)
    assert seen == {"seed": 5, "progress": False, "guide": guide}


def test_unknown_engine_is_named(train):
    model, guide = bo.neural_ode(train, hidden=[3], verbose=False)
    with pytest.raises(bo.DataError, match="hmc"):
        bo.fit(model, guide, train, engine="hmc")


@pytest.mark.parametrize(
    ("noise", "engine", "reason"),
    [
        (bo.AdditiveNoise(2), "laplace", "19 random numbers"),
        (bo.StateNoise(2, [2]), "svi", "additive"),
    ],
)
def test_laplace_takes_additive_process_noise_and_svi_any_other(train, noise, engine, reason):
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=bo.SDEField(bo.BayesianMLP(2, [3], 2), noise),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.SDESolver(2, step=0.2),
        units=bo.Units.from_data(train),
    )
    chosen, why = choose_engine(model, train)
    assert chosen == engine
    assert reason in why
