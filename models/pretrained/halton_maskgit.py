"""Halton-MaskGIT's transformer and sampler (valeoai/Halton-MaskGIT, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.embedding import Ids
from tokenloom.models.parts.feeds.masked import MaskToken
from tokenloom.models.parts.heads.categorical import Tied
from tokenloom.models.parts.mlp import SwiGLU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Arccos, Halton, Masked, Steps
from tokenloom.models.parts.similarity import RootMean
from tokenloom.models.pretrained.names import Fuse, Ignore, NameMap, Rename
from tokenloom.models.pretrained.options import RECORDED, TRAINING, Options, at_most, only, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy, reorder
from tokenloom.models.sampling.sampler import Constant, Sampler, Table

FAMILY = "halton_maskgit"

Info = Mapping[str, Any]

OPTIONS = Options(
    RECORDED,
    TRAINING,
    input_size=used("side of the grid"),
    hidden_dim=used("width"),
    codebook_size=used("codes"),
    depth=used("blocks"),
    heads=used("heads"),
    mlp_dim=used("width whose two thirds, in multiples of 256, are the MLP's hidden width"),
    nclass=used("classes", default=1000),
    register=used("slots after the tokens", default=1),
    proj=only(1, why="the official branch for others raises an error"),
    step=used("steps", default=32),
    w=used("constant weight of guidance, (1 + w) c - w u"),
    sm_temp_min=used("factor of the logits at the first step", default=1.0),
    sm_temp_max=used("factor of the logits at the last step", default=1.0),
    temp_pow=used("curve of the factor; with top_k=1 it changes nothing, else 1 alone is known", default=1),
    temp_warmup=used("first steps of another factor; with top_k=1 they change nothing, else 0 alone is known", default=0),
    top_k=used("likeliest codes to draw from", default=1),
    randomize=only(False, why="the random start of the sequence is not among what is recorded"),
)


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings; its sampler may draw [MASK] too."""
    c = OPTIONS.read(info)
    if c["top_k"] != 1 and (c["temp_pow"], c["temp_warmup"]) != (1, 0):
        raise ConfigError(
            f"config.temp_pow={c['temp_pow']}, temp_warmup={c['temp_warmup']}: with top_k={c['top_k']} only 1 and 0 are supported"
        )
    steps = at_most("step", c["step"], c["input_size"] ** 2)
    # Upstream multiplies the logits by a factor that goes from one number to the other.
    factors = [c["sm_temp_min"] + (c["sm_temp_max"] - c["sm_temp_min"]) * i / max(1, steps - 1) for i in range(steps)]
    return GroupGenerator.Config(
        order=Masked(decoding=Steps(count=steps, curve=Arccos(), rounding="down"), visit=Halton()),
        feed=MaskToken.Config(registers=c["register"]),
        net=Transformer.Config(
            width=c["hidden_dim"],
            depth=c["depth"],
            heads=c["heads"],
            norm=AdaLN.Config(eps=1e-5, kind="rms", final="rms_bias"),
            mlp=SwiGLU.Config(multiple_of=256, ratio=c["mlp_dim"] / c["hidden_dim"]),
            # Heads that do not divide the width are as wide as fits.
            attention=Attention.Config(
                similarity=RootMean(eps=1e-5), head_width=c["hidden_dim"] // c["heads"] if c["hidden_dim"] % c["heads"] else 0
            ),
        ),
        head=Tied.Config(extra=1),
        condition=ClassCondition.Config(classes=c["nclass"], dropout=0.0),
        sampler=Sampler(
            guidance=Constant(value=c["w"]),
            temperature=Table(value=1.0, factors=tuple(1 / f for f in factors)) if set(factors) != {1.0} else Constant(value=1.0),
            top_k=max(0, c["top_k"]),
        ),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    c = OPTIONS.read(info)
    return config(info).build(TokenLayout(grids=((c["input_size"],) * 2,), vocabulary=c["codebook_size"]), c["nclass"])


def names(info: Info) -> NameMap:
    """Official names to ours; official modulation is shift, scale, gate twice and shift, scale before the head."""
    return NameMap(
        Rename("cls_emb.weight", "condition.table.weight"),
        Rename("tok_emb.weight", "feed.table.books.0.weight"),
        Rename("pos_emb.weight", "feed.position", lambda t: t[None], lambda t: t[0]),
        Rename("reg_tokens.weight", "feed.register", lambda t: t[None], lambda t: t[0]),
        Rename("transformer.layers.{i}.mlp.1.{p}", "net.norm.maps.{i}.{p}", *reorder(2, 5, 1, 4, 0, 3)),
        Rename("transformer.layers.{i}.ln1.weight", "net.norm.branches.{i}.0.weight"),
        Rename("transformer.layers.{i}.ln2.weight", "net.norm.branches.{i}.1.weight"),
        Fuse((f"transformer.layers.{{i}}.attn.w{n}.weight" for n in "qkv"), "net.attention.{i}.qkv.weight"),
        Rename("transformer.layers.{i}.attn.wo.weight", "net.attention.{i}.proj.weight"),
        Rename("transformer.layers.{i}.ff.w1.weight", "net.mlp.{i}.gate.weight"),
        Rename("transformer.layers.{i}.ff.w3.weight", "net.mlp.{i}.up.weight"),
        Rename("transformer.layers.{i}.ff.w2.weight", "net.mlp.{i}.out.weight"),
        Rename("last_norm.norm_final.{p}", "net.norm.before.{p}"),
        Rename("last_norm.mlp.1.{p}", "net.norm.final.{p}", *reorder(1, 0)),
        Rename("head.bias", "head.bias"),
        Ignore("head.weight"),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: logits and loss of a masked pass, the Halton order, each step of guided greedy sampling."""
    c = OPTIONS.read(info)
    side, codes = c["input_size"], c["codebook_size"]
    head, feed, order = cast(Tied, model.head), cast(MaskToken, model.feed), cast(Masked, model.order)
    ids, masked = inputs["code"].flatten(1), inputs["mask"].flatten(1)
    labels = Labels(torch.where(inputs["drop_label"], c["nclass"], inputs["labels"]))
    logits = head.logits(model(ids, labels, order.of_mask(~masked, 1.0)))
    loss = torch.nn.functional.cross_entropy(logits[masked], ids[masked])
    visited = order.visit.sequence(model.layout, 1, None)[0]
    result = {
        "masked_code": cast(Ids, feed.table).inputs(ids, ~masked).view(-1, side, side),
        "logits": logits.detach(),
        "loss": loss.detach(),
        "halton_order": torch.stack([visited // side, visited % side], 1),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    labels = Labels(inputs["gen_labels"])
    rows = len(inputs["gen_labels"])
    code, predicted, written = torch.zeros(rows, side * side, dtype=torch.long), [], []
    null, weight = model.condition.null(labels), c["w"]
    known = torch.zeros(rows, side * side, dtype=torch.bool)
    for step in model.decode_steps(labels, greedy(model.sampler), SampleDraws.of(0, 0, labels.rows)):
        # Upstream predicts every position at each step and then writes the group; the net's input before the step gives all of them.
        plan = order.of_mask(known, 1.0)
        with torch.no_grad():
            every = (1 + weight) * head.logits(model(code, labels, plan)) - weight * head.logits(model(code, null, plan))
        predicted.append(every.argmax(-1))
        place = step.place_Bn.expand(rows, -1)
        assert torch.equal(predicted[-1].gather(1, place), step.data)
        code, known = code.scatter(1, place, step.data), known.scatter(1, place, True)
        written.append(torch.zeros(rows, side * side).scatter(1, place, 1.0))
    return result | {
        "gen_code": code.clamp_max(codes - 1).view(rows, side, side),
        "gen_pred_per_step": torch.stack(predicted, 1).unflatten(2, (side, side)),
        "gen_mask_per_step": torch.stack(written, 1).unflatten(2, (side, side)),
    }
