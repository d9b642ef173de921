"""Random vector fields."""

from bayesode.models.fields.combine import Sum as Sum
from bayesode.models.fields.mlp import BayesianMLP as BayesianMLP
from bayesode.models.fields.physics import PhysicsField as PhysicsField
