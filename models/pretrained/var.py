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
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.pretrained.var_vqvae import quantizer, quantizer_rules
from tokenloom.models.sampling.sampler import Linear, Sampler

FAMILY = ("var", "var_shared_aln")

Info = Mapping[str, Any]


class _Codec:
    """What a next-scale feed asks of a tokenizer's config."""

    def __init__(self, info: Info) -> None:
        self.quantizer = quantizer(info["config"], info["config"]["Cvae"])


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = info["config"]
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
        sampler=Sampler(guidance=Linear(value=c["cfg_scale"]), top_k=1),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    grids = tuple((n, n) for n in info["config"]["patch_nums"])
    layout = TokenLayout(grids=grids, vocabulary=info["config"]["vocab_size"])
    return config(info).build(layout, info["config"]["num_classes"], _Codec(info))


def names(info: Info) -> NameMap:
    """Official names to ours; ``state_vae/`` is the tokenizer's part that the generator carries."""
    return NameMap(
        *transformer_names(info),
        Rename("word_embed.{p}", "feed.embed.{p}"),
        Rename("pos_start", "feed.position_start"),
        Rename("pos_1LC", "feed.position"),
        Rename("lvl_embed.weight", "feed.position_scale.weight"),
        Ignore("lvl_1L"),
        Ignore("attn_bias_for_masking"),
        *quantizer_rules("state_vae/quantize.", "feed.quantizer.", info["config"]["share_quant_resi"]),
    )


def transformer_names(info: Info) -> list[Rule]:
    """Blocks, norms, head and classes, which VAR's relatives share."""
    depth, width = info["config"]["depth"], info["config"]["embed_dim"]
    if info["config"]["shared_aln"]:
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
    steps = list(model.decode_steps(Labels(inputs["gen_label_B"]), model.sampler, SampleDraws.of(0, 0, len(inputs["gen_label_B"]))))
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
