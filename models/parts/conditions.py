"""Conditions of a sample, and the null condition for classifier-free guidance.

Shapes: B rows, P prefix slots, T text length, D width.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.config import Added, from_fields
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Condition, Conditions, Labels
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.plan import Plan


@dataclass(frozen=True)
class Conditioned:
    """An embedded condition.

    Prefix slots (B, P, D) with their visibility (B, P) or None, one vector a row (B, D) or a slot (B, S, D), and for
    cross-attention a memory (B, T, D) with its visibility (B, T).
    """

    prefix_BPD: Tensor
    vector_BD: Tensor
    seen_BP: Tensor | None = None
    memory_BTD: Tensor | None = None
    memory_seen_BT: Tensor | None = None

    def first(self, rows: int) -> Conditioned:
        """The first rows alone."""
        parts = (self.prefix_BPD, self.vector_BD, self.seen_BP, self.memory_BTD, self.memory_seen_BT)
        return Conditioned(*(None if part is None else part[:rows] for part in parts))  # type: ignore[arg-type]


def stack(first: Conditioned, second: Conditioned) -> Conditioned:
    """The rows of both, as one batch."""

    def join(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.cat([a, b])

    return Conditioned(
        torch.cat([first.prefix_BPD, second.prefix_BPD]),
        torch.cat([first.vector_BD, second.vector_BD]),
        join(first.seen_BP, second.seen_BP),
        join(first.memory_BTD, second.memory_BTD),
        join(first.memory_seen_BT, second.memory_seen_BT),
    )


class Conditioner(nn.Module, ABC):
    """From the conditions of a request to the inputs of the net; concrete ones nest a frozen ``Config``."""

    class Config(config.Config, ABC):
        """What a condition is made from."""

        @property
        def names(self) -> tuple[str, ...]:
            """The conditions that batches and requests have to hold: ``class``, ``text``, ``features`` or a column of the data."""
            return (Labels.name,)

        @property
        def each(self) -> tuple[Conditioner.Config, ...]:
            """Its parts, where it is made of several; itself alone otherwise."""
            return (self,)

        @property
        def shapes(self) -> Mapping[str, tuple[int, ...]]:
            """The shape (C, …) of each of the data's columns among ``names``."""
            return {}

        @classmethod
        def parse(cls, value: Mapping[str, Any], where: str) -> Conditioner.Config:
            """A condition as a run file has it: ``{characters: {length: 64}}``, ``{encoded: {…}}`` or ``{classes: {…}}``.

            Raises:
                ConfigError: another name, an unknown or missing field, or a value of the wrong type.
            """
            named = conditions()
            if len(value) != 1 or next(iter(value)) not in named:
                raise config.ConfigError(
                    f"{where}: {dict(value)!r}: write one of {', '.join(named)} with its fields, e.g. {{characters: {{}}}}"
                )
            (name, given), *_ = value.items()
            return cast(Conditioner.Config, from_fields(named[name], given, f"{where}.{name}"))

        def build(self, classes: int, width: int) -> Conditioner:
            """The module for data of this many classes.

            Raises:
                ConfigError: it does not fit the data.
            """
            return self.construct(classes=classes, width=width)

    @property
    @abstractmethod
    def prefix(self) -> int:
        """Prefix slots P."""

    def traits(self, plan: Plan) -> Traits:
        """What other parts may depend on (``agreement``)."""
        return {"prefix slots": Trait(self.prefix, "condition")}

    def requires(self, plan: Plan) -> Traits:
        """What other parts must have (``agreement``)."""
        return {}

    @abstractmethod
    def null(self, conditions: Conditions | Condition) -> Conditions:
        """The same conditions with those of this conditioner replaced by their null."""

    @abstractmethod
    def drop(self, conditions: Conditions | Condition, draws: Draws | None) -> Conditions:
        """A share of the rows replaced by null (arXiv:2207.12598); unchanged without draws."""

    @abstractmethod
    def forward(self, conditions: Conditions | Condition) -> Conditioned:
        """Embed.

        Raises:
            ValueError: a condition is missing, or of another type.
        """


