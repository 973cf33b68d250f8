"""Next Patch Prediction's transformer (PKU-YuanGroup/Next-Patch-Prediction, no licence stated): LlamaGen's weights, other sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.feeds.base import take
from tokenloom.models.parts.feeds.shifted import Averages
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.orders import Patches
from tokenloom.models.pretrained import llamagen
from tokenloom.models.pretrained.parity import gradient_norms

FAMILY = "npp"

Info = Mapping[str, Any]

names = llamagen.names


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings; official patch sizes count tokens, ours are sides."""
    sizes = info["config"]["patch_sizes"]
    sides = tuple(round(n**0.5) for n in sizes)
    until = tuple((i + 1) / len(sizes) for i in range(len(sizes) - 1))
    return replace(llamagen.config(info), order=Patches(sides=sides, until=until), feed=Averages.Config())


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    side = round(info["config"]["block_size"] ** 0.5)
    layout = TokenLayout(grids=((side, side),), vocabulary=info["config"]["vocab_size"])
    return config(info).build(layout, info["config"]["num_classes"])


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: logits and losses by patch size, guided greedy decoding, gradient norms."""
    ids, head, order = inputs["ids"], cast(Categorical, model.head), cast(Patches, model.order)
    result: dict[str, Tensor] = {}
    losses = []
    for tokens in info["config"]["patch_sizes"]:
        plan = order.of_side(model.layout, round(tokens**0.5))
        h = model(ids, Labels(inputs["labels"]), plan)
        losses.append(head.loss(h, take(ids, plan.sequence_BL).unflatten(1, (h.shape[1], -1))).mean())
        result |= {f"logits_patch{tokens}": head.logits(h).detach(), f"loss_patch{tokens}": losses[-1].detach()}
    steps = list(model.decode_steps(Labels(inputs["gen_labels"]), model.sampler, SampleDraws.of(0, 0, len(inputs["gen_labels"]))))
    return result | {
        "loss": losses[0].detach(),
        "gen_ids": torch.cat([s.data for s in steps], dim=1),
        "gen_logits": torch.cat([cast(Tensor, s.logits) for s in steps], dim=1),
        "loss_grad_norms": gradient_norms(model, names(info), losses[0], info["grad_norm_keys"]),
    }
