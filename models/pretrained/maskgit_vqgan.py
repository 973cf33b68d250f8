"""MaskGIT's VQGAN in its PyTorch form (bytedance/1d-tokenizer, Apache-2.0): settings, names and recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.nets.base import signed, unit
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.pretrained.names import NameMap, Rename, Rule
from tokenloom.models.pretrained.options import Options, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import Levels
from tokenloom.models.zoo.tokenizers.maskgit_vqgan.recipe import maskgit_vqgan

FAMILY = "maskgit_vqgan"


#: Settings of the official classes, and of the recording.
OPTIONS = Options(
    hidden_channels=used("width of the first level", default=128),
    channel_mult=used("widths of the levels", default=(1, 1, 2, 2, 4)),
    num_resolutions=used("levels: the first of those of `channel_mult`", default=None),
    num_res_blocks=used("blocks a level and in the middle", default=2),
    num_channels=used("of the images", default=3),
    z_channels=used("channels of a code", default=256),
    num_embeddings=used("codes", default=1024),
    commitment_cost=used("weight of the codebook's term", default=0.25),
    dropout=only(0, why="released and recorded without"),
    resolution=inert("the nets take images of any size"),
    image=used("size of the recorded images"),
    seed=inert("weights are recorded"),
    kind=inert("of the recording"),
)


def vqgan(channels: int, multipliers: tuple[int, ...], blocks: int, codes: int, dim: int, commitment: float = 0.25) -> Autoencoder.Config:
    """The recipe's config for official settings; there the commitment cost weighs the codebook's term and the encoder's has weight 1."""
    levels = Levels(channels=channels, multipliers=multipliers, patch=1, blocks=blocks)
    return maskgit_vqgan(codes=codes, dim=dim, beta=1.0, weight=commitment, norm_groups=32, update="learned", levels=levels)


def _levels(c: Mapping[str, Any]) -> tuple[int, ...]:
    multipliers, count = tuple(c["channel_mult"]), c["num_resolutions"]
    if count is not None and not 1 <= count <= len(multipliers):
        raise ConfigError(f"config.num_resolutions={count}: channel_mult={list(multipliers)} has {len(multipliers)} levels")
    return multipliers[:count]


def config(info: Mapping[str, Any]) -> Autoencoder.Config:
    """Our config for ``info["config"]``."""
    c = OPTIONS.read(info)
    return vqgan(c["hidden_channels"], _levels(c), c["num_res_blocks"], c["num_embeddings"], c["z_channels"], c["commitment_cost"])


def build(info: Mapping[str, Any]) -> Autoencoder:
    """The tokenizer with fresh weights."""
    c = OPTIONS.read(info)
    return config(info).build(signal=signals.image(c["image"], c["num_channels"]))


def _block(official: str, ours: str) -> tuple[Rule, ...]:
    return (
        *(Rename(f"{official}.{part}.{{p}}", f"{ours}.{part}.{{p}}") for part in ("norm1", "conv1", "norm2", "conv2")),
        Rename(f"{official}.nin_shortcut.{{p}}", f"{ours}.shortcut.{{p}}"),
    )


def side_rules(official: str, ours: str, side: str, levels: int) -> tuple[Rule, ...]:
    """Names of the encoder or the decoder; the decoder's levels count from the full resolution there, from the lowest here."""
    rules = [Rename(f"{official}.{part}.{{p}}", f"{ours}.{part}.{{p}}") for part in ("conv_in", "norm_out", "conv_out")]
    rules += _block(f"{official}.mid.{{i}}", f"{ours}.middle.{{i}}")
    for level in range(levels):
        theirs = f"{official}.down.{level}" if side == "encoder" else f"{official}.up.{levels - 1 - level}"
        rules += _block(f"{theirs}.block.{{i}}", f"{ours}.levels.{level}.{{i}}")
        if side == "decoder" and level + 1 < levels:
            rules.append(Rename(f"{theirs}.upsample_conv.{{p}}", f"{ours}.changes.{level}.{{p}}"))
    return tuple(rules)


def names(info: Mapping[str, Any]) -> NameMap:
    """Official names to ours."""
    levels = len(_levels(OPTIONS.read(info)))
    sides = [rule for side in ("encoder", "decoder") for rule in side_rules(side, side, side, levels)]
    return NameMap(*sides, Rename("quantize.embedding.weight", "quantizer.codebook.weight"))


def outputs(model: Autoencoder, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records, with images in [0, 1]: latents, ids, images, soft codes, loss, gradient norms."""
    image_BCHW = signed(inputs["image"])
    quantizer = model.quantizer
    assert isinstance(quantizer, VQ)
    with torch.no_grad():
        z_BCHW = model.latents(image_BCHW)
        ids_BL = quantizer.encode(z_BCHW)
        quantized = quantizer(z_BCHW)
        decoded = unit(model.pixels(quantized.z))
        z_NC, table_KC = z_BCHW.permute(0, 2, 3, 1).flatten(0, 2), quantizer.codebook.weight
        distance_NK = z_NC.square().sum(1, keepdim=True) + table_KC.square().sum(1) - 2 * z_NC @ table_KC.T
        entry = quantizer.lookup(ids_BL)
        clamped = unit(model.decode(model.encode(image_BCHW)))
    loss = torch.stack(list(model(image_BCHW)[1].losses.values())).sum()
    return {
        "z": z_BCHW,
        "quant": quantized.z,
        "ids": quantized.ids,
        "get_code": ids_BL,
        "codebook_entry": entry,
        "decoded": decoded,
        "decoded_clamped": clamped,
        "soft_code": (-distance_NK).softmax(1).unflatten(0, ids_BL.shape),
        "loss_quantizer": loss.detach(),
        "loss_quantizer_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
