"""From a drawn field and initial state to a path."""

from bayesode.models.solvers.density import ExactTrace as ExactTrace
from bayesode.models.solvers.density import HutchinsonTrace as HutchinsonTrace
from bayesode.models.solvers.density import log_density_along as log_density_along
from bayesode.models.solvers.fixed_grid import FixedGridSolver as FixedGridSolver
from bayesode.models.solvers.frames import OnFrames as OnFrames
from bayesode.models.solvers.linear import MatrixExponentialSolver as MatrixExponentialSolver
from bayesode.models.solvers.ode import ODESolver as ODESolver
from bayesode.models.solvers.sde import TorchSDESolver as TorchSDESolver
from bayesode.models.solvers.sde_grid import SDESolver as SDESolver
