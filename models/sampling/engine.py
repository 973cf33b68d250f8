"""Many requests in one pass of the net: sequences that began at different times stand side by side, each at its own step.

Flover (arXiv:2305.13484, "temporal fusion"): a request that arrives joins the next pass, and one that has ended leaves its rows to
others at once.  Each sample stays a function of its condition, its sampler and its seed, whoever else is in the pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Tokens
from tokenloom.models.parts.slots import Slots
from tokenloom.models.sampling.decoders.groups import GroupWise
from tokenloom.models.sampling.pool import RowPool, alike
from tokenloom.models.sampling.proposal import Proposal
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import Decodable, DecodingSession


@dataclass(eq=False)
class Sequence:
    """A request on its way: as many samples as its condition has rows."""

    session: DecodingSession
    group: int = 0
    rows: range = range(0)
    proposing: Generator[Slots, Tensor, Proposal] | None = None
    slots: Slots | None = None
    #: Calls of the net that it took part in.
    passes: int = field(default=0)

    @property
    def width(self) -> int:
        """Rows of the net that it takes: two a sample under guidance."""
        return self.session.rows * (2 if self.session.guided else 1)

    @property
    def done(self) -> bool:
        """Whether all of its tokens are decided."""
        return self.group == self.session.plan.groups or self.session.done

    def tokens(self) -> Tokens:
        """What is decided."""
        return self.session.tokens()

    @torch.no_grad()
    def wanted(self) -> Slots:
        """What its next group has the net look at."""
        if self.slots is None:
            self.proposing = self.session.proposing(self.group)
            self.slots = next(self.proposing)
        return self.slots

    @torch.no_grad()
    def given(self, states: Tensor) -> None:
        """The hidden states of these slots: the group is drawn and kept."""
        assert self.proposing is not None
        try:
            self.proposing.send(states)
        except StopIteration as end:
            self.session.commit(self.session.verify(end.value))
        self.slots, self.proposing = None, None
        self.group += 1
        self.passes += 1


def refusal(model: Decodable, sampler: Sampler) -> str | None:
    """Why requests of this generator cannot share passes of the net; None where they can."""
    if model.feed.passes == "cached" and model.net.keeps != "slots":
        return f"the cache of the net {type(model.net).__qualname__} has no rows of single slots, so each request needs a pass of its own"
    if model.head.calls == "several":
        return f"the head {type(model.head).__qualname__} runs the net several times within a group"
    if not isinstance(sampler.decoder or GroupWise(), GroupWise):
        return f"the decoder {sampler.decoder.name if sampler.decoder else ''} moves through a sequence in its own way"
    return None


class Engine:
    """Decodes the sequences of one generator together; not safe to call from several threads at once."""

    def __init__(self, model: Decodable, rows: int = 32) -> None:
        """``rows``: of the net in one pass; a sample under guidance takes two.

        Raises:
            ConfigError: the generator's requests cannot share passes, or fewer than two rows.
        """
        if (reason := refusal(model, Sampler())) is not None:
            raise ConfigError(f"this model cannot be decoded for many at once: {reason}")
        if rows < 2:
            raise ConfigError(f"rows={rows}: at least 2, as a sample under guidance takes two")
        self.model, self.rows = model, rows
        self.running: list[Sequence] = []
        self.passes = 0
        self._pool: RowPool | None = None

    @property
    def free(self) -> int:
        """Rows of the net that nobody has."""
        return self.rows - sum(len(sequence.rows) for sequence in self.running)

    def open(self, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: object) -> Sequence:
        """A request, embedded, that no pass has seen; ``given``: see ``DecodingSession``.

        Raises:
            ConfigError: another way of decoding, or more samples than the rows allow.
        """
        if (reason := refusal(self.model, sampler)) is not None:
            raise ConfigError(f"this request cannot share passes of the net: {reason}")
        sequence = Sequence(DecodingSession(self.model, conditions, sampler, draws, shapes="outside", **given))  # type: ignore[arg-type]
        if sequence.width > self.rows:
            raise ConfigError(
                f"{sequence.session.rows} samples need {sequence.width} rows of the net, and there are {self.rows}: ask for fewer at once"
            )
        return sequence

    def admit(self, sequence: Sequence) -> bool:
        """Let a request take part in the next pass; False where too few rows are free."""
        if sequence.width > self.free:
            return False
        sequence.rows = self._pool_for(sequence).take(sequence.width)
        self.running.append(sequence)
        return True

    def evict(self, sequence: Sequence) -> None:
        """Take a request out, ended or not: its rows are free."""
        at = self.running.index(sequence)
        assert self._pool is not None
        self._pool.give_back(sequence.rows)
        del self.running[at]
        for later in self.running[at:]:
            later.rows = range(later.rows.start - len(sequence.rows), later.rows.stop - len(sequence.rows))
        sequence.rows = range(0)

    @torch.no_grad()
    def step(self) -> list[Sequence]:
        """Each running request goes on by one group, those alike in one pass of the net; those that have ended leave and are returned."""
        passes: dict[object, list[Sequence]] = defaultdict(list)
        for sequence in self.running:
            slots, session = sequence.wanted(), sequence.session
            passes[(id(session.net), alike(slots, session.cond), session.plan.window)].append(sequence)
        for together in passes.values():
            assert self._pool is not None
            first, conds = together[0].session, [s.session.cond for s in together]
            states = self._pool.run(first.net, [s.rows for s in together], [s.wanted() for s in together], conds, first.plan.window)
            self.passes += 1
            for sequence, h in zip(together, states):
                sequence.given(h)
        ended = [sequence for sequence in self.running if sequence.done]
        for sequence in ended:
            self.evict(sequence)
        return ended

    def _pool_for(self, sequence: Sequence) -> RowPool:
        """The rows, with room for a sequence of this length: made when the first one comes, and again when a longer one does."""
        feed, session = self.model.feed, sequence.session
        room = 0 if feed.passes == "whole" else feed.slots(session.plan, self.model.condition.prefix)
        if self._pool is None or self._pool.room < room:
            grown = RowPool(self.model.net, self.rows, room, session.cond.vector_BD)
            if self._pool is not None:
                grown.adopt(self._pool)
            self._pool = grown
        return self._pool
