"""What ArviZ gets: groups, dims, readable coordinates, no NaN; files that it reads again."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import arviz as az
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesode as bo
from bayesode.inference.arviz import save_netcdf
from bayesode.inference.svi import History
from bayesode.models.contracts import VectorField

DOUBLE = torch.float64
NUM_DRAWS = 6


def make_posterior(field: nn.Module | None = None, *, kind: str = "plain", series=("b", "a", "c")):
    torch.manual_seed(0)
    model = bo.DynamicalModel(
        initial=bo.NormalInitial(2),
        field=field or bo.BayesianMLP(2, [2], 2, prior_scale=0.5),
        likelihood=bo.GaussianLikelihood(2),
        solver=bo.FixedGridSolver("rk4", step=0.25),
        units=bo.Units([1.0, 2.0], [0.5, 3.0], names=["hare", "lynx"]),
    ).double()
    times = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=DOUBLE)
    values = torch.randn(3, 4, 2, dtype=DOUBLE)
    settings: dict = {}
    if kind != "plain":
        values[0, 1, 0] = values[1, 2] = math.nan
    if kind == "own grids":
        times = times * torch.tensor([[1.0], [1.5], [0.5]]) + torch.arange(3.0)[:, None]
        settings["num_times"] = [4, 3, 1]
    train = bo.Trajectories(times, values, series=series, names=["hare", "lynx"], **settings)
    guide = bo.MeanFieldGuide(model, train)
    settings = {"engine": "svi"}
    return bo.Posterior(model, guide, train, history=History(), settings=settings)


def groups(data) -> set[str]:
    names = data.groups() if callable(data.groups) else data.groups  # ArviZ 0.x and 1.x
    return {name.strip("/") for name in names} - {""}


@pytest.mark.parametrize("kind", ["plain", "missing", "own grids"])
def test_groups_and_dims_are_those_that_arviz_expects(kind: str):
    posterior = make_posterior(kind=kind)
    data = posterior.to_arviz(num_draws=NUM_DRAWS)
    assert groups(data) == {
        "posterior",
        "posterior_predictive",
        "sample_stats",
        "observed_data",
        "log_likelihood",
    }
    sizes = {"chain": 1, "draw": NUM_DRAWS, "series": 3, "time": 4}
    assert dict(data.posterior["path"].sizes) == sizes | {"state": 2}
    assert data.posterior["path"].dims[:2] == ("chain", "draw")
    assert data.posterior["x0"].dims == ("chain", "draw", "series", "state")
    assert data.posterior["field.weights"].dims == ("chain", "draw", "field.weights_dim0")
    for name in ("values", "signal"):
        found = data.posterior_predictive[name]
        assert found.dims == ("chain", "draw", "series", "time", "component")
        assert dict(found.sizes) == sizes | {"component": 2}
    assert data.observed_data["values"].dims == ("series", "time", "component")
    assert data.log_likelihood["values"].dims == ("chain", "draw", "obs")


def test_coordinates_are_readable():
    posterior = make_posterior()
    data = posterior.to_arviz(num_draws=NUM_DRAWS)
    labels = data.posterior["field.weights_dim0"].values.tolist()
    assert labels == posterior.model.field.layout.labels
    assert "layer0.weight[1,0]" in labels
    assert data.posterior["likelihood.noise_scale_dim0"].values.tolist() == ["hare", "lynx"]
    assert data.posterior["state"].values.tolist() == ["hare", "lynx"]
    assert data.posterior_predictive["component"].values.tolist() == ["hare", "lynx"]
    for group in (data.posterior, data.posterior_predictive, data.observed_data):
        assert group["series"].values.tolist() == ["b", "a", "c"]
        assert group["time"].values.tolist() == [0.0, 0.5, 1.0, 2.0]


def test_numbers_are_those_of_the_posterior():
    posterior = make_posterior(kind="missing")
    data = posterior.to_arviz(num_draws=NUM_DRAWS, seed=3)
    ensemble = posterior.predict(posterior.train, num_draws=NUM_DRAWS, seed=3)
    draws = posterior.draws(NUM_DRAWS, seed=3)
    for site, value in draws.items():
        assert np.array_equal(data.posterior[site].values[0], value.numpy()), site
    assert np.array_equal(data.posterior["path"].values[0], ensemble.states.numpy())
    assert np.array_equal(data.posterior_predictive["values"].values[0], ensemble.values.numpy())
    observed = data.observed_data["values"].values
    mask = posterior.train.mask.numpy()
    assert np.isnan(observed[~mask]).all()
    assert np.array_equal(observed[mask], posterior.train.values.numpy()[mask])


@pytest.mark.parametrize("kind", ["plain", "missing", "own grids"])
def test_log_likelihood_has_the_observed_points_and_no_nan(kind: str):
    posterior = make_posterior(kind=kind)
    data, train = posterior.to_arviz(num_draws=NUM_DRAWS, seed=3), posterior.train
    found = data.log_likelihood
    assert found.sizes["obs"] == train.num_observed
    assert np.isfinite(found["values"].values).all()
    ensemble = posterior.predict(train, num_draws=NUM_DRAWS, seed=3)
    exact = ensemble.log_prob(train)
    rows = {label: row for row, label in enumerate(train.series)}
    for place in range(train.num_observed):
        point = found.isel(obs=place)
        row = rows[point["obs_series"].item()]
        step = (train.grid[row] == point["obs_time"].item()).nonzero()[0].item()
        component = ["hare", "lynx"].index(point["obs_component"].item())
        expected = exact[:, row, step, component].numpy()
        assert np.array_equal(point["values"].values[0], expected)


def test_own_grids_keep_their_times():
    posterior = make_posterior(kind="own grids")
    data = posterior.to_arviz(num_draws=NUM_DRAWS)
    for group in (data.posterior, data.posterior_predictive):
        assert "time" not in group.coords
        found = group["time_of_series"]
        assert found.dims == ("series", "time")
        assert np.array_equal(found.values, posterior.train.grid.numpy())


def test_paths_of_some_series_begin_at_the_initial_states_beside_them():
    posterior = make_posterior()
    part = posterior.train.rows(torch.tensor([2, 0]))
    data = posterior.to_arviz(part, num_draws=NUM_DRAWS)
    assert data.posterior["series"].values.tolist() == ["c", "b"]
    begin = data.posterior["path"].sel(time=0.0).values
    assert np.array_equal(begin, data.posterior["x0"].values)


def test_a_question_has_no_observed_groups():
    posterior = make_posterior()
    data = posterior.to_arviz(posterior.train.at([3.0, 5.0]), num_draws=NUM_DRAWS)
    assert groups(data) == {"posterior", "posterior_predictive", "sample_stats"}
    assert data.posterior_predictive["time"].values.tolist() == [3.0, 5.0]
    nameless = bo.Trajectories([3.0], None, series=["a"], start=0.0)
    data = posterior.to_arviz(nameless, num_draws=NUM_DRAWS)
    assert data.posterior_predictive["component"].values.tolist() == ["hare", "lynx"]


class Exploding(nn.Module):
    """dz/ds = rate z^3."""

    def priors(self):
        rate = dist.LogNormal(torch.tensor(0.0, dtype=DOUBLE), 2.0)
        return {"rate/of growth": rate, "matrix": dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)}

    def build(self, values, inputs=None):
        rate = values["rate/of growth"][..., None]
        return VectorField(lambda t, x: rate * x**3, (rate,))


def test_failed_draws_are_marked():
    posterior = make_posterior(Exploding())
    posterior.guide.set_site("field.rate/of growth", torch.tensor(0.3), torch.tensor(1.5))
    posterior.guide.set_site("x0", torch.ones(3, 2), 0.3 * torch.ones(3, 2))
    data = posterior.to_arviz(num_draws=40)
    failed = posterior.predict(posterior.train, num_draws=40, seed=0).failed
    assert 0 < failed.double().mean() < 1
    assert data.sample_stats["failed"].dims == ("chain", "draw", "series")
    assert np.array_equal(data.sample_stats["failed"].values[0], failed.numpy())


@pytest.mark.parametrize("kind", ["plain", "missing", "own grids"])
@pytest.mark.parametrize("series", [("b", "a", "c"), (3, 1, 2), ("b", 1, "c")])
def test_netcdf_files_are_read_again_as_they_were(kind: str, series, tmp_path):
    posterior = make_posterior(Exploding() if kind == "plain" else None, kind=kind, series=series)
    data = posterior.to_arviz(num_draws=NUM_DRAWS)
    save_netcdf(data, tmp_path / "posterior.nc")
    again = az.from_netcdf(str(tmp_path / "posterior.nc"))
    assert groups(again) == groups(data)
    for group in groups(data):
        before, after = data[group], again[group]
        assert set(before.variables) == set(after.variables)
        for name in before.variables:
            assert "/" not in name
            assert np.array_equal(
                before[name].values,
                after[name].values,
                equal_nan=before[name].dtype.kind == "f",
            ), name
        for value in before.attrs.values():
            assert isinstance(value, str | int | float | list)


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path):
    data = make_posterior().to_arviz(num_draws=2)
    with pytest.raises(bo.DataError, match="cannot be written"):
        save_netcdf(data, tmp_path / "missing" / "posterior.nc")


def test_arviz_summarises_it():
    data = make_posterior().to_arviz(num_draws=50)
    table = az.summary(data, var_names=["field.weights", "likelihood.noise_scale"], kind="stats")
    assert "field.weights[layer0.weight[1,0]]" in table.index
    assert "likelihood.noise_scale[lynx]" in table.index


def test_importing_the_package_raises_no_warning(tmp_path):
    # ArviZ warns once a day, and keeps the day in the user's cache
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    script = "import bayesode"
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, env=environment)
