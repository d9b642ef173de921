"""The benchmark on motion capture with stand-ins for fits: what they see, and what is made of it.

The stand-in predicts the mean of the training frames, plus and minus one degree: its `mse_mean` is
that of the baseline "train mean", and its `mse` is larger by 1, by whatever protocol.
"""

import json
import math
from types import SimpleNamespace

import pytest
import torch

import bayesode as bo
from bayesode.errors import DataError
from benchmarks import motion_capture as bench
from benchmarks import motion_capture_fits
from benchmarks import motion_capture_protocol as protocol
from benchmarks import motion_capture_tables as tables
from benchmarks.motion_capture_baselines import LISTS, baseline_record
from benchmarks.motion_capture_fits import OWN_LISTS, Bench, Run, System
from benchmarks.motion_capture_simulated import simulated_walks
from benchmarks.records import read

WEIGHTS = 2 * 3 + 3 + 3 * 2 + 2  # of the stand-in's field
SETTINGS = bench.SMOKE._replace(
    systems={"ode2vae": System({"order": 2}, {}), "ode-vae": System({"order": 1}, {})}
)


@pytest.fixture
def data():
    """Eight training, two validation, two test walks."""
    return simulated_walks(num_frames=40)


def score_of(label):
    """What the stand-in has for a log score of a walk: 1, 2, ... and 100 more in validation."""
    return int(label.split()[1]) + 100.0 * label.startswith("validation")


