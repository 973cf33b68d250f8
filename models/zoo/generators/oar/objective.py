"""Likelihood in orders that the model itself finds for each image.  Shapes: B rows, L positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError, stored_as_one
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, full_tokens_of
from tokenloom.models.objectives.base import GroupModel, Objective
from tokenloom.models.objectives.nll import NLL
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.sampler import Constant


class DistilledOrder(Objective):
    """First any order, then for each image the one in which its tokens are likeliest (OAR, arXiv:2504.17069).

    The order of an image is found greedily: next comes the position whose token is likeliest given those before it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config, tag="objective.distilled_order"):
        """``start``: share of training after which found orders are trained on."""

        start: float = 0.7

        def __post_init__(self) -> None:
            if not 0 <= self.start <= 1:
                raise ConfigError(f"start={self.start}: a share of training, from 0 to 1")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.first = NLL()

    def requires(self, plan: Plan) -> Traits:
        return {"orders that the model finds": Trait("yes", "objective")}

    def losses(self, model: GroupModel, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: mean negative log-likelihood a token in nats, in a random order and later in the image's own."""
        if draws.progress < self.config.start:
            return self.first.losses(model, batch, phase, draws)
        assert batch.tokens is not None
        model.layout.check(batch.tokens.layout)
        ids = full_tokens_of(batch.tokens)
        plan = Plan(self.found(model, ids, batch.conditions), (1,) * model.layout.length)
        return {"loss": model.nll(ids, batch.conditions, plan, draws if model.training else None, noise=draws).mean()}

    @torch.no_grad()
    def found(self, model: GroupModel, data: Tensor, conditions: Conditions) -> Tensor:
        """(B, L) orders of these tokens: decoding that is given them, and chooses only where to go next."""
        sampler = replace(model.sampler, guidance=Constant(value=0.0), sizes=None)
        unused = SampleDraws.of(0, 0, len(data))
        return torch.cat([step.place_Bn for step in model.decode_steps(conditions, sampler, unused, forced=data)], dim=1)


stored_as_one("model.distilled_order", "model.groups", "objective", "objective.distilled_order")
