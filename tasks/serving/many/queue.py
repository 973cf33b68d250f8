"""Requests of many clients to one model: a queue with a limit, one thread that decodes what has begun, answers as futures.

A request is cut into parts of a few samples; each part takes rows of the engine when some are free, in the order of arrival.  What a
sample is depends on its condition, its sampler, the request's seed and its number alone (``SampleDraws``).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Generator, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.engine import Engine, refusal
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks.serving.many.alone import OneByOne
from tokenloom.tasks.serving.many.counts import Counts
from tokenloom.tasks.serving.predict import Pair
from tokenloom.tasks.serving.request import AnyRequest, Request


class FullError(Exception):
    """The queue is full: the request was not taken; come back later."""


class StoppingError(Exception):
    """The server is about to end and takes no more requests."""


@dataclass(eq=False)
class Ticket:
    """A request that was taken: its answer, a list with one item a sample, comes in ``future``."""

    samples: int
    future: Future[list[Any]] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    gone: bool = False
    parts: dict[int, list[Any]] = field(default_factory=dict)

    def leave(self) -> None:
        """Nobody waits for the answer any more: what of it has not been drawn is not."""
        self.gone = True
        self.future.cancel()


@dataclass(eq=False)
class _Part:
    """Samples ``start`` on of a request; ``sequence`` is what the engine made of it."""

    ticket: Ticket
    start: int
    open: Callable[[], Any]
    sequence: Any = None


class Desk:
    """Takes requests from any thread and answers them; ``answer`` makes the items of finished tokens, in a thread of its own."""

    def __init__(self, pair: Pair, answer: Callable[[Pair, Tokens | Any], list[Any]], rows: int = 32, waiting: int = 64) -> None:
        """``rows``: of the net in one pass (a sample under guidance takes two); ``waiting``: requests that may wait.

        Raises:
            ConfigError: a number out of range.
        """
        if waiting < 1:
            raise ConfigError(f"queue={waiting}: at least one request has to be able to wait")
        self.pair, self.answer, self.rows, self.waiting = pair, answer, rows, waiting
        generator = pair.generator
        #: Why requests do not share passes; None where they do.
        self.apart = refusal(generator, Sampler()) if isinstance(generator, GroupGenerator) else "it does not decode in groups of tokens"
        self.engine: Any = Engine(generator, rows) if self.apart is None else OneByOne(rows)  # type: ignore[arg-type]
        self.counts = Counts()
        self._parts: deque[_Part] = deque()
        self._running: dict[int, _Part] = {}
        self._tickets: set[Ticket] = set()
        self._change = threading.Condition()
        self._stopping = False
        self._answering = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._thread = threading.Thread(target=self._work, name="decoding", daemon=True)
        self._thread.start()

    # --- for clients

    def ask(self, given: AnyRequest, seed: int = 0, **changes: Any) -> Ticket:
        """Queue a request; ``changes`` of the sampler as ``Pair.edited`` takes them.

        Raises:
            ConfigError: the model cannot follow it.
            FullError: too many wait already.
            StoppingError: no more are taken.
        """
        request = Request.of(given)
        self.pair.condition_spec.check(request)
        if not len(request):
            raise ConfigError("0 samples: ask for at least one")
        pair = self.pair.edited(**changes) if changes else self.pair
        if self.apart is None and (reason := refusal(pair.generator, pair.sampler)) is not None:  # type: ignore[arg-type]
            raise ConfigError(f"this request cannot share passes of the net: {reason}")
        ticket = Ticket(len(request))
        step = max(1, self.rows // 2)
        parts = [self._part(ticket, pair, request, seed, start, min(start + step, len(request))) for start in range(0, len(request), step)]
        with self._change:
            if self._stopping:
                raise StoppingError("this server is stopping and takes no more requests")
            if len({part.ticket for part in self._parts}) >= self.waiting:
                self.counts.refused += 1
                raise FullError(f"{self.waiting} requests wait already: come back later")
            self._tickets.add(ticket)
            self._parts.extend(parts)
            self._change.notify()
        return ticket

    def _part(self, ticket: Ticket, pair: Pair, request: Request, seed: int, start: int, stop: int) -> _Part:
        def opened() -> Any:
            conditions = pair.condition_spec.conditions(request.part(start, stop)).to(pair.device)
            draws, own = SampleDraws.of(seed, start, stop, pair.device), () if self.apart is None else (pair.generator,)
            return self.engine.open(conditions, pair.sampler, draws, *own)

        return _Part(ticket, start, opened)

    def stop(self, seconds: float | None = None) -> bool:
        """Take no more, answer what was taken, end; False where that took longer than ``seconds``, and what is left is dropped."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join(seconds)
        finished = not self._thread.is_alive()
        for ticket in list(self._tickets):
            if not finished:
                ticket.leave()
        self._answering.shutdown(wait=finished, cancel_futures=not finished)
        return finished

    def numbers(self) -> dict[str, float]:
        """What it has done and what it does now."""
        with self._change:
            return self.counts.numbers(self._tickets, self.engine)

    @property
    def stopping(self) -> bool:
        """Whether no more requests are taken."""
        return self._stopping

    # --- the thread that decodes

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._parts or self._running or self._stopping)
                if self._stopping and not self._parts and not self._running:
                    return
            self._let_go()
            self._admit()
            try:
                ended = self.engine.step()
            except Exception as error:  # of the net: those in this pass cannot be answered, the next ones may
                for part in list(self._running.values()):
                    self.engine.evict(part.sequence)
                    self._fail(part, error)
                continue
            for sequence in ended:
                part = self._running.pop(id(sequence))
                self.counts.tokens += self._tokens(sequence)
                self._answering.submit(self._answer, part)

    def _tokens(self, sequence: Any) -> int:
        generator = self.pair.generator
        return int(sequence.session.rows * generator.layout.length) if isinstance(generator, Generator) else 0

    def _let_go(self) -> None:
        """Parts of clients that have left give their rows back."""
        for part in [part for part in self._running.values() if part.ticket.gone]:
            self.engine.evict(part.sequence)
            del self._running[id(part.sequence)]
            self._done(part.ticket)

    def _admit(self) -> None:
        while self._parts:
            part = self._parts[0]
            if part.ticket.gone:
                self._next()
                self._done(part.ticket)
                continue
            try:
                part.sequence = part.sequence or part.open()
            except Exception as error:
                self._next()
                self._fail(part, error)
                continue
            if not self.engine.admit(part.sequence):
                return
            self._next()
            self._running[id(part.sequence)] = part

    def _next(self) -> None:
        with self._change:  # others look through the queue
            self._parts.popleft()

    # --- answers

    def _answer(self, part: _Part) -> None:
        try:
            part.ticket.parts[part.start] = self.answer(self.pair, part.sequence.tokens())
        except Exception as error:
            self._fail(part, error)
            return
        ticket = part.ticket
        if sum(len(items) for items in ticket.parts.values()) == ticket.samples and self._done(ticket):
            self.counts.answered(time.monotonic() - ticket.arrived, ticket.samples)
            with contextlib.suppress(InvalidStateError):  # the client leaves just now
                ticket.future.set_result([item for start in sorted(ticket.parts) for item in ticket.parts[start]])

    def _fail(self, part: _Part, error: BaseException) -> None:
        self._running.pop(id(part.sequence), None)
        if self._done(part.ticket):
            self.counts.failed += 1
            with contextlib.suppress(InvalidStateError):
                part.ticket.future.set_exception(error)
            part.ticket.gone = True

    def _done(self, ticket: Ticket) -> bool:
        """Count it out, once; whether somebody waits for what is to be said."""
        with self._change:
            known = ticket in self._tickets
            self._tickets.discard(ticket)
            if known and ticket.gone:
                self.counts.left += 1
        return known and not ticket.gone and not ticket.future.done()
