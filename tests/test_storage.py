"""Saved runs: the same posterior in another process, one clear error for each kind of damage."""

from __future__ import annotations

import errno
import json
import os
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal

import bayesode as bo
from bayesode.inference import storage

# Runs here and in the other process: what a user's script holds.
SCRIPT = '''
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import bayesode as bo


def hand_made():
    return bo.DynamicalModel(
        initial=bo.NormalInitial(2, scale=[2.0, 3.0]),
        field=bo.BayesianMLP(2, [3], 2, activation="silu", prior_scale=1.0),
        likelihood=bo.GaussianLikelihood(2, shared=True),
        solver=bo.FixedGridSolver("midpoint", step=0.2),
        units=bo.Units([0.1, 0.2], [1.5, 2.0], time_unit=1.3),
    ).double()


def by_hand(data):
    """A guide as a user writes it: a function with parameters in Pyro's store."""
    location = pyro.param("location", lambda: 0.1 * torch.ones(17, dtype=torch.float64))
    scale = pyro.param(
        "scale", lambda: 0.1 * torch.ones(17, dtype=torch.float64), dist.constraints.positive
    )
    noise = pyro.param("noise", lambda: torch.zeros(1, dtype=torch.float64))
    x0 = pyro.param("x0_location", lambda: torch.zeros(data.num_total, 2, dtype=torch.float64))
    pyro.sample("field.weights", dist.Normal(location, scale).to_event(1))
    pyro.sample("likelihood.noise_scale", dist.LogNormal(noise, 0.1).to_event(1))
    with data.plate():
        pyro.sample("x0", dist.Normal(x0[data.index], 0.1).to_event(1))


def guides(model, train):
    return {
        "mean-field": bo.MeanFieldGuide(model, train),
        "autonormal": AutoNormal(model),
        "joint": AutoMultivariateNormal(model),
        "by-hand": by_hand,
    }


def answer(posterior, train):
    """Everything that is predicted, as one list of tensors."""
    ensemble = posterior.predict(train.at([0.5, 7.25]), num_draws=9, seed=3)
    one = posterior.predict(
        train.rows(torch.tensor([2, 0])).at(torch.tensor([9.0])), num_draws=1, seed=4
    )
    draws = posterior.draws(5, seed=5)
    wide = ensemble.quantile([0.1, 0.9])
    return [ensemble.values, ensemble.path, wide, one.values, *draws.values()]


if __name__ == "__main__":
    root, found = Path(sys.argv[1]), {}
    for folder in sorted(root.iterdir()):
        if folder.name == "system":
            posterior = bo.load(folder)
        else:
            model = hand_made()
            train = bo.inference.storage.read_data(folder)
            posterior = bo.load(folder, model=model, guide=guides(model, train)[folder.name])
        found[folder.name] = answer(posterior, posterior.train)
    torch.save(found, root.with_suffix(".pt"))
'''
user: dict = {"__name__": "user"}
exec(SCRIPT, user)


def observed() -> bo.Trajectories:
    train = bo.datasets.van_der_pol(num_series=3, num_times=6, horizon=3.0, missing=0.2).observed
    return train.to(dtype=torch.float64)


def fit(model, guide, train) -> bo.Posterior:
    return bo.fit_svi(
        model, guide, train, seed=0, num_steps=3, warm_start=False, progress=False, num_particles=2
    )


@pytest.fixture(scope="module")
def train() -> bo.Trajectories:
    return observed()


@pytest.fixture(scope="module")
def posterior(train) -> bo.Posterior:
    model, guide = bo.neural_ode(train, hidden=[3], verbose=False)
    return fit(model, guide, train)


@pytest.fixture
def run(posterior, tmp_path) -> Path:
    return posterior.save(tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- round trips -----------------------------------------------------------------------------
def test_another_process_predicts_the_same_bits(train, posterior, tmp_path):
    root, expected = tmp_path / "runs", {"system": user["answer"](posterior, train)}
    posterior.save(root / "system")
    for name in ("mean-field", "autonormal", "joint", "by-hand"):
        model = user["hand_made"]()
        fitted = fit(model, user["guides"](model, train)[name], train)
        fitted.save(root / name)
        expected[name] = user["answer"](fitted, train)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, "-W", "error::UserWarning", script, root], check=True)
    found = torch.load(root.with_suffix(".pt"))
    assert found.keys() == expected.keys()
    for name, answers in expected.items():
        for mine, theirs in zip(answers, found[name], strict=True):
            assert torch.equal(mine, theirs), name


