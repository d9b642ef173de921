"""Laws of the observations along a path."""

from bayesode.models.likelihoods.bernoulli import BernoulliLikelihood as BernoulliLikelihood
from bayesode.models.likelihoods.bernoulli import (
    ContinuousBernoulliLikelihood as ContinuousBernoulliLikelihood,
)
from bayesode.models.likelihoods.counts import PoissonLikelihood as PoissonLikelihood
from bayesode.models.likelihoods.gaussian import GaussianLikelihood as GaussianLikelihood
from bayesode.models.likelihoods.gaussian import LogNormalLikelihood as LogNormalLikelihood
from bayesode.models.likelihoods.student_t import StudentTLikelihood as StudentTLikelihood