class StandInEnsemble:
    """The mean pose of the fitted walks in every draw, plus and minus 1."""

    share_failed = 0.25

    def __init__(self, asked, pose, num_draws):
        assert asked.values is None  # a question, no answer
        self.asked, signs = asked, torch.tensor([1.0, -1.0]).repeat(num_draws // 2)
        shape = (num_draws, asked.num_series, asked.times.shape[-1], pose.shape[0])
        self.signal = (pose + signs[:, None, None, None]).expand(shape)

    def interval(self, level):
        """Everything for the odd walks, nothing for the others."""
        assert level == 0.9
        odd = torch.tensor([score_of(label) % 2 for label in self.asked.series]).bool()
        high = torch.where(odd, torch.inf, -torch.inf)[:, None, None].expand(self.signal.shape[1:])
        return -high, high

    def log_score(self, walks):
        assert walks.series == self.asked.series
        own = torch.tensor([score_of(label) for label in walks.series])
        return own[:, None, None].expand_as(walks.values)


class StandIns:
    """Takes the place of what fits; keeps what each part was shown."""

    def __init__(self, monkeypatch):
        self.fits, self.noises, self.conditions = [], [], []
        self.is_interrupted = False
        for name, part in (
            ("ode2vae", self.ode2vae),
            ("fit_svi", self.fit_svi),
            ("fit_bag", self.fit_bag),
            ("HorizonNoise", SimpleNamespace(of=self.noise)),
        ):
            monkeypatch.setattr(bo, name, part, raising=False)

    def ode2vae(self, train, *, order, verbose):
        field = bo.BayesianMLP(2, [3], 2)
        return SimpleNamespace(field=field, order=order), "guide"

    def fit_svi(self, model, guide, train, *, seed, validation, progress, **options):
        self.fits.append(SimpleNamespace(train=train.series, seed=seed, options=options))
        self.fits[-1].order, self.fits[-1].validation = model.order, validation
        return self.posterior(train.values.mean((0, 1)))

    def fit_bag(self, fit, train, *, num_members, fraction, seed, progress):
        members = []
        try:
            for k in range(num_members):
                members.append(fit(train.rows(torch.arange(train.num_series) != k), seed + k))
        except KeyboardInterrupt:
            pass  # keeps what it has
        bag = self.posterior(train.values.mean((0, 1)))
        bag.members = members
        return bag

    def posterior(self, pose):
        history = SimpleNamespace(is_interrupted=self.is_interrupted)

        def predict(asked, *, num_draws, seed):
            return StandInEnsemble(asked, pose, num_draws)

        def condition(new, *, seed):
            self.conditions.append(new)
            return SimpleNamespace(predict=predict)

        return SimpleNamespace(condition=condition, history=history)

    def noise(self, held):
        learned_from = [label for h in held for label in h.truth.series]
        for h in held:
            assert not h.truth.mask[:, :3].any() and h.truth.mask[:, 3:].all()

        def applied(ensemble):
            self.noises.append((learned_from, ensemble.asked.series))
            return ensemble

        return SimpleNamespace(applied=applied)


@pytest.fixture
def stand_ins(monkeypatch):
    return StandIns(monkeypatch)


def record_of(runner, name, system="ode2vae", method="single", seed=1):
    (record,) = runner.records_of(Run(system, method, "npz", name, seed))
    assert record["error"] is None, record["error"]
    return record


# ---- scores --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", bench.ORDER)
@pytest.mark.parametrize("method", ["single", "bag"])
def test_errors_are_those_of_the_known_prediction(data, stand_ins, name, method):
    runner = Bench({"npz": data}, SETTINGS._replace(num_folds=5))
    own, rule = (
        record_of(runner, name, method=method),
        baseline_record("train mean", data, "", name),
    )
    assert own["walks"] == rule["walks"] and own["mse"] == pytest.approx(rule["mse"] + 1, rel=1e-5)
    for key in ("mse_mean", "mse_by_walk", "mse_mean_by_walk", "mse_by_horizon", "mse_validation"):
        more = 1 if key in ("mse_by_walk", "mse_by_horizon", "mse_validation") else 0
        expected = torch.tensor(rule[key]) + more
        assert own[key] == pytest.approx(expected.tolist(), rel=1e-5, nan_ok=True), key
    assert (own["num_weights"], own["share_failed"]) == (WEIGHTS, pytest.approx(0.25))
    assert own["num_fits"] == {"cross-validation": 5, "split": 6, "split-19": 6}[name]
    assert own["seconds"] >= 0 and own["num_members"] == (2 if method == "bag" else 1)


def test_bands_of_cross_validation_stand_by_walk(data, stand_ins):
    record = record_of(Bench({"npz": data}, SETTINGS._replace(num_folds=5)), "cross-validation")
    assert record["log_score"] == pytest.approx(4.5)  # of train 1 to 8
    assert record["log_score_all_walks"] == pytest.approx((36 + 101 + 102) / 10)
    assert record["coverage_90"] == record["coverage_90_all_walks"] == 0.5
    test = record_of(Bench({"npz": data}, SETTINGS), "split")
    assert test["log_score"] == 1.5 and test["coverage_by_horizon"] == [0.5] * 3
    assert math.isnan(test["log_score_all_walks"])


# ---- what is seen --------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["single", "bag"])
def test_no_fit_sees_a_test_walk_or_more_than_given_frames_of_others(data, stand_ins, method):
    runner = Bench({"npz": data}, SETTINGS)
    for name in bench.ORDER:
        record_of(runner, name, method=method)
    seen = {label for fit in stand_ins.fits for label in fit.train}
    assert seen == set(protocol.development(data).series)
    assert all(new.values.shape[1] == 3 for new in stand_ins.conditions)
    for learned_from, _ in stand_ins.noises:
        assert not set(learned_from) & set(data.test.series)


def test_no_walk_makes_its_own_bands(data, stand_ins):
    runner = Bench({"npz": data}, SETTINGS._replace(num_folds=4))
    record_of(runner, "cross-validation")
    walks = set(protocol.development(data).series)
    assert len(stand_ins.noises) == 4
    for (_, out), (learned_from, asked) in zip(
        protocol.folds(data, 4), stand_ins.noises, strict=True
    ):
        assert asked == out.series and set(learned_from) == walks - set(asked)
    record_of(runner, "split")
    record_of(runner, "split-19")
    (of_train, first), (of_all, second) = stand_ins.noises[4:]
    assert first == second == data.test.series
    assert sorted(of_train) == sorted(data.train.series)
    assert sorted(of_all) == sorted(walks)


def test_validation_walks_stop_fits_of_the_split_alone(data, stand_ins):
    runner = Bench({"npz": data}, SETTINGS)
    for name in ("cross-validation", "split-19"):
        record_of(runner, name)
    assert all(fit.validation is None for fit in stand_ins.fits)
    num = len(stand_ins.fits)
    record_of(runner, "split", method="bag")
    assert all(fit.validation is data.validation for fit in stand_ins.fits[num:])
    assert {x for fit in stand_ins.fits[num:] for x in fit.train} == set(data.train.series)


def test_every_method_and_baseline_has_the_same_folds(data, stand_ins, monkeypatch):
    runner = Bench({"npz": data}, SETTINGS._replace(num_folds=5))
    expected = [train.series for train, _ in protocol.folds(data)]
    for system, seed in (("ode2vae", 1), ("ode-vae", 7)):
        stand_ins.fits.clear()
        record_of(runner, "cross-validation", system, seed=seed)
        assert [fit.train for fit in stand_ins.fits] == expected
        assert {fit.seed for fit in stand_ins.fits} == {seed}
        assert {fit.order for fit in stand_ins.fits} == {2 if system == "ode2vae" else 1}


# ---- what is kept --------------------------------------------------------------------------------
def test_fits_of_cross_validation_are_used_again_by_their_own_run_alone(data, stand_ins):
    runner = Bench({"npz": data}, SETTINGS)
    first = record_of(runner, "cross-validation")
    assert (len(stand_ins.fits), first["num_fits"]) == (2, 2)
    again = record_of(runner, "split-19")
    assert (len(stand_ins.fits), again["num_fits"]) == (3, 1)
    for other in ({"seed": 2}, {"method": "bag"}, {"system": "ode-vae"}):
        assert record_of(runner, "split-19", **other)["num_fits"] == 3


def test_minutes_become_one_number_of_steps_for_all_fits_of_a_system(data, stand_ins, monkeypatch):
    timed = []

    def seconds_of_steps(model, guide, train):
        assert train is data.train
        timed.append(model.order)
        return 13.0, 1.0

    monkeypatch.setattr(motion_capture_fits, "seconds_of_steps", seconds_of_steps)
    runner = Bench({"npz": data}, SETTINGS, minutes=0.5)
    records = [record_of(runner, name, method="bag") for name in bench.ORDER]
    assert timed == [2]
    assert all(fit.options == {"num_steps": 17} for fit in stand_ins.fits)
    assert {record["num_steps"] for record in records} == {17}
    record_of(runner, "split", "ode-vae")
    assert timed == [2, 1]


def test_records_are_resumed_and_a_failure_is_told(tmp_path, stand_ins, monkeypatch, capsys):
    path = tmp_path / "records.json"
    monkeypatch.setattr(bench, "SMOKE", SETTINGS)
    arguments = ["--smoke", "--json", str(path), "--method", "single", "--system"]
    bench.main([*arguments, "ode2vae"])
    first, num = json.loads(path.read_text()), len(stand_ins.fits)
    ours = [record for record in first if record["system"] == "ode2vae"]
    assert [record["protocol"] for record in ours] == list(bench.ORDER)
    assert {record["system"] for record in first} == {"ode2vae", "baseline", "published"}
    assert all(record["file"] == "simulated" for record in ours)

    def broken(*arguments, **options):
        raise ValueError("no luck")

    monkeypatch.setattr(bo, "fit_svi", broken)
    with pytest.raises(SystemExit, match="smoke run"):
        bench.main([*arguments, "ode2vae,ode-vae"])
    second = json.loads(path.read_text())
    assert second[: len(first)] == first and len(stand_ins.fits) == num
    assert [record["error"] for record in second[len(first) :]] == ["ValueError: no luck"] * 3
    (known,) = read(path, Run, bench.ALL_NUMBERS)[Run("ode-vae", "single", "simulated", "split", 1)]
    assert all(math.isnan(known[name]) for name in bench.ALL_NUMBERS)
    assert "failed: split, simulated, ode-vae, single, 1: ValueError" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["single", "bag"])
