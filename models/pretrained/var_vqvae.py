"""The multi-scale VQVAE of VAR (FoundationVision/VAR, MIT): settings, names and recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.parts.quantizers.codebook import Codebook
from tokenloom.models.parts.quantizers.multiscale import MultiScale
from tokenloom.models.pretrained.names import Ignore, NameMap, Rename, Rule
from tokenloom.models.pretrained.options import Options, inert, only, used
from tokenloom.models.pretrained.parity import gradient_norms
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import Small
from tokenloom.models.zoo.tokenizers.var_vq import var_vq

FAMILY = "var_vqvae"


def quantizer(settings: Mapping[str, Any], dim: int) -> MultiScale.Config:
    """The quantizer of official settings (``v_patch_nums`` or ``patch_nums``, ``share_quant_resi``, ``quant_resi``).

    ``share_quant_resi`` is the number of shared Phi convolutions; 0 gives each scale its own.
    """
    scales = tuple(settings["v_patch_nums"] if "v_patch_nums" in settings else settings["patch_nums"])
    return MultiScale.Config(
        codebook=Codebook.Config(
            codes=settings["vocab_size"], dim=dim, metric="cosine" if settings.get("using_znorm") else "l2", decay=0.99
        ),
        scales=scales,
        beta=settings.get("beta", 0.25),
        phis=settings["share_quant_resi"] or len(scales),
        ratio=_ratio(settings),
    )


#: Settings of the official classes, and of the recording.
OPTIONS = Options(
    vocab_size=used("codes", default=4096),
    z_channels=used("channels of a code", default=32),
    ch=used("width of the first level", default=128),
    ch_mult=used("widths of the levels", default=(1, 1, 2, 2, 4)),
    num_res_blocks=used("blocks a level; the decoder has one more", default=2),
    beta=used("weight of the commitment", default=0.25),
    using_znorm=used("the search compares directions", True, False, default=False),
    quant_conv_ks=used("kernel of the convolutions around the quantizer", default=3),
    quant_resi=used("share of a residual convolution; 0 is none", default=0.5),
    share_quant_resi=used("residual convolutions for all scales; 0 is one a scale", default=4),
    default_qresi_counts=used("their number where `share_quant_resi` is 0; 0 is one a scale", default=0),
    v_patch_nums=used("sides of the scales"),
    using_sa=used("self-attention at the lowest level", True, False, default=True),
    using_mid_sa=used("self-attention in the middle", True, False, default=True),
    dropout=only(0, why="released and recorded without"),
    test_mode=inert("gradients are taken by whoever asks"),
    image=used("size of the recorded images"),
    seed=inert("weights are recorded"),
)


def config(info: Mapping[str, Any]) -> Autoencoder.Config:
    """The recipe's config for ``info["config"]``; groups of 32 channels, as released."""
    c = OPTIONS.read(info)
    multipliers, scales = tuple(c["ch_mult"]), tuple(c["v_patch_nums"])
    return var_vq(
        scales=scales,
        codes=c["vocab_size"],
        dim=c["z_channels"],
        beta=c["beta"],
        phis=c["share_quant_resi"] or c["default_qresi_counts"] or len(scales),
        ratio=_ratio(c),
        kernel=c["quant_conv_ks"],
        metric="cosine" if c["using_znorm"] else "l2",
        update="learned",
        small=Small(
            channels=c["ch"],
            multipliers=multipliers,
            patch=1,
            blocks=c["num_res_blocks"],
            decoder_blocks=c["num_res_blocks"] + 1,
            attention=(len(multipliers) - 1,) if c["using_sa"] else (),
            middle="attention" if c["using_mid_sa"] else "blocks",
            norm_groups=32,
        ),
    )


def _ratio(settings: Mapping[str, Any]) -> float:
    """Share of a residual convolution in its blend with the identity; upstream takes the least values for none."""
    ratio = abs(settings["quant_resi"])
    return ratio if ratio > 1e-6 else 0.0


def build(info: Mapping[str, Any]) -> Autoencoder:
    """The tokenizer with fresh weights."""
    return config(info).build(signal=signals.image(OPTIONS.read(info)["image"], 3))


