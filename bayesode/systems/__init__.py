"""Complete systems: functions that only compose parts and return (model, guide)."""

from bayesode.systems.data_space import neural_ode as neural_ode
from bayesode.systems.data_space import neural_sde as neural_sde
from bayesode.systems.data_space import plan_by_evidence as plan_by_evidence
from bayesode.systems.latent import ode_vae as ode_vae
from bayesode.systems.ode2vae import ode2vae as ode2vae
from bayesode.systems.recipes import rebuild as rebuild
