"""TokenBridge's generator (YuqingWang1029/TokenBridge, MIT): official weights by name."""

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
from tokenloom.models.parts.feeds.known_values import KnownValues
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.masked_autoencoder import MaskedAutoencoder
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN, PreNorm
from tokenloom.models.parts.orders import Masked, Steps
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.quantizers.dimensionwise import Dimensionwise
from tokenloom.models.parts.similarity import Normed
from tokenloom.models.pretrained.names import Fuse, Ignore, NameMap, Rename
from tokenloom.models.pretrained.options import RECORDED, TRAINING, Options, at_most, filters, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms, greedy, reorder
from tokenloom.models.sampling.sampler import Constant, Linear, Sampler
from tokenloom.models.zoo.generators.tokenbridge_ar.head import Channelwise

FAMILY = "tokenbridge"

Info = Mapping[str, Any]

OPTIONS = Options(
    RECORDED,
    TRAINING,
    filters(),
    img_size=used("side of the images", default=256),
    vae_stride=used("pixels of a position", default=16),
    patch_size=only(1, why="the official channel order is of single positions"),
    encoder_embed_dim=used("width of the encoder"),
    encoder_depth=used("its blocks"),
    encoder_num_heads=used("its heads"),
    decoder_embed_dim=used("width of the decoder"),
    decoder_depth=used("its blocks"),
    decoder_num_heads=used("its heads"),
    channel_embed_dim=used("width of the channel predictor"),
    channel_depth=used("its blocks"),
    channel_heads=used("its heads"),
    mlp_ratio=used("of the MLPs' hidden width", default=4.0),
    quant_levels=used("levels of a channel"),
    vae_embed_dim=only(16, why="the official channel order lists sixteen channels"),
    class_num=used("classes", default=1000),
    buffer_size=used("slots of the class", default=64),
    quant_min=used("lowest latent", default=-5.0),
    quant_max=used("highest latent", default=5.0),
    std_range=used("where the normal is cut", default=3.0),
    mask_rate=used("share of masked positions of the taught pass", default=1.0),
    num_iter=used("steps along a cosine", default=64),
    cfg_scale=used("scale s of guidance of features, u + s (c - u)", default=1.0),
    cfg_schedule=used("of guidance: growing with the tokens known after the step, or the same", "linear", "constant", default="linear"),
    temperature=used("of sampling", default=1.0),
    label_drop_prob=inert("of training alone"),
    mask_ratio_min=inert("of training alone"),
    proj_dropout=inert("of training alone"),
    grad_checkpointing=inert("of memory"),
)

#: The channels as the released models predict them.
CHANNELS = (8, 1, 10, 9, 6, 12, 4, 0, 3, 11, 7, 14, 2, 15, 13, 5)
EPS = 1e-6


class _Codec:
    """What the feed asks of a tokenizer's config."""

    def __init__(self, info: Info) -> None:
        c = settings(info)
        self.quantizer = Dimensionwise.Config(dim=c["vae_embed_dim"], levels=c["quant_levels"], clip=c["std_range"])


