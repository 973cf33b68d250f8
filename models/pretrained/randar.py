"""RandAR's transformer (ziqipang/RandAR, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.aimed import PositionInstructions
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.orders import Random, Steps
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.rope import Rope
from tokenloom.models.pretrained import llamagen
from tokenloom.models.pretrained.llama_blocks import llama_blocks
from tokenloom.models.pretrained.names import NameMap, Rename
from tokenloom.models.pretrained.options import Options, at_most, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy
from tokenloom.models.sampling.sampler import Constant, Linear, Sampler

FAMILY = "randar"

Info = Mapping[str, Any]

OPTIONS = Options(
    llamagen.LLAMA.without("cfg_scale", "cfg_interval"),
    cfg_scales=used("first and last scale of guidance, linear in the tokens known"),
    num_inference_steps=used("steps along a cosine"),
    zero_class_qk=only(True, why="released models zero query and key of the class slot"),
    position_order=inert("orders are given; sampling draws one for each sample"),
)


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    steps = at_most("num_inference_steps", c["num_inference_steps"], c["block_size"])
    return GroupGenerator.Config(
        order=Random(decoding=Steps(count=steps)),
        feed=PositionInstructions.Config(heads=c["n_head"], rope=Rope.Config(base=float(c["rope_base"]))),
        net=llamagen.llama_net(c),
        head=Categorical.Config(),
        condition=ClassCondition.Config(classes=c["num_classes"], dropout=0.0),
        # Official scale s is u + s (c - u), growing with the tokens known; ours is the weight w = s - 1.
        sampler=Sampler(
            guidance=Linear(start=c["cfg_scales"][0] - 1, value=c["cfg_scales"][1] - 1, clock="before"),
            temperature=Constant(value=c["temperature"]),
            top_k=c["top_k"],
            top_p=c["top_p"],
        ),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    return llamagen.built(config(info), OPTIONS.read(info))


def names(info: Info) -> NameMap:
    """Official names to ours."""
    return NameMap(
        Rename("pos_instruct_embeddings", "feed.instruction", lambda t: t.view(1, 1, -1), lambda t: t.view(1, -1)),
        Rename("cls_embedding.embedding_table.weight", "condition.table.weight"),
        Rename("tok_embeddings.weight", "feed.table.books.0.weight"),
        *llama_blocks(),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: logits for given orders, loss, guided greedy parallel decoding, gradient norms."""
    ids, order = inputs["ids"], cast(Random, model.order)
    length = ids.shape[1]
    plan = Plan(inputs["token_order"], (1,) * length)
    logits = cast(Categorical, model.head).logits(model(ids, Labels(inputs["labels"]), plan))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.gather(1, plan.sequence_BL).flatten())
    parallel = Plan(inputs["gen_token_order"], order.decoding.cut(length))
    labels = Labels(inputs["gen_labels"])
    steps = list(model.decode_steps(labels, greedy(model.sampler), SampleDraws.of(0, 0, labels.rows), plan=parallel))
    drawn = torch.cat([s.data for s in steps], dim=1)
    return {
        "logits": logits.detach(),
        "loss": loss.detach(),
        "gen_ids": torch.zeros_like(drawn).scatter(1, inputs["gen_token_order"], drawn),
        "gen_logits": torch.cat([cast(Tensor, s.logits) for s in steps], dim=1),
        "gen_input_lengths": torch.tensor([s.slots.x_BSD.shape[1] for s in steps]),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
