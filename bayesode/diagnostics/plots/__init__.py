"""Pictures of forecasts and fitted fields, in users' units; the only door to matplotlib."""

from bayesode.diagnostics.plots.channels import channel_panel as channel_panel
from bayesode.diagnostics.plots.fan_chart import fan_chart as fan_chart
from bayesode.diagnostics.plots.frames import frame_rows as frame_rows
from bayesode.diagnostics.plots.latent_paths import latent_paths as latent_paths
from bayesode.diagnostics.plots.vector_field import vector_field as vector_field
