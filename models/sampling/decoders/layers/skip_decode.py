"""Later tokens pass fewer layers, the lower ones of the middle left out (SkipDecode, arXiv:2307.02628).

Shapes: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenloom.models.core.limits import Range
from tokenloom.models.sampling.decoders.layers.base import LayerDecoder
from tokenloom.models.sampling.session import DecodingSession


@dataclass(frozen=True, kw_only=True)
class SkipDecode(LayerDecoder, tag="decoder.skip_decode"):
    """Step by step, from ``most`` layers at the first (0: all) in a line to ``least`` at the last (0: all), rounded; the first ``warm``
    layers are always run, then the uppermost ones.

    The number never grows, so that a layer that is run has the keys and values of all earlier steps; it is the same for all rows.
    With ``most`` and ``least`` 0 samples are those of the generator.
    """

    limits: ClassVar = {"most": Range(0, 4096), "least": Range(0, 4096), "warm": Range(1, 4096)}
    paper: ClassVar = "2307.02628"
    exact: ClassVar = False

    most: int = 0
    least: int = 0
    warm: int = 1

    def before(self, session: DecodingSession, step: int) -> None:
        layers = session.cache or []
        depth, last = len(layers), max(1, session.plan.groups - 1)
        most = min(self.most or depth, depth)
        least = min(self.least or depth, most)
        count = max(self.warm, round(most + (least - most) * step / last))
        for index, layer in enumerate(layers):
            layer.rests = self.warm <= index < depth - (count - self.warm)
