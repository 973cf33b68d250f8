"""Feeds: what a group of positions is given to be predicted from.

Each feed has a parallel form (teacher forcing: the true tokens are known) and an incremental form (decoding:
one group at a time); tests hold them equal.  Shapes: B rows, L positions, S slots, P prefix slots, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from models import config
from models.draws import Draws
from models.parts.conditions import Conditioned
from models.parts.dropout import dropout
from models.parts.orders import Plan
from models.protocols import LayoutError, Tokenizer, TokenLayout

if TYPE_CHECKING:
    from models.parts.quantizers.multiscale import MultiScale


@dataclass(frozen=True)
class Slots:
    """Inputs of the net.

    ``group_BS`` says from which group on a slot is seen, ``place_BS`` the layout position at which it stands
    (-1: none); the last ``predicting`` slots predict, in the order of the plan's sequence.
    """

    x_BSD: Tensor
    group_BS: Tensor
    place_BS: Tensor
    predicting: int


class Feed(Protocol):
    """What a feed offers to the generator."""

    def slots(self, layout: TokenLayout, prefix: int) -> int:
        """All slots of one sample: the size of its cache."""
        ...

    def parallel(self, ids_BL: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        """Slots of all groups, for known ids."""
        ...

    def start(self, plan: Plan, cond: Conditioned) -> Any:
        """State of decoding before the first group."""
        ...

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        """New slots from which this group is predicted."""
        ...

    def push(self, state: Any, plan: Plan, group: int, ids_Bn: Tensor) -> Any:
        """State after the group's ids are known."""
        ...


