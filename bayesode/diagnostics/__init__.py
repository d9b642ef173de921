"""Scores and pictures of posteriors."""

from bayesode.diagnostics.plots import fan_chart as fan_chart
from bayesode.diagnostics.plots import vector_field as vector_field
from bayesode.diagnostics.score_table import score_table as score_table
