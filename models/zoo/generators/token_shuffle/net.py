"""A transformer whose every slot gives the states of several tokens.

Shapes: B rows, S slots, m tokens of a slot, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.mlp import ResidualMLP
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Visibility


class Unshuffled(Transformer):
    """Slots go through the blocks merged and are taken apart afterwards (Token-Shuffle, arXiv:2504.17789, section 3.2).

    A few residual MLPs, then each m-th part of the channels is mapped back to the full width: state ``m s + j`` is that of token j of
    what slot s predicts.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Transformer.Config, tag="net.token_shuffle", label="transformer, unshuffled"):
        """``share``: tokens of a slot; ``blocks`` residual MLPs."""

        share: int = 4
        blocks: int = 2

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__(config, layout)
        if config.share < 1 or config.width % config.share:
            raise ConfigError(f"net.share={config.share}: must divide net.width={config.width}")
        self.share = config.share
        self.parts = ResidualMLP(config.mlp, config.width, config.blocks)
        self.up = nn.Linear(config.width // config.share, config.width, bias=False)
        nn.init.normal_(self.up.weight, std=(config.width // config.share) ** -0.5)
        self.rms = nn.RMSNorm(config.width, eps=1e-5)

    def traits(self, plan: Plan) -> Traits:
        return {**super().traits(plan), "tokens that a slot is taken apart into": Trait(self.share, "net.share")}

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S m, D)."""
        h_BSD = self.parts(super().forward(slots, visibility, cond, cache, draws))
        return self.rms(self.up(h_BSD.unflatten(2, (self.share, -1))).flatten(1, 2))
