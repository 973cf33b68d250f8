"""TiTok's tokenizers (bytedance/1d-tokenizer, Apache-2.0): settings, names and recorded numbers.

Three layouts: ``titok_legacy_stage1`` gives logits over the base's codes, ``titok_legacy`` has the base's pixel decoder behind them,
``titok`` gives pixels itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.parts.nets.base import signed, unit
from tokenloom.models.parts.nets.queries import CodeQueries, Queries
from tokenloom.models.parts.nets.vit import Blocks
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.pretrained.maskgit_vqgan import side_rules, vqgan
from tokenloom.models.pretrained.names import NameMap, Rename, Rule
from tokenloom.models.pretrained.options import Options, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import codebook
from tokenloom.models.zoo.tokenizers.titok.module import TwoStage

FAMILY = ("titok", "titok_legacy", "titok_legacy_stage1")
#: Codes of the base tokenizer.
CODES = 1024


#: Settings of the official classes, and of the recording; the sizes of the nets stand for S, B and L of the official ones.
OPTIONS = Options(
    is_legacy=used("queries are read scrambled, and the decoder names codes of the base", True, False, default=True),
    finetune_decoder=used("of a legacy model: the base's pixel decoder stands behind the codes", True, False, default=True),
    crop_size=used("size of the images", default=256),
    vit_patch_size=used("pixels a patch", default=16),
    width=used("of both sides"),
    layers=used("of both sides"),
    heads=used("of both sides"),
    decoder_width=used("of the decoder alone", default=None),
    decoder_layers=used("of the decoder alone", default=None),
    decoder_heads=used("of the decoder alone", default=None),
    num_latent_tokens=used("tokens an image"),
    token_size=used("channels of a code", default=12),
    codebook_size=used("codes", default=4096),
    commitment_cost=used(default=0.25),
    use_l2_norm=used("cosine metric", True, False, default=True),
    quantize_mode=only("vq", why="no fixture has the continuous one, which the recipe builds"),
    clustering_vq=only(False, why="codes are replaced by random draws"),
    pixel_dim=used("channels of the base's codes", default=256),
    pixel_channel_mult=used("widths of the base's levels", default=None),
    seed=inert("weights are recorded"),
    kind=inert("of the recording"),
)


def config(info: Mapping[str, Any]) -> Autoencoder.Config:
    """Our config for ``info["config"]``; ``is_legacy`` decides what the decoder gives and how the queries are read."""
    c = OPTIONS.read(info)
    encoder = Blocks.Config(width=c["width"], depth=c["layers"], heads=c["heads"])
    decoder = Blocks.Config(
        width=c["decoder_width"] or encoder.width, depth=c["decoder_layers"] or encoder.depth, heads=c["decoder_heads"] or encoder.heads
    )
    values = {
        "patch": c["vit_patch_size"],
        "tokens": c["num_latent_tokens"],
        "encoder_blocks": encoder,
        "decoder_blocks": decoder,
        "reading": "scrambled" if c["is_legacy"] else "tokens",
    }
    naming = c["is_legacy"] and not c["finetune_decoder"]
    fields: dict[str, Any] = {
        "net": CodeQueries(codes=CODES, **values) if naming else Queries(**values),
        "quantizer": VQ.Config(
            codebook=codebook(c["codebook_size"], c["token_size"], "cosine" if c["use_l2_norm"] else "l2", "learned"),
            beta=c["commitment_cost"],
        ),
        "latent": c["token_size"],
        "quant_kernel": 0,
    }
    if not c["is_legacy"] or not c["finetune_decoder"]:
        return Autoencoder.Config(**fields)
    return TwoStage.Config(**fields, base=vqgan(*_pixel_decoder(c)))


def _pixel_decoder(c: Mapping[str, Any]) -> tuple[int, tuple[int, ...], int, int, int]:
    """Channels, multipliers, blocks, codes and code size of the base: the released ones unless the settings say so."""
    if c["pixel_channel_mult"]:
        return 32, tuple(c["pixel_channel_mult"]), 1, CODES, c["pixel_dim"]
    return 128, (1, 1, 2, 2, 4), 2, CODES, 256


def build(info: Mapping[str, Any]) -> Autoencoder:
    """The tokenizer with fresh weights."""
    c, ours = OPTIONS.read(info), config(info)
    if not isinstance(ours, TwoStage.Config) or ours.base is None:
        return ours.build(signal=signals.image(c["crop_size"], 3))
    # The base's own image size follows from its grid: settings may have fewer levels than the patch has doublings.
    size = c["crop_size"] // c["vit_patch_size"] * 2 ** (len(_pixel_decoder(c)[1]) - 1)
    return TwoStage(ours, signals.image(c["crop_size"], 3), ours.base.build(signal=signals.image(size, 3)))


def _trunk(side: str, ours: str) -> list[Rule]:
    """Class token, positions, norms and blocks."""
    block, mine = f"{side}.transformer.{{i}}", f"{ours}.stack.blocks.{{i}}"
    return [
        Rename(f"{side}.class_embedding", f"{ours}.class_token"),
        Rename(f"{side}.positional_embedding", f"{ours}.position"),
        Rename(f"{side}.latent_token_positional_embedding", f"{ours}.further_position"),
        Rename(f"{side}.ln_pre.{{p}}", f"{ours}.norm_pre.{{p}}"),
        Rename(f"{side}.ln_post.{{p}}", f"{ours}.norm_post.{{p}}"),
        Rename(f"{block}.ln_1.{{p}}", f"{mine}.norm1.{{p}}"),
        Rename(f"{block}.ln_2.{{p}}", f"{mine}.norm2.{{p}}"),
        Rename(f"{block}.attn.in_proj_weight", f"{mine}.attention.qkv.weight"),
        Rename(f"{block}.attn.in_proj_bias", f"{mine}.attention.qkv.bias"),
        Rename(f"{block}.attn.out_proj.{{p}}", f"{mine}.attention.proj.{{p}}"),
        Rename(f"{block}.mlp.c_fc.{{p}}", f"{mine}.mlp.up.{{p}}"),
        Rename(f"{block}.mlp.c_proj.{{p}}", f"{mine}.mlp.out.{{p}}"),
    ]


def _linear(official: str, ours: str) -> list[Rule]:
    """A 1x1 convolution there, a linear layer here."""
    return [
        Rename(f"{official}.weight", f"{ours}.weight", lambda t: t[:, :, 0, 0], lambda t: t[:, :, None, None]),
        Rename(f"{official}.bias", f"{ours}.bias"),
    ]


def names(info: Mapping[str, Any]) -> NameMap:
    """Official names to ours."""
    c = OPTIONS.read(info)
    staged = c["is_legacy"] and c["finetune_decoder"]
    codes = "decoder.codes" if staged else "decoder"
    rules: list[Rule] = [
        Rename("latent_tokens", "encoder.queries"),
        Rename("encoder.patch_embed.{p}", "encoder.patches.{p}"),
        *_trunk("encoder", "encoder.trunk"),
        *_linear("encoder.conv_out", "encoder.out"),
        Rename("decoder.mask_token", f"{codes}.reader.mask"),
        Rename("decoder.decoder_embed.{p}", f"{codes}.reader.embed.{{p}}"),
        *_trunk("decoder", f"{codes}.reader.trunk"),
        Rename("quantize.embedding.weight", "quantizer.codebook.weight"),
    ]
    if not c["is_legacy"]:
        rules += [*_linear("decoder.ffn.0", "decoder.pixels.linear"), Rename("decoder.conv_out.{p}", "decoder.pixels.conv.{p}")]
        return NameMap(*rules)
    rules += [*_linear("decoder.ffn.0", f"{codes}.hidden"), *_linear("decoder.ffn.2", f"{codes}.out")]
    if staged:
        rules += [Rename("pixel_quantize.embedding.weight", "decoder.codebook")]
        rules += side_rules("pixel_decoder", "decoder.pixels", "decoder", len(_pixel_decoder(c)[1]))
    return NameMap(*rules)


def outputs(model: Autoencoder, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records, with images in [0, 1]: latents, ids, losses, decoders' outputs, gradient norms."""
    c = OPTIONS.read(info)
    image_BCHW = signed(inputs["image"])
    decode = model.pixels if c["is_legacy"] and not c["finetune_decoder"] else lambda z: unit(model.pixels(z))
    quantized = model.quantizer(model.latents(image_BCHW))
    loss = quantized.losses["commitment"] + quantized.losses["codebook"]
    found = {
        "commitment_loss": quantized.losses["commitment"],
        "codebook_loss": quantized.losses["codebook"],
        "quantizer_loss": loss,
    }
    if "grad_norm_keys" in info:
        found |= {"loss_quantizer": loss, "loss_quantizer_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"])}
    with torch.no_grad():
        decoded = decode(quantized.z)
        ids_B1N = quantized.ids[:, None]
        return {name: value.detach() for name, value in found.items()} | {
            "z": model.latents(image_BCHW),
            "z_quantized": quantized.z.detach(),
            "ids": ids_B1N,
            "decoder_out": model.proxy.codes(quantized.z) if isinstance(model, TwoStage) else decoded,
            "decoded": decoded,
            "decoded_from_ids": decode(model.quantizer.lookup(quantized.ids)),
        }
