"""Bayesian neural ODEs: fit posterior dynamics, forecast with ensembles, judge the uncertainty."""

__version__ = "0.1.0"

from bayesode import datasets as datasets
from bayesode.errors import BayesODEError as BayesODEError
from bayesode.errors import DataError as DataError
from bayesode.errors import FitError as FitError
from bayesode.errors import ShapeError as ShapeError
from bayesode.errors import SolverError as SolverError
from bayesode.inputs import Inputs as Inputs
from bayesode.models.dynamical import DynamicalModel as DynamicalModel
from bayesode.models.fields import BayesianMLP as BayesianMLP
from bayesode.models.initial import NormalInitial as NormalInitial
from bayesode.models.likelihoods import GaussianLikelihood as GaussianLikelihood
from bayesode.models.likelihoods import LogNormalLikelihood as LogNormalLikelihood
from bayesode.models.solvers import FixedGridSolver as FixedGridSolver
from bayesode.models.solvers import ODESolver as ODESolver
from bayesode.trajectories import Trajectories as Trajectories
from bayesode.units import Units as Units
