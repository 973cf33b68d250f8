"""A tree of drafts of a fixed shape, on attention and on recurrent nets (STree, arXiv:2505.14969).

Shapes: B rows, N nodes of a tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.limits import Range
from tokenloom.models.core.protocols import Conditions
from tokenloom.models.sampling.decoders.trees import ModelTrees, TreeDecoder, draft_refusal
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.tree import TreeSession, refusal


@dataclass(frozen=True, kw_only=True)
class STree(TreeDecoder, tag="decoder.stree"):
    """A draft model's likeliest continuations, in a tree whose nodes of level i have ``widths[i]`` children each.

    On state spaces one call of the net verifies the whole tree: products of decays along its paths weigh what a node has of its
    ancestors (``parts.nets.recurrent.branching``).
    Differs: the products are plain tensor operations instead of the paper's fused kernel, and no net here mixes attention with state
    spaces, so that its hybrids are not tried.
    """

    limits: ClassVar = {"widths": Range(1, 64)}
    paper: ClassVar = "2505.14969"
    needs: ClassVar[tuple[str, ...]] = ("a draft model", "one position after another", "one softmax a token", "one slot a token")

    widths: tuple[int, ...] = (3, 2, 1)
    model: Added[str] = ""

    def __post_init__(self) -> None:
        if not self.widths or self.most(None) > 256:
            raise ConfigError(f"decoder.stree.widths={list(self.widths)}: give at least one level, of at most 256 nodes in all")

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        return refusal(model, sampler) or draft_refusal(model, sampler)

    def levels(self, model: Any) -> int:
        return len(self.widths)

    def most(self, model: Any) -> int:
        total, level = 0, 1
        for width in self.widths:
            level *= width
            total += level
        return total

    def drafter(self, session: TreeSession, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> ModelTrees:
        return _Fixed(self.widths, session, conditions, sampler, draws, self.most(None), **given)


class _Fixed(ModelTrees):
    def __init__(self, widths: tuple[int, ...], *rest: Any, **given: Any) -> None:
        super().__init__(*rest, **given)
        self.widths = widths

    def tree(self, session: TreeSession) -> tuple[Tensor, Tensor]:
        self.root()
        for level, width in enumerate(self.widths):
            if level:
                self.descend(self.token_BM.shape[1] - self.first)
            self.branch(width)
        return self.token_BM, self.parent_BM
