"""Next-scale feed without residuals: any grids, in any number, from one set of weights.

Shapes: B rows, L positions of all scales, S slots, D width, R side of the position map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, Tokenizer, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import Feed, span, take
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.quantizers.flexible import Flexible
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Everything


class FlexibleScale(Feed):
    """Each scale is given the codes of the one before it, resized (FlexVAR, arXiv:2502.20313).

    Positions are a learned map, averaged over the cells of a scale, and nothing tells which scale it is; so the plan may leave out
    scales, and the layout may have others than those of training.  The codebook travels here, frozen.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Feed.Config, tag="feed.flexible_scale", label="the scale before"):
        """``side`` of the position map."""

        side: int = 32

        def build(self, layout: TokenLayout, width: int, tokenizer: Any) -> FlexibleScale:
            quantizer = getattr(tokenizer, "quantizer", None)
            if not isinstance(quantizer, Flexible.Config):
                raise LayoutError("this feed needs a tokenizer whose scales stand alone, such as the recipe flexvar_vq")
            return FlexibleScale(self, layout, width, Flexible(quantizer))

    def __init__(self, config: Config, layout: TokenLayout, width: int, quantizer: Flexible) -> None:
        super().__init__()
        self.layout, self.quantizer = layout, quantizer.requires_grad_(False)
        self.embed = nn.Linear(quantizer.config.dim, width)
        self.position_start = nn.Parameter(torch.empty(1, 1, width))
        for weight in (self.embed.weight, self.position_start):
            nn.init.trunc_normal_(weight, std=(1 / 3 / width) ** 0.5)
        nn.init.zeros_(self.embed.bias)
        self.position = nn.Parameter(self._sinusoidal(width, config.side))

    @staticmethod
    def _sinusoidal(width: int, side: int) -> Tensor:
        """The first map (1, D, R, R): sines of the row on even channels, cosines of the column on odd ones."""
        frequency = 10000 ** (-torch.arange(0, width, 2) / width)
        angle = torch.arange(side)[None, :] * frequency[:, None]
        wave = torch.stack([angle.sin()[:, :, None].expand(-1, -1, side), angle.cos()[:, None, :].expand(-1, side, -1)], dim=1)
        return wave.flatten(0, 1)[None, :width].contiguous()

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Copy the tokenizer's quantizer, frozen."""
        self.quantizer.load_state_dict(cast(nn.Module, tokenizer.quantizer).state_dict())

    def train(self, mode: bool = True) -> FlexibleScale:
        """The frozen quantizer stays in eval mode: its statistics do not change."""
        super().train(mode)
        self.quantizer.eval()
        return self

    def traits(self, plan: Plan) -> Traits:
        return {"slots of whole scales": Trait("yes", "feed")}

    def check(self, plan: Plan) -> None:
        self._grids(plan)

    def slots(self, plan: Plan, prefix: int) -> int:
        return sum(plan.sizes)

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        grids = self._grids(plan)
        with torch.no_grad():
            inputs = self.quantizer.next_inputs(take(data, plan.sequence_BL), grids)
        x = torch.cat([cond.vector_BD[:, None] + self.position_start, self.embed(inputs.to(self.embed.weight.dtype))], dim=1)
        x = x + torch.cat([self._position(grid) for grid in grids], dim=1)
        return Slots(x, plan.group_L[None], plan.sequence_BL, span(0, x.shape[1], x.device))

    def start(self, plan: Plan, cond: Conditioned) -> tuple[Tensor, Tensor | None]:
        return self.quantizer.start(len(cond.vector_BD)), None

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        x = cond.vector_BD[:, None] + self.position_start if state[1] is None else self.embed(state[1])
        place = plan.members(group)
        x = x + self._position(self._grids(plan)[group])
        return Slots(x, torch.full_like(place, group), place, span(0, place.shape[1], place.device), visibility=Everything())

    def push(self, state: Any, plan: Plan, group: int, data: Tensor, place_Bn: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.quantizer.accumulate(state[0], group, data, self._grids(plan))

    def _grids(self, plan: Plan) -> list[tuple[int, int]]:
        """The grids of the plan's groups, which are whole scales; identified by their sizes, so that no position is read from the device.

        Raises:
            LayoutError: the first one has more than one position, or a group is no scale.
        """
        whole = iter(self.layout.grids)
        found = [next((grid for grid in whole if grid[0] * grid[1] == size), None) for size in plan.sizes]
        clear = len(plan.sizes) == len(self.layout.grids) or len(set(self.layout.scale_sizes)) == len(self.layout.grids)
        if plan.sizes[0] != 1 or None in found or not clear:
            raise LayoutError(f"this feed needs groups that are scales, the first of one position, not {plan.sizes}")
        return cast(list[tuple[int, int]], found)

    def _position(self, grid: tuple[int, int]) -> Tensor:
        """(1, h w, D) positions of one grid."""
        return F.interpolate(self.position, size=grid, mode="area").flatten(2).transpose(1, 2)