def test_data_history_and_settings_survive(train, posterior, run):
    loaded = bo.load(run)
    assert loaded.history == posterior.history
    assert loaded.settings == posterior.settings
    for name in ("times", "start", "num_times", "mask"):
        assert torch.equal(getattr(loaded.train, name), getattr(train, name)), name
    assert torch.equal(loaded.train.values.nan_to_num(99.0), train.values.nan_to_num(99.0))
    assert (loaded.train.series, loaded.train.names) == (train.series, train.names)
    assert torch.equal(loaded.model.units.scale, posterior.model.units.scale)
    torch.testing.assert_close(
        loaded.elbo_terms(seed=0).elbo, posterior.elbo_terms(seed=0).elbo, rtol=0.0, atol=0.0
    )


def test_own_grids_starts_labels_and_inputs_survive(tmp_path):
    times = torch.tensor([[0.5, 1.0, 2.0], [3.0, 3.5, 3.5]], dtype=torch.float64)
    train = bo.Trajectories(
        times,
        torch.randn(2, 3, 2, dtype=torch.float64),
        num_times=[3, 2],
        series=["7", 7],
        names=["prey/km²", "Räuber"],
        start=[0.0, 2.5],
        inputs=bo.Inputs(torch.tensor([[1.0], [2.0]], dtype=torch.float64), names=["dose"]),
    )
    model = user["hand_made"]()
    fit(model, bo.MeanFieldGuide(model, train), train).save(tmp_path / "run")
    again = user["hand_made"]()
    loaded = bo.load(tmp_path / "run", model=again, guide=bo.MeanFieldGuide(again, train)).train
    assert (loaded.series, loaded.names) == (train.series, train.names)
    assert loaded.inputs.names == ("dose",)
    assert torch.equal(loaded.inputs.static, train.inputs.static)
    for name in ("times", "start", "num_times", "mask", "values"):
        assert torch.equal(getattr(loaded, name), getattr(train, name)), name


def test_a_run_can_be_loaded_saved_and_loaded_again(train, run, tmp_path):
    first = bo.load(run)
    second = bo.load(first.save(tmp_path / "copy"))
    a, b = (p.predict(train.at([4.0]), num_draws=3, seed=1).values for p in (first, second))
    assert torch.equal(a, b)


def test_loading_changes_no_global_state(train, run):
    model = user["hand_made"]()
    fitted = fit(model, AutoNormal(model), train)
    fitted.save(run.parent / "stock")
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), dict(os.environ)
    bo.load(run)
    again = user["hand_made"]()
    bo.load(run.parent / "stock", model=again, guide=AutoNormal(again))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert not list(pyro.get_param_store().keys())


