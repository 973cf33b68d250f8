"""A session in which drafted tokens hang on a tree: several continuations are verified by one call of the net.

Shapes: B rows, n drafted tokens of a call, N nodes of a tree, K levels of a tree, V vocabulary.  Under guidance the net has R = 2 B rows:
conditional ones, then null ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.nets.recurrent.branching import Branches, pick, reach
from tokenloom.models.parts.nets.sequence import SequenceNet, State
from tokenloom.models.parts.visibility import Causal, Mask
from tokenloom.models.sampling import chain
from tokenloom.models.sampling.chain import ChainSession
from tokenloom.models.sampling.fixed import unpadded
from tokenloom.models.sampling.rejection import draw_from
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import Decodable


def refusal(model: Decodable, sampler: Sampler) -> str | None:
    """Why drafts for this generator cannot hang on a tree; None where they can."""
    if (reason := chain.refusal(model, sampler)) is not None:
        return reason
    if model.feed.window_slots != 1:
        return f"the feed {type(model.feed).__qualname__} has {model.feed.window_slots} slots a token, a tree has one"
    if isinstance(model.net, SequenceNet) and not all(type(mixer).trees for mixer in model.net.mixer):  # type: ignore[attr-defined]
        return f"the mixer {type(model.net.mixer[0]).__qualname__} cannot go on from the states of several drafts at once"
    return None


@dataclass(frozen=True)
class Path:
    """What of a tree holds: the nodes (B, K) from the root's child on, of which the first ``hold_B`` count, and the tokens of all of them
    and of the one after them, (B, K + 1)."""

    node_BK: Tensor
    hold_B: Tensor
    token: Tensor


class TreeSession(ChainSession):
    """Node 0 is the last decided token; every other node is a draft that goes on from its parent.

    ``grow`` runs nodes on trial, ``walk`` says which path holds, ``commit`` makes it permanent: caches of attention keep the slots of the
    path alone, recurrent states go on from its last node.
    """

    _held: tuple[Tensor, Tensor] | None = None  # the nodes of a path that is made permanent, and how many of them hold

    def __init__(self, model: Decodable, conditions: Conditions, sampler: Sampler, draws: SampleDraws, *, nodes: int, **given: Any) -> None:
        """Open, and run the prefix; a tree will have up to ``nodes`` drafted nodes."""
        super().__init__(model, conditions, sampler, draws, window=nodes, **given)
        self._uproot()

    def _uproot(self) -> None:
        self.parent_BN = torch.zeros((self.rows, 0), dtype=torch.int64, device=self.device)
        self.depth_BN, self.reach_BNN = self.parent_BN, torch.zeros((self.rows, 0, 0), dtype=torch.bool, device=self.device)
        self._held = None

    @torch.no_grad()
    def grow(self, token_Bn: Tensor, parent_Bn: Tensor) -> Tensor:
        """The net on more nodes, whose parents (-1: of the root, which comes first) stand before them: (B, n, V) of what follows each."""
        before = self.parent_BN.shape[1]
        self.parent_BN = torch.cat([self.parent_BN, parent_Bn], dim=1)
        self.reach_BNN = reach(self.parent_BN)
        self.depth_BN = self.reach_BNN.sum(2) - 1
        depth_Bn, twice = self.depth_BN[:, before:], 2 if self.guided else 1
        entry_Bn = (self.done_B[:, None] - 1 + depth_Bn).clamp_max(self.model.layout.length - 1)
        slots = self.model.feed.window(token_Bn.repeat(twice, 1), entry_Bn.repeat(twice, 1), self.both, self.cond)
        self.trace.call(parent_Bn.shape[1])
        if self.model.net.keeps == "state":
            step_Bn = self.prefix + self.done_B[:, None] - 1 + depth_Bn
            by = Branches.of(parent_Bn, before, step_Bn)
            by = Branches(*(each.repeat(twice, 1) for each in (by.parent_BS, by.origin_BS, by.step_BS)))
            for layer in self._states():
                layer.branches = by
            h = self.model.net(slots, Causal(), self.cond, self.cache)
            for layer in self._states():
                layer.branches = None
        else:
            h = self.model.net(slots, Mask(self._seen(before)), self.cond, self.cache)
        self.ahead += parent_Bn.shape[1]
        self.at_R += parent_Bn.shape[1]
        return self._probabilities(self.model.read(h, slots), entry_Bn + 1)

    def _seen(self, before: int) -> Tensor:
        """(R, n, T) the slots of ancestors, and all that are decided."""
        total, base_B = self.parent_BN.shape[1], self.prefix + self.done_B - 1
        slot = torch.arange(self.room, device=self.device)
        node_BT = slot - base_B[:, None]
        among = self.reach_BNN[:, before:].gather(2, node_BT.clamp(0, total - 1)[:, None].expand(-1, total - before, -1))
        visible = (node_BT < 0)[:, None] | (among & (node_BT < total)[:, None])
        own_Bn = base_B[:, None] + torch.arange(before, total, device=self.device)
        twice = 2 if self.guided else 1
        return unpadded(visible.repeat(twice, 1, 1), own_Bn.repeat(twice, 1), self.cond.seen_BP)

    @torch.no_grad()
    def walk(self, token_BN: Tensor, p_BNV: Tensor, levels: int) -> Path:
        """Down from the root: each next token is drawn from what follows the last one, by the number that group after group draws it with;
        it goes on where a child holds that token.

        So samples are those of decoding one by one, seed for seed, whatever was drafted.
        """
        at_B1 = torch.zeros((self.rows, 1), dtype=torch.int64, device=self.device)
        alive_B = torch.ones(self.rows, dtype=torch.bool, device=self.device)
        hold_B, nodes, tokens = torch.zeros_like(self.done_B), [], []
        for level in range(levels + 1):
            new_B1 = self.kept(draw_from(pick(p_BNV, at_B1), self.uniform(level)), level)
            child_BN = (self.parent_BN == at_B1) & (token_BN == new_B1)
            tokens.append(new_B1)
            nodes.append(child_BN.long().argmax(1, keepdim=True))
            alive_B = alive_B & child_BN.any(1)
            hold_B = hold_B + alive_B
            # Where no child holds it, what follows means nothing.
            at_B1 = torch.where(alive_B[:, None], nodes[-1], at_B1)
        return Path(torch.cat(nodes[:-1], 1) if levels else at_B1[:, :0], hold_B.clamp_max(levels), torch.cat(tokens, 1))

    def uniform(self, ahead: int) -> Tensor:
        """(B, 1) the number by which the token so many entries after the decided ones is drawn, whichever way it is decoded."""
        return self.draws.uniform("head", self.done_B + ahead, 1)

    @torch.no_grad()
    def begin(self, token_B1: Tensor | None = None) -> Tensor:
        """Decide the first token of each row (B, 1): this one, or a draw."""
        return super().begin(draw_from(self.first_B1V, self.uniform(0)) if token_B1 is None else token_B1)

    @torch.no_grad()
    def commit(self, path: Path) -> None:  # type: ignore[override]
        """Make a path and the token after it permanent."""
        root = torch.zeros_like(path.hold_B)[:, None]
        self._held = (torch.cat([root, path.node_BK], 1), path.hold_B)
        self._settle(path.token, path.hold_B + 1)
        self._uproot()

    @torch.no_grad()
    def _states(self) -> list[State]:
        return [layer for layer in self.cache or [] if isinstance(layer, State)]

    def _rewind(self, count_B: Tensor) -> None:
        """Keep the first slots of the path that holds."""
        if self._held is None:  # nothing of a tree
            super()._rewind(count_B)
            return
        node_BM, twice = self._held[0], 2 if self.guided else 1
        last_B = node_BM.gather(1, (count_B - 1).clamp_min(0)[:, None]).squeeze(1)
        super()._rewind(torch.where(count_B > 0, last_B + 1, 0))
        base_B1 = (self.prefix + self.done_B - 1)[:, None]
        to_RM = (base_B1 + torch.arange(node_BM.shape[1], device=self.device)).repeat(twice, 1)
        from_RM = (base_B1 + node_BM).repeat(twice, 1)
        for layer in self.cache or []:
            if isinstance(layer, LayerCache):
                for buffer in (layer.key_BHTE, layer.value_BHTE):
                    shape = (len(to_RM), buffer.shape[1], to_RM.shape[1], buffer.shape[3])
                    old = buffer.gather(2, from_RM[:, None, :, None].expand(shape))
                    buffer.scatter_(2, to_RM[:, None, :, None].expand(shape), old)

    def rollback(self, mark: chain.ChainMark | None = None) -> None:  # type: ignore[override]
        """Forget the tree, or go back to a mark."""
        super().rollback(mark)
        self._uproot()


def chained(count: int, rows: int, device: torch.device) -> Tensor:
    """(B, 1 + count) parents of the root and of drafts one after another."""
    return cast(Tensor, torch.arange(-1, count, device=device)).expand(rows, -1)
