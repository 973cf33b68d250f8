"""Open-MAGVIT2's generator (TencentARC/SEED-Voken, Apache-2.0): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import Shifted
from tokenloom.models.parts.norms import PreNorm
from tokenloom.models.parts.orders import Raster
from tokenloom.models.pretrained import llamagen
from tokenloom.models.pretrained.llama_blocks import llama_blocks
from tokenloom.models.pretrained.names import NameMap, Rename
from tokenloom.models.pretrained.options import Options, inert, only, square, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.open_magvit2.head import Factorised, SubTokens

FAMILY = "open_magvit2_gpt"

Info = Mapping[str, Any]

OPTIONS = Options(
    llamagen.LLAMA.without("n_layer", "num_classes", "cfg_interval"),
    spatial_n_layer=used("blocks of the big transformer"),
    factorized_n_layer=used("blocks of the small one"),
    class_num=used("classes", default=1000),
    temperature=used("of sampling, of each sub-token", default=(1.0, 1.0)),
    factorized_k=only(2, why="the official tables are of a first and a second sub-token"),
    factorized_bits=used("bits of each sub-token, which may differ"),
    cfg_scale=used("scale s of guidance of each sub-token"),
    vocab_size=inert("the bits say it"),
    token_factorization=only(True, why="a vocabulary of 2^18 is not predicted whole"),
    cond_dim=inert("the width"),
)


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings; each sub-token has its own guidance scale s, as u + s (c - u)."""
    c = OPTIONS.read(info)
    weights = [s - 1.0 for s in c["cfg_scale"]]
    most = max(weights)
    net = llamagen.llama_net({**c, "n_layer": c["spatial_n_layer"]})
    return GroupGenerator.Config(
        order=Raster(),
        feed=Shifted.Config(),
        net=replace(net, norm=PreNorm.Config(kind="rms", eps=c["norm_eps"], last="raw")),
        head=Factorised.Config(net=replace(net, depth=c["factorized_n_layer"])),
        condition=ClassCondition.Config(classes=c["class_num"], dropout=0.0),
        sampler=Sampler(
            guidance=Constant(value=most),
            head=SubTokens(guidance=tuple(w / (most or 1.0) for w in weights), temperature=tuple(c["temperature"])),
            top_k=c["top_k"],
            top_p=c["top_p"],
        ),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    c = OPTIONS.read(info)
    side = square("block_size", c["block_size"])
    sizes = tuple(2**bits for bits in c["factorized_bits"])
    unequal = sizes if len(set(sizes)) > 1 else ()
    layout = TokenLayout(grids=((side, side),), vocabulary=max(sizes), codebooks=2, vocabularies=unequal)
    return config(info).build(layout, c["class_num"])


def names(info: Info) -> NameMap:
    """Official names to ours."""
    return NameMap(
        Rename("pre_emb.weight", "feed.table.books.0.weight"),
        Rename("post_emb.weight", "feed.table.books.1.weight"),
        Rename("class_emb.embedding_table.weight", "condition.table.weight"),
        *llama_blocks("spatial_blocks.")[:-2],
        *llama_blocks("factorized_blocks.", "head.net.")[:-1],
        Rename("head.{i}.weight", "head.out.{i}.weight"),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: logits and losses of both sub-tokens, guided greedy decoding, gradient norms."""
    ids, head = torch.stack([inputs["ids_pre"], inputs["ids_post"]], -1), cast(Factorised, model.head)
    h = model(ids, Labels(inputs["labels"].flatten()), model.order.plan(model.layout, None))
    logits = head.logits(h, ids)
    losses = [torch.nn.functional.cross_entropy(logits[:, :, q].flatten(0, 1), ids[..., q].flatten()) for q in range(2)]
    first, second = model.layout.codebook_sizes
    start = Labels(inputs["gen_labels"].flatten())
    steps = list(model.decode_steps(start, greedy(model.sampler), SampleDraws.of(0, 0, start.rows)))
    drawn, found = torch.cat([s.data for s in steps], dim=1), torch.cat([cast(Tensor, s.logits) for s in steps], dim=1)
    return {
        "logits_pre": logits[:, :, 0, :first].detach(),
        "logits_post": logits[:, :, 1, :second].detach(),
        "loss_pre": losses[0].detach(),
        "loss_post": losses[1].detach(),
        "loss": sum(losses, start=torch.zeros(())).detach(),
        "gen_ids_pre": drawn[..., 0],
        "gen_ids_post": drawn[..., 1],
        "gen_logits_pre": found[:, :, 0, :first],
        "gen_logits_post": found[:, :, 1, :second],
        "loss_grad_norms": gradient_norms(model, names(info), losses[0] + losses[1], info["grad_norm_keys"]),
    }
