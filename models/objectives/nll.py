"""Negative log-likelihood: what most methods minimise.  Shapes: B rows, L positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, LayoutError, Tokens, tokens_of
from tokenloom.models.objectives.base import GroupModel, Objective
from tokenloom.models.parts.plan import Plan


def valid(tokens: Tokens, plan: Plan) -> Tensor:
    """(B, L) true at the tokens of ragged rows, false at their padding, in the order of the plan's sequence.

    Raises:
        LayoutError: padding would come before tokens: this order does not predict one position after another as they are stored.
    """
    assert tokens.lengths is not None
    index_L = torch.arange(tokens.layout.length)
    # Of the plan as the order made it, which is on CPU.
    if plan.groups < len(index_L) or plan.weight_BL is not None or not bool((plan.sequence_BL.cpu() == index_L).all()):
        raise LayoutError("rows of different lengths need an order that predicts one token after another as they are stored: Raster")
    return index_L.to(tokens.lengths.device) < tokens.lengths[:, None]


class NLL(Objective):
    """``-log p(x | condition)`` a token in nats, under the order's plan, with the plan's weights where it has them."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config, tag="objective.nll", label="NLL"):
        def build(self) -> NLL:
            return NLL()

    def losses(self, model: GroupModel, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: mean negative log-likelihood a token in nats, weighted as the plan says; by scale where there are several."""
        assert batch.tokens is not None
        model.layout.check(batch.tokens.layout)
        plan = model.order.plan(model.layout, draws)
        given = target = tokens_of(batch.tokens)
        if model.training:
            given, target = model.feed.corrupt(target, draws)
        nll = model.nll(given, batch.conditions, plan, draws if model.training else None, target, draws)
        if batch.tokens.lengths is not None:
            # Every row counts alike, as rows of one length do: the mean over its own tokens, padding has no loss.
            within_BL = valid(batch.tokens, plan).to(nll.device)
            parts = {"loss": ((nll * within_BL).sum(1) / within_BL.sum(1)).mean()}
        elif plan.weight_BL is None:
            parts = {"loss": nll.mean()}
        else:
            weight = plan.weight_BL.to(nll.device).gather(1, plan.sequence_BL.to(nll.device).expand(len(plan.weight_BL), -1))
            parts = {"loss": (nll * weight).sum(1).mean()}
        sizes = model.layout.scale_sizes
        if len(sizes) > 1 and plan.sizes == sizes:
            parts |= {f"loss_scale_{k}": part.detach().mean() for k, part in enumerate(nll.split(list(sizes), dim=1))}
        return parts
