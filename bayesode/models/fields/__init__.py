"""Random vector fields."""

from bayesode.models.fields.combine import Sum as Sum
from bayesode.models.fields.constants import WithConstants as WithConstants
from bayesode.models.fields.linear import LinearField as LinearField
from bayesode.models.fields.mlp import BayesianMLP as BayesianMLP
from bayesode.models.fields.pace import Paced as Paced
from bayesode.models.fields.physics import PhysicsField as PhysicsField
from bayesode.models.fields.process_noise import AdditiveNoise as AdditiveNoise
from bayesode.models.fields.process_noise import StateNoise as StateNoise
from bayesode.models.fields.sde import SDEField as SDEField
from bayesode.models.fields.second_order import SecondOrder as SecondOrder
