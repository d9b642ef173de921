"""Random vector fields."""

from bayesode.models.fields.mlp import BayesianMLP as BayesianMLP
