"""FlexVAR's transformers (jiaosiyu1999/FlexVAR, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.quantizers.codebook import Codebook
from tokenloom.models.parts.quantizers.flexible import Flexible
from tokenloom.models.pretrained import var
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename
from tokenloom.models.pretrained.options import Options, filters, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy
from tokenloom.models.sampling.sampler import Constant, Linear, Sampler, Schedule, Table
from tokenloom.models.zoo.generators.flexvar.feed import FlexibleScale

FAMILY = "flexvar"

Info = Mapping[str, Any]

OPTIONS = Options(
    var.BLOCKS,
    filters(900, 0.95),
    vocab_size=used("codes"),
    tf_patch_nums=used("scales of a taught pass, if other", default=None),
    infer_patch_nums=used("scales of sampling, if other", default=None),
    used_llamagen_cfg=used(
        "guidance u + s (c - u) at all scales, or VAR's (1 + t) c - t u that grows over ten", True, False, default=False
    ),
    max_pn=used("largest side at which guidance still grows", default=16),
)


class _Codec:
    """What the feed asks of a tokenizer's config."""

    def __init__(self, info: Info) -> None:
        c = OPTIONS.read(info)
        codebook = Codebook.Config(codes=c["vocab_size"], dim=c["Cvae"], metric="cosine")
        self.quantizer = Flexible.Config(codebook=codebook, scales=tuple(c["patch_nums"]))


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings, with the sampler of their inference scales."""
    c = OPTIONS.read(info)
    return replace(var.of(c), feed=FlexibleScale.Config(), sampler=Sampler(guidance=guidance(c), top_k=c["top_k"], top_p=c["top_p"]))


def guidance(c: Mapping[str, Any]) -> Schedule:
    """LlamaGen's convention, a constant scale s with weight s - 1; or VAR's, a weight t that grows over the first ten scales.

    Scales of more than ``max_pn`` positions a side have the whole t.
    """
    if c["used_llamagen_cfg"]:
        return Constant(value=c["cfg_scale"] - 1)
    sides = c["infer_patch_nums"] or c["patch_nums"]
    steps = min(len(sides) - 1, 9)
    if len(sides) <= 10 and max(sides) <= c["max_pn"]:
        return Linear(value=c["cfg_scale"])
    return Table(value=c["cfg_scale"], factors=tuple(i / max(steps, 1) if side <= c["max_pn"] else 1.0 for i, side in enumerate(sides)))


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    c = OPTIONS.read(info)
    layout = TokenLayout(grids=_grids(c["patch_nums"]), vocabulary=c["vocab_size"])
    return config(info).build(layout, c["num_classes"], _Codec(info))


def _grids(sizes: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple((n, n) for n in sizes)


def names(info: Info) -> NameMap:
    """Official names to ours; ``state_vae/`` is the tokenizer's part that the generator carries."""
    rules = var.transformer_names(OPTIONS.read(info))
    return NameMap(
        *rules,
        Rename("word_embed.{p}", "feed.embed.{p}"),
        Rename("pos_start", "feed.position_start"),
        Rename("pos_1LC", "feed.position"),
        Rename("state_vae/quantize.embedding.weight", "feed.quantizer.codebook.weight"),
        Ignore("attn_bias_for_masking"),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: ids and inputs of some scales, teacher-forced logits, generation on others, gradient norms."""
    c = OPTIONS.read(info)
    sides = c["tf_patch_nums"] or c["patch_nums"]
    taught = model.on(_grids(sides))
    quantizer, head = cast(FlexibleScale, taught.feed).quantizer, cast(Categorical, taught.head)
    ids = quantizer.encode(inputs["latent"], sides)
    logits = head.logits(taught(ids, Labels(inputs["label_B"]), taught.order.plan(taught.layout, None)))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    drawn = model.on(_grids(c["infer_patch_nums"] or c["patch_nums"]))
    steps = list(drawn.decode_steps(Labels(inputs["gen_label_B"]), greedy(drawn.sampler), SampleDraws.of(0, 0, len(inputs["gen_label_B"]))))
    return {
        "gt_idx_BL": ids,
        "x_BLCv_wo_first_l": quantizer.next_inputs(ids, sides),
        "logits_BLV": logits.detach(),
        "loss": loss.detach(),
        "gen_final_quant": steps[-1].state[0][: len(inputs["gen_label_B"])],
        "gen_logits": torch.cat([cast(Tensor, s.logits) for s in steps], dim=1),
        "gen_idx_BL": torch.cat([s.data for s in steps], dim=1),
        "loss_grad_norms": gradient_norms(taught, names(info), loss, info["grad_norm_keys"]),
    }
