"""The command and the demo: what they leave and what they say."""

import json

import pytest
import torch

import bayesode as bo
from bayesode.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    return out


def test_demo_leaves_its_files(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"scores.json", "forecast.png", "field.png", "posterior.nc", "run"}
    assert (folder / "forecast.png").stat().st_size > 10_000


def test_scores_have_the_documented_keys_and_the_known_baselines(folder):
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores["holdout"]) == {"log_score_per_point", "crps", "coverage_90"}
    found = {name: row["log_score_per_point"] for name, row in scores["baselines"].items()}
    assert found["ar2"] == pytest.approx(-43.0 / 12, abs=0.01)
    assert found["climatology"] == pytest.approx(-52.4 / 12, abs=0.01)
    assert found["random_walk"] == pytest.approx(-60.0 / 12, abs=0.01)
    assert scores["seconds"] > 0


def test_saved_run_of_the_demo_gives_the_scores_again(folder):
    scores = json.loads((folder / "scores.json").read_text())
    train, test = bo.datasets.lynx_hare().split(time=1914)
    posterior = bo.load(folder / "run")
    ensemble = posterior.predict(train.at(test), num_draws=100, seed=scores["seed"])
    table = bo.diagnostics.score_table(ensemble, test)
    found = table.loc["ensemble", "log_score_per_point"]
    assert found == pytest.approx(scores["holdout"]["log_score_per_point"], rel=1e-12)


def test_arviz_file_of_the_demo_opens(folder):
    arviz = pytest.importorskip("arviz")
    data = arviz.from_netcdf(folder / "posterior.nc")
    assert data["posterior"]["likelihood.noise_scale"].shape[0] == 1


def test_demo_says_plainly_whether_the_forecast_is_any_good(folder, tmp_path, capsys):
    assert main(["demo", "--quick", "--out", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    scores = json.loads((tmp_path / "again" / "scores.json").read_text())
    best = max(row["log_score_per_point"] for row in scores["baselines"].values())
    is_better = scores["holdout"]["log_score_per_point"] > best
    assert ("The forecast beats" in said) == is_better
    assert ("does NOT beat" in said) != is_better
    for word in ("Plan", "ELBO", "noise of hare", "climatology"):
        assert word in said


def test_same_seed_gives_the_same_scores(folder, tmp_path):
    state = torch.get_rng_state()
    main(["demo", "--quick", "--out", str(tmp_path)])
    assert torch.equal(state, torch.get_rng_state())
    one, two = (json.loads((p / "scores.json").read_text()) for p in (folder, tmp_path))
    assert one["holdout"] == two["holdout"]


def test_unwritable_folder_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--quick", "--out", str(tmp_path / "file" / "x")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("bayesode: ") and said.count("\n") == 1


def test_version_and_missing_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert bo.__version__ in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([])
