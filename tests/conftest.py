"""What holds in every test: no test leaves a trace in the global state of torch or Pyro."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch

ROOT = Path(__file__).parents[1] / "benchmarks"
if "benchmarks" not in sys.modules:  # it is not installed with the package
    spec = importlib.util.spec_from_file_location(
        "benchmarks", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)


def pytest_configure() -> None:
    # Before any test module is imported: matplotlib reads the variable when it is imported itself.
    os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(autouse=True)
def global_state_is_left_alone() -> Iterator[None]:
    dtype, is_grad_enabled = torch.get_default_dtype(), torch.is_grad_enabled()
    settings = pyro.settings.get()
    yield
    leaks = []
    if names := sorted(pyro.get_param_store().keys()):
        leaks.append(f"Pyro's parameter store holds {names}")
    if torch.get_default_dtype() != dtype:
        leaks.append(f"the default dtype went from {dtype} to {torch.get_default_dtype()}")
    if torch.is_grad_enabled() != is_grad_enabled:
        leaks.append(
            f"torch.is_grad_enabled() went from {is_grad_enabled} to {not is_grad_enabled}"
        )
    if changed := dict(pyro.settings.get().items() - settings.items()):
        leaks.append(f"Pyro's settings became {changed}")
    # The next test must not fail for what this one did.
    pyro.clear_param_store()
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(is_grad_enabled)
    pyro.settings.set(**settings)
    if leaks:
        pytest.fail("; ".join(leaks), pytrace=False)
