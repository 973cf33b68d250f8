"""Training on orders that the model itself finds for each image.  Shapes: B rows, L positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Condition, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator, tokens_of
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.sampler import Constant


class Distilled(GroupGenerator):
    """First any order, then for each image the one in which its tokens are likeliest (OAR, arXiv:2504.17069).

    The order of an image is found greedily: next comes the position whose token is likeliest given those before it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(GroupGenerator.Config, tag="model.distilled_order"):
        """``start``: share of training after which found orders are trained on; the order must choose by confidence."""

        start: float = 0.7

        def __post_init__(self) -> None:
            if not 0 <= self.start <= 1:
                raise ConfigError(f"start={self.start}: a share of training, from 0 to 1")

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> Distilled:
            return Distilled(self, layout, classes, tokenizer)

    config: Config

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: mean negative log-likelihood a token in nats, in a random order and later in the image's own."""
        if draws.progress < self.config.start:
            return super().losses(batch, phase, draws)
        assert batch.tokens is not None
        assert batch.condition is not None
        self.layout.check(batch.tokens.layout)
        ids = tokens_of(batch.tokens)
        plan = Plan(self.found(ids, batch.condition), (1,) * self.layout.length)
        return {"loss": self._nll(ids, batch.condition, plan, draws if self.training else None).mean()}

    @torch.no_grad()
    def found(self, data: Tensor, condition: Condition) -> Tensor:
        """(B, L) orders of these tokens: decoding that is given them, and chooses only where to go next."""
        sampler = replace(self.sampler, guidance=Constant(value=0.0), sizes=None)
        unused = torch.Generator(device="cpu").manual_seed(0)
        return torch.cat([step.place_Bn for step in self.decode_steps(condition, sampler, unused, forced=data)], dim=1)
