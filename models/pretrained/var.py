"""VAR's transformers (FoundationVision/VAR, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import NextScale
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Init, Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Scales
from tokenloom.models.parts.similarity import CosineSimilarity, Scaled
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename, Rule
from tokenloom.models.pretrained.options import RECORDED, TRAINING, Options, filters, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy
from tokenloom.models.pretrained.var_vqvae import quantizer, quantizer_rules
from tokenloom.models.sampling.sampler import Linear, Sampler

FAMILY = ("var", "var_shared_aln")

Info = Mapping[str, Any]

#: Keys that VAR's transformer shares with its relatives.
BLOCKS = Options(
    RECORDED,
    TRAINING,
    filters(900, 0.96),
    patch_nums=used("sides of the scales"),
    vocab_size=used("codes", default=4096),
    Cvae=used("channels of a code", default=32),
    num_classes=used("classes", default=1000),
    depth=used("blocks"),
    embed_dim=used("width"),
    num_heads=used("heads"),
    mlp_ratio=used("of the MLP's hidden width", default=4.0),
    norm_eps=used("of layer norms", default=1e-6),
    shared_aln=used("one modulation map for all blocks, or one each", True, False, default=False),
    attn_l2_norm=used("attention by cosine similarity, or dot products times 0.25 / sqrt(head width)", True, False, default=True),
    cfg_scale=used("weight t of guidance at the last scale, (1 + t) c - t u"),
    flash_if_available=inert("of speed"),
    fused_if_available=inert("of speed"),
)
OPTIONS = Options(
    BLOCKS,
    share_quant_resi=used("residual convolutions shared by the scales; 0: one each", default=4),
    quant_resi=used("share of the convolution; 0: none", default=0.5),
    using_znorm=inert("how codes are found, which a generator does not do"),
    beta=inert("of training alone"),
    more_smooth=only(False, why="the Gumbel softmax of demonstrations is not how images are evaluated"),
)


class _Codec:
    """What a next-scale feed asks of a tokenizer's config."""

    def __init__(self, info: Info) -> None:
        c = OPTIONS.read(info)
        self.quantizer = quantizer(c, c["Cvae"])


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    return of(OPTIONS.read(info))


def of(c: Mapping[str, Any]) -> GroupGenerator.Config:
    """Our config for settings that were read."""
    return GroupGenerator.Config(
        order=Scales(),
        feed=NextScale.Config(),
        net=Transformer.Config(
            width=c["embed_dim"],
            depth=c["depth"],
            heads=c["num_heads"],
            norm=AdaLN.Config(eps=c["norm_eps"], sharing="shared" if c["shared_aln"] else "own"),
            mlp=GELU.Config(ratio=c["mlp_ratio"]),
            # Without l2-norm the scale is 0.25 / sqrt(head width), not 1 / sqrt(head width).
            attention=Attention.Config(similarity=CosineSimilarity() if c["attn_l2_norm"] else Scaled(gain=0.25), bias="qv"),
            init=Init(std=0.0, scale_residual=True),
        ),
        head=Categorical.Config(bias="yes"),
        condition=ClassCondition.Config(classes=c["num_classes"], dropout=0.0),
        sampler=Sampler(guidance=Linear(value=c["cfg_scale"]), top_k=c["top_k"], top_p=c["top_p"]),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    c = OPTIONS.read(info)
    layout = TokenLayout(grids=tuple((n, n) for n in c["patch_nums"]), vocabulary=c["vocab_size"])
    return config(info).build(layout, c["num_classes"], _Codec(info))


def names(info: Info) -> NameMap:
    """Official names to ours; ``state_vae/`` is the tokenizer's part that the generator carries."""
    c = OPTIONS.read(info)
    return NameMap(
        *transformer_names(c),
        Rename("word_embed.{p}", "feed.embed.{p}"),
        Rename("pos_start", "feed.position_start"),
        Rename("pos_1LC", "feed.position"),
        Rename("lvl_embed.weight", "feed.position_scale.weight"),
        Ignore("lvl_1L"),
        Ignore("attn_bias_for_masking"),
        *quantizer_rules("state_vae/quantize.", "feed.quantizer.", c["share_quant_resi"]),
    )


def transformer_names(c: Mapping[str, Any]) -> list[Rule]:
    """Blocks, norms, head and classes, which VAR's relatives share."""
    depth, width = c["depth"], c["embed_dim"]
    if c["shared_aln"]:
        norm = [Rename("shared_ada_lin.1.{p}", "net.norm.maps.0.{p}"), _stacked(depth, width)]
    else:
        norm = [Rename("blocks.{i}.ada_lin.1.{p}", "net.norm.maps.{i}.{p}")]
    temperature = "net.attention.{i}.similarity.temperature"
    return [
        *norm,
        Rename("head_nm.ada_lin.1.{p}", "net.norm.final.{p}"),
        Rename("head.{p}", "head.out.{p}"),
        Rename("class_emb.weight", "condition.table.weight"),
        Rename("blocks.{i}.attn.mat_qkv.weight", "net.attention.{i}.qkv.weight"),
        Rename("blocks.{i}.attn.q_bias", "net.attention.{i}.q_bias"),
        Rename("blocks.{i}.attn.v_bias", "net.attention.{i}.v_bias"),
        Rename("blocks.{i}.attn.proj.{p}", "net.attention.{i}.proj.{p}"),
        Rename("blocks.{i}.attn.scale_mul_1H11", temperature, lambda t: t[0], lambda t: t[None]),
        Rename("blocks.{i}.ffn.fc1.{p}", "net.mlp.{i}.up.{p}"),
        Rename("blocks.{i}.ffn.fc2.{p}", "net.mlp.{i}.out.{p}"),
        Ignore("blocks.{i}.attn.zero_k_bias"),
    ]


def _stacked(depth: int, width: int) -> Rule:
    return Rule(
        tuple(f"blocks.{i}.ada_gss" for i in range(depth)),
        ("net.norm.offset.weight",),
        lambda parts: [torch.cat([p.reshape(1, 6 * width) for p in parts])],
        lambda whole: [row.reshape(1, 1, 6, width) for row in whole[0]],
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: teacher-forced logits and losses, guided greedy decoding, gradient norms."""
    ids = inputs["gt_idx_BL"]
    feed = cast(NextScale, model.feed)
    plan = model.order.plan(model.layout, None)
    logits = cast(Categorical, model.head).logits(model(ids, Labels(inputs["label_B"]), plan))
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    steps = list(model.decode_steps(Labels(inputs["gen_label_B"]), greedy(model.sampler), SampleDraws.of(0, 0, len(inputs["gen_label_B"]))))
    return {
        "x_BLCv_wo_first_l": feed.quantizer.next_inputs(ids).detach(),
        "logits_BLV": logits.detach(),
        "loss": nll.mean().detach(),
        "loss_per_scale": torch.stack([p.mean() for p in nll.split(list(model.layout.scale_sizes), dim=1)]).detach(),
        "loss_grad_norms": gradient_norms(model, names(info), nll.mean(), info["grad_norm_keys"]),
        "gen_logits": torch.cat([cast(Tensor, s.logits) for s in steps], dim=1),
        "gen_idx_BL": torch.cat([s.data for s in steps], dim=1),
        # Decoding runs conditional and null rows together; the first half are the samples.
        "gen_f_hat": steps[-1].state[0][: len(inputs["gen_label_B"])],
    }
