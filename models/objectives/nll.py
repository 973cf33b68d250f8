"""Negative log-likelihood: what most methods minimise.  Shapes: B rows, L positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, LayoutError, Tokens, tokens_of
from tokenloom.models.objectives.base import GroupModel, Objective
from tokenloom.models.parts.plan import Plan


def in_sequence(tokens: Tokens, plan: Plan) -> Tensor | None:
    """(B, L) bool in the order of the plan's sequence: which positions of ragged rows hold tokens; None when all do.

    Raises:
        LayoutError: an order in which padding would come before tokens, or weights that are made for full rows.
    """
    valid_BL = tokens.valid_BL
    if valid_BL is None:
        return None
    sequence_BL = plan.sequence_BL.to(valid_BL.device)
    if plan.weight_BL is not None or not bool((sequence_BL[:, 1:] > sequence_BL[:, :-1]).all()):
        raise LayoutError("ragged rows need an order from the first token to the last, as raster's; this one would predict from padding")
    return valid_BL.gather(1, sequence_BL.expand(len(valid_BL), -1))


class NLL(Objective):
    """``-log p(x | condition)`` a token in nats, under the order's plan, with the plan's weights where it has them."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config, tag="objective.nll", label="NLL"):
        def build(self) -> NLL:
            return NLL()

    def losses(self, model: GroupModel, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: mean negative log-likelihood a token in nats, weighted as the plan says; by scale where there are several.

        Of ragged rows the mean over each row's own tokens.
        """
        assert batch.tokens is not None
        model.layout.check(batch.tokens.layout)
        plan = model.order.plan(model.layout, draws)
        given = target = tokens_of(batch.tokens)
        if model.training:
            given, target = model.feed.corrupt(target, draws)
        nll = model.nll(given, batch.conditions, plan, draws if model.training else None, target, draws)
        valid, weight = in_sequence(batch.tokens, plan), None
        if valid is not None:  # each row's mean over its own tokens: padding counts nothing, whatever the batch
            nll = nll.masked_fill(~valid, 0.0)
            parts = {"loss": (nll.sum(1) / valid.sum(1)).mean()}
        elif plan.weight_BL is None:
            parts = {"loss": nll.mean()}
        else:
            weight = plan.weight_BL.to(nll.device).gather(1, plan.sequence_BL.to(nll.device).expand(len(plan.weight_BL), -1))
            parts = {"loss": (nll * weight).sum(1).mean()}
        sizes = model.layout.scale_sizes
        if len(sizes) > 1 and plan.sizes == sizes:
            share = torch.ones_like(nll) if weight is None else weight.expand_as(nll)  # of a scale the mean that its weights make
            for k, (part, by) in enumerate(zip(nll.detach().split(list(sizes), dim=1), share.split(list(sizes), dim=1))):
                parts[f"loss_scale_{k}"] = (part * by).sum() / by.sum().clamp_min(1e-12)
        return parts
