"""The rules of the package's structure, read from its source; CONTRIBUTING.md gives the reasons.

A checker takes one `Module` and returns one sentence for each thing that breaks its rule.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bayesode"
MAX_LINES = 400

# A unit is a module or a whole subpackage. It may import the units on the lines above its own, and
# itself; units on one line do not know each other. "models" is the file models/__init__.py alone.
LAYERS = [
    ["errors"],
    ["data_checks", "tabular"],
    ["inputs", "threads"],
    ["trajectories"],
    ["smoothing"],
    ["units"],
    ["distributions"],
    ["models.contracts"],
    ["models.networks"],
    ["models.modules", "models.frames", "models.rescaled"],
    ["models.fields", "models.solvers", "models.likelihoods", "models.initial"],
    ["models.dynamical"],
    ["models"],
    ["plan", "scores", "baselines"],
    ["inference"],
    ["systems"],
    ["candidates"],
    ["runs"],
    ["diagnostics"],
    ["demos"],
    ["cli"],
]
RANKS = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
# Data sets stand beside the chain: they see the data types, and only the command sees them.
ALLOWED = {
    unit: {other for other in RANKS if RANKS[other] < rank} | {unit} for unit, rank in RANKS.items()
}
ALLOWED["datasets"] = ALLOWED["trajectories"] | {"datasets"}
ALLOWED["demos"] |= {"datasets"}
ALLOWED["cli"] |= {"datasets"}

# The files that may import a library; the rest of the package goes through them.
PLOTS = ("channels", "fan_chart", "frames", "latent_paths", "rate_curve", "style", "vector_field")
PICTURES = {f"diagnostics/plots/{name}.py" for name in PLOTS}
DOORS = {
    "torchdiffeq": {"models/solvers/ode.py"},
    "torchsde": {"models/solvers/sde.py"},
    "arviz": {"inference/arviz.py"},
    "arviz_base": {"inference/arviz.py"},
    "arviz_plots": {"inference/arviz.py"},
    "arviz_stats": {"inference/arviz.py"},
    "matplotlib": PICTURES,
    "mpl_toolkits": PICTURES,
    "pandas": {"tabular.py"},
    "xarray": {"tabular.py", "inference/arviz.py"},
    "torchvision": {"datasets/_torchvision.py"},
    "sklearn": {"datasets/rotating_digits.py"},
}


@dataclass(frozen=True)
class Module:
    """One source file: its path inside the package and its text."""

    path: str
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def is_init(self) -> bool:
        return Path(self.path).name == "__init__.py"

    @property
    def package(self) -> list[str]:
        """The parts of the name of the package that the file is in, `bayesode` first."""
        return ["bayesode", *Path(self.path).parent.parts]

    @property
    def name(self) -> str:
        """Dotted name below `bayesode`; empty for bayesode/__init__.py."""
        parts = Path(self.path).with_suffix("").parts
        return ".".join(parts[:-1] if self.is_init else parts)


def package_modules() -> list[Module]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [Module(file.relative_to(PACKAGE).as_posix(), file.read_text("utf-8")) for file in files]


def unit_of(name: str) -> str | None:
    """The unit that a dotted name below `bayesode` belongs to, None if it has no place."""
    if name in ALLOWED:
        return name
    parents = (name.rsplit(".", cut)[0] for cut in range(1, name.count(".") + 1))
    return next((parent for parent in parents if parent in ALLOWED and parent != "models"), None)


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported, also inside functions."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                keep = len(module.package) + 1 - node.level
                start = module.package[:keep] if node.level else []
                base = ".".join([*start, *filter(None, [node.module])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def imported_unit(name: str) -> str | None:
    """The unit behind an imported dotted name below `bayesode`, whose end may be a class of it."""
    parent = name.rpartition(".")[0]
    return unit_of(name) or (parent if parent == "models" else None)


def wrong_imports(module: Module) -> list[str]:
    if module.name == "":
        return []
    unit = unit_of(module.name)
    if unit is None:
        return [f"{module.path}: {module.name} has no place in LAYERS: give it one on purpose"]
    wrong = []
    for line, name in imports(module):
        inside = name.partition(".")[2]
        if name.partition(".")[0] != "bayesode" or inside == "__version__":
            continue
        target = imported_unit(inside)
        if target is None:
            wrong.append(f"{module.path}:{line}: {name}: import from the module that defines it")
        elif target not in ALLOWED[unit]:
            wrong.append(f"{module.path}:{line}: {unit} may not import {target}")
    return wrong


def wrong_doors(module: Module) -> list[str]:
    return [
        f"{module.path}:{line}: {name} is only for {' and '.join(sorted(DOORS[library]))}"
        for line, name in imports(module)
        if (library := name.partition(".")[0]) in DOORS and module.path not in DOORS[library]
    ]


def assert_statements(module: Module) -> list[str]:
    return [
        f"{module.path}:{node.lineno}: assert: raise an error that says what to mend"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assert)
    ]


def too_long(module: Module) -> list[str]:
    length = len(module.source.splitlines())
    return [f"{module.path}: {length} lines, at most {MAX_LINES}"] if length > MAX_LINES else []


def is_reexport(node: ast.stmt) -> bool:
    match node:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__" | "__version__")]):
            return True
        case ast.ImportFrom(module=str(name), level=0):
            return name == "__future__" or name.partition(".")[0] == "bayesode"
        case ast.ImportFrom():
            return True
    return False


def logic_in_init(module: Module) -> list[str]:
    if not module.is_init:
        return []
    return [
        f"{module.path}:{node.lineno}: an __init__ only re-exports names of the package"
        for node in module.tree.body
        if not is_reexport(node)
    ]


Checker = Callable[[Module], list[str]]
CHECKERS: list[Checker] = [wrong_imports, wrong_doors, assert_statements, too_long, logic_in_init]


def test_the_package_has_modules_to_check():
    paths = {module.path for module in package_modules()}
    assert {"__init__.py", "errors.py", "trajectories.py"} <= paths


@pytest.mark.parametrize("checker", CHECKERS)
def test_package_keeps_the_rule(checker: Checker):
    assert [wrong for module in package_modules() for wrong in checker(module)] == []


@pytest.mark.parametrize(
    ("checker", "path", "source"),
    [
        (wrong_imports, "errors.py", "from bayesode.trajectories import Trajectories"),
        (wrong_imports, "errors.py", "from bayesode import trajectories"),
        (wrong_imports, "errors.py", "from . import trajectories"),
        (wrong_imports, "errors.py", "import bayesode.cli"),
        (wrong_imports, "errors.py", "def late():\n    from bayesode.units import Units"),
        (wrong_imports, "errors.py", "import_module('bayesode.units')"),
        (
            wrong_imports,
            "models/fields/mlp.py",
            "from bayesode.models.solvers.ode import ODESolver",
        ),
        (wrong_imports, "models/fields/mlp.py", "from bayesode.models import solvers"),
        (wrong_imports, "models/fields/mlp.py", "from ..solvers.ode import ODESolver"),
        (wrong_imports, "models/fields/mlp.py", "from bayesode.models import BayesianMLP"),
        (wrong_imports, "models/fields/mlp.py", "import bayesode.models"),
        (wrong_imports, "models/contracts.py", "from bayesode.models.networks import views"),
        (wrong_imports, "inference/posterior.py", "from bayesode import runs"),
        (wrong_imports, "inference/posterior.py", "from bayesode import load"),
        (wrong_imports, "cli.py", "import bayesode"),
        (wrong_imports, "datasets/lynx_hare.py", "from bayesode.units import Units"),
        (wrong_imports, "systems.py", "from bayesode.datasets import lynx_hare"),
        (wrong_imports, "utils.py", ""),
        (wrong_imports, "models/utils.py", ""),
        (wrong_doors, "models/solvers/fixed_grid.py", "import torchdiffeq"),
        (wrong_doors, "models/solvers/ode.py", "from torchsde import sdeint"),
        (wrong_doors, "inference/posterior.py", "def late():\n    import arviz as az"),
        (wrong_doors, "inference/posterior.py", "importlib.import_module('arviz')"),
        (wrong_doors, "diagnostics/report.py", "import matplotlib.pyplot as plt"),
        (wrong_doors, "trajectories.py", "from pandas import DataFrame"),
        (wrong_doors, "trajectories.py", "if TYPE_CHECKING:\n    import xarray as xr"),
        (wrong_doors, "datasets/mnist.py", "from torchvision.datasets import MNIST"),
        (wrong_doors, "diagnostics/latent.py", "from sklearn.decomposition import PCA"),
        (assert_statements, "units.py", "def f(x):\n    assert x > 0, x"),
        (too_long, "units.py", "x = 1\n" * (MAX_LINES + 1)),
        (logic_in_init, "__init__.py", "import torch"),
        (logic_in_init, "__init__.py", "from torch import Tensor"),
        (logic_in_init, "models/__init__.py", "def f():\n    pass"),
        (logic_in_init, "models/__init__.py", "x = 1"),
        (logic_in_init, "models/__init__.py", "print('hello')"),
    ],
)
def test_checker_finds_what_is_broken(checker: Checker, path: str, source: str):
    assert len(checker(Module(path, source))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("trajectories.py", "from bayesode import tabular\nfrom bayesode.errors import DataError"),
        ("models/fields/mlp.py", "from bayesode.models.contracts import VectorField"),
        ("models/fields/mlp.py", "from bayesode.models import contracts, networks"),
        ("models/fields/mlp.py", "from bayesode.models.fields.physics import PhysicsField"),
        ("models/fields/mlp.py", "from ..contracts import VectorField\nfrom . import physics"),
        ("inference/svi.py", "from bayesode.models import DynamicalModel"),
        ("inference/svi.py", "from bayesode.models.solvers import ODESolver"),
        ("inference/arviz.py", "import arviz as az\nimport xarray as xr"),
        ("runs.py", "from bayesode import __version__"),
        ("cli.py", "from bayesode.datasets import lynx_hare\nfrom bayesode import runs, datasets"),
        ("datasets/lynx_hare.py", "from bayesode.trajectories import Trajectories"),
        ("tabular.py", "import pandas as pd\nimport xarray as xr"),
        ("units.py", "x = 1\n" * MAX_LINES),
        (
            "__init__.py",
            '"""Doc."""\n__version__ = "0"\nfrom bayesode.units import Units\n__all__ = ["Units"]',
        ),
        ("models/__init__.py", "from .contracts import VectorField"),
    ],
)
def test_checkers_accept_what_is_right(path: str, source: str):
    assert [wrong for checker in CHECKERS for wrong in checker(Module(path, source))] == []
