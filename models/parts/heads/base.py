"""What a head offers: the distribution of one position given its hidden state.

Shapes: B rows, N predicted positions, K hidden states, D width, Q codebooks, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Traits
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.sampler import Moment, Sampler


class Head(nn.Module, ABC):
    """From hidden states to tokens; concrete ones nest a frozen ``Config``."""

    class Config(config.Config, ABC):
        """What a head is made from."""

        @abstractmethod
        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Head:
            """The head for these tokens; ``feed`` is there for heads that share its embeddings.

            Raises:
                LayoutError: the head does not fit the tokens.
            """

    def traits(self, plan: Plan) -> Traits:
        """What other parts may depend on (``agreement``)."""
        return {}

    def requires(self, plan: Plan) -> Traits:
        """What other parts must have (``agreement``)."""
        return {}

    @abstractmethod
    def nll(self, h_BND: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood in nats (B, N) of targets (B, N), (B, N, Q) or (B, N, C); other losses where it has none."""

    @abstractmethod
    def draw(
        self,
        h_BND: Tensor,
        null_BND: Tensor | None,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
    ) -> Drawn:
        """Draw tokens under classifier-free guidance: ``(1 + w) cond - w null`` (arXiv:2207.12598, eq. 6).

        ``null_BND`` is None without guidance; numbers come from the streams ``head…`` of ``draws`` at the step of ``moment``.
        ``forced`` tokens are taken instead of drawn ones.
        """