def settings(info: Info) -> dict[str, Any]:
    """The official settings, read strictly."""
    c = OPTIONS.read(info)
    if c["img_size"] % c["vae_stride"]:
        raise ConfigError(f"config.img_size={c['img_size']}: must be a multiple of vae_stride={c['vae_stride']}")
    at_most("num_iter", c["num_iter"], (c["img_size"] // c["vae_stride"]) ** 2)
    return {**c, "vae_embed_dim": len(CHANNELS)}


def quantizer(info: Info) -> Dimensionwise:
    """The released levels: the range of the latents is that of the cut normal."""
    c = settings(info)
    side = c["img_size"] // c["vae_stride"]
    made = cast(Dimensionwise, _Codec(info).quantizer.build((side, side)))
    made.std.fill_((c["quant_max"] - c["quant_min"]) / (2 * c["std_range"]))
    made.mean.fill_((c["quant_max"] + c["quant_min"]) / 2)
    return made


def _blocks(c: Mapping[str, Any], name: str) -> Transformer.Config:
    return Transformer.Config(
        width=c[f"{name}_embed_dim"],
        depth=c[f"{name}_depth"],
        heads=c[f"{name}_num_heads"],
        norm=PreNorm.Config(kind="layer", eps=EPS),
        mlp=GELU.Config(ratio=c["mlp_ratio"], form="none"),
        attention=Attention.Config(bias="qkv"),
    )


def config(info: Info) -> GroupGenerator.Config:
    """Our config for the official settings."""
    c = settings(info)
    # Official scale s is u + s (c - u) of features, growing with the tokens known after the step where it is linear; ours is w = s - 1.
    weight = c["cfg_scale"] - 1
    channel = Transformer.Config(
        width=c["channel_embed_dim"],
        depth=c["channel_depth"],
        heads=c["channel_heads"],
        norm=AdaLN.Config(eps=EPS, kind="layer"),
        mlp=GELU.Config(ratio=c["mlp_ratio"], form="none"),
        attention=Attention.Config(similarity=Normed(eps=EPS), bias="qkv"),
    )
    return GroupGenerator.Config(
        order=Masked(decoding=Steps(count=c["num_iter"])),
        feed=KnownValues.Config(buffer=c["buffer_size"]),
        net=MaskedAutoencoder.Config(encoder=_blocks(c, "encoder"), decoder=_blocks(c, "decoder"), buffer=c["buffer_size"]),
        head=Channelwise.Config(net=channel, order=CHANNELS, eps=EPS),
        condition=ClassCondition.Config(classes=c["class_num"], dropout=0.0),
        sampler=Sampler(
            guidance=Linear(value=weight, clock="almost") if c["cfg_schedule"] == "linear" else Constant(value=weight),
            temperature=Constant(value=c["temperature"]),
            top_k=c["top_k"],
            top_p=c["top_p"],
        ),
    )


def build(info: Info) -> GroupGenerator:
    """Our model for the official settings."""
    c = settings(info)
    side = c["img_size"] // c["vae_stride"]
    layout = TokenLayout(grids=((side, side),), vocabulary=c["quant_levels"], codebooks=c["vae_embed_dim"])
    return config(info).build(layout, c["class_num"], _Codec(info))


class _Names(NameMap):
    """The values of the levels are ours: official checkpoints hold those of a unit normal."""

    def __init__(self, info: Info, *rules: Any) -> None:
        super().__init__(*rules)
        c = settings(info)
        levels = torch.arange(c["quant_levels"])[:, None].expand(-1, c["vae_embed_dim"])
        self.values = quantizer(info).dequantise(levels).T.contiguous()

    def load(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().load(official) | {"feed.values": self.values}

    def dump(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().dump({k: v for k, v in ours.items() if k != "feed.values"})


def names(info: Info) -> NameMap:
    """Official names to ours; the null class is the last of ours."""
    channel = "head.net."
    return _Names(
        info,
        Fuse(("class_emb.weight", "fake_latent"), "condition.table.weight", sizes=(settings(info)["class_num"], 1)),
        Rename("encoder_pos_embed_learned", "feed.position"),
        Rename("z_proj.{p}", "feed.embed.{p}"),
        Rename("z_proj_ln.{p}", "feed.norm.{p}"),
        Rename("decoder_pos_embed_learned", "net.position"),
        Rename("output_pos_embed", "net.position_out"),
        Rename("mask_token", "net.mask"),
        Rename("decoder_embed.{p}", "net.between.{p}"),
        *(
            rule
            for name in ("encoder", "decoder")
            for rule in (
                Rename(f"{name}_blocks.{{i}}.norm1.{{p}}", f"net.{name}.norm.branches.{{i}}.0.{{p}}"),
                Rename(f"{name}_blocks.{{i}}.norm2.{{p}}", f"net.{name}.norm.branches.{{i}}.1.{{p}}"),
                Rename(f"{name}_blocks.{{i}}.attn.{{p}}", f"net.{name}.attention.{{i}}.{{p}}"),
                Rename(f"{name}_blocks.{{i}}.mlp.fc1.{{p}}", f"net.{name}.mlp.{{i}}.up.{{p}}"),
                Rename(f"{name}_blocks.{{i}}.mlp.fc2.{{p}}", f"net.{name}.mlp.{{i}}.out.{{p}}"),
                Rename(f"{name}_norm.{{p}}", f"net.{name}.norm.final.{{p}}"),
            )
        ),
        Rename("condition_proj.{p}", "head.features.{p}"),
        Rename("channel_embed", "head.position"),
        Rename("timesteps_embeddings", "head.position_step"),
        Rename("token_embeddings.{i}.weight", "head.table.{i}.weight"),
        Rename("channel_blocks.{i}.norm1.{p}", f"{channel}norm.branches.{{i}}.0.{{p}}"),
        Rename("channel_blocks.{i}.norm2.{p}", f"{channel}norm.branches.{{i}}.1.{{p}}"),
        Rename("channel_blocks.{i}.attn.q_norm.{p}", f"{channel}attention.{{i}}.similarity.q.{{p}}"),
        Rename("channel_blocks.{i}.attn.k_norm.{p}", f"{channel}attention.{{i}}.similarity.k.{{p}}"),
        Rename("channel_blocks.{i}.attn.qkv.{p}", f"{channel}attention.{{i}}.qkv.{{p}}"),
        Rename("channel_blocks.{i}.attn.proj.{p}", f"{channel}attention.{{i}}.proj.{{p}}"),
        Rename("channel_blocks.{i}.mlp.fc1.{p}", f"{channel}mlp.{{i}}.up.{{p}}"),
        Rename("channel_blocks.{i}.mlp.fc2.{p}", f"{channel}mlp.{{i}}.out.{{p}}"),
        Rename("channel_blocks.{i}.adaLN_modulation.1.{p}", f"{channel}norm.maps.{{i}}.{{p}}", *reorder(2, 5, 1, 4, 0, 3)),
        Rename("channel_final.adaLN_modulation.1.{p}", f"{channel}norm.final.{{p}}"),
        Rename("channel_norm.{p}", "head.norm.{p}"),
        Rename("channel_heads.{i}.{p}", "head.out.{i}.{p}"),
        *(Ignore(name) for name in ("channel_mask", "boundaries", "reconstruction_values")),
    )


def outputs(model: GroupGenerator, info: Info, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number of the fixture: ids and values, a masked pass with its loss, guided greedy sampling step by step, gradient norms."""
    c, head, feed = settings(info), cast(Channelwise, model.head), cast(KnownValues, model.feed)
    order, rows = cast(Masked, model.order), len(inputs["latent"])
    ids = quantizer(info).quantise(inputs["latent"].flatten(2).transpose(1, 2))
    length = ids.shape[1]
    masked = torch.zeros(rows, length, dtype=torch.bool)
    count = -int(-length * c["mask_rate"] // 1)
    masked.scatter_(1, torch.stack([inputs[f"tf_order_{row}"] for row in range(rows)])[:, :count], True)
    labels = Labels(torch.where(inputs["tf_label_drop_uniform"] < 0.1, c["class_num"], inputs["labels"]))
    z = model(ids, labels, order.of_mask(~masked, 1.0))
    target = ids[..., head.order]
    logits = head.logits(z, ids)[masked]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target[masked].flatten())
    result = {
        "quant_indices": ids,
        "quant_values": feed.of_ids(ids),
        "tf_mask": masked.float(),
        "tf_z": z.detach(),
        "loss": loss.detach(),
        "tf_logits": logits.detach(),
        "tf_channel_targets": target,
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
    # Official orders are decoded from the back; sampling starts the channels from features plus the first step's vector.
    sequence = torch.stack([inputs[f"gen_order_{row}"] for row in range(len(inputs["gen_labels"]))]).flip(1)
    plan = Plan(sequence, order.decoding.cut(length))
    features: list[Tensor] = []

    def first(features_ME: Tensor) -> Tensor:
        return features_ME + head.position_step[:, 0]

    head.first = first  # type: ignore[method-assign]
    hook = head.features.register_forward_pre_hook(lambda module, given: features.append(given[0]))
    labels = Labels(inputs["gen_labels"])
    steps = list(model.decode_steps(labels, greedy(model.sampler), SampleDraws.of(0, 0, labels.rows), plan=plan))
    hook.remove()
    for i, (step, feature) in enumerate(zip(steps, features, strict=True)):
        # Upstream lists the positions of a step in raster order.
        where = step.place_Bn.argsort(1)[..., None]
        feature = feature.unflatten(0, step.data.shape[:2])
        result[f"gen_features_{i}"] = feature.gather(1, where.expand_as(feature)).flatten(0, 1)
        result[f"gen_ids_{i}"] = step.data.gather(1, where.expand_as(step.data)).flatten(0, 1)[:, head.order]
    drawn = steps[-1].state[0][: len(inputs["gen_labels"])]
    return result | {"gen_latent": feed.of_ids(drawn).transpose(1, 2).unflatten(2, model.layout.grids[0])}
