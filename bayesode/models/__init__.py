"""Parts of a model and the program that runs them."""

from bayesode.models.dynamical import DynamicalModel as DynamicalModel
from bayesode.models.initial import NormalInitial as NormalInitial
