"""A second tower of a transformer: the blocks of another one up to some depth, then blocks of its own.

Shapes: B rows, S slots, D width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.nets.slots import modulation_of
from tokenloom.models.parts.nets.transformer import Transformer, spread_branch
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Visibility


class Tower(Transformer):
    """The last ``late`` blocks and the last norm anew, on a trunk's first blocks, which stay as they are (HMAR, arXiv:2506.04421)."""

    def __init__(self, trunk: Transformer, late: int, layout: TokenLayout) -> None:
        if not 1 <= late <= trunk.config.depth:
            raise ConfigError(f"late={late}: the second tower has copies of 1 to {trunk.config.depth} blocks, of which the net has so many")
        super().__init__(replace(trunk.config, depth=late), layout)
        # In a list, so that its weights are not taken for this tower's.
        self._trunk, self.early = [trunk], trunk.config.depth - late
        self.drop_rates = trunk.drop_rates[self.early :]

    @torch.no_grad()
    def copy(self) -> None:
        """Take over the weights of the trunk's last blocks and norm."""
        given = dict(self._trunk[0].named_parameters())
        for name, parameter in self.named_parameters():
            shifted = re.sub(r"(?<=\.)\d+(?=\.|$)", lambda found: str(int(found[0]) + self.early), name, count=1)
            source = given[shifted if shifted in given else name]
            parameter.copy_(source[-len(parameter) :] if source.shape != parameter.shape else source)

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D), after the last norm."""
        trunk, modulation, x = self._trunk[0], modulation_of(slots, cond), slots.x_BSD
        rotations = trunk.rope(slots.position_BS) if trunk.rope is not None else None
        visibility = self.evaluated(visibility, x, cache)
        with still(trunk):
            x = trunk.turned(x, rotations, visibility, modulation, cache, draws, stop=self.early)
        shared = self.norm.shared(modulation)
        for i in range(len(self.attention)):
            how = [spread_branch(each, x.shape[1]) for each in self.norm.modulate(i, modulation, shared)]
            x = self.block(i, x, visibility, rotations, how, cache[self.early + i] if cache else None, draws)
        return self.ended(x, modulation)


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Gradients pass through a module, and none of its weights gets one."""
    held = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
