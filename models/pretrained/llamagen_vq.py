"""The VQ tokenizer of LlamaGen (FoundationVision/LlamaGen, MIT): settings, names and recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.nets.conv import Geometry
from tokenloom.models.parts.quantizers.codebook import Codebook
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.pretrained.names import Fuse, Ignore, NameMap, Rename, Rule
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.pretrained.var_vqvae import residual_block
from tokenloom.models.tokenizers.autoencoder import Autoencoder

FAMILY = "llamagen_vq"
#: Length of the official window of recently used ids, which starts as zeros.
WINDOW = 65536


def config(info: Mapping[str, Any]) -> Autoencoder.Config:
    """Our config for ``info["config"]``; groups of 32 channels and self-attention at the lowest level, as released."""
    c = info["config"]
    multipliers = tuple(c["ch_mult"])
    return Autoencoder.Config(
        net=Geometry(
            channels=c["ch"],
            multipliers=multipliers,
            encoder_blocks=c["num_res_blocks"],
            decoder_blocks=c["num_res_blocks"] + 1,
            attention=(len(multipliers) - 1,),
        ),
        quantizer=VQ.Config(
            codebook=Codebook.Config(
                codes=c["codebook_size"], dim=c["codebook_embed_dim"], metric="cosine" if c["codebook_l2_norm"] else "l2"
            ),
            beta=c["commit_loss_beta"],
            entropy=c["entropy_loss_ratio"],
        ),
        latent=c["z_channels"],
    )


def build(info: Mapping[str, Any]) -> Autoencoder:
    """The tokenizer with fresh weights."""
    return config(info).build(signal=signals.image(info["config"]["image"], 3))


def _attention(official: str, ours: str) -> tuple[Rule, ...]:
    """Separate q, k and v there, one convolution here."""
    return (
        Rename(f"{official}.norm.{{p}}", f"{ours}.norm.{{p}}"),
        Fuse([f"{official}.{part}.{{p}}" for part in "qkv"], f"{ours}.qkv.{{p}}"),
        Rename(f"{official}.proj_out.{{p}}", f"{ours}.proj.{{p}}"),
    )


def names(info: Mapping[str, Any]) -> NameMap:
    """Official names to ours; levels count in the order of execution on both sides."""
    rules: list[Rule] = [Rename(f"{part}.{{p}}", f"{part}.{{p}}") for part in ("quant_conv", "post_quant_conv")]
    for side, change in (("encoder", "downsample"), ("decoder", "upsample")):
        rules += [Rename(f"{side}.{part}.{{p}}", f"{side}.{part}.{{p}}") for part in ("conv_in", "norm_out", "conv_out")]
        rules += [*residual_block(f"{side}.mid.0", f"{side}.middle.0"), *residual_block(f"{side}.mid.2", f"{side}.middle.2")]
        rules += _attention(f"{side}.mid.1", f"{side}.middle.1")
        rules += residual_block(f"{side}.conv_blocks.{{i}}.res.{{j}}", f"{side}.levels.{{i}}.blocks.{{j}}")
        rules += _attention(f"{side}.conv_blocks.{{i}}.attn.{{j}}", f"{side}.levels.{{i}}.attention.{{j}}")
        rules.append(Rename(f"{side}.conv_blocks.{{i}}.{change}.conv.{{p}}", f"{side}.levels.{{i}}.change.{{p}}"))
    return NameMap(*rules, Rename("quantize.embedding.weight", "quantizer.codebook.weight"), Ignore("quantize.codebook_used"))


def outputs(model: Autoencoder, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records: latents, ids, images, losses, codebook use, gradient norms."""
    image_BCHW = inputs["image"]
    c = info["config"]
    with torch.no_grad():
        z_BCHW = model.latents(image_BCHW)
        quantized = model.quantizer(z_BCHW)
        entry = model.quantizer.lookup(quantized.ids)
        decoded, decoded_from_ids = model.pixels(quantized.z), model.pixels(entry)
    _, trained = model(image_BCHW, Draws.whole(0, 0, len(image_BCHW)))
    zero = image_BCHW.new_zeros(())
    parts = {name: trained.losses.get(name, zero) for name in ("codebook", "commitment", "entropy")}
    loss = torch.stack(list(parts.values())).sum()
    window = torch.cat([quantized.ids.new_zeros(WINDOW), quantized.ids.flatten()])[-WINDOW:]
    use = len(window.unique()) / c["codebook_size"] if c["codebook_show_usage"] else 0.0
    return {
        "z": z_BCHW,
        "quant": quantized.z,
        "idx": quantized.ids,
        "decoded": decoded,
        "codebook_entry": entry,
        "decoded_from_ids": decoded_from_ids,
        "codebook_usage": torch.tensor(use),
        "vq_loss": parts["codebook"],
        "commit_loss": parts["commitment"],
        "entropy_loss": parts["entropy"],
        "loss": loss,
        "loss_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