def test_a_fit_that_was_cut_short_makes_no_record(stand_ins, tmp_path, monkeypatch, capsys, method):
    path, stand_ins.is_interrupted = tmp_path / "records.json", True
    monkeypatch.setattr(bench, "SMOKE", SETTINGS)
    bench.main(["--smoke", "--json", str(path), "--method", method])
    assert {record["system"] for record in json.loads(path.read_text())} == {"baseline"}
    assert "stopped by the user" in capsys.readouterr().out and len(stand_ins.fits) == 1


def test_missing_files_end_it_before_any_run(tmp_path, stand_ins):
    with pytest.raises(DataError, match=r"there is no .*mocap35\.npz"):
        bench.main(["--root", str(tmp_path)])
    assert not stand_ins.fits


def test_runs_are_those_of_a_system_with_cross_validation_first():
    options = bench.parse(["--seeds", "1-2", "--protocol", "split,cross-validation"])
    runs = [r for r in bench.runs(options, bench.SMOKE, ["npz"]) if r.seed is not None]
    assert runs[0] == Run("ode2vae", "single", "npz", "cross-validation", 1)
    assert [r.protocol for r in runs] == ["cross-validation"] * 6 + ["split"] * 6
    assert {(r.system, r.method) for r in runs} == {
        ("ode2vae", "single"),
        ("ode2vae", "bag"),
        ("ode-vae", "single"),
    }


