"""Bayesian neural ODEs: fit posterior dynamics, forecast with ensembles, judge the uncertainty."""

__version__ = "0.1.0"

from bayesode import datasets as datasets
from bayesode import diagnostics as diagnostics
from bayesode.candidates import fit_candidates as fit_candidates
from bayesode.errors import BayesODEError as BayesODEError
from bayesode.errors import DataError as DataError
from bayesode.errors import FitError as FitError
from bayesode.errors import ShapeError as ShapeError
from bayesode.errors import SolverError as SolverError
from bayesode.inference.amortized import AmortizedGuide as AmortizedGuide
from bayesode.inference.elbo import elbo_terms as elbo_terms
from bayesode.inference.encoders import ConvEncoder as ConvEncoder
from bayesode.inference.encoders import GRUEncoder as GRUEncoder
from bayesode.inference.encoders import LinearEncoder as LinearEncoder
from bayesode.inference.encoders import MLPEncoder as MLPEncoder
from bayesode.inference.encoders import StackedEncoder as StackedEncoder
from bayesode.inference.encoders import SumEncoder as SumEncoder
from bayesode.inference.ensemble import Ensemble as Ensemble
from bayesode.inference.fit import fit as fit
from bayesode.inference.gradients import GradientCheck as GradientCheck
from bayesode.inference.gradients import check_gradients as check_gradients
from bayesode.inference.guides import MeanFieldGuide as MeanFieldGuide
from bayesode.inference.laplace import fit_laplace as fit_laplace
from bayesode.inference.mixture import Mixture as Mixture
from bayesode.inference.posterior import Posterior as Posterior
from bayesode.inference.prior import sample_prior as sample_prior
from bayesode.inference.sde_guide import SDEGuide as SDEGuide
from bayesode.inference.svi import fit_svi as fit_svi
from bayesode.inference.window_schemes import GrowingWindows as GrowingWindows
from bayesode.inference.window_schemes import Window as Window
from bayesode.inference.window_schemes import blocks as blocks
from bayesode.inference.window_schemes import composite as composite
from bayesode.inference.window_schemes import prefix as prefix
from bayesode.inputs import Inputs as Inputs
from bayesode.models.dynamical import DynamicalModel as DynamicalModel
from bayesode.models.fields import AdditiveNoise as AdditiveNoise
from bayesode.models.fields import BayesianMLP as BayesianMLP
from bayesode.models.fields import LinearField as LinearField
from bayesode.models.fields import PhysicsField as PhysicsField
from bayesode.models.fields import SDEField as SDEField
from bayesode.models.fields import SecondOrder as SecondOrder
from bayesode.models.fields import StateNoise as StateNoise
from bayesode.models.fields import Sum as Sum
from bayesode.models.fields import WithConstants as WithConstants
from bayesode.models.frames import Clipped as Clipped
from bayesode.models.frames import ConvDecoder as ConvDecoder
from bayesode.models.frames import GreyLogits as GreyLogits
from bayesode.models.frames import LinearDecoder as LinearDecoder
from bayesode.models.frames import Logits as Logits
from bayesode.models.frames import MLPDecoder as MLPDecoder
from bayesode.models.frames import SumDecoder as SumDecoder
from bayesode.models.initial import NormalInitial as NormalInitial
from bayesode.models.likelihoods import BernoulliLikelihood as BernoulliLikelihood
from bayesode.models.likelihoods import (
    ContinuousBernoulliLikelihood as ContinuousBernoulliLikelihood,
)
from bayesode.models.likelihoods import GaussianLikelihood as GaussianLikelihood
from bayesode.models.likelihoods import LogNormalLikelihood as LogNormalLikelihood
from bayesode.models.likelihoods import PoissonLikelihood as PoissonLikelihood
from bayesode.models.likelihoods import StudentTLikelihood as StudentTLikelihood
from bayesode.models.modules import BayesianModule as BayesianModule
from bayesode.models.solvers import FixedGridSolver as FixedGridSolver
from bayesode.models.solvers import MatrixExponentialSolver as MatrixExponentialSolver
from bayesode.models.solvers import ODESolver as ODESolver
from bayesode.models.solvers import OnFrames as OnFrames
from bayesode.models.solvers import SDESolver as SDESolver
from bayesode.models.solvers import TorchSDESolver as TorchSDESolver
from bayesode.plan import FitPlan as FitPlan
from bayesode.plan import plan as plan
from bayesode.runs import load as load
from bayesode.systems import neural_ode as neural_ode
from bayesode.systems import neural_sde as neural_sde
from bayesode.systems import ode_vae as ode_vae
from bayesode.trajectories import Trajectories as Trajectories
from bayesode.units import Units as Units
