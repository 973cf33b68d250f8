"""Drafts from a table of what followed two tokens so far, searched for what is likely and what is untried (ADED, arXiv:2407.12021).

Shapes: B rows, N nodes of a tree, K levels, C candidates of a context, H contexts of the table, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.limits import Range
from tokenloom.models.core.protocols import Conditions
from tokenloom.models.parts.nets.recurrent.branching import pick
from tokenloom.models.sampling.decoders.trees import Drafter, TreeDecoder
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.tree import Path, TreeSession

#: More walks than there are: a candidate below which there is nothing to try.
_SHUT = 1e6


@dataclass(frozen=True, kw_only=True)
class ADED(TreeDecoder, tag="decoder.aded"):
    """No training and no second model: a table of tri-grams holds what the net said after each pair of tokens, and goes along with it.

    A tree of ``nodes`` drafts, at most ``depth`` deep, is made by up to twice as many walks from the root that follow
    ``P + explore P sqrt(n) / (1 + m)``: P is the table's probability of a candidate, n the walks that came by and m those that took it.
    What the net then says of the path that holds is mixed into the table, ``keep`` of what was known staying.
    Differs: the table is empty at the start and shared by the batch; contexts are hashed into 65,536 places where there are more.
    """

    limits: ClassVar = {
        "nodes": Range(1, 256),
        "depth": Range(1, 64),
        "candidates": Range(1, 64),
        "explore": Range(0, 1e6),
        "keep": Range(0, 1),
    }
    paper: ClassVar = "2407.12021"
    needs: ClassVar[tuple[str, ...]] = ("one position after another", "one softmax a token", "one slot a token")

    nodes: int = 12
    depth: int = 4
    candidates: int = 8
    explore: float = 1.0
    keep: float = 0.7

    def most(self, model: Any) -> int:
        return self.nodes

    def levels(self, model: Any) -> int:
        return self.depth

    def drafter(self, session: TreeSession, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> Drafter:
        return Trigrams(self, session)


class Trigrams(Drafter):
    """The table, and the trees that it makes."""

    def __init__(self, by: ADED, session: TreeSession) -> None:
        self.by, self.codes = by, session.model.layout.vocabulary
        self.places = min((self.codes + 1) ** 2, 1 << 16)
        count = min(by.candidates, self.codes)
        self.token_HC = torch.zeros((self.places, count), dtype=torch.int64, device=session.device)
        self.weight_HC = torch.zeros((self.places, count), device=session.device)

    def place(self, first: Tensor, second: Tensor) -> Tensor:
        """Where the table holds a pair of tokens; the first may be the id after the last code, for none."""
        return (first * (self.codes + 1) + second) % self.places

    def tree(self, session: TreeSession) -> tuple[Tensor, Tensor]:
        by, rows, device = self.by, session.rows, session.device
        count = self.token_HC.shape[1]
        # Node 0 is the root; each has the two tokens that its children follow, and its children's nodes (-1: not there).
        pair = torch.zeros((rows, by.nodes + 1, 2), dtype=torch.int64, device=device)
        pair[:, 0] = self._last(session)
        child = torch.full((rows, by.nodes + 1, count), -1, dtype=torch.int64, device=device)
        visits = torch.zeros((rows, by.nodes + 1, count), device=device)
        token = torch.full((rows, by.nodes), -1, dtype=torch.int64, device=device)
        parent = torch.zeros_like(token)
        row, made = torch.arange(rows, device=device), torch.zeros(rows, dtype=torch.int64, device=device)
        for _ in range(2 * by.nodes):
            at, going = torch.zeros(rows, dtype=torch.int64, device=device), made < by.nodes
            came = at, at
            for level in range(by.depth):
                place = self.place(*pair[row, at].unbind(-1))
                p, seen = self.weight_HC[place], visits[row, at]
                score = p + by.explore * p * seen.sum(1, keepdim=True).sqrt() / (1 + seen)
                best = score.masked_fill(seen >= _SHUT, -1).argmax(1)
                there = going & (p.gather(1, best[:, None]) > 0).squeeze(1) & (seen.gather(1, best[:, None]) < _SHUT).squeeze(1)
                if level:  # nothing is left below: no walk comes here again
                    visits[(row, *came)] += _SHUT * (going & ~there)
                visits[row, at, best] += there
                below = child[row, at, best]
                fresh = there & (below < 0)
                made = made + fresh
                slot, new = (made - 1).clamp_min(0), self.token_HC[place, best]
                token[row, slot] = torch.where(fresh, new, token[row, slot])
                parent[row, slot] = torch.where(fresh, at, parent[row, slot])
                child[row, at, best] = torch.where(fresh, made, below)
                pair[row, made] = torch.where(fresh[:, None], torch.stack([pair[row, at, 1], new], 1), pair[row, made])
                going, came = there & ~fresh, (torch.where(there, at, came[0]), torch.where(there, best, came[1]))
                at = torch.where(going, below, at)
        return token, parent

    def learn(self, session: TreeSession, p_BNV: Tensor, path: Path) -> None:
        """Mix what the net says after the root and the nodes that hold into the table."""
        root_B1 = torch.zeros_like(path.hold_B)[:, None]
        p, token = pick(p_BNV, torch.cat([root_B1, path.node_BK], 1)).topk(self.token_HC.shape[1], dim=-1)  # (B, K + 1, C)
        before = self._last(session)
        line = torch.cat([before, path.token[:, :-1]], 1)
        place = self.place(line[:, :-1], line[:, 1:])
        holds = torch.arange(place.shape[1], device=place.device) <= path.hold_B[:, None]
        place, p, token = place[holds], p[holds], token[holds]
        old_token, old = self.token_HC[place], self.weight_HC[place]
        same = old_token[:, None] == token[:, :, None]  # (n, new, old)
        known = self.by.keep * (same * old[:, None]).sum(-1) + (1 - self.by.keep) * p
        rest = torch.where(same.any(1), 0.0, self.by.keep * old)
        weight, index = torch.cat([torch.where(old.sum(1, keepdim=True) > 0, known, p), rest], 1).topk(p.shape[1], dim=1)
        self.token_HC[place], self.weight_HC[place] = torch.cat([token, old_token], 1).gather(1, index), weight

    def _last(self, session: TreeSession) -> Tensor:
        """(B, 2) the last two decided tokens."""
        done = session.done_B[:, None]
        first = session.token_BM.gather(1, (done - 2).clamp_min(0))
        return torch.cat([torch.where(done < 2, self.codes, first), session.last_B1], 1)
