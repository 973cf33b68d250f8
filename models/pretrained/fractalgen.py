"""FractalGen (LTH14/fractalgen, MIT): official weights by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.pretrained.names import NameMap, Rename, Rule
from tokenloom.models.pretrained.options import RECORDED, Options, inert, used
from tokenloom.models.pretrained.parity import calls_of, gradient_norms
from tokenloom.models.zoo.densities.fractalgen.level import Level, LevelSize
from tokenloom.models.zoo.densities.fractalgen.module import FractalGen, FractalSampler
from tokenloom.models.zoo.densities.fractalgen.recipe import fractalgen

FAMILY = ("fractalgen_ar", "fractalgen_mar", "fractalgen_guiding")

Info = Mapping[str, Any]

OPTIONS = Options(
    RECORDED,
    {k: inert("of training alone") for k in ("label_drop_prob", "attn_dropout", "proj_dropout", "grad_checkpointing")},
    img_size_list=used("sides of the levels, from the image to a pixel"),
    embed_dim_list=used("their widths"),
    num_blocks_list=used("their blocks"),
    num_heads_list=used("their heads"),
    generator_type_list=used("their kinds: ar or mar"),
    class_num=used("classes"),
    guiding_pixel=used("whether a mean pixel is drawn first"),
    guiding_pixel_loss=used("size of its head", default=None),
    num_conds=used("conditions of a patch", 1, 5),
    r_weight=used("weight of the first channel"),
    num_iter_list=used("steps of masked levels"),
    cfg=used("scale s of guidance, u + s (c - u)"),
    cfg_schedule=used("of guidance: growing over the outermost level, or the same", "linear", "constant"),
    temperature=used("factor of logits"),
    filter_threshold=used("probability below which guidance does not raise a value"),
)
GUIDE = Options(width=used("width", default=128), depth=used("blocks", default=3), num_heads=used("heads", default=4))


def config(info: Info) -> FractalGen.Config:
    """Our config for the official settings."""
    c = OPTIONS.read(info)
    count = len(c["img_size_list"])
    lists = [c[f"{name}_list"] for name in ("img_size", "embed_dim", "num_blocks", "num_heads", "generator_type")]
    sizes = tuple(
        LevelSize(side=side, width=width, depth=depth, heads=heads, kind=kind, steps=steps)
        for side, width, depth, heads, kind, steps in zip(*lists, [*c["num_iter_list"], *[1] * count])
    )
    inner = GUIDE.read({"config": c["guiding_pixel_loss"] or {}})
    guide = (inner["width"], inner["depth"], inner["num_heads"]) if c["guiding_pixel"] else None
    sampler = FractalSampler(weight=c["cfg"] - 1, schedule=c["cfg_schedule"], sharpness=c["temperature"], threshold=c["filter_threshold"])
    made = fractalgen(classes=c["class_num"])
    return replace(made, levels=sizes, conditions=c["num_conds"], guide=guide, first=c["r_weight"], sampler=sampler)


def build(info: Info) -> FractalGen:
    """Our model for the official settings."""
    return config(info).build(signal=signals.image(info["config"]["img_size_list"][0], 3))


def names(info: Info) -> NameMap:
    """Official names to ours: each level is inside of the one before it there."""
    c, prefix, rules = info["config"], "", []
    for index, kind in enumerate(c["generator_type_list"][:-1]):
        rules += _level(f"{prefix}generator.", f"levels.{index}.", kind)
        prefix += "next_fractal."
    return NameMap(Rename("class_emb.weight", "classes.weight"), Rename("fake_latent", "null"), *rules, *_pixel(prefix, "pixels."))


def _blocks(official: str, ours: str) -> list[Rule]:
    block = f"{official}blocks.{{i}}."
    return [
        Rename(f"{block}norm1.{{p}}", f"{ours}net.norm.branches.{{i}}.0.{{p}}"),
        Rename(f"{block}norm2.{{p}}", f"{ours}net.norm.branches.{{i}}.1.{{p}}"),
        Rename(f"{block}attn.{{p}}", f"{ours}net.attention.{{i}}.{{p}}"),
        Rename(f"{block}mlp.fc1.{{p}}", f"{ours}net.mlp.{{i}}.up.{{p}}"),
        Rename(f"{block}mlp.fc2.{{p}}", f"{ours}net.mlp.{{i}}.out.{{p}}"),
    ]


def _level(official: str, ours: str, kind: str) -> list[Rule]:
    block = f"{official}blocks.{{i}}."
    shared = [
        Rename(f"{official}patch_emb.{{p}}", f"{ours}embed.{{p}}"),
        Rename(f"{official}patch_emb_ln.{{p}}", f"{ours}norm_in.{{p}}"),
        Rename(f"{official}cond_emb.{{p}}", f"{ours}condition.{{p}}"),
        Rename(f"{official}pos_embed_learned", f"{ours}position"),
    ]
    if kind == "mar":
        return [
            *shared,
            *_blocks(official, ours),
            Rename(f"{official}norm.{{p}}", f"{ours}norm_out.{{p}}"),
            Rename(f"{official}mask_token", f"{ours}mask"),
            Rename(f"{official}pix_proj.{{p}}", f"{ours}pixel.{{p}}"),
            *_pixel(f"{official}guiding_pixel_loss.", f"{ours}guide."),
        ]
    return [
        *shared,
        Rename(f"{official}norm.{{p}}", f"{ours}norm_out.{{p}}"),
        Rename(f"{block}attention.wqkv.weight", f"{ours}net.attention.{{i}}.qkv.weight"),
        Rename(f"{block}attention.wo.weight", f"{ours}net.attention.{{i}}.proj.weight"),
        Rename(f"{block}feed_forward.w1.weight", f"{ours}net.mlp.{{i}}.gate.weight"),
        Rename(f"{block}feed_forward.w3.weight", f"{ours}net.mlp.{{i}}.up.weight"),
        Rename(f"{block}feed_forward.w2.weight", f"{ours}net.mlp.{{i}}.out.weight"),
        Rename(f"{block}attention_norm.weight", f"{ours}net.norm.branches.{{i}}.0.weight"),
        Rename(f"{block}ffn_norm.weight", f"{ours}net.norm.branches.{{i}}.1.weight"),
    ]


def _pixel(official: str, ours: str) -> list[Rule]:
    return [
        Rename(f"{official}cond_proj.{{p}}", f"{ours}condition.{{p}}"),
        *(Rename(f"{official}{name}_codebook.weight", f"{ours}codes.{i}.weight") for i, name in enumerate("rgb")),
        *(Rename(f"{official}{name}_mlm.bias", f"{ours}bias.{i}", lambda t: t[0], lambda t: t[None]) for i, name in enumerate("rgb")),
        Rename(f"{official}ln.{{p}}", f"{ours}norm.{{p}}"),
        *_blocks(official, ours),
        Rename(f"{official}norm.{{p}}", f"{ours}net.norm.final.{{p}}"),
    ]


class _InOrder(SampleDraws):
    """Recorded uniform numbers of the orders, in the order of the calls."""

    def __init__(self, rows: int, numbers: list[Tensor]) -> None:
        super().__init__(torch.zeros(rows, dtype=torch.int64))
        self.left = numbers

    def uniform(self, stream: str, step: int | Tensor, *shape: int) -> Tensor:
        return self.left.pop(0)

    def fork(self, stream: str) -> SampleDraws:
        return self

    def children(self, stream: str, count: int) -> SampleDraws:
        return self


def outputs(model: FractalGen, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: training with recorded masks, level by level, and guided greedy sampling."""
    value = inputs["image_uint8"]
    x = model.standard(value.movedim(1, -1)).movedim(-1, 1)
    labels = torch.where(inputs["tf_label_drop_uniform"] < 0.1, -1, inputs["labels"])
    uniform = [inputs[k] for k in sorted((k for k in inputs if k.startswith("tf_order_uniform_")), key=lambda k: int(k.split("_")[-1]))]
    masks: list[Tensor] = []

    def rule(level: Level) -> Callable[[Tensor], Tensor] | None:
        if level.kind == "ar":
            return None

        def hidden(which: Tensor) -> Tensor:
            # The shares that the fixture has in place of the truncated normal's, one a row.
            share = 0.4 + 0.6 * ((37 * torch.arange(len(which)) + 11) % 100) / 100
            count = torch.ceil(level.length * share.double()).long()
            masks.append(uniform[len(masks)].argsort(1) < count[:, None])
            return masks[-1]

        return hidden

    # Upstream rounds mean pixels after adding noise, which decides between two values that are equally near. The fixture did not record
    # it, but the generator that its orders come from tells it.
    stream = torch.Generator().manual_seed(info["config"]["seed"] + 3)
    torch.rand(len(x), generator=stream)

    taken = 0

    def noise(rows: int) -> Tensor:
        nonlocal taken
        while taken < len(masks):
            if not torch.allclose(torch.rand(uniform[taken].shape, generator=stream), uniform[taken]):
                raise ConfigError(f"config.seed={info['config']['seed']}: the recorded orders are not of this seed; roundings are unknown")
            taken += 1
        return 0.01 * torch.randn(rows, 3, generator=stream)

    levels = cast(list[Level], list(model.levels))
    watched = [calls_of(level, "predict") for level in levels]
    calls = [each.__enter__() for each in watched]
    with calls_of(model.pixels, "logits") as pixel_calls:
        loss = model.trained(x, model.roots(labels, len(x)), [rule(level) for level in levels], noise)
    for each in watched:
        each.__exit__(None, None, None)
    (target, _), logits = pixel_calls[0]
    result = {
        "image_normalized": x,
        "loss": loss.detach(),
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
        "tf_pixel_logits_first64": logits[:64].detach(),
        "tf_pixel_targets": target.to(torch.uint8),
    }
    result |= {f"tf_cond_level{i}": found[0][1][:12].detach() for i, found in enumerate(calls)}
    hidden = iter(masks)
    result |= {f"tf_mask_level{i}": next(hidden).float() for i, level in enumerate(levels) if level.kind == "mar"}
    orders = [inputs[k] for k in sorted((k for k in inputs if k.startswith("gen_order_uniform_")), key=lambda k: int(k.split("_")[-1]))]
    count = 0

    def greedy(logits_MV: Tensor, draws: SampleDraws, channel: int) -> Tensor:
        nonlocal count
        count += 1
        return logits_MV.argmax(-1)

    with torch.no_grad():
        drawn = model.drawn(inputs["gen_labels"], _InOrder(len(inputs["gen_labels"]), orders), greedy)
    return result | {
        "gen_image_uint8": drawn.to(torch.uint8),
        "gen_image_normalized": model.standard(drawn.movedim(1, -1)).movedim(-1, 1),
        "gen_pixel_calls": torch.tensor(count),
    }
