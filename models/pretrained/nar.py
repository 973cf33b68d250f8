"""NAR's transformer (ThisisBillhe/NAR, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.heads.categorical import Directions
from tokenloom.models.parts.orders import Diagonals
from tokenloom.models.parts.visibility import Groups
from tokenloom.models.pretrained import llamagen
from tokenloom.models.pretrained.llama_blocks import llama_blocks
from tokenloom.models.pretrained.names import NameMap, Rename, Rule
from tokenloom.models.pretrained.options import Options, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy
from tokenloom.models.zoo.generators.nar.feed import Neighbours
from tokenloom.models.zoo.generators.nar.net import Branched

FAMILY = "nar"

Info = Mapping[str, Any]

OPTIONS = Options(llamagen.LLAMA, medusa_attention_num=used("blocks of the second head's branch"))


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    return replace(
        llamagen.of(c),
        order=Diagonals(),
        feed=Neighbours.Config(),
        net=Branched.Config(trunk=llamagen.llama_net(c), branches=(c["medusa_attention_num"],)),
        head=Directions.Config(states=2),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    return llamagen.built(config(info), OPTIONS.read(info))


def names(info: Info) -> NameMap:
    """Official names to ours; official layers count on from the trunk into the branch."""
    c = info["config"]
    own = [rule for i in range(c["n_layer"]) for rule in _layer(i, "net.trunk.", i)]
    more = [rule for i in range(c["medusa_attention_num"]) for rule in _layer(c["n_layer"] + i, "net.branches.0.", i)]
    return NameMap(
        *own,
        *more,
        Rename("cls_embedding.embedding_table.weight", "condition.table.weight"),
        Rename("tok_embeddings.weight", "feed.table.books.0.weight"),
        Rename("norm.weight", "net.trunk.norm.final.weight"),
        Rename("medusa_norm.weight", "net.branches.0.norm.final.weight"),
        Rename("output.weight", "head.out.0.weight"),
        Rename("medusa_output.weight", "head.out.1.weight"),
    )


def _layer(official: int, ours: str, index: int) -> list[Rule]:
    blocks = llama_blocks(ours=ours)[:-2]
    return [Rename(r.official[0].replace("{i}", str(official)), r.ours[0].replace("{i}", str(index))) for r in blocks]


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: mask, logits, loss, guided greedy diagonal decoding, gradient norms."""
    ids = inputs["ids"]
    plan = model.order.plan(model.layout, None)
    sequence = plan.sequence_BL.expand_as(ids)
    h = model(ids, Labels(inputs["labels"]), plan)
    by_group = cast(Directions, model.head).logits(h)
    logits = torch.zeros_like(by_group).scatter(1, sequence[..., None].expand_as(by_group), by_group)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    # Official slots are the condition and all tokens in raster order; ours leave out the last group, which predicts nothing.
    group = torch.cat([torch.zeros(1, 1, dtype=torch.long), plan.group_BL + 1], dim=1)
    steps = list(model.decode_steps(Labels(inputs["gen_labels"]), greedy(model.sampler), SampleDraws.of(0, 0, len(inputs["gen_labels"]))))
    drawn = torch.cat([s.data for s in steps], dim=1)
    return {
        "proximity_mask": Groups(group, group, plan.window).seen_BST[0],
        "logits": logits.detach(),
        "loss": loss.detach(),
        "gen_logits": torch.cat([cast(Tensor, s.logits) for s in steps], dim=1),
        "gen_ids": torch.zeros_like(drawn).scatter(1, sequence[: len(drawn)], drawn),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
