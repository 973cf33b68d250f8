"""What an order offers: the plan of one pass, as positions sorted into groups."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from tokenloom.models.core import config
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Likelihood, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.orders.sizes import Sizes
from tokenloom.models.parts.plan import Plan


class Order(config.Config, ABC):
    """In which groups positions are predicted; ``draws`` feeds random orders."""

    @property
    def likelihood(self) -> Likelihood:
        """What the product over the groups of a decoding plan is: ``none`` where the members of a group are chosen by confidence."""
        return "exact"

    @abstractmethod
    def plan(self, layout: TokenLayout, draws: Draws | None) -> Plan:
        """The plan of one training step."""

    @abstractmethod
    def decode(self, layout: TokenLayout, rows: int, draws: SampleDraws | None = None, sizes: Sizes | None = None) -> Plan:
        """The plan of sampling ``rows`` samples, each by its own numbers; ``sizes`` asks for other group sizes than the order's own.

        Raises:
            ConfigError: this order fixes its groups.
        """

    def traits(self, plan: Plan) -> Traits:
        """What other parts may depend on (``agreement``)."""
        return {}

    def requires(self, plan: Plan) -> Traits:
        """What other parts must have to follow one of this order's plans (``agreement``)."""
        found: dict[str, Trait] = {}
        if plan.known_BL is not None:
            found["known positions"] = Trait("yes", "order")
        if plan.choice is not None:
            found |= {"predictions of all open positions": Trait("yes", "order.choice"), "logits": Trait("yes", "order.choice")}
        return found

    def around(self, plan: Plan, keep_L: Tensor, sizes: Sizes | None = None) -> Plan:
        """A decoding plan for in-painting, where the positions in ``keep_L`` (L,) are known.

        An order that may start anywhere takes them first, and cuts what is unknown by its rule (or ``sizes``, as in ``decode``) anew; a
        fixed one meets them in its own time.
        """
        return plan


class Fixed(Order):
    """An order that depends on the layout alone."""

    @abstractmethod
    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        """The same plan at every step."""

    def decode(self, layout: TokenLayout, rows: int, draws: SampleDraws | None = None, sizes: Sizes | None = None) -> Plan:
        """Decoding follows the training order."""
        if sizes is not None:
            raise ConfigError(f"sample.steps: the order {type(self).__name__} fixes its steps; leave it out")
        return self.plan(layout, None)