# ---- tables --------------------------------------------------------------------------------------
def shown(system, method, name, seed=1, file="npz", **numbers):
    empty = dict.fromkeys(bench.ALL_NUMBERS, math.nan)
    empty |= dict.fromkeys((*LISTS, *OWN_LISTS))
    run = Run(system, method, file, name, seed)
    return empty | run._asdict() | {"error": None} | numbers


def test_differences_are_paired_by_walk_and_seeds_are_no_walks():
    walks = ["train 1", "train 2", "validation 1"]
    rows = [
        shown(
            *tables.RULE, "cross-validation", None, walks=walks, mse_mean_by_walk=[1.0, 5.0, 9.0]
        ),
        *(
            shown(
                "ode2vae",
                "bag",
                "cross-validation",
                seed,
                walks=["train 2", "validation 1", "train 1"],
                mse_mean_by_walk=[5.0 + more, 12.0 + more, 3.0 + more],
            )
            for seed, more in ((1, -1.0), (2, 1.0))
        ),
    ]
    groups = tables.groups_of(rows, "cross-validation", "npz")
    (row,) = tables.paired_rows(groups)
    assert row["mse_mean"] == "1.00±1.00"  # of 2 and 0
    assert row["mse_mean, all"] == f"1.67±{torch.tensor([2.0, 0, 3]).std() / 3**0.5:.2f}"
    assert row["mse"] == "-"
    own = tables.cross_validation_rows(groups)[1]
    assert (own["mse_mean"], own["runs"]) == ("4.00±1.00", "2/2")


def test_a_seed_that_failed_leaves_no_mean():
    good = {"walks": ["train 1"], "mse_by_walk": [1.0], "mse": 1.0}
    rows = [
        shown("ode2vae", "bag", "cross-validation", 1, **good),
        shown("ode2vae", "bag", "cross-validation", 2, error="ValueError: no luck"),
    ]
    (row,) = tables.cross_validation_rows(tables.groups_of(rows, "cross-validation", "npz"))
    assert (row["mse"], row["runs"]) == ("-", "1/2")
    assert tables.gates(rows) == []


def test_the_test_walks_judge_what_cross_validation_chose(capsys):
    covers, widths = [0.9, 0.84, 0.9], {"ode2vae": 672.0, "ode-vae": 720.0}
    rows = [
        shown(system, method, "cross-validation", mse=mse, num_weights=widths[system])
        | {"coverage_by_horizon": covers}
        for system, method, mse in (
            ("ode2vae", "single", 8.5),
            ("ode2vae", "bag", 7.5),
            ("ode-vae", "bag", 3.5),
        )
    ]
    rows += [
        shown("ode2vae", "bag", "split", mse=1.0),
        shown("ode-vae", "bag", "split", mse=12.0),
        shown("ode-vae", "bag", "split-19", mse=6.0),
    ]
    tables.show(rows)
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith(("ok", "NOT"))]
    assert lines == [
        "ok   ode-vae, bag: cross-validated mse, the best of ours: 3.500 (at most 7)",
        "ok   ode2vae: cross-validated mse, its better method: 7.500 (at most 8)",
        "ok   ode-vae, bag: test mse, split-19: 6.000 (at most 7)",
        "NOT  ode-vae, bag: test mse, split: 12.00 (at most 11)",
        "ok   ode-vae, bag: covers in third 1: 0.9000 (0.85 to 0.95)",
        "NOT  ode-vae, bag: covers in third 2: 0.8400 (0.85 to 0.95)",
        "ok   ode-vae, bag: covers in third 3: 0.9000 (0.85 to 0.95)",
        "NOT  weights of the fields, 672 to 720: share they differ by: 0.07143 (at most 0.05)",
        "ok   goal, npz: ode-vae, bag: cross-validated mse: 3.500 (at most 4)",
        "NOT  goal, npz: ode-vae, bag: test mse, split: 12.00 (at most 4.03)",
    ]


def test_cross_validation_is_printed_first_with_what_the_numbers_mean(
    stand_ins, capsys, monkeypatch
):
    monkeypatch.setattr(bench, "SMOKE", SETTINGS)
    bench.main(["--smoke", "--protocol", "split,cross-validation"])
    text = capsys.readouterr().out
    titles = ("Cross-validation over", "Walk by walk", "split, simulated", "Published", "± is")
    places = [text.index("\n" + title) for title in titles]
    assert places == sorted(places)
    assert "cannot rank" in text and "The .mat leaks" in text
