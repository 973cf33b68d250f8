"""A masked model drafts a whole window by one call, and a search finds the path through it that reads from left to right (DiffuSpec,
arXiv:2510.02358).

Shapes: B rows, W drafted tokens, M candidates an entry, P paths, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import Added
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.limits import Range
from tokenloom.models.core.protocols import Conditions, LayoutError
from tokenloom.models.parts.conditions import stack
from tokenloom.models.parts.feeds.masked import Whole
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.slots import visibility_of
from tokenloom.models.sampling.decoders.trees import TreeDecoder
from tokenloom.models.sampling.decoders.trigram import ADED, Trigrams
from tokenloom.models.sampling.filters import keep
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.trace import Trace
from tokenloom.models.sampling.tree import Path, TreeSession


@dataclass(frozen=True, kw_only=True)
class DiffuSpec(TreeDecoder, tag="decoder.diffuspec"):
    """The second model, a masked one, is shown what is decided and says what is likely at each of the next entries.

    Causal-consistency path search: of ``candidates`` an entry a beam of ``beam`` paths keeps those with the greatest sum of log
    probabilities, that of the masked model and ``causal`` times that of a table of tri-grams, which learns from the net.  Adaptive
    draft length: of ``window`` entries at most twice as many are drafted as held on average of late, and at least two.
    Differs: the length follows one running mean of the batch; the paper's also follows the end of the text that is generated.  The table
    is empty at the start and learns while it decodes, instead of being counted on a corpus before.
    """

    limits: ClassVar = {"window": Range(1, 256), "candidates": Range(1, 256), "beam": Range(1, 64), "causal": Range(0, 1e3)}
    paper: ClassVar = "2510.02358"
    needs: ClassVar[tuple[str, ...]] = ("a masked draft model", "one position after another", "one softmax a token", "one slot a token")

    window: int = 8
    candidates: int = 6
    beam: int = 3
    causal: float = 0.5
    model: Added[str] = ""

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        if (reason := super().refusal(model, sampler)) is not None:
            return reason
        draft = model.draft
        if draft is None:
            return "no draft model is there; name a masked one over the same tokens in the field model: RUN or ARTIFACT"
        try:
            model.layout.check(draft.layout)
        except LayoutError as error:
            return f"the draft model is for other tokens: {error}"
        if not isinstance(draft.feed, Whole) or not isinstance(draft.head, Categorical):
            return f"the draft model's feed {type(draft.feed).__qualname__} and head {type(draft.head).__qualname__} fill in no masks"
        return None

    def most(self, model: Any) -> int:
        return self.window

    def levels(self, model: Any) -> int:
        return self.window

    def drafter(self, session: TreeSession, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> _Masked:
        return _Masked(self, session, conditions)


class _Masked(Trigrams):
    """Windows of the masked model's, and the table that the search asks."""

    def __init__(self, by: DiffuSpec, session: TreeSession, conditions: Conditions) -> None:
        super().__init__(ADED(candidates=min(64, session.model.layout.vocabulary)), session)
        self.settings, self.draft, self.calls, self.held = by, cast(Any, session.model).draft, 0, float(by.window)
        self.cond = self.draft.condition(conditions)
        if session.guided:
            self.cond = stack(self.cond, self.draft.condition(self.draft.condition.null(conditions)))

    @torch.no_grad()
    def tree(self, session: TreeSession) -> tuple[Tensor, Tensor]:
        length, by = session.model.layout.length, self.settings
        count = min(by.window, max(2, math.ceil(2 * self.held)))
        entry_BW = (session.done_B[:, None] + torch.arange(count, device=session.device)).clamp_max(length - 1)
        log_p, token = self._likely(session, entry_BW).log().topk(min(by.candidates, session.model.layout.vocabulary), dim=-1)
        path_BPW, score_BP = self._last(session)[:, None], torch.zeros((session.rows, 1), device=session.device)
        for i in range(count):
            each = score_BP[:, :, None] + log_p[:, i, None]
            if by.causal:
                each = each + by.causal * self._follows(path_BPW[..., -2:], token[:, i])
            score_BP, index = each.flatten(1).topk(min(by.beam, each[0].numel()), dim=1)
            before, chosen = index // token.shape[2], token[:, i].gather(1, index % token.shape[2])
            path_BPW = path_BPW.gather(1, before[..., None].expand(-1, -1, path_BPW.shape[2]))
            path_BPW = torch.cat([path_BPW, chosen[..., None]], 2)
        parent_BW = torch.arange(count, device=session.device).expand(session.rows, -1)
        return path_BPW[:, 0, 2:], parent_BW

    def _follows(self, pair_BP2: Tensor, token_BM: Tensor) -> Tensor:
        """(B, P, M) log probability of each candidate after two tokens, by the table; nothing is known where it has none."""
        place_BP = self.place(pair_BP2[..., 0], pair_BP2[..., 1])
        token, weight = self.token_HC[place_BP], self.weight_HC[place_BP]  # (B, P, C)
        p = ((token[:, :, None] == token_BM[:, None, :, None]) * weight[:, :, None]).sum(-1)
        return torch.where(weight.sum(-1, keepdim=True) > 0, p.clamp_min(1e-4).log(), 0.0)

    def _likely(self, session: TreeSession, entry_BW: Tensor) -> Tensor:
        """(B, W, V) what the masked model says of these entries, under the session's guidance and filters."""
        length, twice, draft = session.model.layout.length, 2 if session.guided else 1, self.draft
        decided_BL = torch.arange(length, device=session.device) < session.done_B[:, None]
        known_BL = torch.zeros_like(decided_BL).scatter(1, session.sequence_BL, decided_BL)
        data_BL = torch.zeros_like(session.sequence_BL).scatter(1, session.sequence_BL, session.token_BM[:, :length])
        place_BW = session.sequence_BL.gather(1, entry_BW)
        slots = draft.feed.of_known(*(each.repeat(twice, 1) for each in (data_BL, known_BL, place_BW)), self.cond, None)
        h = draft.read(draft.net(slots, visibility_of(slots, None, self.cond.seen_BP), self.cond), slots)
        self.calls += 1
        weight, temperature = (table[entry_BW].unsqueeze(-1) for table in (session.weight_L, session.temperature_L))
        logits = draft.head.guided(Hidden(h[: session.rows], h[session.rows :] if session.guided else None, weight))
        logits = logits[..., : session.model.layout.vocabulary] / temperature.clamp_min(1e-6)
        return keep(logits, session.sampler.top_k, session.sampler.top_p).softmax(-1)

    def learn(self, session: TreeSession, p_BNV: Tensor, path: Path) -> None:
        super().learn(session, p_BNV, path)
        self.held = 0.5 * self.held + 0.5 * float(path.hold_B.float().mean())

    def done(self, trace: Trace) -> None:
        trace.calls["draft"] = self.calls
