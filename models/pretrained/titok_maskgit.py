"""TiTok's masked generators, BERT and U-ViT (bytedance/1d-tokenizer, Apache-2.0): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.embedding import Ids
from tokenloom.models.parts.feeds.masked import MaskToken
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.heads.hidden import guide
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import PostNorm, PreNorm
from tokenloom.models.parts.orders import Arccos, LogitConfidence, Masked, Steps
from tokenloom.models.parts.orders.masked import gumbel
from tokenloom.models.pretrained.names import Fuse, NameMap, Rename, Rule, Split
from tokenloom.models.pretrained.options import RECORDED, TRAINING, Options, at_most, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy
from tokenloom.models.sampling.sampler import Constant, Fading, Linear, Moment, PowerCosine, Sampler, Schedule
from tokenloom.models.zoo.generators.maskgit.feed import BertTokens
from tokenloom.models.zoo.generators.titok_uvitbert.net import UViT

FAMILY = ("titok_imagebert", "titok_uvitbert")

Info = Mapping[str, Any]

OPTIONS = Options(
    RECORDED,
    TRAINING,
    cls=used("which of the two nets", "ImageBert", "UViTBert"),
    codebook_size=used("codes"),
    hidden_size=used("width"),
    num_hidden_layers=used("blocks; of the U-ViT the even number below, and one in the middle"),
    num_attention_heads=used("heads"),
    intermediate_size=used("hidden width of the MLP"),
    image_seq_len=used("tokens of an image"),
    condition_num_classes=used("classes", default=1000),
    guidance_scale=used("scale of guidance: c + s (c - u) if linear or constant, u + s (c - u) if power-cosine"),
    guidance_decay=used("of guidance", "linear", "constant", "power-cosine"),
    guidance_scale_pow=used("power of progress in its cosine", default=3.0),
    num_sample_steps=used("steps"),
    randomize_temperature=used("noise on logits and on confidence, which fades"),
    softmax_temperature_annealing=used("whether logits are sharpened over the steps, from 1.3 to 0.5", True, False, default=False),
    label_smoothing=used("of the loss", default=0.1),
    loss_weight_unmasked_token=used("of known tokens in the loss", default=0.1),
)


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    steps = at_most("num_sample_steps", c["num_sample_steps"], c["image_seq_len"])
    bert = c["cls"] == "ImageBert"
    blocks: dict[str, Any] = {
        "width": c["hidden_size"],
        "heads": c["num_attention_heads"],
        "mlp": GELU.Config(ratio=c["intermediate_size"] / c["hidden_size"], form="none"),
    }
    if bert:
        net = Transformer.Config(
            **blocks, depth=c["num_hidden_layers"], norm=PostNorm.Config(eps=1e-12), attention=Attention.Config(bias="qkv")
        )
    else:
        net = UViT.Config(
            **blocks,
            depth=c["num_hidden_layers"] // 2 * 2 + 1,
            norm=PreNorm.Config(kind="layer", eps=1e-5),
            attention=Attention.Config(bias="out"),
        )
    # Linear and constant guidance are cond + s (cond - null), our form; the power cosine is null + w (cond - null), with w - 1 ours.
    scale, (last, span) = c["guidance_scale"], softness(c)
    guidance: Schedule = {
        "linear": Linear(value=scale, clock="begun"),
        "constant": Constant(value=scale),
        "power-cosine": PowerCosine(value=scale - 1, power=c["guidance_scale_pow"], clock="begun"),
    }[c["guidance_decay"]]
    return GroupGenerator.Config(
        order=Masked(
            curve=Arccos(),
            seen_weight=c["loss_weight_unmasked_token"],
            decoding=Steps(count=steps, curve=Arccos()),
            choice=LogitConfidence(noise=c["randomize_temperature"], last=last, span=span),
        ),
        feed=BertTokens.Config(segments=2) if bert else MaskToken.Config(prefix=1),
        net=net,
        head=Categorical.Config(bias="yes"),
        condition=ClassCondition.Config(classes=c["condition_num_classes"], dropout=0.0),
        sampler=Sampler(guidance=guidance, temperature=Fading(value=c["randomize_temperature"], last=last, span=span)),
    )


def softness(c: Mapping[str, Any]) -> tuple[float, float]:
    """What logits are divided by at the last step, and how much more at the start."""
    return (0.5, 0.8) if c["softmax_temperature_annealing"] else (1.0, 0.0)


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    c = OPTIONS.read(info)
    layout = TokenLayout(grids=((1, c["image_seq_len"]),), vocabulary=c["codebook_size"], axis="sequence")
    return config(info).build(layout, c["condition_num_classes"])


def names(info: Info) -> NameMap:
    """Official names to ours; one official table holds tokens, [MASK] and classes."""
    c = OPTIONS.read(info)
    parts = ("feed.table.books.0.weight", "condition.table.weight")
    sizes = (c["codebook_size"] + 1, c["condition_num_classes"] + 1)
    if c["cls"] == "ImageBert":
        layer, attention = "model.encoder.layer.{i}.", "net.attention.{i}."
        return NameMap(
            Split("model.embeddings.word_embeddings.weight", parts, sizes=sizes),
            Rename("model.embeddings.position_embeddings.weight", "feed.position", lambda t: t[None], lambda t: t[0]),
            Rename("model.embeddings.token_type_embeddings.weight", "feed.segment"),
            Rename("model.embeddings.LayerNorm.{p}", "feed.norm.{p}"),
            Fuse((f"{layer}attention.self.{n}.{{p}}" for n in ("query", "key", "value")), f"{attention}qkv.{{p}}"),
            Rename(f"{layer}attention.output.dense.{{p}}", f"{attention}proj.{{p}}"),
            Rename(f"{layer}attention.output.LayerNorm.{{p}}", "net.norm.branches.{i}.0.{p}"),
            Rename(f"{layer}intermediate.dense.{{p}}", "net.mlp.{i}.up.{p}"),
            Rename(f"{layer}output.dense.{{p}}", "net.mlp.{i}.out.{p}"),
            Rename(f"{layer}output.LayerNorm.{{p}}", "net.norm.branches.{i}.1.{p}"),
            Rename("model.lm_head.{p}", "head.out.{p}"),
        )
    half = c["num_hidden_layers"] // 2
    blocks = [(f"in_blocks.{i}", i) for i in range(half)] + [("mid_block", half)]
    blocks += [(f"out_blocks.{i}", half + 1 + i) for i in range(half)]
    return NameMap(
        Split("embeddings.weight", parts, sizes=sizes),
        Rename("pos_embed", "feed.position"),
        *(rule for official, index in blocks for rule in _block(official, index)),
        Rename("out_blocks.{i}.skip_linear.{p}", "net.skip.{i}.{p}"),
        Rename("norm.{p}", "net.norm.final.{p}"),
        Rename("lm_head.{p}", "head.out.{p}"),
    )


def _block(official: str, index: int) -> list[Rule]:
    return [
        Rename(f"{official}.norm1.{{p}}", f"net.norm.branches.{index}.0.{{p}}"),
        Rename(f"{official}.norm2.{{p}}", f"net.norm.branches.{index}.1.{{p}}"),
        Rename(f"{official}.attn.{{p}}", f"net.attention.{index}.{{p}}"),
        Rename(f"{official}.mlp.fc1.{{p}}", f"net.mlp.{index}.up.{{p}}"),
        Rename(f"{official}.mlp.fc2.{{p}}", f"net.mlp.{index}.out.{{p}}"),
    ]


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: masked logits and loss, decoding by confidence without and with given noise, gradient norms."""
    c, ids, mask = OPTIONS.read(info), inputs["ids"], inputs["mask"]
    head, feed, order = cast(Categorical, model.head), cast(MaskToken, model.feed), cast(Masked, model.order)
    labels, plan = Labels(inputs["labels"]), order.of_mask(~mask, 1.0)
    logits = head.logits(model(ids, labels, plan))
    each = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids.flatten(), reduction="none", label_smoothing=c["label_smoothing"]
    ).view(ids.shape)
    weight = torch.where(mask, 1.0, c["loss_weight_unmasked_token"])
    loss = (each * weight).sum() / weight.sum()
    starts = Labels(inputs["gen_labels"])
    data, known, fed = torch.zeros(len(inputs["gen_labels"]), ids.shape[1], dtype=torch.long), None, []
    known = torch.zeros_like(data, dtype=torch.bool)
    choice = replace(cast(LogitConfidence, order.choice), noise=0.0)
    still = replace(order, choice=choice).decode(model.layout, starts.rows)
    for step in model.decode_steps(starts, greedy(model.sampler), SampleDraws.of(0, 0, starts.rows), plan=still):
        fed.append(cast(Ids, feed.table).inputs(data, known))
        data, known = step.state[0][: len(data)], step.state[1][: len(data)]
    return {
        "masked_ids": cast(Ids, feed.table).inputs(ids, ~mask),
        "logits": logits.detach(),
        "logits_null": head.logits(model(ids, model.condition.null(labels), plan)).detach(),
        "loss": loss.detach(),
        "gen_ids": data,
        "gen_step_ids": torch.stack(fed, dim=1),
        "gen_ids_sampled": _sampled(model, info, inputs),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }


