"""Fields that explode: one clear error, or a warning with the share."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo
from bayesode.inference.svi import _check_paths
from bayesode.models.contracts import VectorField, without_plate


class Cubic(nn.Module):
    """dx/dt = rate x^3 + 1: infinite in finite time whatever the rate."""

    def priors(self):
        return {"rate": dist.LogNormal(torch.zeros(1), 0.1).to_event(1)}

    def build(self, values, inputs=None):
        rate = without_plate(values["rate"]).unsqueeze(-2)
        return VectorField(lambda t, x: rate * x**3 + 1, (rate,))


@pytest.fixture
def train():
    times = torch.linspace(0, 5, 20)
    return bo.Trajectories(times, torch.sin(times).view(1, 20, 1))


@pytest.fixture
def model(train):
    return bo.DynamicalModel(
        initial=bo.NormalInitial(1),
        field=Cubic(),
        likelihood=bo.GaussianLikelihood(1),
        solver=bo.FixedGridSolver("rk4", step=0.1),
        units=bo.Units.from_data(train),
    )


def test_a_fit_whose_paths_all_explode_is_an_error_with_the_mend(model, train):
    guide = bo.MeanFieldGuide(model, train)
    with pytest.raises(bo.FitError, match=r"100% of the fit's paths .* tighten the prior"):
        bo.fit_svi(model, guide, train, seed=0, num_steps=3, warm_start=False, progress=False)


def test_a_fit_of_which_some_paths_explode_warns_with_the_share(model, train, monkeypatch):
    guide = bo.MeanFieldGuide(model, train)
    posterior = object.__new__(bo.Posterior)
    posterior.train = train
    for share, is_told in ((0.5, True), (0.05, False), (0.0, False)):
        ensemble = type("Ensemble", (), {"share_failed": share})
        monkeypatch.setattr(bo.Posterior, "predict", lambda *a, e=ensemble, **k: e)
        if is_told:
            with pytest.warns(UserWarning, match="50% of the fit's paths"):
                _check_paths(posterior)
        else:
            _check_paths(posterior)
    assert guide.series == train.series


def test_unsolvable_paths_do_not_lose_the_fit(train, monkeypatch):
    def fail(*arguments, **settings):
        raise bo.SolverError("too stiff")

    posterior = object.__new__(bo.Posterior)
    posterior.train = train
    monkeypatch.setattr(bo.Posterior, "predict", fail)
    with pytest.warns(UserWarning, match="cannot be solved: too stiff"):
        _check_paths(posterior)
