"""What a net of a generator offers: slots in, hidden states out, with or without a cache.

Shapes: B rows, S slots, T keys, K hidden states of a slot, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Traits
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.norms import Modulation
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Visibility


class SlotNet(nn.Module, ABC):
    """The body of a generator; concrete ones nest a frozen ``Config``."""

    class Config(config.Config, ABC):
        """What a net is made from; ``width`` is that of slots, and of hidden states where ``output_width`` is no other."""

        width: int

        @property
        def output_width(self) -> int:
            """Width of the hidden states."""
            return self.width

        def build(self, layout: TokenLayout) -> SlotNet:
            """The net for tokens of this layout."""
            return self.construct(layout)

    #: What its cache keeps: keys and values of single slots, which may be forgotten one by one and hidden by a mask; a state of fixed
    #: size, of which there are snapshots; or something of its own, of which decoders know nothing.
    keeps: ClassVar[Literal["slots", "state", "other"]] = "other"

    def traits(self, plan: Plan) -> Traits:
        """What other parts may depend on (``agreement``)."""
        return {}

    def requires(self, plan: Plan) -> Traits:
        """What other parts must have (``agreement``)."""
        return {}

    def check(self, plan: Plan) -> None:
        """Raise ``ConfigError`` for a plan that this net cannot follow."""

    @abstractmethod
    def cache(self, rows: int, slots: int, like: Tensor) -> list[LayerCache]:
        """Empty caches for all layers: ``rows`` rows, at most ``slots`` slots, of the type and device of ``like``."""

    @abstractmethod
    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D), or (B, K, S, D) of a net with several, ready for the head.

        ``visibility`` is what the slots attend to; ``draws`` is given in training only.
        """


def modulation_of(slots: Slots, cond: Conditioned) -> Tensor | Modulation:
    """The vectors that modulate adaptive norms, (B, 1 or S, D)."""
    if slots.condition_BSD is not None:
        return slots.condition_BSD
    return cond.vector_BD.unsqueeze(1) if cond.vector_BD.ndim == 2 else cond.vector_BD
