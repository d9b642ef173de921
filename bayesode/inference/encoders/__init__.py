"""From observed values to a normal law of the initial state, for amortised guides."""

from bayesode.inference.encoders.effects import SeriesEffects as SeriesEffects
from bayesode.inference.encoders.line import LineEncoder as LineEncoder
from bayesode.inference.encoders.linear import LinearEncoder as LinearEncoder
from bayesode.inference.encoders.linear import SumEncoder as SumEncoder
from bayesode.inference.encoders.networks import ConvEncoder as ConvEncoder
from bayesode.inference.encoders.networks import MLPEncoder as MLPEncoder
from bayesode.inference.encoders.recurrent import GRUEncoder as GRUEncoder
from bayesode.inference.encoders.stacked import StackedEncoder as StackedEncoder
