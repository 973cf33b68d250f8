"""The VQ tokenizer of LlamaGen (FoundationVision/LlamaGen, MIT): settings, names and recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.core.draws import Draws
from tokenloom.models.pretrained.names import Fuse, Ignore, NameMap, Rename, Rule
from tokenloom.models.pretrained.options import Options, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.pretrained.var_vqvae import residual_block
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import Small
from tokenloom.models.zoo.tokenizers.vq import vq

FAMILY = "llamagen_vq"
#: Length of the official window of recently used ids, which starts as zeros.
WINDOW = 65536


#: Settings of the official classes, and of the recording.
OPTIONS = Options(
    codebook_size=used("codes"),
    codebook_embed_dim=used("channels of a code"),
    codebook_l2_norm=used("cosine metric", True, False, default=True),
    codebook_show_usage=used("share of codes in a window of recent ids is recorded", True, False, default=True),
    commit_loss_beta=used(default=0.25),
    entropy_loss_ratio=used("weight of the entropy loss", default=0.0),
    z_channels=used("channels between nets and quantizer", default=256),
    ch=used("width of the first level", default=128),
    ch_mult=used("widths of the levels, of both sides", default=None),
    encoder_ch_mult=used("of the encoder", default=None),
    decoder_ch_mult=used("of the decoder", default=None),
    num_res_blocks=used("blocks a level; the decoder has one more", default=2),
    resamp_with_conv=used("else averages and repetition", True, False, default=True),
    norm_type=only("group", why="batch norms would tie the rows of a batch"),
    dropout_p=only(0, why="released and recorded without"),
    dropout=only(0, why="released and recorded without"),
    image=used("size of the recorded images"),
    seed=inert("weights are recorded"),
)


def config(info: Mapping[str, Any]) -> Autoencoder.Config:
    """The recipe's config for ``info["config"]``: groups of 32 channels and self-attention at the lowest level and in the middle."""
    c = OPTIONS.read(info)
    multipliers = tuple(c["encoder_ch_mult"] or c["ch_mult"] or (1, 1, 2, 2, 4))
    return vq(
        codes=c["codebook_size"],
        dim=c["codebook_embed_dim"],
        beta=c["commit_loss_beta"],
        entropy=c["entropy_loss_ratio"],
        metric="cosine" if c["codebook_l2_norm"] else "l2",
        update="learned",
        small=Small(
            channels=c["ch"],
            multipliers=multipliers,
            patch=1,
            blocks=c["num_res_blocks"],
            decoder_blocks=c["num_res_blocks"] + 1,
            decoder_multipliers=tuple(c["decoder_ch_mult"] or ()),
            attention=(len(multipliers) - 1,),
            middle="attention",
            norm_groups=32,
            resample="conv" if c["resamp_with_conv"] else "pool",
            latent=c["z_channels"],
        ),
    )


def build(info: Mapping[str, Any]) -> Autoencoder:
    """The tokenizer with fresh weights."""
    return config(info).build(signal=signals.image(OPTIONS.read(info)["image"], 3))


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
    c = OPTIONS.read(info)
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
