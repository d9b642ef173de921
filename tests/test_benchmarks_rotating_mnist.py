"""The benchmark on rotating MNIST: its file of records, its failures, what is accepted."""

import json
import math

import pytest
import torch

from benchmarks import records, rotating_mnist, rotating_mnist_scores, rotating_mnist_tables


def fit_record(method, likelihood, seed=1, **numbers):
    run = rotating_mnist.Run(method, likelihood, seed)._asdict()
    empty = dict.fromkeys(rotating_mnist.ALL_NUMBERS, math.nan)
    return run | empty | numbers | {"name": method, "error": None}


@pytest.mark.slow
def test_methods_are_added_to_a_file_and_not_run_again(tmp_path, monkeypatch, capsys):
    path = tmp_path / "records.json"
    arguments = ["--smoke", "--json", str(path), "--methods"]
    rotating_mnist.main([*arguments, "baselines,linear"])
    first = json.loads(path.read_text())
    linear = next(record for record in first if record["name"] == "linear")
    assert linear["error"] is None and linear["likelihood"] == "gaussian"
    for name in ("mse_hidden", "mse_second_turn", "coverage_90", "kl_weights", "spread_ratio"):
        assert linear[name] > 0
    assert linear["reliability_error"] is None  # of Bernoulli pixels alone
    assert {record["name"] for record in first} > {"nearest digit", "ODE2VAE", "linear"}

    def broken(*arguments):
        raise ValueError("no luck")

    monkeypatch.setattr(rotating_mnist, "fitted", broken)
    rotating_mnist.main([*arguments, "linear,compact"])
    second = json.loads(path.read_text())
    assert second[: len(first)] == first
    (compact,) = second[len(first) :]
    assert compact["likelihood"] == "bernoulli" and compact["mse_hidden"] is None
    assert compact["error"] == "ValueError: no luck"
    known = records.read(path, rotating_mnist.Run, rotating_mnist.ALL_NUMBERS)
    (again,) = known[rotating_mnist.Run("compact", "bernoulli", 1)]
    assert math.isnan(again["mse_hidden"])
    assert "failed: compact bernoulli: ValueError: no luck" in capsys.readouterr().out


def test_gates_are_means_over_seeds_and_a_nan_is_no_success(capsys):
    rows = [
        fit_record("linear", "gaussian", 1, mse_hidden=0.003, coverage_90=0.9),
        fit_record("linear", "gaussian", 2, mse_hidden=0.005, coverage_90=0.96),
        fit_record("compact", "bernoulli", 1, mse_hidden=0.0183, mse_second_turn=math.nan),
    ]
    rotating_mnist_tables.show(rows)
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith(("ok", "NOT"))]
    assert "NOT  linear, gaussian: mse_hidden: 0.004000 (0 to 0.0035)" in lines
    assert "ok   linear, gaussian: coverage_90: 0.9300 (0.85 to 0.95)" in lines
    assert "ok   compact, bernoulli: mse_hidden: 0.01830 (0 to 0.0184)" in lines
    assert any(x.startswith("NOT  compact, bernoulli: mse_second_turn: nan") for x in lines)


@pytest.mark.parametrize(("halved", "mark"), [(1050.0, "ok "), (880.0, "NOT")])
def test_kl_of_the_weights_may_depend_on_its_start_by_a_tenth(halved, mark, capsys):
    rows = [
        fit_record("linear-64", "gaussian", kl_weights=1000.0),
        fit_record("halved", "gaussian", kl_weights=halved),
    ]
    rotating_mnist_tables.show(rows)
    line = next(x for x in capsys.readouterr().out.splitlines() if "half the initial" in x)
    assert line.startswith(mark) and f"{abs(halved / 1000 - 1):#.4g} (at most 0.1)" in line


def test_rank_correlation_is_one_of_any_increasing_pair():
    x = torch.linspace(0.1, 3, 50)[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    assert rotating_mnist_scores.rank_correlation(x, x.exp()) == pytest.approx(1)
    assert rotating_mnist_scores.rank_correlation(x, 1 / x) == pytest.approx(-1)


def test_spread_is_beside_the_error_of_the_mean():
    truth = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    signs = torch.tensor([1.0, -1.0]).double()[:, None, None, None, None]
    draws = truth + 0.2 + 0.1 * signs  # sd .1 √2, error .2
    assert rotating_mnist_scores.of_draws(draws, truth)["spread_ratio"] == pytest.approx(0.5**0.5)
