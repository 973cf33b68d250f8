"""What a head offers: the distribution of one position given its hidden state.

Shapes: B rows, N predicted positions, K hidden states, D width, Q codebooks, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.named import parse_named
from tokenloom.models.core.protocols import Likelihood, TokenLayout
from tokenloom.models.parts.agreement import Traits
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Moment, Sampler

#: Runs the net on the group at hand again, its own slots holding these values (B, n, D) added, and says its hidden states.
Predict = Callable[[Tensor], Hidden]


class Head(nn.Module, ABC):
    """From hidden states to tokens; concrete ones nest a frozen ``Config``."""

    #: What ``loss`` is: the ``exact`` negative log-likelihood in nats, a ``bound`` on it from above, or ``none`` of these.
    likelihood: ClassVar[Likelihood] = "none"
    #: ``several``: ``draw`` runs the net again within a group and is given ``predict``.
    calls: ClassVar[Literal["one", "several"]] = "one"
    #: Type of the sampler settings that are this head's own (None: it has none).
    settings: ClassVar[type[HeadSampler] | None] = None

    class Config(config.Config, ABC):
        """What a head is made from; its tag is ``head.NAME``, by which a run file writes ``set: {head: {NAME: {field: value}}}``."""

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Head:
            """The head for these tokens; ``feed`` is there for heads that share its embeddings.

            Raises:
                LayoutError: the head does not fit the tokens.
            """
            return cast(Head, self.construct(layout=layout, width=width, feed=feed))

        @classmethod
        def parse(cls, value: Mapping[str, Any], where: str) -> config.Config:
            return parse_named("head", value, where)

    def traits(self, plan: Plan) -> Traits:
        """What other parts may depend on (``agreement``)."""
        return {}

    def requires(self, plan: Plan) -> Traits:
        """What other parts must have (``agreement``)."""
        return {}

    @abstractmethod
    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, N) what is minimised for targets (B, N), (B, N, Q) or (B, N, C); random numbers come from ``draws``.

        Raises:
            ValueError: a head that needs draws was given none.
        """

    @abstractmethod
    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        """Draw tokens of one group, by numbers of the streams ``head…`` at the step of ``moment``.

        ``forced`` tokens are taken instead of drawn ones.
        """

    def check_sampler(self, sampler: Sampler) -> None:
        """Refuse sampler settings of another head.

        Raises:
            ConfigError: there are some.
        """
        if sampler.head is not None and not (self.settings and isinstance(sampler.head, self.settings)):
            takes = f"takes {self.settings.tag.partition('.')[2]!r} alone" if self.settings else "has no settings of its own; leave it out"
            raise config.ConfigError(f"sample.head={sampler.head!r}: {type(self).__name__} {takes}")
