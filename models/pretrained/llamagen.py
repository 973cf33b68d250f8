"""LlamaGen's transformers, class- and text-conditional (FoundationVision/LlamaGen, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Condition, Labels, TextFeatures, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditioners.text_features import TextCondition
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import Shifted
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.mlp import SwiGLU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import PreNorm
from tokenloom.models.parts.orders import Raster
from tokenloom.models.parts.rope import Rope
from tokenloom.models.parts.slots import visibility_of
from tokenloom.models.pretrained.llama_blocks import llama_blocks
from tokenloom.models.pretrained.names import NameMap, Rename
from tokenloom.models.pretrained.options import RECORDED, TRAINING, Options, filters, inert, only, square, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy
from tokenloom.models.sampling.sampler import Constant, Interval, Sampler, Schedule

FAMILY = ("llamagen_c2i", "llamagen_t2i")

Info = Mapping[str, Any]


#: Keys that LlamaGen's transformer shares with its relatives.
LLAMA = Options(
    RECORDED,
    TRAINING,
    filters(),
    dim=used("width"),
    n_layer=used("blocks"),
    n_head=used("heads of queries"),
    n_kv_head=used("heads of keys and values", default=None),
    multiple_of=used("rounding of the MLP's hidden width", default=256),
    ffn_dim_multiplier=used("factor of the MLP's hidden width", default=None),
    norm_eps=used("of RMS norms", default=1e-5),
    rope_base=used("rotary base", default=10000),
    vocab_size=used("codes"),
    block_size=used("positions, a square grid"),
    num_classes=used("classes", default=1000),
    cls_token_num=only(1, why="a class is one slot"),
    cfg_scale=used("constant scale s of guidance, u + s (c - u)"),
    cfg_interval=only(-1, why="which steps the official counter leaves out is defined for raster order alone"),
    temperature=used("of sampling", default=1.0),
    max_batch_size=inert("of buffers"),
    max_seq_len=inert("of buffers"),
)
OPTIONS = Options(
    LLAMA,
    cls_token_num=used("prefix slots: 1 of a class, those of a text"),
    cfg_interval=used("guidance of the first n + 2 tokens alone; -1: of all", default=-1),
    caption_dim=used("features of the text encoder", default=None),
    text_len=used("slots of a text", default=None),
    model_type=used("", "c2i", "t2i", default=None),
)


def llama_net(c: Mapping[str, Any]) -> Transformer.Config:
    """LlamaGen's transformer for the official settings."""
    return Transformer.Config(
        width=c["dim"],
        depth=c["n_layer"],
        heads=c["n_head"],
        norm=PreNorm.Config(kind="rms", eps=c["norm_eps"]),
        mlp=SwiGLU.Config(multiple_of=c["multiple_of"], multiplier=c.get("ffn_dim_multiplier") or 1.0),
        attention=Attention.Config(kv_heads=0 if c.get("n_kv_head") in (None, c["n_head"]) else c["n_kv_head"]),
        rope=Rope.Config(base=float(c["rope_base"])),
    )


def settings(info: Info) -> dict[str, Any]:
    """The official settings, read strictly."""
    c = OPTIONS.read(info)
    text = c["caption_dim"] is not None
    if (c["model_type"] or ("t2i" if text else "c2i")) != ("t2i" if text else "c2i"):
        raise ConfigError(f"config.model_type={c['model_type']!r}: with caption_dim={c['caption_dim']} it is {'t2i' if text else 'c2i'}")
    prefix = (c["text_len"] or c.get("cls_token_num", 120)) if text else 1
    if c.get("cls_token_num", prefix) != prefix:
        raise ConfigError(f"config.cls_token_num={c['cls_token_num']}: a {'text' if text else 'class'} has {prefix} slots")
    return {**c, "text_len": prefix}


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    return of(settings(info))


