"""ARPG's transformer (hp-l33/ARPG, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.orders import Arccos, CosineCurve, Random, Steps
from tokenloom.models.parts.plan import Plan
from tokenloom.models.pretrained import llamagen
from tokenloom.models.pretrained.names import Fuse, NameMap, Rename, Split
from tokenloom.models.pretrained.options import Options, at_most, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy
from tokenloom.models.sampling.sampler import Constant, Linear, Sampler
from tokenloom.models.zoo.generators.arpg.feed import Queried
from tokenloom.models.zoo.generators.arpg.net import TwoPass

FAMILY = "arpg"

Info = Mapping[str, Any]

#: Official names of the rules that say how many tokens a step takes.
CURVES = {"arccos": Arccos(), "cosine": CosineCurve()}
OPTIONS = Options(
    llamagen.LLAMA.without("cfg_scale", "cfg_interval", "n_kv_head", "ffn_dim_multiplier"),
    n_layer=used("blocks, half of self- and half of cross-attention"),
    guidance_scale=used("scale s of guidance, u + s (c - u)"),
    cfg_schedule=used("of guidance: growing with the tokens known after the step, or the same", "linear", "constant"),
    sample_schedule=used("tokens of a step", *CURVES),
    num_iter=used("steps"),
)


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    if c["n_layer"] % 2:
        raise ConfigError(f"config.n_layer={c['n_layer']}: must be even, since half of the blocks are of each kind")
    content = llamagen.llama_net(c)
    steps = at_most("num_iter", c["num_iter"], c["block_size"])
    # Official scale s is u + s (c - u), growing with the tokens known after the step where it is linear; ours is the weight w = s - 1.
    weight = c["guidance_scale"] - 1
    return GroupGenerator.Config(
        order=Random(decoding=Steps(count=steps, curve=CURVES[c["sample_schedule"]])),
        feed=Queried.Config(),
        net=TwoPass.Config(content=replace(content, depth=c["n_layer"] // 2), depth=c["n_layer"] // 2),
        head=Categorical.Config(),
        condition=ClassCondition.Config(classes=c["num_classes"], dropout=0.0, spare=1),
        sampler=Sampler(
            guidance=Linear(value=weight, clock="after") if c["cfg_schedule"] == "linear" else Constant(value=weight),
            temperature=Constant(value=c["temperature"]),
            top_k=c["top_k"],
            top_p=c["top_p"],
        ),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    return llamagen.built(config(info), OPTIONS.read(info))


def names(info: Info) -> NameMap:
    """Official names to ours; one official table holds tokens, the query vector and classes."""
    c = OPTIONS.read(info)

    def query(t: Tensor) -> Tensor:
        return t.view(1, 1, -1)

    parts = ("feed.table.books.0.weight", "feed.query", "condition.table.weight")
    table = Split("embeddings.weight", parts, sizes=(c["vocab_size"], 1, c["num_classes"] + 2))
    return NameMap(
        replace(
            table,
            load=lambda t: [query(p) if i == 1 else p for i, p in enumerate(table.load(t))],
            dump=lambda t: table.dump([p.view(1, -1) if i == 1 else p for i, p in enumerate(t)]),
        ),
        Fuse((f"layers.self_dec.{{i}}.attn.to_{n}.weight" for n in "qkv"), "net.content.attention.{i}.qkv.weight"),
        Rename("layers.self_dec.{i}.attn.proj.weight", "net.content.attention.{i}.proj.weight"),
        Rename("layers.cross_dec.{i}.attn.to_q.weight", "net.query.{i}.weight"),
        Rename("layers.cross_dec.{i}.attn.proj.weight", "net.proj.{i}.weight"),
        Rename("layers.norm.weight", "net.content.norm.final.weight"),
        Rename("layers.to_k.weight", "net.key.weight"),
        Rename("layers.to_v.weight", "net.value.weight"),
        Rename("norm.weight", "net.norm.final.weight"),
        Rename("head.weight", "head.out.weight"),
        *(
            rule
            for official, ours in (("self_dec", "net.content."), ("cross_dec", "net."))
            for rule in (
                Rename(f"layers.{official}.{{i}}.ffn.w1.weight", f"{ours}mlp.{{i}}.gate.weight"),
                Rename(f"layers.{official}.{{i}}.ffn.w3.weight", f"{ours}mlp.{{i}}.up.weight"),
                Rename(f"layers.{official}.{{i}}.ffn.w2.weight", f"{ours}mlp.{{i}}.out.weight"),
                Rename(f"layers.{official}.{{i}}.attn_norm.weight", f"{ours}norm.branches.{{i}}.0.weight"),
                Rename(f"layers.{official}.{{i}}.ffn_norm.weight", f"{ours}norm.branches.{{i}}.1.weight"),
            )
        ),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: logits for given orders, loss, guided greedy parallel decoding, gradient norms."""
    ids, order, head = inputs["ids"], cast(Random, model.order), cast(Categorical, model.head)
    rows, length = ids.shape
    plan = Plan(inputs["tf_order_uniform"].argsort(1), (1,) * length)
    logits = head.logits(model(ids, Labels(inputs["labels"]), plan))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.gather(1, plan.sequence_BL).flatten())
    raster = Plan(torch.arange(length)[None], (1,) * length)
    null = head.logits(model(ids, Labels(torch.full((rows,), OPTIONS.read(info)["num_classes"])), raster))
    parallel = Plan(inputs["gen_order_uniform"].argsort()[None], order.decoding.cut(length))
    labels = Labels(inputs["gen_labels"])
    steps = list(model.decode_steps(labels, greedy(model.sampler), SampleDraws.of(0, 0, labels.rows), plan=parallel))
    drawn = torch.cat([s.data for s in steps], dim=1)
    return {
        "logits": logits.detach(),
        "loss": loss.detach(),
        "tf_orders": plan.sequence_BL,
        "logits_null_raster": null.detach(),
        "gen_order": parallel.sequence_BL[0],
        "gen_ids": torch.zeros_like(drawn).scatter(1, parallel.sequence_BL.expand_as(drawn), drawn),
        "gen_tokens_per_iter": torch.tensor([s.data.shape[1] for s in steps]),
        "gen_logits": torch.cat([cast(Tensor, s.logits) for s in steps], dim=1),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