class Single(Conditioner):
    """A conditioner on one condition: ``name``, of the type ``takes``; ``rate`` is the share of rows that training replaces by null."""

    name: str = Labels.name
    takes: ClassVar[type] = Labels
    what: ClassVar[str] = "class labels"
    rate: float

    @abstractmethod
    def null_of(self, condition: Any) -> Condition:
        """The null condition of as many rows."""

    @abstractmethod
    def drop_of(self, condition: Any, draws: Draws) -> Condition:
        """A share ``rate`` of the rows replaced by null."""

    @abstractmethod
    def embed_of(self, condition: Any) -> Conditioned:
        """Embed; raises ``ValueError`` for a condition that does not fit."""

    def own(self, conditions: Conditions | Condition) -> Any:
        """This conditioner's condition among the given ones.

        Raises:
            ValueError: it is missing, or of another type.
        """
        given = Conditions.of(conditions)
        found = given.get(self.name)
        if not isinstance(found, self.takes):
            there = ", ".join(type(each).__name__ for each in given.values()) or "no condition"
            raise ValueError(f"this model is conditioned on {self.what}, got {there}")
        return found

    def null(self, conditions: Conditions | Condition) -> Conditions:
        return Conditions.of(conditions).with_(self.name, self.null_of(self.own(conditions)))

    def drop(self, conditions: Conditions | Condition, draws: Draws | None) -> Conditions:
        condition = self.own(conditions)
        if draws is None or self.rate == 0:
            return Conditions.of(conditions)
        return Conditions.of(conditions).with_(self.name, self.drop_of(condition, draws))

    def forward(self, conditions: Conditions | Condition) -> Conditioned:
        return self.embed_of(self.own(conditions))


#: Names in a run file, and the tags of what they mean.
CHOSEN = (
    ("classes", "class"), ("characters", "characters"), ("encoded", "encoded"), ("control", "control"), ("several", "several"),
    ("text_features", "text_features"), ("pooled_text", "pooled_text"),
)  # fmt: skip


def conditions() -> dict[str, type[Conditioner.Config]]:
    """The conditions that a run file may choose (``set: {condition: {NAME: …}}``)."""
    types = config.tags()
    chosen = {name: types[f"condition.{tag}"] for name, tag in CHOSEN}
    return cast("dict[str, type[Conditioner.Config]]", chosen)


def condition_of(value: Any) -> Conditioner.Config | None:
    """The condition in a generator's config, None for a config without one."""
    if isinstance(value, Conditioner.Config):
        return value
    inside = [getattr(value, f.name) for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    return next((found for each in inside if (found := condition_of(each)) is not None), None)


class Labelled(Single):
    """A condition on class labels; the label after the last class is the null one."""

    def __init__(self, classes: int, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise config.ConfigError(f"condition.dropout={rate}: must be in [0, 1)")
        self.classes, self.rate = classes, rate

    def null_of(self, condition: Labels) -> Labels:
        return Labels(torch.full_like(condition.label_B, self.classes))

    def drop_of(self, condition: Labels, draws: Draws) -> Labels:
        return Labels(torch.where(draws.uniform() < self.rate, self.classes, condition.label_B))


def class_count(own: int | None, classes: int) -> int:
    """The classes of a model with ``own`` (None: those of the data).

    Raises:
        ConfigError: the data has more.
    """
    if classes > (own or classes):
        raise config.ConfigError(f"condition.classes={own}: the data has {classes} classes; give at least {classes}, or leave it out")
    return own or classes


class ClassCondition(Labelled):
    """A learned vector for each class and one for the null class, as one prefix slot (or several alike) and as the vector."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Conditioner.Config, tag="condition.class"):
        """``classes``: None takes them from the data; ``dropout``: share of labels replaced by null in training.

        ``spare`` rows after the null class are kept for official tables that have them.  ``null`` "zero": the null class is no row of
        the table but the zero vector, as of models that are published without one.  ``slots``: how often the vector leads the sequence.
        """

        classes: int | None = None
        dropout: float = 0.1
        spare: int = 0
        null: Added[Literal["row", "zero"]] = "row"
        slots: Added[int] = 1

        def __post_init__(self) -> None:
            if self.slots < 1:
                raise config.ConfigError(f"condition.slots={self.slots}: must be at least 1")

    def __init__(self, config: Config, classes: int, width: int) -> None:
        super().__init__(class_count(config.classes, classes), config.dropout)
        self.rowed, self.slots = config.null == "row", config.slots
        self.table = nn.Embedding(self.classes + self.rowed + config.spare, width)
        nn.init.trunc_normal_(self.table.weight, std=0.02)

    @property
    def prefix(self) -> int:
        """Prefix slots P."""
        return self.slots

    def embed_of(self, condition: Labels) -> Conditioned:
        """Embed labels.

        Raises:
            IndexError: a label outside of the table (serving and sampling refuse labels before they come here).
        """
        label = condition.label_B
        vector = self.table(label) if self.rowed else self.table(label % self.classes) * (label < self.classes).unsqueeze(-1)
        return Conditioned(vector[:, None].expand(-1, self.slots, -1), vector)
