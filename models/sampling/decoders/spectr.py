"""Several sequences of drafts, of which one is chosen by optimal transport (SpecTr, arXiv:2310.15141).

Shapes: B rows, k sequences, W drafted tokens of each, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenloom.models.core.config import Added
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.limits import Range
from tokenloom.models.core.protocols import Conditions, Tokens
from tokenloom.models.parts.nets.recurrent.branching import pick
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.decoders.trees import caught_up, draft_refusal
from tokenloom.models.sampling.rejection import draw_from
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.trace import Trace
from tokenloom.models.sampling.tree import Path, TreeSession, refusal


@dataclass(frozen=True, kw_only=True)
class SpecTr(Decoder, tag="decoder.spectr"):
    """A draft model draws ``drafts`` independent sequences of ``window`` tokens; one call of the net verifies all of them.

    At each entry k-SEQ (algorithm 3) looks at the next tokens of the sequences that hold so far, one after another: x holds with
    probability min(1, q(x) / (r p(x))), where p drafts, q is the net and r the least number that keeps the samples' distribution.
    With one sequence it is the decoder ``draft_model``.
    """

    limits: ClassVar = {"drafts": Range(1, 64), "window": Range(1, 64)}
    paper: ClassVar = "2310.15141"
    needs: ClassVar[tuple[str, ...]] = ("a draft model", "one position after another", "one softmax a token", "one slot a token")

    drafts: int = 4
    window: int = 4
    model: Added[str] = ""

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        return refusal(model, sampler) or draft_refusal(model, sampler)

    def run(self, model: Any, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        nodes = self.drafts * self.window
        large = TreeSession(model, conditions, sampler, draws, nodes=nodes, **given)
        small = TreeSession(model.draft, conditions, sampler, draws, nodes=nodes, **{**given, "plan": large.plan})
        small.begin(large.begin())
        step = 0
        while not large.done:
            path = self.step(large, small, step)
            large.commit(path)
            caught_up(small, path)
            step += 1
        large.trace.calls["draft"] = small.trace.calls["net"]
        return large.tokens(), large.trace

    def step(self, large: TreeSession, small: TreeSession, step: int) -> Path:
        """Draft all sequences and verify them; node ``1 + k i + j`` is token i of sequence j."""
        k, root_B1 = self.drafts, torch.zeros_like(large.last_B1)
        draft_BkV = small.grow(large.last_B1, root_B1 - 1).expand(-1, k, -1)
        tokens, drafts, parents = [], [], [root_B1.expand(-1, k)]
        for i in range(self.window):
            token_Bk = self._given(large, draw_from(draft_BkV, large.draws.uniform(f"draft.{i}", step, k)), i)
            tokens.append(token_Bk)
            drafts.append(draft_BkV)
            if i + 1 < self.window:
                parents.append(1 + i * k + torch.arange(k, device=large.device).expand(large.rows, -1))
                draft_BkV = small.grow(token_Bk, parents[i])
        p_BNV = large.grow(torch.cat([large.last_B1, *tokens], 1), torch.cat([root_B1 - 1, *parents], 1))
        return self.verified(large, tokens, drafts, p_BNV, step)

    @staticmethod
    def _given(large: TreeSession, token_Bk: Tensor, ahead: int) -> Tensor:
        """The tokens of one entry, with the given one in place of all."""
        return torch.cat([large.kept(token_B1, ahead) for token_B1 in token_Bk.split(1, 1)], 1)

    def verified(self, large: TreeSession, tokens: list[Tensor], drafts: list[Tensor], p_BNV: Tensor, step: int) -> Path:
        """The sequence that holds longest by k-SEQ at each entry, and a token after what holds."""
        k, at_B1 = self.drafts, torch.zeros_like(large.last_B1)
        among_Bk = torch.ones((large.rows, k), dtype=torch.bool, device=large.device)
        alive_B, hold_B, nodes, found = among_Bk[:, 0], torch.zeros_like(large.done_B), [], []
        for i, (token_Bk, draft_BkV) in enumerate(zip(tokens, drafts)):
            target_BV = pick(p_BNV, at_B1).squeeze(1)
            first_B1 = among_Bk.long().argmax(1, keepdim=True)
            draft_BV = pick(draft_BkV, first_B1).squeeze(1)  # all that hold so far go on alike
            u_Bk = large.draws.uniform(f"verify.{i}", step, k + 1)
            index_B, rest_BV = k_seq(target_BV, draft_BV, token_Bk, among_Bk, u_Bk[:, :k])
            given_B = large.keep_BM.gather(1, large.done_B[:, None] + i).squeeze(1)
            index_B = torch.where(given_B & (index_B < 0), first_B1.squeeze(1), index_B)
            holds_B = index_B >= 0
            chosen_B1 = token_Bk.gather(1, index_B.clamp_min(0)[:, None])
            found.append(torch.where(holds_B[:, None], chosen_B1, draw_from(rest_BV, u_Bk[:, k]).unsqueeze(1)))
            alive_B = alive_B & holds_B
            hold_B = hold_B + alive_B
            nodes.append(1 + i * k + index_B.clamp_min(0)[:, None])
            at_B1 = torch.where(alive_B[:, None], nodes[-1], at_B1)
            among_Bk = torch.where(alive_B[:, None], among_Bk & (token_Bk == chosen_B1), among_Bk)
        found.append(large.kept(draw_from(pick(p_BNV, at_B1), large.draws.uniform("verify.next", step, 1)), self.window))
        return Path(torch.cat(nodes, 1), hold_B, torch.cat(found, 1))


def k_seq(target_BV: Tensor, draft_BV: Tensor, token_Bk: Tensor, among_Bk: Tensor, uniform_Bk: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the tokens, each drawn from ``draft`` by itself, holds (B,), -1 for none, and the weights (B, V) of what is drawn then.

    ``among_Bk`` says which tokens there are, at least one a row.
    """
    p, q, count_B = draft_BV.double(), target_BV.double(), among_Bk.sum(1).double()

    def either(r_B: Tensor) -> tuple[Tensor, Tensor]:
        """The weights that hold, min(p, q / r), and the chance that some token does."""
        both_BV = torch.minimum(p, q / r_B[:, None])
        return both_BV, 1 - (1 - both_BV.sum(1)).clamp_min(0) ** count_B

    low_B, high_B = torch.ones_like(count_B), count_B.clone()
    for _ in range(50):  # the least r with 1 - (1 - b)^k <= r b, b = sum min(p, q / r) (section 5)
        middle_B = (low_B + high_B) / 2
        both_BV, chance_B = either(middle_B)
        enough_B = chance_B <= middle_B * both_BV.sum(1)
        low_B, high_B = torch.where(enough_B, low_B, middle_B), torch.where(enough_B, middle_B, high_B)
    both_BV, chance_B = either(high_B)
    one_B = both_BV.sum(1)
    at_Bk = (q.gather(1, token_Bk), p.gather(1, token_Bk))
    holds_Bk = (uniform_Bk.double() * high_B[:, None] * at_Bk[1] < at_Bk[0]) & among_Bk
    rest_BV = (q - both_BV * (chance_B / one_B.clamp_min(1e-30))[:, None]).clamp_min(0)
    rest_BV = torch.where(rest_BV.sum(1, keepdim=True) > 1e-12, rest_BV, q)
    return torch.where(holds_Bk.any(1), holds_Bk.long().argmax(1), -1), rest_BV
