"""The guard in conftest.py, tried on tests that leave something behind."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

LEAKS = {
    "parameter store": "pyro.param('location', torch.zeros(2))",
    "default dtype": "torch.set_default_dtype(torch.float64)",
    "is_grad_enabled": "torch.set_grad_enabled(False)",
    "settings": "pyro.settings.set(cholesky_relative_jitter=8.0)",
}


def run_test(pytester: pytest.Pytester, leak: str) -> pytest.RunResult:
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text("utf-8"))
    pytester.makepyfile(
        f"import pyro, torch\ndef test_first():\n    {leak}\ndef test_second():\n    pass"
    )
    return pytester.runpytest_inprocess("-p", "no:cacheprovider")


@pytest.mark.parametrize("words", LEAKS)
def test_what_a_test_leaves_behind_fails_it_and_not_the_next_one(
    pytester: pytest.Pytester, words: str
):
    result = run_test(pytester, LEAKS[words])
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_first*", f"*{words}*"])


def test_a_clean_test_passes_the_guard(pytester: pytest.Pytester):
    run_test(pytester, "torch.zeros(2)").assert_outcomes(passed=2)


def test_tests_draw_without_a_screen():
    import matplotlib

    assert matplotlib.get_backend().lower() == "agg"
