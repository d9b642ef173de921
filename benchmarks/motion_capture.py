"""ODE²VAE and ODE-VAE on motion capture: walks forecast from three frames, with their bands.

    python -m benchmarks.motion_capture --root ../shared/data [--system ode2vae,ode-vae]
        [--method single,bag] [--protocol cross-validation,split,split-19] [--file npz,mat]
        [--seeds 1,2|1-3] [--minutes M] [--json FILE] [--smoke]

Given are 3 frames of a walk, predicted are frames 4 to 300, all 50 channels. Protocols:

- `cross-validation`: 5-fold leave-walk-out over the 19 training and validation walks, the same
  folds for every method. Settings are chosen by this and by nothing else.
- `split`: the 16 training walks are fitted, the validation walks say where fits stop, the noise is
  that of leave-walk-out residuals of the training walks.
- `split-19`: training and validation walks are fitted, the noise is that of cross-validation.

Systems: `ode2vae` (positions and velocities) and `ode-vae` (first order, the same recipe) with as
many weights in the field. Draws of these differ in pace as the fitted walks do, which three frames
do not tell; in `*-typical` all have the typical one: other draws, nearly the same mean; in
`ode-vae-read` pace and style are read off the frames all the same. Methods:
`single`, one fit, and `bag`, fits to random 3/4 of the walks (first order: the cheaper one).
Beside them what needs no model (`baseline`) and what is published (on the `.mat`).

`mse` is the mean over 50 draws of each draw's error with its t-interval over draws, `mse_mean` that
of the mean of the draws. In cross-validation both are over the 16 training walks, `*_all_walks`
over all 19. Bands and log scores count channels that move; `seconds` are those of one fit, a bag
being one. --minutes is a limit per fit, of a bag per member: it becomes a number of ELBO steps, the
same in all fits of a system. With a --json FILE, what it holds is kept and not run again.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import bayesode as bo
from benchmarks.motion_capture_baselines import BASELINES, PUBLISHED
from benchmarks.motion_capture_fits import ALL_NUMBERS, Bench, Run, Settings, System, bag, single
from benchmarks.motion_capture_simulated import simulated_walks
from benchmarks.motion_capture_tables import show
from benchmarks.records import Record, add_common, read, run_all, seeds, some_of

FILES = ("npz", "mat")
ORDER = ("cross-validation", "split", "split-19")
ROOT = os.environ.get("BAYESODE_DATA", "../shared/data")

# ---- settings ------------------------------------------------------------------------------------
# Widths such that both fields have about as many weights: `num_weights` of the records.
FIRST, SECOND = {"order": 1, "hidden": (38,)}, {"order": 2, "hidden": (24,)}
TYPICAL = {"spread": 0.0}
SETTINGS = Settings(
    {
        "ode2vae": System(SECOND, {}, ("single",)),
        "ode-vae": System(FIRST, {}),
        "ode2vae-typical": System(SECOND | TYPICAL, {}, ("single",)),
        "ode-vae-typical": System(FIRST | TYPICAL, {}),
        "ode-vae-read": System(
            {"order": 1, "hidden": (33,), "dim_style": 2, "constants": "read", "temper": 25.0},
            {},
            ("single",),
        ),
    },
    {"single": single, "bag": partial(bag, num_members=4, fraction=0.75)},
)
SMOKE = Settings(
    {
        "ode2vae": System({"order": 2, "dim_latent": 2, "hidden": (4,)}, {"num_steps": 3}),
        "ode-vae": System(
            {"order": 1, "dim_latent": 2, "hidden": (5,)}, {"num_steps": 3}, ("single",)
        ),
    },
    {"single": single, "bag": partial(bag, num_members=2, fraction=0.75)},
    num_folds=2,
)


# ---- command line --------------------------------------------------------------------------------
def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(ROOT), help="folder with mocap/")
    for name, known in (
        ("system", SETTINGS.systems),
        ("method", SETTINGS.methods),
        ("protocol", ORDER),
        ("file", FILES),
    ):
        parser.add_argument(
            f"--{name}",
            type=some_of(known),
            default=list(known),
            help=f"some of {','.join(known)} (default: all)",
        )
    parser.add_argument("--seeds", type=seeds, default=[1], help='"1,2" or "1-3" (default: 1)')
    parser.add_argument("--minutes", type=float, help="per fit, in place of a number of steps")
    add_common(parser)
    return parser.parse_args(arguments)


def runs(options: argparse.Namespace, settings: Settings, files: list[str]) -> Iterator[Run]:
    """Cross-validation first; of each protocol and file what needs no model first."""
    for protocol in (p for p in ORDER if p in options.protocol):
        for file in files:
            for name in BASELINES:
                yield Run("baseline", name, file, protocol, None)
            for seed in options.seeds:
                for system in (name for name in options.system if name in settings.systems):
                    own = settings.systems[system].methods
                    for method in (m for m in options.method if m in own):
                        yield Run(system, method, file, protocol, seed)
    for published in PUBLISHED:
        yield Run("published", published.method, "mat", "split", None)


def walks_of(options: argparse.Namespace) -> dict[str, bo.datasets.MotionCapture]:
    """The walks by the names of the files; a file that is missing ends it before any fit."""
    if options.smoke:
        return {"simulated": simulated_walks()}
    return {file: bo.datasets.motion_capture(options.root, file=file) for file in options.file}


def line(records: list[Record]) -> str:
    r = records[0]
    outcome = r["error"] or f"mse {r['mse']:.2f}, mse_mean {r['mse_mean']:.2f}"
    if not math.isnan(r["coverage_90"]):
        outcome += f", covers {r['coverage_90']:.3f}, {r['num_fits']} x {r['seconds']:.0f} s"
    seed = "" if r["seed"] is None else f"seed {r['seed']}"
    return (
        f"{r['protocol']:<16} {r['file']:<4} {r['system']:<9} {r['method']:<29} {seed:<7} {outcome}"
    )


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    data = walks_of(options)
    settings = SMOKE if options.smoke else SETTINGS
    bench = Bench(data, settings, options.minutes)
    records = run_all(
        runs(options, settings, list(data)),
        bench.records_of,
        read(options.json, Run, ALL_NUMBERS),
        options.json,
        line,
    )
    show(records)
    if options.smoke and any(record["error"] for record in records):
        sys.exit("a smoke run is there to see that everything runs, and it does not.")


if __name__ == "__main__":
    main()
