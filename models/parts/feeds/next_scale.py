"""Next-scale feeds: a scale is given what the smaller ones have drawn.

Shapes: B rows, L positions of all scales, S slots, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, Tokenizer, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import Feed, span
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Everything

if TYPE_CHECKING:
    from tokenloom.models.parts.quantizers.multiscale import MultiScale


class NextScale(Feed):
    """Each position of a scale is given the sum of all codes so far, resized to that scale (VAR, arXiv:2404.02905).

    The tokenizer's codebook and Phi travel here, frozen.  The first scale is given the condition's vector.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Feed.Config, tag="feed.next_scale", label="sum of codes so far"):
        """``init_std``: standard deviation of fresh embeddings (0: ``sqrt(1 / 3D)``)."""

        init_std: float = 0.0

        def build(self, layout: TokenLayout, width: int, tokenizer: Any) -> NextScale:
            return self.construct(layout, width, self.quantizer_of(layout, tokenizer))

        @staticmethod
        def quantizer_of(layout: TokenLayout, tokenizer: Any) -> MultiScale:
            """A fresh quantizer as the tokenizer's.

            Raises:
                LayoutError: the tokenizer is not a multi-scale one.
            """
            quantizer = getattr(tokenizer, "quantizer", None)
            if quantizer is None or not hasattr(quantizer, "scales"):
                have = "no tokenizer is given" if tokenizer is None else f"its grids are {layout.grids}"
                raise LayoutError(f"next-scale prediction needs a multi-scale tokenizer, such as the recipe var_vq; {have}")
            return cast("MultiScale", quantizer.build(layout.grids[-1]))

    def __init__(self, config: Config, layout: TokenLayout, width: int, quantizer: MultiScale) -> None:
        super().__init__()
        self.layout = layout
        self.quantizer = quantizer.requires_grad_(False)
        std = config.init_std or math.sqrt(1 / 3 / width)
        self.embed = nn.Linear(quantizer.config.channels()[1], width)
        self.position_start = nn.Parameter(torch.empty(1, layout.scale_sizes[0], width))
        self._positions(layout, width)
        for name, weight in self.named_parameters():
            if name.startswith("position") or name == "embed.weight":
                nn.init.trunc_normal_(weight, std=std)
        nn.init.zeros_(self.embed.bias)
        self.register_buffer("scale", layout.positions[:, 1].clone(), persistent=False)

    scale: Tensor

    def _positions(self, layout: TokenLayout, width: int) -> None:
        self.position = nn.Parameter(torch.empty(1, layout.length, width))
        self.position_scale = nn.Embedding(len(layout.grids), width)

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Copy the tokenizer's quantizer, frozen."""
        self.quantizer.load_state_dict(cast(nn.Module, tokenizer.quantizer).state_dict())

    def train(self, mode: bool = True) -> NextScale:
        """The frozen quantizer stays in eval mode: its statistics do not change."""
        super().train(mode)
        self.quantizer.eval()
        return self

    def traits(self, plan: Plan) -> Traits:
        return {"slots of whole scales": Trait("yes", "feed")}

    def check(self, plan: Plan) -> None:
        if plan.sizes != self.layout.scale_sizes:
            raise LayoutError(f"this feed needs groups that are whole scales of {self.layout.scale_sizes} positions, not {plan.sizes}")

    def slots(self, plan: Plan, prefix: int) -> int:
        return self.layout.length

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        with torch.no_grad():
            inputs = self.quantizer.next_inputs(data)
        return self.of_inputs(inputs, cond)

    def of_inputs(self, inputs: Tensor, cond: Conditioned) -> Slots:
        """Slots of all scales, given what each but the first is given, (B, L - first scale, C)."""
        x = torch.cat([self._first(cond), self.embed(inputs.to(self.embed.weight.dtype))], dim=1)
        place = torch.arange(self.layout.length, device=x.device)[None]
        return Slots(self._placed(x, place), self.scale[None], place, place)

    def start(self, plan: Plan, cond: Conditioned) -> tuple[Tensor, Tensor | None]:
        return self.quantizer.start(len(cond.vector_BD)), None

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        place = plan.members(group)
        x = self._first(cond) if state[1] is None else self.embed(state[1])
        return Slots(
            self._placed(x, place), torch.full_like(place, group), place, span(0, place.shape[1], place.device), visibility=Everything()
        )

    def push(self, state: Any, plan: Plan, group: int, data: Tensor, place_Bn: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.quantizer.accumulate(state[0], group, data)

    def _first(self, cond: Conditioned) -> Tensor:
        return cond.vector_BD[:, None] + self.position_start

    def _placed(self, x_BSD: Tensor, place: Tensor) -> Tensor:
        return x_BSD + (self.position_scale(self.scale[place[0]]) + self.position[0, place[0]])


class RotaryScale(NextScale):
    """``NextScale`` whose places are left to the net's rotary tables: only a vector of the scale is added (Infinity, arXiv:2412.04431)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(NextScale.Config, tag="feed.next_scale_rotary"):
        """``scales``: rows of the table of scales, at least as many as there are (0: as many)."""

        scales: int = 0

    def __init__(self, config: Config, layout: TokenLayout, width: int, quantizer: MultiScale) -> None:
        self.rows = max(config.scales, len(layout.grids))
        super().__init__(config, layout, width, quantizer)

    def _positions(self, layout: TokenLayout, width: int) -> None:
        self.position_scale = nn.Embedding(self.rows, width)

    def _placed(self, x_BSD: Tensor, place: Tensor) -> Tensor:
        return x_BSD + self.position_scale(self.scale[place[0]])
