"""What decoders with a tree of drafts share: the loop, and trees that a draft model grows.

Shapes: B rows, N nodes of a tree, n nodes of a level, k children of each, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, LayoutError, Tokens
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.trace import Trace
from tokenloom.models.sampling.tree import Path, TreeSession, chained, refusal


class TreeDecoder(Decoder):
    """Drafts that follow from what is decided alone hang on a tree; one call of the net draws a path through it.

    Samples are those of decoding one by one, seed for seed.
    """

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        return refusal(model, sampler)

    def run(self, model: Any, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        session = TreeSession(model, conditions, sampler, draws, nodes=self.most(model), **given)
        session.begin()
        drafter = self.drafter(session, conditions, sampler, draws, **given)
        while not session.done:
            token_BN, parent_BN = drafter.tree(session)
            none_B1 = torch.full_like(session.last_B1, -1)
            p_BNV = session.grow(torch.cat([session.last_B1, token_BN.clamp_min(0)], 1), torch.cat([none_B1, parent_BN], 1))
            path = session.walk(torch.cat([none_B1, token_BN], 1), p_BNV, self.levels(model))
            drafter.learn(session, p_BNV, path)
            session.commit(path)
            drafter.commit(path)
        drafter.done(session.trace)
        return session.tokens(), session.trace

    @abstractmethod
    def most(self, model: Any) -> int:
        """Drafted nodes N of a tree."""

    @abstractmethod
    def levels(self, model: Any) -> int:
        """Most levels below the root."""

    @abstractmethod
    def drafter(self, session: TreeSession, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> Drafter:
        """What makes the trees of one decoding."""


class Drafter:
    """Makes trees."""

    @abstractmethod
    def tree(self, session: TreeSession) -> tuple[Tensor, Tensor]:
        """Tokens (B, N), -1 for a node that is not there, and parents (B, N), 0 for the root and i for node i - 1; those stand before."""

    def learn(self, session: TreeSession, p_BNV: Tensor, path: Path) -> None:
        """See what the net says of the tree, and which path holds."""

    def commit(self, path: Path) -> None:
        """The path is permanent."""

    def done(self, trace: Trace) -> None:
        """Write into the trace what was done."""


def draft_refusal(model: Any, sampler: Sampler) -> str | None:
    """Why the generator's draft model cannot draft for it; None where it can."""
    draft = model.draft
    if draft is None:
        return "no draft model is there; name one over the same tokens in the field model: RUN or ARTIFACT"
    try:
        model.layout.check(draft.layout)
    except LayoutError as error:
        return f"the draft model is for other tokens: {error}"
    reason = refusal(draft, sampler)
    return None if reason is None else f"of the draft model: {reason}"


class ModelTrees(Drafter):
    """A draft model grows a tree level by level: it runs the likeliest nodes of the last level, and each has its likeliest tokens.

    Candidates are numbered from 1 on in the order in which they are made; 0 is the root.
    """

    def __init__(
        self, session: TreeSession, conditions: Conditions, sampler: Sampler, draws: SampleDraws, nodes: int, **given: Any
    ) -> None:
        """The draft model will run up to ``nodes`` nodes of a tree."""
        draft = cast(Any, session.model).draft
        self.small = TreeSession(draft, conditions, sampler, draws, nodes=nodes, **{**given, "plan": session.plan})
        self.small.begin(session.token_BM[:, :1])

    def root(self) -> None:
        """Start a tree: the root alone."""
        root_B1 = torch.zeros_like(self.small.last_B1)
        none_B0 = root_B1[:, :0]
        self.token_BM, self.parent_BM, self.score_BM = none_B0, none_B0, none_B0.float()
        self.ran_Bn, self.last_Bn, self.last_score_Bn = root_B1, root_B1, root_B1.float()  # candidates that were run: all, the last ones
        self.p_BnV = self.small.grow(self.small.last_B1, root_B1 - 1)

    def branch(self, children: int) -> None:
        """Give each node that was run last its likeliest tokens as children; scores are log probabilities of paths."""
        log_p_BnK, token_BnK = self.p_BnV.log().topk(min(children, self.p_BnV.shape[2]), dim=-1)
        self.first = self.token_BM.shape[1]
        self.token_BM = torch.cat([self.token_BM, token_BnK.flatten(1)], 1)
        self.parent_BM = torch.cat([self.parent_BM, self.last_Bn.repeat_interleave(token_BnK.shape[2], 1)], 1)
        self.score_BM = torch.cat([self.score_BM, (self.last_score_Bn.unsqueeze(-1) + log_p_BnK).flatten(1)], 1)

    def descend(self, count: int) -> None:
        """Run the likeliest ones of the last level."""
        score_BM = self.score_BM[:, self.first :]
        index_Bn = score_BM.topk(min(count, score_BM.shape[1]), dim=1).indices.sort(1).values + self.first
        parent_Bn = (self.ran_Bn[:, None] == self.parent_BM.gather(1, index_Bn)[:, :, None]).long().argmax(2)
        self.p_BnV = self.small.grow(self.token_BM.gather(1, index_Bn), parent_Bn)
        self.last_Bn, self.last_score_Bn = index_Bn + 1, self.score_BM.gather(1, index_Bn)
        self.ran_Bn = torch.cat([self.ran_Bn, self.last_Bn], 1)

    def likeliest(self, nodes: int) -> tuple[Tensor, Tensor]:
        """The tree of the likeliest candidates: tokens and parents (B, N)."""
        # Of equally likely ones the earlier: a parent is never behind its child.
        order_BM = self.score_BM.sort(dim=1, descending=True, stable=True).indices[:, :nodes]
        return pruned(self.token_BM, self.parent_BM, order_BM.sort(1).values)

    def commit(self, path: Path) -> None:
        """The draft model runs on what holds."""
        caught_up(self.small, path)

    def done(self, trace: Trace) -> None:
        trace.calls["draft"] = self.small.trace.calls["net"]


def pruned(token_BM: Tensor, parent_BM: Tensor, index_BN: Tensor) -> tuple[Tensor, Tensor]:
    """The tree of these candidates alone, in growing order, whose parents are among them: tokens and parents (B, N)."""
    parent_BN = parent_BM.gather(1, index_BN)
    where_BN = (index_BN[:, None] + 1 == parent_BN[:, :, None]).long().argmax(2) + 1
    return token_BM.gather(1, index_BN), torch.where(parent_BN == 0, 0, where_BN)


def caught_up(small: TreeSession, path: Path) -> None:
    """Put a draft model's session behind the tokens of a path."""
    count = path.node_BK.shape[1]
    small.rollback()
    small.grow(torch.cat([small.last_B1, path.token[:, :count]], 1), chained(count, small.rows, small.device))
    node_BK = torch.arange(1, count + 1, device=small.device).expand(small.rows, -1)
    small.commit(Path(node_BK, path.hold_B, path.token))