def quantizer_rules(official: str, ours: str, shared: int) -> tuple[Rule, ...]:
    """Names of codebook and Phi; ``official`` and ``ours`` are prefixes that end in a dot.

    ``shared`` convolutions serve all scales; upstream has other names for one alone, and for 0, which is one a scale.
    """
    phi = f"{official}quant_resi."
    phis = {
        0: [Rename(f"{phi}{{i}}.{{p}}", f"{ours}phi.{{i}}.{{p}}")],
        1: [Rename(f"{phi}qresi.{p}", f"{ours}phi.0.{p}") for p in ("weight", "bias")],
    }
    return (
        Rename(f"{official}embedding.weight", f"{ours}codebook.weight"),
        *phis.get(shared, [Rename(f"{phi}qresi_ls.{{i}}.{{p}}", f"{ours}phi.{{i}}.{{p}}")]),
        Ignore(f"{official}ema_vocab_hit_SV"),
    )


def residual_block(official: str, ours: str) -> tuple[Rule, ...]:
    """A residual block, named alike but for the shortcut."""
    return (
        *(Rename(f"{official}.{part}.{{p}}", f"{ours}.{part}.{{p}}") for part in ("norm1", "conv1", "norm2", "conv2")),
        Rename(f"{official}.nin_shortcut.{{p}}", f"{ours}.shortcut.{{p}}"),
    )


def _attention(official: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rename(f"{official}.norm.{{p}}", f"{ours}.norm.{{p}}"),
        Rename(f"{official}.qkv.{{p}}", f"{ours}.qkv.{{p}}"),
        Rename(f"{official}.proj_out.{{p}}", f"{ours}.proj.{{p}}"),
    )


def names(info: Mapping[str, Any]) -> NameMap:
    """Official names to ours; the decoder's levels count from the full resolution there, from the lowest here."""
    c = OPTIONS.read(info)
    levels = len(c["ch_mult"])
    rules: list[Rule] = [Rename(f"{part}.{{p}}", f"{part}.{{p}}") for part in ("quant_conv", "post_quant_conv")]
    for side in ("encoder", "decoder"):
        rules += [Rename(f"{side}.{part}.{{p}}", f"{side}.{part}.{{p}}") for part in ("conv_in", "norm_out", "conv_out")]
        rules += [*residual_block(f"{side}.mid.block_1", f"{side}.middle.0"), *residual_block(f"{side}.mid.block_2", f"{side}.middle.2")]
        rules += _attention(f"{side}.mid.attn_1", f"{side}.middle.1")
        for level in range(levels):
            theirs = f"encoder.down.{level}" if side == "encoder" else f"decoder.up.{levels - 1 - level}"
            change = "downsample" if side == "encoder" else "upsample"
            ours = f"{side}.levels.{level}"
            rules += residual_block(f"{theirs}.block.{{i}}", f"{ours}.blocks.{{i}}")
            rules += _attention(f"{theirs}.attn.{{i}}", f"{ours}.attention.{{i}}")
            rules.append(Rename(f"{theirs}.{change}.conv.{{p}}", f"{ours}.change.{{p}}"))
    return NameMap(*rules, *quantizer_rules("quantize.", "quantizer.", c["share_quant_resi"]))


def outputs(model: Autoencoder, info: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every number that the fixture records: ids, f_hat and images per scale, both forms of the inputs, loss, gradient norms."""
    image_BCHW = inputs["image"]
    quantizer = model.quantizer
    assert isinstance(quantizer, MultiScale)
    with torch.no_grad():
        f_BCHW = model.latents(image_BCHW)
        ids_BL = quantizer.encode(f_BCHW)
        f_hats = quantizer.partial(ids_BL)
        incremental, following = quantizer.start(len(image_BCHW)), []
        for scale, ids_BP in enumerate(quantizer.split(ids_BL)):
            incremental, following_BPC = quantizer.accumulate(incremental, scale, ids_BP)
            following.append(following_BPC)
        images = [model.pixels(f).clamp(-1, 1) for f in f_hats]
    reconstruction, quantized = model(image_BCHW)
    loss = quantized.losses["commitment"] + quantized.losses["codebook"]
    return {
        "f": f_BCHW,
        "idx_BL": ids_BL,
        "f_hat_per_scale": torch.stack(f_hats, 1),
        "var_input": quantizer.next_inputs(ids_BL),
        "decoded_clamped": images[-1],
        "decoded_per_scale": torch.stack(images, 1),
        "incremental_next_inputs": torch.cat(following[:-1], 1),
        "incremental_f_hat": incremental,
        "rec_unclamped": reconstruction,
        "loss_vq": loss,
        "loss_vq_grad_norms": gradient_norms(model, names(info), loss, info["grad_norm_keys"]),
    }