# ---- what is in the folder --------------------------------------------------------------------
def test_nothing_is_pickled_but_tensors(run, train):
    model = user["hand_made"]()
    other = fit(model, AutoNormal(model), train).save(run.parent / "stock")
    names = {"config.json", "history.json", "model.pt", "train.npz"}
    assert set(os.listdir(run)) == names | {"guide.pt"}
    assert set(os.listdir(other)) == names | {"store.pt"}
    allowed = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
    for path in (*run.glob("*.pt"), *other.glob("*.pt")):
        state = torch.load(path, weights_only=True)
        assert all(torch.is_tensor(value) for value in state.values())
        with zipfile.ZipFile(path) as archive:
            (pickle,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
            operations = list(pickletools.genops(archive.read(pickle)))
        used = {argument for code, argument, _ in operations if code.name == "GLOBAL"}
        assert {name for name in used if "Storage" not in name} <= allowed
    with np.load(run / "train.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)
    for path in run.glob("*.json"):
        json.loads(path.read_text())


def test_numbers_of_numpy_can_be_settings(posterior, train, tmp_path):
    model, guide = bo.neural_ode(train, hidden=[3], verbose=False)
    fitted = bo.fit_svi(
        model,
        guide,
        train,
        seed=np.int64(3),
        num_steps=2,
        warm_start=False,
        progress=False,
        batch_size=np.int64(2),
        learning_rate=np.float64(0.1),
    )
    settings = bo.load(fitted.save(tmp_path / "run")).settings
    assert (settings["seed"], settings["batch_size"], settings["learning_rate"]) == (3, 2, 0.1)


# ---- places that cannot be used ---------------------------------------------------------------
@pytest.mark.parametrize("config", [None, "{}", '{"model_type": "bert"}', "[1, 2]", "no json"])
def test_a_folder_with_other_files_is_refused_and_left_whole(posterior, tmp_path, config):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    if config is not None:
        (folder / "config.json").write_text(config)
    before = contents(folder)
    with pytest.raises(bo.DataError, match="holds no run"):
        posterior.save(folder)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["precious"]


def test_an_empty_folder_and_missing_parents_are_fine(posterior, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        assert posterior.save(folder) == folder
        bo.load(folder)


def test_a_file_in_the_way_is_one_clear_error(posterior, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(bo.DataError, match="is a file"):
        posterior.save(tmp_path / "file")
    with pytest.raises(bo.DataError, match="cannot be written"):
        posterior.save(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "x"


def test_a_run_is_replaced_and_pictures_beside_it_stay(train, posterior, run):
    (run / "forecast.png").write_bytes(b"picture")
    (run / "notes").mkdir()
    (run / "notes" / "today.md").write_text("good fit")
    (run / "store.pt").write_bytes(b"of an older run with another guide")
    model, guide = bo.neural_ode(train, hidden=[4], verbose=False)
    fit(model, guide, train).save(run)
    assert bo.load(run).model.field.config["hidden"] == [4]
    assert (run / "forecast.png").read_bytes() == b"picture"
    assert (run / "notes" / "today.md").read_text() == "good fit"
    assert not (run / "store.pt").exists()
    assert os.listdir(run.parent) == ["run"]


def disk_full(*arguments, **keywords):
    raise OSError(errno.ENOSPC, "No space left on device")


def torchs_disk_full(*arguments, **keywords):
    raise RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed")


def half_a_file(path, **arrays):
    Path(path).write_bytes(b"PK half")
    disk_full()


FAILURES = {
    "data": (storage.np, "savez_compressed", half_a_file),
    "state": (storage.torch, "save", torchs_disk_full),
    "folder": (storage.tempfile, "TemporaryDirectory", disk_full),
    "pictures": (storage.shutil, "copytree", disk_full),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_failed_save_leaves_the_old_run_whole(posterior, run, what, monkeypatch):
    before = contents(run)
    monkeypatch.setattr(*FAILURES[what])
    with pytest.raises(bo.DataError, match="cannot be written"):
        posterior.save(run)
    monkeypatch.undo()
    assert contents(run) == before
    assert os.listdir(run.parent) == ["run"]
    bo.load(run)


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [PermissionError("no"), KeyboardInterrupt()])
def test_a_swap_that_fails_is_undone(posterior, run, failing, error, monkeypatch):
    before, count, rename = contents(run), [0], os.rename

    def fragile(*arguments):
        count[0] += 1
        if count[0] == failing:
            raise error
        rename(*arguments)

    monkeypatch.setattr(storage.os, "rename", fragile)
    with pytest.raises((bo.DataError, KeyboardInterrupt)):
        posterior.save(run)
    assert contents(run) == before
    assert os.listdir(run.parent) == ["run"]


# ---- damage -----------------------------------------------------------------------------------
FILES = ["config.json", "history.json", "model.pt", "guide.pt", "train.npz"]


@pytest.mark.parametrize("how", ["missing", "empty", "half", "other"])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_one_clear_error(run, name, how):
    path = run / name
    whole = path.read_bytes()
    path.unlink()
    if how != "missing":
        other = b'{"key": [1, 2]}' if name.endswith("json") else b"not what it was" * 100
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "other": other}[how])
    with pytest.raises(bo.DataError):
        bo.load(run)


class Harmful:
    """Runs code as soon as it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("harm"),)


@pytest.mark.parametrize("name", ["model.pt", "guide.pt", "train.npz"])
def test_code_in_a_file_is_not_run(run, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.endswith("pt"):
        torch.save({"weights": Harmful()}, run / name)
    else:
        np.savez(run / name, times=np.array([Harmful()], dtype=object))
    with pytest.raises(bo.DataError, match="missing or damaged"):
        bo.load(run)
    assert not Path("harm").exists()


@pytest.mark.parametrize("text", ["[1]", "3", "null", '{"format": 99}', '{"format": 1}'])
def test_a_configuration_of_something_else_is_one_clear_error(run, text):
    (run / "config.json").write_text(text)
    with pytest.raises(bo.DataError, match=r"config\.json|format"):
        bo.load(run)


def test_a_history_of_another_version_is_one_clear_error(run):
    history = json.loads((run / "history.json").read_text())
    (run / "history.json").write_text(json.dumps(history | {"colour": "red"}))
    with pytest.raises(bo.DataError, match="another version"):
        bo.load(run)


def test_data_without_an_array_are_one_clear_error(run):
    with np.load(run / "train.npz") as stored:
        arrays = {name: stored[name] for name in stored.files if name != "times"}
    np.savez_compressed(run / "train.npz", **arrays)
    with pytest.raises(bo.DataError, match=r"train\.npz is missing or damaged"):
        bo.load(run)


def test_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(bo.DataError, match="holds no saved run"):
        bo.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(bo.DataError):
        bo.load(tmp_path / "file")


# ---- other models than the one that was saved -------------------------------------------------
def changed(**parts) -> bo.DynamicalModel:
    model = user["hand_made"]()
    settings = {
        "initial": model.initial,
        "field": model.field,
        "likelihood": model.likelihood,
        "solver": model.solver,
        "units": model.units,
    }
    return bo.DynamicalModel(**settings | parts).double()


OTHERS = {
    "width": {"field": bo.BayesianMLP(2, [4], 2, activation="silu", prior_scale=1.0)},
    "activation": {"field": bo.BayesianMLP(2, [3], 2, prior_scale=1.0)},
    "likelihood": {"likelihood": bo.LogNormalLikelihood(2, shared=True)},
    "noise": {"likelihood": bo.GaussianLikelihood(2)},
    "step": {"solver": bo.FixedGridSolver("midpoint", step=0.1)},
    "method": {"solver": bo.FixedGridSolver("rk4", step=0.2)},
    "solver": {"solver": bo.ODESolver("dopri5")},
    "units": {"units": bo.Units([0.1, 0.2], [1.5, 2.0], time_unit=1.31)},
    "transform": {"units": bo.Units([0.1, 0.2], [1.5, 2.0], time_unit=1.3, transform="log")},
}


@pytest.fixture(scope="module")
def hand_made_run(train, tmp_path_factory) -> Path:
    model, folder = user["hand_made"](), tmp_path_factory.mktemp("runs") / "run"
    return fit(model, bo.MeanFieldGuide(model, train), train).save(folder)


@pytest.mark.parametrize("what", OTHERS)
def test_another_model_than_was_saved_is_one_clear_error(train, hand_made_run, what):
    other = changed(**OTHERS[what])
    with pytest.raises(bo.DataError, match=r"was saved with|does not fit"):
        bo.load(hand_made_run, model=other, guide=bo.MeanFieldGuide(other, train))


def test_the_same_model_is_accepted(train, hand_made_run):
    same = changed()
    bo.load(hand_made_run, model=same, guide=bo.MeanFieldGuide(same, train))


def test_a_guide_of_other_series_is_one_clear_error(train, hand_made_run):
    model = user["hand_made"]()
    guide = bo.MeanFieldGuide(model, train.rows(torch.tensor([0, 1])))
    with pytest.raises(bo.DataError, match=r"guide\.pt does not fit"):
        bo.load(hand_made_run, model=model, guide=guide)


def test_a_hand_made_run_asks_for_its_model(hand_made_run):
    with pytest.raises(bo.DataError, match=r"load\(folder, model=model, guide=guide\)"):
        bo.load(hand_made_run)


def test_another_guide_than_was_saved_is_one_clear_error(train, hand_made_run, tmp_path):
    model = user["hand_made"]()
    with pytest.raises(bo.DataError):
        bo.load(hand_made_run, model=model, guide=AutoNormal(model))
    stock = fit(model, AutoNormal(model), train).save(tmp_path / "stock")
    for guide in (AutoDelta(model), user["by_hand"], bo.MeanFieldGuide(model, train)):
        with pytest.raises(bo.DataError):
            bo.load(stock, model=user["hand_made"](), guide=guide)