@torch.no_grad()
def _sampled(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> Tensor:
    """Decoding with the fixture's noise: Gumbel noise on logits and on confidence that fades, logits sharpened over the steps."""
    c, head, order = OPTIONS.read(info), cast(Categorical, model.head), cast(Masked, model.order)
    labels = Labels(inputs["gen_labels"])
    ids = torch.zeros(len(inputs["gen_labels"]), c["image_seq_len"], dtype=torch.long)
    known = torch.zeros_like(ids, dtype=torch.bool)
    sizes, (last, span) = order.decoding.cut(ids.shape[1]), softness(c)
    for step, size in enumerate(sizes):
        share, plan = (step + 1) / len(sizes), order.of_mask(known, 1.0)
        moment = Moment(step, len(sizes), sum(sizes[:step]), sum(sizes[: step + 1]), ids.shape[1])
        null = head.logits(model(ids, model.condition.null(labels), plan))
        guided = guide(head.logits(model(ids, labels, plan)), null, model.sampler.guidance.on(moment))
        logits = guided / (last + span * (1 - share))
        noise = c["randomize_temperature"] * (1 - share)
        drawn = (logits + noise * gumbel(inputs[f"gen_noise_uniform_{2 * step}"])).argmax(-1)
        sure = logits.gather(-1, drawn[..., None])[..., 0] + noise * gumbel(inputs[f"gen_noise_uniform_{2 * step + 1}"])
        place = sure.masked_fill(known, -torch.inf).topk(size, dim=1).indices
        ids, known = ids.scatter(1, place, drawn.gather(1, place)), known.scatter(1, place, True)
    return ids
