"""Warm starts of latent models in the space of the data: each step a function of tensors."""

from bayesode.inference.latent_start.closed_components import closed_components as closed_components
from bayesode.inference.latent_start.generators import Generator as Generator
from bayesode.inference.latent_start.generators import matched_generator as matched_generator
from bayesode.inference.latent_start.generators import rotation_generator as rotation_generator
from bayesode.inference.latent_start.path_fit import PathFit as PathFit
from bayesode.inference.latent_start.path_start import PathStart as PathStart
from bayesode.inference.latent_start.path_start import time_unit_of as time_unit_of
from bayesode.inference.latent_start.principal_components import (
    PrincipalComponents as PrincipalComponents,
)
from bayesode.inference.latent_start.principal_components import (
    principal_components as principal_components,
)
from bayesode.inference.latent_start.scales import initial_scales as initial_scales
from bayesode.inference.latent_start.scales import weight_scales as weight_scales
from bayesode.inference.latent_start.start import start_latent as start_latent
