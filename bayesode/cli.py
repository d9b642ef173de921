"""The `bayesode` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bayesode import __version__
from bayesode.demos import run_lynx_hare, run_rotating_digits
from bayesode.errors import BayesODEError

# Name: what runs it, and where it leaves its files by default.
DEMOS = {
    "lynx-hare": (run_lynx_hare, "bayesode-demo"),
    "rotating-digits": (run_rotating_digits, "bayesode-demo-digits"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 after an error that is told in one line.

    Args:
        arguments: Of the command line, `sys.argv` by default.

    Example:
        >>> main(["demo", "--quick", "--out", "/dev/null/x"])
        1
    """
    options = _parser().parse_args(arguments)
    run, folder = DEMOS[options.name]
    try:
        run(options.out or folder, seed=options.seed, quick=options.quick)
    except BayesODEError as error:
        print(f"bayesode: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bayesode", description="Bayesian neural ODEs.")
    parser.add_argument("--version", action="version", version=f"bayesode {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="fit real data, forecast, score the forecast, leave pictures",
        description="lynx-hare: two species over 21 years, with and without process noise, a "
        "minute. rotating-digits: an ODE-VAE of videos of turning digits, two minutes.",
    )
    demo.add_argument("name", nargs="?", choices=DEMOS, default="lynx-hare", help="which one")
    demo.add_argument("--out", help="folder for the results; bayesode-demo... by default")
    demo.add_argument("--seed", type=int, default=0, help="same seed, same results")
    demo.add_argument("--quick", action="store_true", help="few steps: only to see that it runs")
    return parser
