"""Reports, scores and pictures of posteriors."""

from bayesode.diagnostics.finding import Finding as Finding
from bayesode.diagnostics.latent import LatentAccount as LatentAccount
from bayesode.diagnostics.latent import latent_account as latent_account
from bayesode.diagnostics.plots import channel_panel as channel_panel
from bayesode.diagnostics.plots import fan_chart as fan_chart
from bayesode.diagnostics.plots import frame_rows as frame_rows
from bayesode.diagnostics.plots import latent_paths as latent_paths
from bayesode.diagnostics.plots import vector_field as vector_field
from bayesode.diagnostics.report import FitReport as FitReport
from bayesode.diagnostics.report import diagnose as diagnose
from bayesode.diagnostics.score_table import score_table as score_table
