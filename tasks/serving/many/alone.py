"""Models whose requests cannot share passes of the net, behind the verbs of the engine: one request after another."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Density, Generator, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.sampler import Sampler


@dataclass(eq=False)
class Whole:
    """A request that is drawn as a whole in its turn."""

    conditions: Conditions
    sampler: Sampler
    draws: SampleDraws
    model: Any
    made: Any = None

    @property
    def session(self) -> Any:
        """What counts see of it: its samples."""
        return SimpleNamespace(rows=self.conditions.rows)

    def tokens(self) -> Any:
        """Tokens, or the signals of a density."""
        return self.made


class OneByOne:
    """The engine of one request at a time."""

    def __init__(self, rows: int) -> None:
        self.rows, self.passes = rows, 0
        self.running: list[Whole] = []

    def open(self, conditions: Conditions, sampler: Sampler, draws: SampleDraws, model: Generator | Density) -> Whole:
        """A request that waits for its turn, of the model with the request's settings."""
        return Whole(conditions, sampler, draws, model)

    def admit(self, sequence: Whole) -> bool:
        """Its turn has come; False while another one has it."""
        if self.running:
            return False
        self.running.append(sequence)
        return True

    def evict(self, sequence: Whole) -> None:
        """Take it out."""
        self.running.remove(sequence)

    def step(self) -> list[Whole]:
        """Draw the one whose turn it is."""
        for one in self.running:
            one.made = self._drawn(one)
        ended, self.running = self.running, []
        return ended

    def _drawn(self, one: Whole) -> Tokens | Any:
        if isinstance(one.model, Density):
            return one.model.sample(one.conditions, one.draws)
        if not isinstance(one.model, GroupGenerator):
            return one.model.generate(one.conditions, one.sampler, one.draws)
        tokens, trace = one.model.decode(one.conditions, one.sampler, one.draws)
        self.passes += trace.calls.get("net", 0)
        return tokens