class Shifted(nn.Module):
    """Each position is given the token before it in the sequence, the first one the condition's prefix.

    LlamaGen's feed (arXiv:2406.06525): a slot stands at the place of the token that it holds.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """``dropout`` of the token embeddings."""

        dropout: float = 0.0

        def build(self, layout: TokenLayout, width: int, tokenizer: Any) -> Shifted:
            """The feed for these tokens."""
            if layout.codebooks != 1 or not layout.discrete:
                raise LayoutError("this feed needs discrete tokens of one codebook")
            return Shifted(self, layout.vocabulary, width)

    def __init__(self, config: Config, vocabulary: int, width: int) -> None:
        super().__init__()
        self.rate = config.dropout
        self.table = nn.Embedding(vocabulary, width)
        nn.init.trunc_normal_(self.table.weight, std=0.02)

    def slots(self, layout: TokenLayout, prefix: int) -> int:
        return prefix + layout.length - 1

    def parallel(self, ids_BL: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        if plan.groups != ids_BL.shape[1]:
            raise LayoutError(
                f"shifted tokens need one position a group, this order has {plan.groups} groups for {ids_BL.shape[1]} positions"
            )
        sequence = plan.sequence_BL.to(ids_BL.device)
        before = sequence[:, :-1]
        token = self.table(ids_BL.gather(1, before.expand(len(ids_BL), -1)))
        x = dropout(torch.cat([cond.prefix_BPD, token], dim=1), self.rate, draws)
        prefix = self._prefix(cond.prefix_BPD)
        of_sequence = plan.group_BL.to(ids_BL.device).gather(1, sequence)
        group = torch.cat([prefix.expand(len(sequence), -1), of_sequence[:, 1:]], dim=1)
        place = torch.cat([torch.full_like(prefix, -1).expand(len(sequence), -1), before], dim=1)
        return Slots(x, group, place, sequence.shape[1])

    def start(self, plan: Plan, cond: Conditioned) -> Tensor:
        return cond.prefix_BPD.new_empty((len(cond.prefix_BPD), 0), dtype=torch.long)

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        if group == 0:
            prefix = self._prefix(cond.prefix_BPD)
            return Slots(cond.prefix_BPD, prefix, torch.full_like(prefix, -1), 1)
        place = plan.members(group - 1).to(state.device)
        return Slots(self.table(state[:, -1:]), torch.full_like(place, group), place, 1)

    def push(self, state: Any, plan: Plan, group: int, ids_Bn: Tensor) -> Tensor:
        return torch.cat([state, ids_Bn], dim=1)

    @staticmethod
    def _prefix(prefix_BPD: Tensor) -> Tensor:
        """Groups of the prefix slots: causal among themselves, the last one predicts group 0."""
        length = prefix_BPD.shape[1]
        return torch.arange(1 - length, 1, device=prefix_BPD.device)[None]


class NextScale(nn.Module):
    """Each position of a scale is given the sum of all codes so far, resized to that scale (VAR, arXiv:2404.02905).

    The tokenizer's codebook and Phi travel here, frozen.  The first scale is given the condition's vector.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """``init_std``: standard deviation of fresh embeddings (0: ``sqrt(1 / 3D)``)."""

        init_std: float = 0.0

        def build(self, layout: TokenLayout, width: int, tokenizer: Any) -> NextScale:
            """The feed for these tokens.

            Raises:
                LayoutError: the tokenizer is not a multi-scale one.
            """
            quantizer = getattr(tokenizer, "quantizer", None)
            if quantizer is None or not hasattr(quantizer, "scales"):
                have = "no tokenizer is given" if tokenizer is None else f"its grids are {layout.grids}"
                raise LayoutError(f"next-scale prediction needs a multi-scale tokenizer, such as the recipe var_vq; {have}")
            return NextScale(self, layout, width, quantizer.build(layout.grids[-1]))

    def __init__(self, config: Config, layout: TokenLayout, width: int, quantizer: MultiScale) -> None:
        super().__init__()
        self.layout = layout
        self.quantizer = quantizer.requires_grad_(False)
        first = layout.scale_sizes[0]
        std = config.init_std or math.sqrt(1 / 3 / width)
        self.embed = nn.Linear(quantizer.config.dim, width)
        self.position_start = nn.Parameter(torch.empty(1, first, width))
        self.position = nn.Parameter(torch.empty(1, layout.length, width))
        self.position_scale = nn.Embedding(len(layout.grids), width)
        for weight in (self.embed.weight, self.position_start, self.position, self.position_scale.weight):
            nn.init.trunc_normal_(weight, std=std)
        nn.init.zeros_(self.embed.bias)
        self.register_buffer("scale", layout.positions[:, 1].clone(), persistent=False)

    scale: Tensor

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Copy the tokenizer's quantizer, frozen."""
        self.quantizer.load_state_dict(cast(nn.Module, tokenizer.quantizer).state_dict())

    def train(self, mode: bool = True) -> NextScale:
        """The frozen quantizer stays in eval mode: its statistics do not change."""
        super().train(mode)
        self.quantizer.eval()
        return self

    def slots(self, layout: TokenLayout, prefix: int) -> int:
        return layout.length

    def parallel(self, ids_BL: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        with torch.no_grad():
            inputs = self.quantizer.next_inputs(ids_BL)
        x = torch.cat([self._first(cond), self.embed(inputs.to(self.embed.weight.dtype))], dim=1)
        place = torch.arange(self.layout.length, device=ids_BL.device)[None]
        return Slots(self._placed(x, place), self.scale[None], place, self.layout.length)

    def start(self, plan: Plan, cond: Conditioned) -> tuple[Tensor, Tensor | None]:
        return self.quantizer.start(len(cond.vector_BD)), None

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        place = plan.members(group).to(cond.vector_BD.device)
        x = self._first(cond) if state[1] is None else self.embed(state[1])
        return Slots(self._placed(x, place), torch.full_like(place, group), place, place.shape[1])

    def push(self, state: Any, plan: Plan, group: int, ids_Bn: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.quantizer.accumulate(state[0], group, ids_Bn)

    def _first(self, cond: Conditioned) -> Tensor:
        return cond.vector_BD[:, None] + self.position_start

    def _placed(self, x_BSD: Tensor, place: Tensor) -> Tensor:
        return x_BSD + (self.position_scale(self.scale[place[0]]) + self.position[0, place[0]])
