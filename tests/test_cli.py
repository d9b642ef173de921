"""The command and the demo: what they leave and what they say."""

import contextlib
import io
import json
from functools import partial

import pytest
import torch

import bayesode as bo
from bayesode.cli import DEMOS, main
from bayesode.demos import lynx_hare

MODELS = {"with process noise", "without process noise"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("demo"), io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["demo", "--quick", "--out", str(out)]) == 0
    return out, said.getvalue()


@pytest.fixture(scope="module")
def folder(run):
    return run[0]


def test_demo_leaves_its_files(folder):
    scores = json.loads((folder / "scores.json").read_text())
    (other,) = MODELS - {scores["chosen"]}
    beside = f"forecast-{other.replace(' ', '-')}.png"
    names = {path.name for path in folder.iterdir()}
    assert names == {"scores.json", "forecast.png", beside, "field.png", "posterior.nc", "run"}
    assert all((folder / name).stat().st_size > 10_000 for name in ("forecast.png", beside))


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


def test_demo_says_plainly_whether_the_forecast_is_any_good(run):
    folder, said = run
    scores = json.loads((folder / "scores.json").read_text())
    best = max(row["log_score_per_point"] for row in scores["baselines"].values())
    is_better = scores["holdout"]["log_score_per_point"] > best
    assert ("The forecast beats" in said) == is_better
    assert ("does NOT beat" in said) != is_better
    for word in ("measurement noise of hare", "process noise of lynx", "climatology", *MODELS):
        assert word in said
    other = min(scores["models"].values(), key=lambda row: row["log_evidence"])
    lead = scores["holdout"]["log_score_per_point"] - other["log_score_per_point"]
    assert f"the evidence was the {'better' if lead > 0 else 'worse'} one: {lead:+.2f}" in said


def test_the_larger_evidence_forecasts_and_the_other_one_stands_beside_it(folder):
    scores = json.loads((folder / "scores.json").read_text())
    models, chosen = scores["models"], scores["chosen"]
    assert set(models) == MODELS
    assert chosen == max(models, key=lambda name: models[name]["log_evidence"])
    assert scores["log_evidence"] == models[chosen]["log_evidence"]
    for column, value in scores["holdout"].items():
        assert value == models[chosen][column]
    loaded = bo.load(folder / "run")
    assert loaded.log_evidence == pytest.approx(scores["log_evidence"], rel=1e-12)
    assert loaded.settings["process_noise"] is (chosen == "with process noise")


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.5, "a bare mention"), (2.0, ": positive"), (4.9, ": strong"), (99.0, ": very strong")],
)
@pytest.mark.parametrize("better", ["with process noise", "without process noise"])
def test_words_for_the_evidence_follow_from_the_difference(better, gain, words):
    (worse,) = MODELS - {better}
    said = lynx_hare._choice({worse: -100.0 - gain, better: -100.0})
    assert f"-100.0 {better}, {-100 - gain:.1f} {worse}" in said
    assert f"for the model {better}, which forecasts" in said and words in said


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


def test_lynx_and_hare_is_the_demo_unless_another_one_is_named(monkeypatch):
    asked = []

    def note(name, out, *, seed, quick):
        asked.append((name, out, seed, quick))

    for name in DEMOS:
        monkeypatch.setitem(DEMOS, name, (partial(note, name), f"folder of {name}"))
    for arguments in ([], ["lynx-hare", "--seed", "3"], ["rotating-digits", "--quick"]):
        assert main(["demo", *arguments]) == 0
    main(["demo", "rotating-digits", "--out", "there"])
    assert asked == [
        ("lynx-hare", "folder of lynx-hare", 0, False),
        ("lynx-hare", "folder of lynx-hare", 3, False),
        ("rotating-digits", "folder of rotating-digits", 0, True),
        ("rotating-digits", "there", 0, False),
    ]
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "pelts"])


def test_version_and_missing_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert bo.__version__ in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([])
