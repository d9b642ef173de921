"""Data sets: each function gives `Trajectories`, or `Simulated` with the truth beside them."""

from bayesode.datasets.cubic_spiral import cubic_spiral
from bayesode.datasets.damped_pendulum import damped_pendulum
from bayesode.datasets.fitzhugh_nagumo import fitzhugh_nagumo
from bayesode.datasets.glycolysis import glycolysis
from bayesode.datasets.lorenz import lorenz
from bayesode.datasets.lotka_volterra import lotka_volterra
from bayesode.datasets.lynx_hare import lynx_hare
from bayesode.datasets.simulated import Simulated
from bayesode.datasets.van_der_pol import van_der_pol

__all__ = [
    "Simulated",
    "cubic_spiral",
    "damped_pendulum",
    "fitzhugh_nagumo",
    "glycolysis",
    "lorenz",
    "lotka_volterra",
    "lynx_hare",
    "van_der_pol",
]
