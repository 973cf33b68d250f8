"""What the parts of a generator must have in common, and the check at build that they do.

A part tells its ``traits``, values that others depend on, and what it ``requires``, traits that another part must have.  Both name the
config fields that set them, so that a mismatch is refused before any work with the fields to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.layout import LayoutError, TokenLayout
from tokenloom.models.parts.plan import Plan


@dataclass(frozen=True)
class Trait:
    """A value and the fields that set it, e.g. ``Trait(4, "feed.share")``."""

    value: Any
    field: str


@dataclass(frozen=True)
class AtLeast:
    """A need that a value meets which is not smaller."""

    value: int

    def __str__(self) -> str:
        return f"at least {self.value}"


Traits = Mapping[str, Trait]

#: Traits that two or more parts must agree on, each with the parts and what a part means that does not mention it.
SHARED: dict[str, tuple[tuple[str, ...], Any]] = {
    "hidden states of a slot": (("feed", "net", "head"), 1),
    "tokens that a slot is taken apart into": (("feed", "net"), 1),
    "buffer slots before the tokens": (("feed", "net"), 0),
    "query slots": (("feed", "net"), "none"),
}
#: Traits that only some parts need of another, with the part and what it means not to mention them.
REQUIRED: dict[str, tuple[str, Any]] = {
    "attention heads": ("net", "none"),
    "rotary positions": ("net", None),
    "slots in sequence order": ("feed", "no"),
    "slots of whole scales": ("feed", "no"),
    "known positions": ("feed", "no"),
    "predictions of all open positions": ("feed", "no"),
    "prefix slots": ("condition", 0),
    "padded prefix slots": ("condition", "none"),
    "memory": ("condition", "none"),
    "logits": ("head", "none"),
    "several positions from one hidden state": ("head", "no"),
    "positions in storage order": ("order", "no"),
    "orders that the model finds": ("order", "no"),
    "states with queries of positions": ("net", "no"),
}

#: Trait of a head that predicts codebooks of different sizes.
OWN_VOCABULARIES = "a vocabulary for each codebook"


class Part(Protocol):
    """Any axis of a generator."""

    def traits(self, plan: Plan) -> Traits:
        """What other parts may depend on."""

    def requires(self, plan: Plan) -> Traits:
        """What other parts must have."""


class Planning(Part, Protocol):
    """An order."""

    def plan(self, layout: TokenLayout, draws: Draws | None) -> Plan:
        """The plan of one training step."""

    def decode(self, layout: TokenLayout, rows: int, draws: SampleDraws | None = None, /) -> Plan:
        """The plan of sampling."""


class Following(Part, Protocol):
    """A feed or a net."""

    def check(self, plan: Plan) -> None:
        """Refuse a plan that this part cannot follow."""


def agree(layout: TokenLayout, *, order: Planning, feed: Following, net: Following, head: Part, condition: Part, objective: Part) -> None:
    """Check at build that the parts of a generator fit each other, in the plans of training and of decoding.

    Raises:
        ConfigError, LayoutError: two parts differ in what they must share, a part lacks what another requires, or a feed or net
            cannot follow the order; with the fields and values.
    """
    # On CPU, and by a fresh layout: a model that is built on the meta device would have positions without values.
    with torch.device("cpu"):
        fresh = replace(layout)
        plans = [order.plan(fresh, Draws.whole(0, 0, 1)), order.decode(fresh, 1, SampleDraws.of(0, 0, 1))]
        for plan in plans:
            if layout.vocabularies and OWN_VOCABULARIES not in head.traits(plan):
                raise LayoutError(
                    f"vocabularies={layout.vocabularies}: {type(head).__name__} predicts codebooks of one size; "
                    "take a head that has one for each codebook, such as factorised"
                )
            feed.check(plan)
            net.check(plan)
            compare({"order": order, "feed": feed, "net": net, "head": head, "condition": condition, "objective": objective}, plan)


def compare(parts: Mapping[str, Part], plan: Plan) -> None:
    """Raise ``ConfigError`` where parts of these axes differ in what they share, or lack what another requires, under a plan."""
    traits = {axis: part.traits(plan) for axis, part in parts.items()}
    for name, (axes, default) in SHARED.items():
        stated = [traits[axis].get(name, Trait(default, axis)) for axis in axes]
        if any(trait.value != stated[0].value for trait in stated):
            values = ", ".join(f"{trait.field}: {trait.value}" for trait in stated)
            raise ConfigError(f"{name}: must be the same in {' and '.join(axes)}, not {values}")
    for axis, part in parts.items():
        for name, wanted in part.requires(plan).items():
            other, default = REQUIRED[name]
            has = traits[other].get(name, Trait(default, other))
            if not (has.value >= wanted.value.value if isinstance(wanted.value, AtLeast) else has.value == wanted.value):
                raise ConfigError(f"{name}: {wanted.field} (the {axis}) requires {wanted.value}, {has.field} (the {other}) has {has.value}")
