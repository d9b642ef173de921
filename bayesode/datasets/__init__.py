"""Data sets: each function gives `Trajectories`, or `Simulated` with the truth beside them."""

from bayesode.datasets.cubic_spiral import cubic_spiral
from bayesode.datasets.damped_pendulum import damped_pendulum, damped_pendulum_angles
from bayesode.datasets.double_well import double_well
from bayesode.datasets.fitzhugh_nagumo import fitzhugh_nagumo
from bayesode.datasets.geometric_brownian_motion import geometric_brownian_motion
from bayesode.datasets.glycolysis import glycolysis
from bayesode.datasets.lorenz import lorenz
from bayesode.datasets.lotka_volterra import lotka_volterra
from bayesode.datasets.lynx_hare import lynx_hare
from bayesode.datasets.motion_capture import MotionCapture, motion_capture
from bayesode.datasets.ornstein_uhlenbeck import ornstein_uhlenbeck
from bayesode.datasets.pendulum_video import PendulumVideo, pendulum_video
from bayesode.datasets.rotating_digits import rotating_digits
from bayesode.datasets.rotating_frames import RotatingFrames
from bayesode.datasets.rotating_mnist import rotating_mnist
from bayesode.datasets.simulated import Simulated
from bayesode.datasets.stochastic_lotka_volterra import stochastic_lotka_volterra
from bayesode.datasets.van_der_pol import van_der_pol

__all__ = [
    "MotionCapture",
    "PendulumVideo",
    "RotatingFrames",
    "Simulated",
    "cubic_spiral",
    "damped_pendulum",
    "damped_pendulum_angles",
    "double_well",
    "fitzhugh_nagumo",
    "geometric_brownian_motion",
    "glycolysis",
    "lorenz",
    "lotka_volterra",
    "lynx_hare",
    "motion_capture",
    "ornstein_uhlenbeck",
    "pendulum_video",
    "rotating_digits",
    "rotating_mnist",
    "stochastic_lotka_volterra",
    "van_der_pol",
]
