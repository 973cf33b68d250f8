"""Orders: a partition of the positions into successive groups that are predicted one after another."""

from models.parts.orders.base import Order
from models.parts.orders.fixed import Diagonals, Patches, Raster, Regions, Scales, SomeScales, WeighedScales
from models.parts.orders.masked import Confidence, Halton, LogitConfidence, Masked, Shuffled
from models.parts.orders.random import Annealed, Random
from models.parts.orders.sizes import Arccos, Cosine, Count, Curve, Even, Sizes, Steps, Straight
from models.parts.plan import Choice, Plan, grouped

__all__ = [
    "Annealed",
    "Arccos",
    "Choice",
    "Confidence",
    "Cosine",
    "Count",
    "Curve",
    "Diagonals",
    "Even",
    "Halton",
    "LogitConfidence",
    "Masked",
    "Order",
    "Patches",
    "Plan",
    "Random",
    "Raster",
    "Regions",
    "Scales",
    "Shuffled",
    "Sizes",
    "SomeScales",
    "Steps",
    "Straight",
    "WeighedScales",
    "grouped",
]
