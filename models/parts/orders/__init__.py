"""Orders: a partition of the positions into successive groups that are predicted one after another."""

from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.orders.fixed import Cells, Diagonals, Patches, Raster, Regions, Scales, SomeScales, Subsamples, WeighedScales
from tokenloom.models.parts.orders.masked import Confidence, LogitConfidence, Masked
from tokenloom.models.parts.orders.random import Annealed, Random
from tokenloom.models.parts.orders.sizes import (
    Arccos,
    CosineCurve,
    Count,
    Curve,
    Even,
    KeptCosine,
    Parts,
    Sizes,
    Steps,
    Straight,
    TruncatedNormal,
)
from tokenloom.models.parts.orders.visits import Halton, RolledHalton, Shuffled
from tokenloom.models.parts.plan import Choice, Plan, grouped

__all__ = [
    "Annealed",
    "Arccos",
    "Cells",
    "Choice",
    "Confidence",
    "CosineCurve",
    "Count",
    "Curve",
    "Diagonals",
    "Even",
    "Halton",
    "KeptCosine",
    "LogitConfidence",
    "Masked",
    "Order",
    "Parts",
    "Patches",
    "Plan",
    "Random",
    "Raster",
    "Regions",
    "RolledHalton",
    "Scales",
    "Shuffled",
    "Sizes",
    "SomeScales",
    "Steps",
    "Straight",
    "Subsamples",
    "TruncatedNormal",
    "WeighedScales",
    "grouped",
]
