"""The `bayesode` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bayesode import __version__
from bayesode.demo import run_demo
from bayesode.errors import BayesODEError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 after an error that is told in one line.

    Args:
        arguments: Of the command line, `sys.argv` by default.

    Example:
        >>> main(["demo", "--quick", "--out", "/dev/null/x"])
        1
    """
    options = _parser().parse_args(arguments)
    try:
        run_demo(options.out, seed=options.seed, quick=options.quick)
    except BayesODEError as error:
        print(f"bayesode: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bayesode", description="Bayesian neural ODEs.")
    parser.add_argument("--version", action="version", version=f"bayesode {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="fit the lynx and hare record, forecast six years, score the forecast"
    )
    demo.add_argument("--out", default="bayesode-demo", help="folder for the results")
    demo.add_argument("--seed", type=int, default=0, help="same seed, same results")
    demo.add_argument("--quick", action="store_true", help="few steps: only to see that it runs")
    return parser
