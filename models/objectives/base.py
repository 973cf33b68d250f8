"""The objective axis: what a training minimises, given a model.

Shapes: B rows, L positions, N predicted positions, D width, Q codebooks, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.named import named, parse_named
from tokenloom.models.core.protocols import Batch, Conditions, TokenLayout
from tokenloom.models.parts.agreement import Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.plan import Plan


class GroupModel(Protocol):
    """What an objective may use of a generator that predicts group by group (``tokenloom.models.generators.group_wise.GroupGenerator``)."""

    training: bool
    layout: TokenLayout
    order: Order
    feed: Feed
    net: Any
    head: Any
    condition: Any
    sampler: Any

    def nll(
        self,
        data: Tensor,
        conditions: Conditions,
        plan: Plan,
        draws: Draws | None,
        target: Tensor | None = None,
        noise: Draws | None = None,
    ) -> Tensor:
        """(B, L) losses of the head, nats where it has a likelihood, in the order of the plan's sequence."""

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None, net: Any = None) -> Tensor:
        """Hidden states (B, N, D) of one teacher-forced pass, of ``net`` where another than the model's is given."""

    def decode_steps(self, conditions: Conditions, sampler: Any, draws: Any, forced: Tensor | None = None) -> Iterator[Any]:
        """The decoding, step by step."""


class Objective(ABC):
    """A loss over a model.  It has no weights of its own; trained models that it needs (a teacher, a reference) it holds frozen."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, ABC):
        """Fields of one objective; its tag is ``objective.NAME``, by which a run file calls it."""

        @property
        def needs(self) -> tuple[str, ...]:
            """Roles of the trained models that the loss uses, e.g. ``("reference", "reward")``."""
            return ()

        def build(self) -> Objective:
            """The objective."""
            return self.construct()

        @classmethod
        def parse(cls, value: Mapping[str, Any], where: str) -> Objective.Config:
            """An objective as a run file has it: ``{nll: {}}``, ``{whole_grid: {later: 0.5}}``.

            Raises:
                ConfigError: another name, an unknown or missing field, or a value of the wrong type.
            """
            return cast(Objective.Config, parse_named("objective", value, where))

    def traits(self, plan: Plan) -> Traits:
        """What other parts may depend on (``agreement``)."""
        return {}

    def requires(self, plan: Plan) -> Traits:
        """What the parts of a model must have to be trained so (``agreement``)."""
        return {}

    def adopt(self, **roles: nn.Module) -> None:  # noqa: B027 - most need nothing
        """Take the trained models that the config's ``needs`` names: frozen, and outside of the state that is saved."""

    @abstractmethod
    def losses(self, model: Any, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """Scalar means over the batch's rows: ``loss`` (differentiated) and detached parts to log; randomness from ``draws`` alone."""


def objectives() -> dict[str, type[Objective.Config]]:
    """Every objective by the name that a run file gives it: its tag without ``objective.``."""
    return cast(dict[str, type[Objective.Config]], named("objective"))
