"""Next Patch Prediction's transformer (PKU-YuanGroup/Next-Patch-Prediction, no licence stated): LlamaGen's weights, other sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.feeds.base import take
from tokenloom.models.parts.feeds.shifted import Averages
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.orders import Patches
from tokenloom.models.pretrained import llamagen
from tokenloom.models.pretrained.options import Options, square, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy

FAMILY = "npp"

Info = Mapping[str, Any]

OPTIONS = Options(
    llamagen.LLAMA,
    cfg_interval=llamagen.OPTIONS["cfg_interval"],
    patch_sizes=used("tokens of a patch, large to small; sampling has patches of one"),
)

names = llamagen.names


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings; official patch sizes count tokens, ours are sides."""
    c = OPTIONS.read(info)
    sides = tuple(square("patch_sizes", n) for n in c["patch_sizes"])
    sides = sides if sides[-1] == 1 else (*sides, 1)
    until = tuple((i + 1) / len(sides) for i in range(len(sides) - 1))
    return replace(llamagen.of(c), order=Patches(sides=sides, until=until), feed=Averages.Config())


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    return llamagen.built(config(info), OPTIONS.read(info))


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
    steps = list(model.decode_steps(Labels(inputs["gen_labels"]), greedy(model.sampler), SampleDraws.of(0, 0, len(inputs["gen_labels"]))))
    return result | {
        "loss": losses[0].detach(),
        "gen_ids": torch.cat([s.data for s in steps], dim=1),
        "gen_logits": torch.cat([cast(Tensor, s.logits) for s in steps], dim=1),
        "loss_grad_norms": gradient_norms(model, names(info), losses[0], info["grad_norm_keys"]),
    }
