"""Autoregressive forecasting of series: a Llama decoder over quantised values (Chronos, Ansari et al. 2024, arXiv:2403.07815).

New: a decoder-only language model over the values of a window; a forecast of any horizon is the continuation of a history, sampled.
Differs: a Llama decoder of its own size where Chronos has T5's encoder and decoder; trained on one data set instead of a corpus;
one value a token, as there; a window is taken less its last known value, not divided by its mean; windows of fixed length, longer
horizons roll on with each sample's own values.
Run: tokenloom run series_co2_bins
Expect: series_co2 (weekly, half a year ahead): MASE 0.44 where the seasonal naive forecast has 1.39, CRPS 0.32. Sunspots, eleven years
ahead from 139 windows: CRPS 1.05 and MASE 1.38 where it has 1.20, the better of about ten settings in a training loop without the flow.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import Shifted
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets.blocks import llama
from tokenloom.models.parts.orders import Raster
from tokenloom.models.sampling.sampler import Constant, Sampler


@register("bins_ar", kind="generator", paper="2403.07815", tiny={"depth": 2, "width": 32, "heads": 2, "dropout": 0.0}, codec="series_bins")
def bins_ar(depth: int = 4, width: int = 64, heads: int = 4, dropout: float = 0.1) -> GroupGenerator.Config:
    """A window's values in the order of time; series have one class and no guidance."""
    return GroupGenerator.Config(
        order=Raster(),
        feed=Shifted.Config(dropout=dropout),
        net=llama(depth, width, heads, dropout),
        head=Categorical.Config(bias="no"),
        condition=ClassCondition.Config(dropout=0.0),
        sampler=Sampler(guidance=Constant(value=0.0)),
    )
