"""How long a training step through the paths of an SDE takes, as ratios within the same run.

    python -m benchmarks.sde_speed [--smoke] [--json FILE]

One step: 4 draws x 10 series of one neural SDE (a network of 32 units, additive noise) are solved
at 50 times, two steps of Euler-Maruyama from each time to the next, and the mean square of the
paths is differentiated to weights and noise scale. Ways: our `SDESolver` ("euler", and its default
"split": RK4 for the drift over both steps, noise once), torchsde's `sdeint` as it is called by
default, torchsde as we call it (a `BrownianInterval` that knows the step), and torchsde's adjoint
so. "euler" and torchsde solve the same equation in the same steps.

Two grids, because torchsde's own Brownian motion looks at the length of its 101st step to lay out
its search tree. On "98 steps" there is none. On "100 steps" of .01 single precision sums to a
little less than 1, the 101st step is 7e-7 long, and a tree of a million intervals is laid.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchsde
from torch import Tensor, nn

import bayesode as bo
from bayesode.models.contracts import SDE
from benchmarks.speed import median_seconds

NUM_DRAWS, NUM_SERIES, DIM, WIDTH, SCALE = 4, 10, 2, 32, 0.1


class Grid(NamedTuple):
    """Asked times over [0, end], and the length of a step."""

    end: float
    num_times: int
    step: float


GRIDS = {"98 steps": Grid(10.0, 50, 10 / 98), "100 steps": Grid(1.0, 51, 0.01)}
SMOKE_GRIDS = {"8 steps": Grid(1.0, 5, 0.125)}


class Problem(nn.Module):
    """The SDE in the form that torchsde calls, draws and series in one dimension.

    Args:
        grid: Asked times, the start among them.
    """

    noise_type, sde_type = "diagonal", "ito"
    times: Tensor
    x0: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        network = bo.BayesianMLP(DIM, [WIDTH], DIM)
        self.field = bo.SDEField(network, bo.AdditiveNoise(DIM))
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(NUM_DRAWS, 1, network.num_weights, generator=generator)
        self.weights = nn.Parameter(weights / WIDTH**0.5)
        self.scale = nn.Parameter(torch.full((NUM_DRAWS, 1, DIM), SCALE))
        self.register_buffer("times", torch.linspace(0, grid.end, grid.num_times))
        self.register_buffer("x0", torch.randn(NUM_SERIES, DIM, generator=generator))

    def build(self) -> SDE:
        """The equation of the present weights."""
        return self.field.build({"drift.weights": self.weights, "diffusion.scale": self.scale})

    @property
    def flat_x0(self) -> Tensor:
        """Initial states, shape (draws x series, state)."""
        return self.x0.expand(NUM_DRAWS, -1, -1).flatten(0, 1)

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        """Drift, shape (draws x series, state)."""
        return self.build().drift(t, x.view(NUM_DRAWS, NUM_SERIES, DIM)).flatten(0, 1)

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        """Noise scale, shape (draws x series, state)."""
        return self.scale.expand(NUM_DRAWS, NUM_SERIES, DIM).flatten(0, 1)


# ---- ways ----------------------------------------------------------------------------------------
Solve = Callable[[], Tensor]


def ours(problem: Problem, method: str, noise: Tensor | None = None) -> Tensor:
    """Paths of our fixed grid, (time, draws x series, state).

    Args:
        problem: What is solved.
        method: Of `SDESolver`.
        noise: Standard-normal increments (draws, series, step, state); drawn if not given.
    """
    solver = bo.SDESolver(DIM, step=problem.grid.step * (1 + 1e-6), method=method)
    start, times = torch.zeros(NUM_SERIES), problem.times.expand(NUM_SERIES, -1)
    if noise is None:
        law: Any = solver.priors(start, times)["noise"]
        noise = law.expand((NUM_DRAWS, NUM_SERIES)).sample()
    path = solver(problem.build(), problem.x0, start, times, noise=noise)
    return path.flatten(0, 1).movedim(-2, 0)


def default_torchsde(problem: Problem) -> Tensor:
    """Paths of torchsde with the Brownian motion that it makes itself."""
    found: Any = torchsde.sdeint(
        problem, problem.flat_x0, problem.times, method="euler", dt=problem.grid.step
    )
    return found


def motion_of(problem: Problem, seed: int) -> torchsde.BrownianInterval:
    """A Brownian motion that knows the step."""
    size = (NUM_DRAWS * NUM_SERIES, DIM)
    return torchsde.BrownianInterval(
        0.0, problem.grid.end, size, entropy=seed, dt=problem.grid.step
    )


def our_torchsde(problem: Problem, solve: Any = torchsde.sdeint) -> Tensor:
    """Paths of torchsde with such a motion."""
    motion = motion_of(problem, int(torch.randint(2**31 - 1, ())))
    x0, times = problem.flat_x0, problem.times
    return solve(problem, x0, times, bm=motion, method="euler", dt=problem.grid.step)


def ways(problem: Problem) -> dict[str, Solve]:
    """Paths with a gradient, by the name of the way."""
    return {
        "ours, euler": lambda: ours(problem, "euler"),
        "ours, split": lambda: ours(problem, "split"),
        "torchsde by default": lambda: default_torchsde(problem),
        "torchsde, interval with dt": lambda: our_torchsde(problem),
        "torchsde's adjoint so": lambda: our_torchsde(problem, torchsde.sdeint_adjoint),
    }


# ---- the table -----------------------------------------------------------------------------------
def step_table(name: str, grid: Grid, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of a step, and over those of our Euler-Maruyama."""
    problem = Problem(grid)

    def step_of(solve: Solve) -> Callable[[], None]:
        def step() -> None:
            problem.zero_grad()
            solve().square().mean().backward()

        return step

    seconds = {way: median_seconds(step_of(path), repeats) for way, path in ways(problem).items()}
    fastest = seconds["ours, euler"]
    return [
        {"table": name, "way": way, "milliseconds": 1e3 * s, "ratio": s / fastest}
        for way, s in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny: only to see that it runs")
    parser.add_argument("--json", help="file for the records")
    options = parser.parse_args()
    repeats, grids = (2, SMOKE_GRIDS) if options.smoke else (9, GRIDS)
    torch.set_num_threads(1)
    records = [row for name, grid in grids.items() for row in step_table(name, grid, repeats)]
    for r in records:
        print(f"{r['table']:<10} {r['way']:<28} {r['milliseconds']:9.1f} ms   x {r['ratio']:.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    main()
