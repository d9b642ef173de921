"""Steps that bring a fit to its optimum before any stochastic optimisation."""

from bayesode.inference.warm_start.matching import match_gradients as match_gradients
from bayesode.inference.warm_start.process_noise import match_drift as match_drift
from bayesode.inference.warm_start.start import UNFITTED_SCALE as UNFITTED_SCALE
from bayesode.inference.warm_start.start import Start as Start
from bayesode.inference.warm_start.start import find_start as find_start
