"""Speculative decoding with a draft model (Leviathan, Kalman and Matias 2023, arXiv:2211.17192).

Shapes: B rows, W drafted tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tokenloom.models.core.config import Added
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.limits import Range
from tokenloom.models.core.protocols import Conditions, LayoutError, Tokens
from tokenloom.models.sampling.chain import ChainSession, Relaxation, refusal
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.rejection import draw_from
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import Trace


@dataclass(frozen=True, kw_only=True)
class DraftModel(Decoder, tag="decoder.draft_model"):
    """A small model drafts ``window`` tokens one by one, the large one verifies them in one call (algorithm 1).

    The small model is another generator over the same tokens: the one that ``model`` refers to, as a run file names models, given to
    the large one by ``use_draft_model`` where both are opened.  Samples are distributed exactly as those of the large model alone.
    """

    paper: ClassVar = "2211.17192"
    needs: ClassVar[tuple[str, ...]] = ("a draft model", "one position after another", "one softmax a token")
    limits: ClassVar = {"window": Range(1, 4096)}

    window: int = 4
    model: Added[str] = ""

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        if (reason := refusal(model, sampler)) is not None:
            return reason
        draft = model.draft
        if draft is None:
            return "no draft model is there; name one over the same tokens, {draft_model: {model: RUN or ARTIFACT}}"
        try:
            model.layout.check(draft.layout)
        except LayoutError as error:
            return f"the draft model is for other tokens: {error}"
        reason = refusal(draft, sampler)
        return None if reason is None else f"of the draft model: {reason}"

    def run(self, model: Any, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        large = ChainSession(model, conditions, sampler, draws, window=self.window, **given)
        small = ChainSession(self.drafting(model.draft), conditions, sampler, draws, window=self.window, **{**given, "plan": large.plan})
        small.begin(large.begin())
        step, rule = 0, self.rule(large)
        while not large.done:
            self.step(large, small, step, rule)
            step += 1
        large.trace.calls["draft"] = small.trace.calls["net"]
        return large.tokens(), large.trace

    def drafting(self, draft: Any) -> Any:
        """The draft model as it drafts."""
        return draft

    def rule(self, large: ChainSession) -> Relaxation | None:
        """What holds; None: rejection sampling."""
        return None

    def step(self, large: ChainSession, small: ChainSession, step: int, rule: Relaxation | None = None) -> None:
        """Draft, verify, and put both models behind what holds."""
        token, tokens, drafts = large.last_B1, [], []
        uniform_BW = large.draws.uniform("draft", step, self.window)
        for i in range(self.window):
            drafts.append(small.run(token))
            token = large.kept(draw_from(drafts[-1], uniform_BW[:, i : i + 1]), i)
            tokens.append(token)
        small.run(token)  # so that its cache holds all drafts, if all of them hold
        large.propose(torch.cat(tokens, dim=1), torch.cat(drafts, dim=1))
        outcome = large.verify(step, rule)
        large.commit(outcome)
        small.commit(outcome)
