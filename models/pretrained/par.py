"""PAR's transformer (Epiphqny/PAR, no licence stated): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.feeds.shifted import Registers
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.orders import Regions
from tokenloom.models.pretrained import llamagen
from tokenloom.models.pretrained.names import NameMap, Rename
from tokenloom.models.pretrained.parity import gradient_norms

FAMILY = "par"

Info = Mapping[str, Any]


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = info["config"]
    across = round(c["ar_token_num"] ** 0.5)
    return replace(llamagen.config(info), order=Regions(across=across), feed=Registers.Config(registers=c["spe_token_num"]))


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    side = round(info["config"]["block_size"] ** 0.5)
    layout = TokenLayout(grids=((side, side),), vocabulary=info["config"]["vocab_size"])
    return config(info).build(layout, info["config"]["num_classes"])


def names(info: Info) -> NameMap:
    """Official names to ours."""
    register = "feed.register"
    return NameMap(
        *llamagen.names(info).rules,
        Rename("spe_tok_embeddings.special_embeddings.weight", register, lambda t: t.view(1, *t.shape[-2:]), lambda t: t[0]),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: logits, loss, guided greedy parallel decoding, gradient norms."""
    ids = inputs["ids"]
    plan = model.order.plan(model.layout, None)
    logits = cast(Categorical, model.head).logits(model(ids, Labels(inputs["labels"]), plan))
    grouped = ids.gather(1, plan.sequence_BL.expand_as(ids))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), grouped.flatten())
    steps = list(model.decode_steps(Labels(inputs["gen_labels"]), model.sampler, SampleDraws.of(0, 0, len(inputs["gen_labels"]))))
    drawn = torch.cat([s.data for s in steps], dim=1)
    return {
        "grouped_ids": grouped,
        "logits": logits.detach(),
        "loss": loss.detach(),
        "gen_logits": torch.cat([cast(Tensor, s.logits) for s in steps], dim=1),
        "gen_grouped_ids": drawn,
        "gen_ids": torch.zeros_like(drawn).scatter(1, plan.sequence_BL.expand_as(drawn), drawn),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
