"""The draft tree of which most is expected to hold (OPT-Tree, arXiv:2406.17276).

Shapes: B rows, N nodes of a tree, M candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenloom.models.core.config import Added
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.limits import Range
from tokenloom.models.core.protocols import Conditions
from tokenloom.models.sampling.decoders.trees import ModelTrees, TreeDecoder, draft_refusal
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.tree import TreeSession, refusal


@dataclass(frozen=True, kw_only=True)
class OptTree(TreeDecoder, tag="decoder.opt_tree"):
    """Up to ``nodes`` drafts, those with the likeliest paths under the draft model: with ``width`` 0 no other tree of that size and depth
    has a greater expectation of the number of tokens that hold, as far as the draft model knows (algorithm 1); a smaller ``width`` costs
    less and may miss some of them.

    The draft model goes down level by level, ``depth`` of them at most, with ``width`` nodes a level (0: ``nodes``), until a further
    level would add less than ``gain`` to the expectation, the mean over the batch.
    Differs: the paper's threshold is the measured ratio of the two models' times; here it is a number, so that samples of one seed take
    the same calls on every machine.
    """

    limits: ClassVar = {"nodes": Range(1, 256), "depth": Range(1, 64), "width": Range(0, 256), "gain": Range(0, 64)}
    paper: ClassVar = "2406.17276"
    needs: ClassVar[tuple[str, ...]] = ("a draft model", "one position after another", "one softmax a token", "one slot a token")

    nodes: int = 16
    depth: int = 6
    width: int = 8
    gain: float = 0.1
    model: Added[str] = ""

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        return refusal(model, sampler) or draft_refusal(model, sampler)

    def levels(self, model: Any) -> int:
        return self.depth

    def most(self, model: Any) -> int:
        return self.nodes

    def drafter(self, session: TreeSession, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> ModelTrees:
        return _Best(self, session, conditions, sampler, draws, self.depth * (self.width or self.nodes), **given)


class _Best(ModelTrees):
    def __init__(self, settings: OptTree, *rest: Any, **given: Any) -> None:
        super().__init__(*rest, **given)
        self.settings = settings

    def tree(self, session: TreeSession) -> tuple[Tensor, Tensor]:
        by = self.settings
        self.root()
        before = 0.0
        for level in range(by.depth):
            if level:
                self.descend(by.width or by.nodes)
            self.branch(by.nodes)
            expected = float(self.score_BM.exp().topk(min(by.nodes, self.score_BM.shape[1]), dim=1).values.sum(1).mean())
            if expected - before < by.gain:
                break
            before = expected
        return self.likeliest(by.nodes)
