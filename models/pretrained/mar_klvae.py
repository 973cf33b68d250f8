"""The KL autoencoder of MAR (LTH14/mar, MIT): settings, names and recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.parts.quantizers.gaussian import Gaussian
from tokenloom.models.pretrained.names import Fuse, NameMap, Rename, Rule
from tokenloom.models.pretrained.options import Options, inert, only, used
from tokenloom.models.pretrained.var_vqvae import residual_block
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import Small
from tokenloom.models.zoo.tokenizers.kl import kl

FAMILY = "mar_klvae"


#: Settings of the official classes, and of the recording.
OPTIONS = Options(
    embed_dim=used("channels of the latents"),
    ch=used("width of the first level", default=128),
    ch_mult=used("widths of the levels", default=(1, 1, 2, 2, 4)),
    num_res_blocks=used("blocks a level; the decoder has one more", default=2),
    resolution=used("from which the encoder's levels count their own", default=256),
    attn_resolutions=used("levels of the encoder with self-attention; the decoder has it in the middle alone", default=(16,)),
    resamp_with_conv=used("else averages and repetition", True, False, default=True),
    scale_factor=used("of the latents, for generators", default=0.2325),
    use_variational=only(True, why="no variance is recorded without it"),
    double_z=only(True, why="upstream fixes it"),
    dropout=only(0, why="released and recorded without"),
    image=used("size of the recorded images"),
    seed=inert("weights are recorded"),
)


def config(info: Mapping[str, Any]) -> Autoencoder.Config:
    """The recipe's config for ``info["config"]``; a level has attention where ``resolution`` there is one of ``attn_resolutions``."""
    c = OPTIONS.read(info)
    levels = range(len(c["ch_mult"]))
    return kl(
        dim=c["embed_dim"],
        scale=c["scale_factor"],
        small=Small(
            channels=c["ch"],
            multipliers=tuple(c["ch_mult"]),
            patch=1,
            blocks=c["num_res_blocks"],
            attention=tuple(level for level in levels if c["resolution"] // 2**level in c["attn_resolutions"]),
            decoder_attention=(),
            norm_groups=32,
            resample="conv" if c["resamp_with_conv"] else "pool",
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
    """Official names to ours; the decoder's levels count from the full resolution there, from the lowest here."""
    levels = len(OPTIONS.read(info)["ch_mult"])
    rules: list[Rule] = [Rename(f"{part}.{{p}}", f"{part}.{{p}}") for part in ("quant_conv", "post_quant_conv")]
    for side in ("encoder", "decoder"):
        rules += [Rename(f"{side}.{part}.{{p}}", f"{side}.{part}.{{p}}") for part in ("conv_in", "norm_out", "conv_out")]
        rules += [*residual_block(f"{side}.mid.block_1", f"{side}.middle.0"), *residual_block(f"{side}.mid.block_2", f"{side}.middle.2")]
        rules += _attention(f"{side}.mid.attn_1", f"{side}.middle.1")
        for level in range(levels):
            theirs = f"encoder.down.{level}" if side == "encoder" else f"decoder.up.{levels - 1 - level}"
            change = "downsample" if side == "encoder" else "upsample"
            rules += residual_block(f"{theirs}.block.{{i}}", f"{side}.levels.{level}.blocks.{{i}}")
            rules += _attention(f"{theirs}.attn.{{i}}", f"{side}.levels.{level}.attention.{{i}}")
            rules.append(Rename(f"{theirs}.{change}.conv.{{p}}", f"{side}.levels.{level}.change.{{p}}"))
    return NameMap(*rules)


@torch.no_grad()
def outputs(model: Autoencoder, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records: the posterior, its divergence, a sample as a generator's input, images."""
    quantizer = model.quantizer
    assert isinstance(quantizer, Gaussian)
    moments = model.latents(inputs["image"])
    mean, logvar = quantizer.posterior(moments)
    sample = quantizer.sample(mean, logvar, inputs["posterior_noise"])
    tokens_BLC = quantizer.tokens(sample)
    return {
        "moments": moments,
        "mean": mean,
        "logvar": logvar,
        "std": torch.exp(0.5 * logvar),
        "kl": quantizer.divergence(mean, logvar),
        "mode_decoded": model.pixels(quantizer(moments).z),
        "sample": sample,
        "scaled_latent": tokens_BLC.transpose(1, 2).unflatten(2, quantizer.grid),
        "sample_decoded": model.pixels(quantizer.lookup(tokens_BLC)),
    }