def of(c: Mapping[str, Any]) -> GroupGenerator.Config:
    """Our config for settings that were read."""
    return GroupGenerator.Config(
        order=Raster(),
        feed=Shifted.Config(),
        net=llama_net(c),
        head=Categorical.Config(),
        condition=TextCondition.Config(features=c["caption_dim"], length=c["text_len"], dropout=0.0)
        if c.get("caption_dim")
        else ClassCondition.Config(classes=c["num_classes"], dropout=0.0),
        sampler=Sampler(guidance=guidance(c), temperature=Constant(value=c["temperature"]), top_k=c["top_k"], top_p=c["top_p"]),
    )


def guidance(c: Mapping[str, Any]) -> Schedule:
    """Official scale s is u + s (c - u), ours the weight w = s - 1; without guidance after the interval's end.

    Official scales of at most 1 are no guidance.  The official counter of steps starts at the second token, so that an end of n is
    guidance of the first n + 2 tokens.
    """
    weight, end = max(c["cfg_scale"] - 1.0, 0.0), c.get("cfg_interval", -1) + 1
    if end < 1 or end >= c["block_size"]:
        return Constant(value=weight)
    return Interval(value=weight, end=end / c["block_size"], clock="begun")


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    return built(config(info), settings(info))


def built(config: GroupGenerator.Config, c: Mapping[str, Any]) -> GroupGenerator:
    """The model on the square grid of these settings."""
    side = square("block_size", c["block_size"])
    return config.build(TokenLayout(grids=((side, side),), vocabulary=c["vocab_size"]), c["num_classes"])


def names(info: Info) -> NameMap:
    """Official names to ours."""
    condition = (
        [
            Rename("cls_embedding.cap_proj.fc1.weight", "condition.up.weight"),
            Rename("cls_embedding.cap_proj.fc2.weight", "condition.out.weight"),
            Rename("cls_embedding.uncond_embedding", "condition.null_feature"),
        ]
        if info["config"].get("caption_dim")
        else [Rename("cls_embedding.embedding_table.weight", "condition.table.weight")]
    )
    return NameMap(
        *condition,
        Rename("tok_embeddings.weight", "feed.table.books.0.weight"),
        *llama_blocks(),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: teacher-forced logits and loss, guided greedy decoding, gradient norms."""
    plan = model.order.plan(model.layout, None)
    result: dict[str, Tensor] = {}

    def passes(condition: Condition, suffix: str = "") -> Tensor:
        logits = cast(Categorical, model.head).logits(model(inputs["idx"], condition, plan))
        result[f"logits{suffix}"] = logits.detach()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["idx"].flatten())
        result[f"loss{suffix}"] = loss.detach()
        return loss

    start: Condition
    if "caption_tf" in inputs:
        mask = inputs["emb_mask"]
        passes(TextFeatures(inputs["caption_tf"]), "_causal")
        loss = passes(TextFeatures(inputs["caption_tf"], mask))
        start = TextFeatures(inputs["caption_gen"], mask)
        result["train_mask"] = _train_mask(model, inputs, plan)
    else:
        loss = passes(Labels(inputs["cond_idx"]))
        start = Labels(inputs["gen_cond_idx"])
    result["loss_grad_norms"] = gradient_norms(model, names(info), loss, info["grad_norm_keys"])
    steps = list(model.decode_steps(start, greedy(model.sampler), SampleDraws.of(0, 0, start.rows)))
    result["gen_logits"] = torch.cat([cast(Tensor, s.logits) for s in steps], dim=1)
    result["gen_idx"] = torch.cat([s.data for s in steps], dim=1)
    return result


def _train_mask(model: GroupGenerator, inputs: Mapping[str, Tensor], plan: Any) -> Tensor:
    """The attention mask of the teacher-forced pass with padded text."""
    cond = model.condition(TextFeatures(inputs["caption_tf"], inputs["emb_mask"]))
    slots = model.feed.parallel(inputs["idx"], plan, cond, None)
    count = slots.x_BSD.shape[1]
    return visibility_of(slots, plan.window, cond.seen_BP).mask(count, count, slots.x_BSD.device)
