"""Laws of the observations along a path."""

from bayesode.models.likelihoods.gaussian import GaussianLikelihood as GaussianLikelihood
from bayesode.models.likelihoods.gaussian import LogNormalLikelihood as LogNormalLikelihood
