"""What `bayesode demo` runs: a whole job on real data, from the fit to pictures and a verdict."""

from bayesode.demos.lynx_hare import run_lynx_hare as run_lynx_hare
from bayesode.demos.rotating_digits import run_rotating_digits as run_rotating_digits
