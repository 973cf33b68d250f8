"""A feed with mistakes in it, so that a generator learns to mend its own.

Shapes: B rows, P positions of a scale, L positions of all scales, D bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.feeds.next_scale import RotaryScale
from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ
from tokenloom.models.parts.quantizers.self_correction import SelfCorrection, corrected

if TYPE_CHECKING:
    from tokenloom.models.parts.quantizers.multiscale import MultiScale


class Corrected(RotaryScale):
    """``RotaryScale`` by bits, some of which are flipped in training (Infinity, arXiv:2412.04431, section 3.4).

    Later scales are given the flipped sum and must predict the bits that lead from there to the image.  The image's latents are those that
    its stored bits stand for: the paper takes the encoder's, which token shards do not hold.  A scale before which nothing was flipped
    keeps its stored bits.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(RotaryScale.Config, tag="feed.self_corrected", label="codes so far, bits flipped"):
        """``correction``: which scales are flipped, and how much."""

        correction: SelfCorrection = SelfCorrection()

        def build(self, layout: TokenLayout, width: int, tokenizer: Any) -> Corrected:
            quantizer = self.quantizer_of(layout, tokenizer)
            if not isinstance(quantizer, MultiScaleBSQ):
                raise LayoutError("self-correction flips bits: it needs a tokenizer by bits and scales, such as the recipe infinity_bsq")
            return Corrected(self, layout, width, quantizer)

    def __init__(self, config: Config, layout: TokenLayout, width: int, quantizer: MultiScale) -> None:
        super().__init__(config, layout, width, quantizer)
        self.correction = config.correction

    @property
    def bits(self) -> MultiScaleBSQ:
        """The quantizer, which is one by bits."""
        return cast("MultiScaleBSQ", self.quantizer)

    def corrupt(self, data: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Bits (B, L, D) with flips, and the bits to predict."""
        flips = self.correction.draw(self.bits, draws.fork("flips"))
        return corrected(self.bits, self.bits.lookup(data), flips, data)
