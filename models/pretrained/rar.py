"""RAR's transformer (bytedance/1d-tokenizer, Apache-2.0): official weights by name."""

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
from tokenloom.models.parts.feeds.aimed import TargetAware
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Annealed
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.similarity import Normed
from tokenloom.models.parts.visibility import Causal
from tokenloom.models.pretrained.names import NameMap, Rename, Split
from tokenloom.models.pretrained.options import RECORDED, TRAINING, Options, inert, square, used
from tokenloom.models.pretrained.parity import gradient_norms, reorder
from tokenloom.models.sampling.sampler import Constant, PowerCosine, Sampler

FAMILY = "rar"

Info = Mapping[str, Any]

OPTIONS = Options(
    RECORDED,
    TRAINING,
    codebook_size=used("codes", default=1024),
    hidden_size=used("width"),
    num_hidden_layers=used("blocks"),
    num_attention_heads=used("heads"),
    intermediate_size=used("hidden width of the MLP"),
    image_seq_len=used("positions, a square grid", default=256),
    condition_num_classes=used("classes", default=1000),
    guidance_scale=used("scale of guidance at the end, u + s (c - u); 0: none"),
    guidance_scale_pow=used("power of progress in its cosine", default=1.0),
    temperature=used("of sampling", default=1.0),
    kv_cache=inert("of speed"),
    use_checkpoint=inert("of memory"),
)


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    return GroupGenerator.Config(
        order=Annealed(),
        feed=TargetAware.Config(spare_tokens=1, spare_places=1022, spare_steps=99),
        net=Transformer.Config(
            width=c["hidden_size"],
            depth=c["num_hidden_layers"],
            heads=c["num_attention_heads"],
            norm=AdaLN.Config(eps=1e-6, kind="layer"),
            mlp=GELU.Config(ratio=c["intermediate_size"] / c["hidden_size"], form="none"),
            attention=Attention.Config(similarity=Normed(eps=1e-6), bias="qkv"),
        ),
        head=Categorical.Config(bias="yes"),
        condition=ClassCondition.Config(classes=c["condition_num_classes"], dropout=0.0),
        # Official guidance is null + w (cond - null) with w - 1 = (scale - 1) (1 - cos) / 2; the clock is t / L.  A scale of 0 is none.
        sampler=Sampler(
            guidance=PowerCosine(
                value=c["guidance_scale"] - 1 if c["guidance_scale"] else 0.0, power=c["guidance_scale_pow"], clock="begun"
            ),
            temperature=Constant(value=c["temperature"]),
        ),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    c = OPTIONS.read(info)
    side = square("image_seq_len", c["image_seq_len"])
    return config(info).build(TokenLayout(grids=((side, side),), vocabulary=c["codebook_size"]), c["condition_num_classes"])


def names(info: Info) -> NameMap:
    """Official names to ours; official modulation is shift, scale, gate twice, ours gamma, scale, shift of both branches."""
    c = OPTIONS.read(info)
    table = (c["codebook_size"] + 1, c["condition_num_classes"] + 1)
    return NameMap(
        Split("embeddings.weight", ("feed.table.books.0.weight", "condition.table.weight"), sizes=table),
        Rename("cls_token", "feed.lead"),
        Rename("pos_embed", "feed.position"),
        Rename("target_aware_pos_embed", "feed.position_target"),
        Rename("timesteps_embeddings", "feed.position_step"),
        Rename("blocks.{i}.norm1.{p}", "net.norm.branches.{i}.0.{p}"),
        Rename("blocks.{i}.norm2.{p}", "net.norm.branches.{i}.1.{p}"),
        Rename("blocks.{i}.attn.qkv.{p}", "net.attention.{i}.qkv.{p}"),
        Rename("blocks.{i}.attn.q_norm.{p}", "net.attention.{i}.similarity.q.{p}"),
        Rename("blocks.{i}.attn.k_norm.{p}", "net.attention.{i}.similarity.k.{p}"),
        Rename("blocks.{i}.attn.proj.{p}", "net.attention.{i}.proj.{p}"),
        Rename("blocks.{i}.mlp.fc1.{p}", "net.mlp.{i}.up.{p}"),
        Rename("blocks.{i}.mlp.fc2.{p}", "net.mlp.{i}.out.{p}"),
        Rename("blocks.{i}.adaLN_modulation.1.{p}", "net.norm.maps.{i}.{p}", *reorder(2, 5, 1, 4, 0, 3)),
        Rename("adaln_before_head.adaLN_modulation.1.{p}", "net.norm.final.{p}"),
        Rename("lm_head.{p}", "head.out.{p}"),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: logits for given orders, loss, guided greedy decoding, gradient norms."""
    ids, labels = inputs["ids"], Labels(inputs["labels"])
    raster = model.order.plan(model.layout, None)
    head = cast(Categorical, model.head)

    def logits_of(plan: Plan) -> Tensor:
        """Logits of all slots, (B, L + 1, V): upstream feeds the last token too, at which nothing is aimed."""
        cond = model.condition(labels)
        slots = model.feed.parallel(ids, plan, cond, None)
        feed = cast(TargetAware, model.feed)
        last = ids.gather(1, plan.sequence_BL[:, -1:].expand(len(ids), -1))
        place = plan.sequence_BL[:, -1:]
        x = feed.table(last) + feed.position[0, place + 2]
        step = feed.position_step[:, slots.x_BSD.shape[1]][:, None]
        assert isinstance(slots.condition_BSD, Tensor)
        modulated = torch.cat([slots.condition_BSD, cond.vector_BD[:, None] + step], dim=1)
        whole = replace(slots, x_BSD=torch.cat([slots.x_BSD, x], dim=1), condition_BSD=modulated)
        return head.logits(model.net(whole, Causal(), cond)[:, 1:])

    plan = replace(raster, sequence_BL=inputs["orders"])
    logits, target = logits_of(plan), ids.gather(1, inputs["orders"])
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten())
    torch.testing.assert_close(head.logits(model(ids, labels, plan)), logits[:, :-1], atol=1e-4, rtol=1e-4)
    steps = list(model.decode_steps(Labels(inputs["gen_labels"]), model.sampler, SampleDraws.of(0, 0, len(inputs["gen_labels"]))))
    c = OPTIONS.read(info)
    return {
        "condition_ids": inputs["labels"] + c["codebook_size"] + 1,
        "logits": logits.detach(),
        "targets": target,
        "loss": loss.detach(),
        "loss_correct_tokens": (logits[:, :-1].argmax(-1) == target).float().mean(),
        "logits_raster": logits_of(raster).detach(),
        "gen_ids": torch.cat([s.data for s in steps], dim=1),
        "gen_logits": torch.cat([cast(Tensor, s.logits) for s in steps], dim=1),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
