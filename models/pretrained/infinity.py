"""Infinity's text-to-image transformers (FoundationVision/Infinity, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import TextFeatures, TokenLayout
from tokenloom.models.generators.group_wise import Decoded, GroupGenerator
from tokenloom.models.parts.attention import Attention, attend
from tokenloom.models.parts.feeds.next_scale import RotaryScale
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Init
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Scales, WeighedScales
from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ
from tokenloom.models.parts.quantizers.patched import Patched
from tokenloom.models.parts.rope import Rope
from tokenloom.models.parts.similarity import CosineSimilarity
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Groups, Mask, Visibility
from tokenloom.models.pretrained.infinity_bsq import scales
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename, Rule
from tokenloom.models.pretrained.options import RECORDED, TRAINING, Options, filters, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy
from tokenloom.models.sampling.sampler import Constant, Moment, Sampler, Schedule, Table
from tokenloom.models.zoo.generators.infinity.cross_attention import CrossAttention
from tokenloom.models.zoo.generators.infinity.head import Bitwise
from tokenloom.models.zoo.generators.infinity.net import CrossTransformer
from tokenloom.models.zoo.generators.infinity.text import PooledText

FAMILY = ("infinity", "infinity_patchify")

Info = Mapping[str, Any]

OPTIONS = Options(
    RECORDED,
    TRAINING,
    filters(900, 0.97),
    vae_dim=used("bits of a code"),
    apply_spatial_patchify=used("whether a position has the codes of two by two", 0, 1, default=0),
    text_channels=used("features of the text encoder, a multiple of 128", default=2048),
    text_maxlen=used("longest text", default=512),
    embed_dim=used("width"),
    depth=used("blocks"),
    num_heads=used("heads"),
    mlp_ratio=used("of the MLP's hidden width, which is rounded to a multiple of 256", default=4.0),
    block_chunks=used("chunks of blocks, which names of weights count", default=1),
    h_div_w=used("height over width", default=1.0),
    pn=used("size of the images in megapixels", default="1M"),
    trunk_scale=used("scales that a recorded run makes", default=1000),
    cfg=used("scale s of guidance, u + s (c - u): one, or one a scale"),
    tau=used("temperature: one, or one a scale", default=1.0),
    cfg_insertion_layer=only([0], why="guidance inside the net mixes hidden states, which no sampler here does"),
    norm_eps=only(1e-6, why="released models have no other"),
    shared_aln=only(True, why="the class has no other branch that runs"),
    cos_attn=only(True, why="released models have no other"),
    use_bit_label=only(1, why="a vocabulary of 2^d is not predicted whole"),
    rope2d_each_sa_layer=only(1, why="released models have no other"),
    rope2d_normalized_by_hw=only(2, why="released models have no other"),
    add_lvl_embeding_only_first_block=only(1, why="released models have no other"),
    always_training_scales=inert("of training alone"),
    customized_flash_attn=inert("of speed"),
    use_flex_attn=inert("of speed"),
    checkpointing=inert("of memory"),
)


def settings(info: Info) -> dict[str, Any]:
    """The official settings, read strictly, with the grids of the schedule."""
    c = OPTIONS.read(info)
    if c["text_channels"] % 128:
        raise ConfigError(f"config.text_channels={c['text_channels']}: must be a multiple of 128, the width of a pooling head")
    if c["depth"] % c["block_chunks"]:
        raise ConfigError(f"config.block_chunks={c['block_chunks']}: must divide depth={c['depth']}")
    return {**c, "grids": scales(c["pn"], c["h_div_w"])}


def by_scale(value: float | Sequence[float], shift: float = 0.0) -> Schedule:
    """One number at all scales, or a list of one a scale, less ``shift``."""
    if not isinstance(value, Sequence):
        return Constant(value=value - shift)
    return Table(value=1.0, factors=tuple(v - shift for v in value))


class _Codec:
    """What the feed asks of a tokenizer's config."""

    def __init__(self, info: Info) -> None:
        c = settings(info)
        grids = c["grids"]
        given: dict[str, Any] = {"bits": c["vae_dim"], "beta": 0.0, "entropy": None}
        self.quantizer: MultiScaleBSQ.Config = (
            Patched.Config(**given, scales=tuple((2 * h, 2 * w) for h, w in grids))
            if c["apply_spatial_patchify"]
            else MultiScaleBSQ.Config(**given, scales=grids)
        )


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = settings(info)
    return GroupGenerator.Config(
        order=Scales(),
        feed=RotaryScale.Config(scales=15),
        net=CrossTransformer.Config(
            width=c["embed_dim"],
            depth=c["depth"],
            heads=c["num_heads"],
            norm=AdaLN.Config(eps=1e-6, sharing="shared"),
            mlp=GELU.Config(ratio=round(c["embed_dim"] * c["mlp_ratio"] / 256) * 256 / c["embed_dim"]),
            attention=Attention.Config(similarity=CosineSimilarity(), bias="qv"),
            # Places are spread over the largest map of 1 megapixel of this shape.
            rope=Rope.Config(reach=max(scales("1M", c["h_div_w"])[-1])),
            init=Init(std=0.0),
        ),
        head=Bitwise.Config(),
        condition=PooledText.Config(features=c["text_channels"], heads=c["text_channels"] // 128, length=c["text_maxlen"], dropout=0.0),
        # Official guidance is cfg cond + (1 - cfg) null; ours is the weight w = cfg - 1.
        sampler=Sampler(guidance=by_scale(c["cfg"], 1.0), temperature=by_scale(c["tau"]), top_k=c["top_k"], top_p=c["top_p"]),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    c = settings(info)
    layout = TokenLayout(grids=c["grids"], vocabulary=2, codebooks=c["vae_dim"] * (4 if c["apply_spatial_patchify"] else 1))
    return config(info).build(layout, 1, _Codec(info))


def names(info: Info) -> NameMap:
    """Official names to ours; blocks are numbered by chunk and inside the chunk."""
    c = settings(info)
    a_chunk = c["depth"] // c["block_chunks"]
    blocks = [f"block_chunks.{i // a_chunk}.module.{i % a_chunk}." for i in range(c["depth"])]
    return NameMap(
        Rename("cfg_uncond", "condition.null_text"),
        Rename("pos_start", "feed.position_start"),
        Rename("text_norm.weight", "condition.norm.weight"),
        Rename("text_proj_for_sos.ca.mat_q", "condition.pool.start"),
        Rename("text_proj_for_sos.ca.mat_kv.weight", "condition.pool.kv.weight"),
        Rename("text_proj_for_sos.ca.v_bias", "condition.pool.v_bias"),
        Rename("text_proj_for_sos.ca.proj.{p}", "condition.pool.proj.{p}"),
        Ignore("text_proj_for_sos.ca.zero_k_bias"),
        Rename("text_proj_for_ca.{p}", "condition.memory.{p}"),
        Rename("lvl_embed.weight", "feed.position_scale.weight"),
        Rename("word_embed.{p}", "feed.embed.{p}"),
        Rename("shared_ada_lin.1.{p}", "net.norm.maps.0.{p}"),
        Rename("head_nm.ada_lin.1.{p}", "net.norm.final.{p}"),
        Rename("head.{p}", "head.out.{p}"),
        Rule(
            tuple(f"{block}ada_gss" for block in blocks),
            ("net.norm.offset.weight",),
            lambda parts: [torch.cat([p.flatten()[None] for p in parts])],
            lambda whole: [row.view(1, 1, 6, -1) for row in whole[0]],
        ),
        *(rule for index, block in enumerate(blocks) for rule in _block(block, index)),
    )


def _block(official: str, index: int) -> list[Rule]:
    self_, look = f"net.attention.{index}", f"net.look.{index}"
    return [
        Rename(f"{official}sa.scale_mul_1H11", f"{self_}.similarity.temperature", lambda t: t[0], lambda t: t[None]),
        Rename(f"{official}sa.q_bias", f"{self_}.q_bias"),
        Rename(f"{official}sa.v_bias", f"{self_}.v_bias"),
        Rename(f"{official}sa.mat_qkv.weight", f"{self_}.qkv.weight"),
        Rename(f"{official}sa.proj.{{p}}", f"{self_}.proj.{{p}}"),
        Ignore(f"{official}sa.zero_k_bias"),
        Rename(f"{official}ca.v_bias", f"{look}.v_bias"),
        Rename(f"{official}ca.mat_q.{{p}}", f"{look}.query.{{p}}"),
        Rename(f"{official}ca.mat_kv.weight", f"{look}.kv.weight"),
        Rename(f"{official}ca.proj.{{p}}", f"{look}.proj.{{p}}"),
        Ignore(f"{official}ca.zero_k_bias"),
        Rename(f"{official}ca_norm.{{p}}", f"net.look_norm.{index}.{{p}}"),
        Rename(f"{official}ffn.fc1.{{p}}", f"net.mlp.{index}.up.{{p}}"),
        Rename(f"{official}ffn.fc2.{{p}}", f"net.mlp.{index}.out.{{p}}"),
    ]


def padded(compact: Tensor, lengths: list[int]) -> TextFeatures:
    """Texts laid end to end as rows of one length with a mask."""
    rows = compact.split(lengths)
    feature = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return TextFeatures(feature, torch.arange(feature.shape[1])[None] < torch.tensor(lengths)[:, None])


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: teacher-forced logits and losses, with rounded cross-attention too, and guided greedy decoding.

    Decoding is repeated with the places of the unfused code path, whose rotary rows start anew at each scale.
    """
    c, bits = settings(info), inputs["gt_bits"]
    head, feed = cast(Bitwise, model.head), cast(RotaryScale, model.feed)
    text = padded(inputs["kv_compact"], c["lens"])

    def logits_of() -> Tensor:
        cond = model.condition(text)
        slots = feed.of_inputs(inputs["x_BLC_wo_prefix"], cond)
        plan = model.order.plan(model.layout, None)
        return head.logits(model.net(slots, Groups(slots.group_BS, slots.group_BS, plan.window), cond))

    logits = logits_of()
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 2), bits.flatten(), reduction="none").view(bits.shape).mean(-1)
    weight = cast(Tensor, WeighedScales().plan(model.layout).weight_BL)
    looks = [m for m in model.modules() if isinstance(m, CrossAttention)]
    for look in looks:
        look.kernel = _rounded
    with torch.no_grad():
        rounded = logits_of()
    for look in looks:
        look.kernel = attend
    result = {
        "logits_BLV": logits.flatten(2).detach(),
        "loss": each.mean().detach(),
        "loss_reweighted": (each * weight).sum(1).mean().detach(),
        "logits_bf16_cross_attention": rounded.flatten(2),
        "loss_grad_norms": gradient_norms(model, names(info), each.mean(), info["grad_norm_keys"]),
    }
    fused, grids = feed.step, model.layout.grids
    for name, step in (("gen", fused), ("gen_unfused", lambda *given: _from_zero(fused(*given)))):
        feed.step = step  # type: ignore[method-assign]
        start = padded(inputs["gen_kv_compact"], c["gen_lens"])
        every = model.decode_steps(start, greedy(model.sampler), SampleDraws.of(0, 0, start.rows))
        steps: list[Decoded] = list(islice(every, c["trunk_scale"]))
        result |= {
            f"{name}_logits": torch.cat(
                [cast(Tensor, s.logits) / model.sampler.temperature.on(Moment(s.group, len(grids), 0, 0, 1)) for s in steps], dim=1
            ),
            f"{name}_bits": torch.cat([s.data for s in steps], dim=1),
            f"{name}_summed_codes": steps[-1].state[0][: len(c["gen_lens"])],
        }
    return result


def _from_zero(slots: Slots) -> Slots:
    return replace(slots, position_BS=torch.arange(slots.x_BSD.shape[1])[None])


def _rounded(q: Tensor, k: Tensor, v: Tensor, visibility: Visibility, factor: float) -> Tensor:
    """Attention of values rounded to bfloat16, the result rounded too; text by text, so that sums are taken as upstream takes them."""
    half, parts = torch.bfloat16, []
    for row in range(len(q)):
        seen = int(visibility.seen_BST[row].sum()) if isinstance(visibility, Mask) else k.shape[2]
        a, b, c = (t.to(half).float() for t in (q[row], k[row, :, :seen], v[row, :, :seen]))
        parts.append((a @ b.transpose(1, 2) * factor).softmax(-1) @ c)
    return torch.stack(parts).to(half).float().transpose(1, 2).flatten(2)
