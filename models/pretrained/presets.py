"""Published checkpoints by name: their family, official settings with the published sampler, and the tokenizer they belong to.

``tokenloom import NAME --weights FILE`` needs nothing more.  Numbers are those of the official code and its documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A published checkpoint.

    ``tokenizer`` is the preset of its tokenizer, "" of a tokenizer itself or where that has no family.  ``file`` and ``hub`` say where the
    authors keep it; ``prefix`` is what names of its weights begin with in a file that holds other models too.  ``encoder`` is the hub name
    of the text model whose features it was trained on.
    """

    family: str
    config: Mapping[str, Any]
    file: str
    hub: str
    tokenizer: str = ""
    prefix: str = ""
    encoder: str = ""


_T5 = "google/flan-t5-xl"
_TITOK = {"crop_size": 256, "vit_patch_size": 16, "token_size": 12, "codebook_size": 4096, "commitment_cost": 0.25, "use_l2_norm": True}
_LEGACY = {**_TITOK, "is_legacy": True, "finetune_decoder": True}
_VQ = {
    "codebook_size": 16384,
    "codebook_embed_dim": 8,
    "codebook_l2_norm": True,
    "codebook_show_usage": True,
    "commit_loss_beta": 0.25,
    "entropy_loss_ratio": 0.0,
    "z_channels": 256,
    "ch": 128,
    "num_res_blocks": 2,
}
_TOKENIZERS = {
    "var-vqvae": Preset(
        "var_vqvae",
        {
            **{"vocab_size": 4096, "z_channels": 32, "ch": 160, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "beta": 0.25},
            **{"quant_conv_ks": 3, "quant_resi": 0.5, "share_quant_resi": 4, "using_znorm": False, "image": 256},
            "v_patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16],
        },
        "vae_ch160v4096z32.pth",
        "FoundationVision/var",
    ),
    "llamagen-vq16": Preset(
        "llamagen_vq", {**_VQ, "ch_mult": [1, 1, 2, 2, 4], "image": 256}, "vq_ds16_c2i.pt", "FoundationVision/LlamaGen"
    ),
    "llamagen-vq16-384": Preset(
        "llamagen_vq", {**_VQ, "ch_mult": [1, 1, 2, 2, 4], "image": 384}, "vq_ds16_c2i.pt", "FoundationVision/LlamaGen"
    ),
    "llamagen-vq8": Preset("llamagen_vq", {**_VQ, "ch_mult": [1, 2, 2, 4], "image": 256}, "vq_ds8_c2i.pt", "FoundationVision/LlamaGen"),
    "maskgit-vqgan": Preset(
        "maskgit_vqgan",
        {
            **{"channel_mult": [1, 1, 2, 2, 4], "num_resolutions": 5, "dropout": 0.0, "hidden_channels": 128, "num_channels": 3},
            **{"num_res_blocks": 2, "resolution": 256, "z_channels": 256, "num_embeddings": 1024, "commitment_cost": 0.25, "image": 256},
        },
        "maskgit-vqgan-imagenet-f16-256.bin",
        "fun-research/TiTok",
    ),
    **{
        f"titok-{name}": Preset(
            "titok",
            {
                **_LEGACY,
                **{"width": width, "layers": layers, "heads": heads, "num_latent_tokens": tokens},
                **{"pixel_dim": 128, "pixel_channel_mult": [1, 1, 2, 2, 4]},
            },
            "model.safetensors",
            f"yucornetto/tokenizer_titok_{name.replace('-', '')}_imagenet",
        )
        for name, width, layers, heads, tokens in (("l-32", 1024, 24, 16, 32), ("b-64", 768, 12, 12, 64), ("s-128", 512, 8, 8, 128))
    },
}

_SCALES = {256: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], 512: [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]}


def _var(depth: int, family: str = "var", image: int = 256, **more: Any) -> dict[str, Any]:
    codes = {"vocab_size": 4096, "Cvae": 32, "num_classes": 1000, "patch_nums": _SCALES[image]}
    blocks = {"depth": depth, "embed_dim": 64 * depth, "num_heads": depth, "mlp_ratio": 4.0, "norm_eps": 1e-6}
    return {**codes, **blocks, "shared_aln": image == 512, "attn_l2_norm": True, **more}


#: Dial of LlamaGen and its relatives to blocks, heads and width.
_LLAMA = {"B": (12, 12, 768), "M": (18, 16, 1024), "L": (24, 16, 1024), "XL": (36, 20, 1280), "XXL": (48, 24, 1536), "3B": (24, 32, 3200)}


def _llama(size: str, image: int = 256, codes: int = 16384, **more: Any) -> dict[str, Any]:
    layers, heads, dim = _LLAMA[size]
    blocks = {"n_layer": layers, "n_head": heads, "dim": dim, "multiple_of": 256, "norm_eps": 1e-5, "rope_base": 10000}
    return {**blocks, "vocab_size": codes, "block_size": (image // 16) ** 2, "num_classes": 1000, "cls_token_num": 1, **more}


def _llamas() -> dict[str, Preset]:
    """LlamaGen and the models that are built of its blocks."""
    found: dict[str, Preset] = {}
    # Guidance of B and L at 256 pixels is not published; 2.0 is what they have at 384.
    for size, scale in {"B": 2.0, "L": 2.0, "XL": 1.75, "XXL": 1.75, "3B": 1.65}.items():
        for image in (256, 384) if size in ("B", "L") else (384,):
            config = _llama(size, image, cfg_scale=scale)
            codec = "llamagen-vq16" if image == 256 else "llamagen-vq16-384"
            found[f"llamagen-{size.lower()}-{image}"] = Preset(
                "llamagen_c2i", config, f"c2i_{size}_{image}.pt", "FoundationVision/LlamaGen", codec
            )
    for stage, image in ((1, 256), (2, 512)):
        text = {"cls_token_num": 120, "text_len": 120, "caption_dim": 2048, "cfg_scale": 7.5, "top_k": 1000}
        file, hub = f"t2i_XL_stage{stage}_{image}.pt", "peizesun/llamagen_t2i"
        found[f"llamagen-t2i-xl-{image}"] = Preset("llamagen_t2i", _llama("XL", image) | text, file, hub, encoder=_T5)
    for size, scale in {"B": 2.0, "L": 1.75, "XL": 1.7, "XXL": 1.65}.items():
        config, hub = _llama(size, cfg_scale=scale, patch_sizes=[16, 4, 1]), "pytttttt/LlamaGen-NPP"
        found[f"npp-{size.lower()}"] = Preset("npp", config, f"c2i_{size}_256.pt", hub, "llamagen-vq16")
    for size, group, scale in (("XL", 4, 1.5), ("XXL", 4, 1.435), ("3B", 4, 1.345), ("3B", 16, 1.5)):
        config = _llama(size, 384, cfg_scale=scale, spe_token_num=group - 1, ar_token_num=group)
        found[f"par-{size.lower()}-{group}x"] = Preset("par", config, f"PAR-{size}-{group}x.pt", "Epiphqny/PAR", "llamagen-vq16-384")
    for size in ("B", "M", "L", "XL", "XXL"):  # guidance is published for B alone
        config, hub = _llama(size, cfg_scale=2.0, medusa_attention_num=1), "collection chenfeng1271/nar-67d13fa93fe913b2e187ee1f"
        found[f"nar-{size.lower()}"] = Preset("nar", config, "", hub, "llamagen-vq16")
    for name, size, scale, codes, codec in (
        ("l", "L", 3.4, 16384, "llamagen-vq16"),
        ("l-maskgit", "L", 4.0, 1024, "maskgit-vqgan"),
        ("xl", "XL", 4.0, 16384, "llamagen-vq16"),
    ):
        config = _llama(size, codes=codes, cfg_scales=[1.0, scale], num_inference_steps=88)
        file = f"randar_{'0.3b' if size == 'L' else '0.7b'}_{codec.split('-')[0]}_360k_bs_1024_lr_0.0004.safetensors"
        found[f"randar-{name}"] = Preset("randar", config, file, "ziqipang/RandAR", codec)
    for size, scale, file in (("L", 5.0, "arpg_300m.pt"), ("XL", 6.0, "arpg_700m.pt"), ("XXL", 7.5, "arpg_1b.pt")):
        how: dict[str, Any] = {"guidance_scale": scale, "cfg_schedule": "linear", "sample_schedule": "arccos", "num_iter": 64}
        found[f"arpg-{size.lower()}"] = Preset("arpg", _llama(size, **how), file, "hp-l33/ARPG", "llamagen-vq16")
    for size, small, scales, temperature in (
        ("B", (24, 16, 1024, 2), [1.9, 2.0], [1.0, 1.0]),
        ("L", (36, 20, 1280, 3), [1.9, 1.9], [1.1, 1.0]),
        ("XL", (48, 24, 1536, 4), [1.75, 1.85], [1.1, 1.0]),
    ):
        layers, heads, dim, inner = small
        config = {
            **{"spatial_n_layer": layers, "n_head": heads, "dim": dim, "factorized_n_layer": inner, "factorized_k": 2},
            **{"factorized_bits": [6, 12], "block_size": 256, "class_num": 1000, "cfg_scale": scales, "temperature": temperature},
        }
        found[f"open-magvit2-{size.lower()}"] = Preset(
            "open_magvit2_gpt", config, f"AR_256_{size}.ckpt", f"TencentARC/Open-MAGVIT2-AR-{size}-256-resolution", prefix="transformer."
        )
    return found


def _masked() -> dict[str, Preset]:
    """Masked generators, and RAR."""
    found: dict[str, Preset] = {}
    for size, width, layers, hidden, guidance in (
        ("b", 768, 24, 3072, (16.0, 2.75, 1.0)),
        ("l", 1024, 24, 4096, (15.5, 2.5, 1.02)),
        ("xl", 1280, 32, 5120, (6.9, 1.5, 1.02)),
        ("xxl", 1408, 40, 6144, (8.0, 1.2, 1.02)),
    ):
        blocks = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 16, "intermediate_size": hidden}
        tokens = {"codebook_size": 1024, "image_seq_len": 256, "condition_num_classes": 1000}
        how = dict(zip(("guidance_scale", "guidance_scale_pow", "temperature"), guidance))
        found[f"rar-{size}"] = Preset("rar", {**blocks, **tokens, **how}, f"rar_{size}.bin", "yucornetto/RAR", "maskgit-vqgan")
    for name, net, tokens_, how_ in (
        ("l-32", "ImageBert", 32, (4.5, "linear", 9.5, 8)),
        ("b-64", "ImageBert", 64, (3.0, "linear", 11.0, 8)),
        ("s-128", "UViTBert", 128, (6.9, "power-cosine", 2.8, 64)),
    ):
        size_ = (768, 24, 3072) if net == "ImageBert" else (1024, 20, 4096)
        blocks = {**dict(zip(("hidden_size", "num_hidden_layers", "intermediate_size"), size_)), "num_attention_heads": 16}
        sampler = dict(zip(("guidance_scale", "guidance_decay", "randomize_temperature", "num_sample_steps"), how_))
        tokens = {"codebook_size": 4096, "image_seq_len": tokens_, "condition_num_classes": 1000}
        found[f"titok-generator-{name}"] = Preset(
            "titok_imagebert" if net == "ImageBert" else "titok_uvitbert",
            {"cls": net, **blocks, **tokens, **sampler, "softmax_temperature_annealing": True},
            f"generator_titok_{name.replace('-', '')}.bin",
            "fun-research/TiTok",
            f"titok-{name}",
        )
    for size, dim, depth, heads, weights in (
        ("tiny", 384, 6, 6, {256: 1.5}),
        ("small", 512, 12, 6, {256: 1.0, 384: 1.0}),
        ("base", 768, 12, 12, {256: 0.7, 384: 0.7}),
        ("large", 1024, 24, 16, {384: 0.5}),
    ):
        for image, weight in weights.items():
            blocks = {"hidden_dim": dim, "depth": depth, "heads": heads, "mlp_dim": 4 * dim, "register": 1, "proj": 1, "nclass": 1000}
            config = {**blocks, "codebook_size": 16384, "input_size": image // 16, "step": 32, "w": weight, "top_k": -1}
            codec = "llamagen-vq16" if image == 256 else "llamagen-vq16-384"
            found[f"halton-maskgit-{size}-{image}"] = Preset(
                "halton_maskgit", config, f"ImageNet_{image}_{size}.pth", "llvictorll/Halton-MaskGIT", codec
            )
    for size, (width, depth, heads), inner, scale, temperature in (
        ("l", (1024, 16, 16), 4, 3.1, 0.96),
        ("h", (1280, 20, 16), 6, 3.45, 0.91),
    ):
        sizes = {"embed_dim": width, "depth": depth, "num_heads": heads}
        nets = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sizes.items()}
        settings: dict[str, Any] = {
            **nets,
            **{"channel_embed_dim": 1024, "channel_depth": inner, "channel_heads": 8, "mlp_ratio": 4.0, "quant_levels": 64},
            **{"num_iter": 256, "cfg_scale": scale, "cfg_schedule": "linear", "temperature": temperature},
        }
        name = {"l": "large", "h": "huge"}[size]
        found[f"tokenbridge-{size}"] = Preset(
            "tokenbridge", settings, f"tokenbridge/tokenbridge_{name}/checkpoint-last.pth", "Epiphqny/TokenBridge"
        )
    return found


def _scalewise() -> dict[str, Preset]:
    """VAR, FlexVAR and Infinity."""
    found = {
        f"var-d{depth}": Preset("var", _var(depth, cfg_scale=1.5), f"var_d{depth}.pth", "FoundationVision/var", "var-vqvae")
        for depth in (16, 20, 24, 30)
    }
    found["var-d36"] = Preset("var", _var(36, image=512, cfg_scale=1.5), "var_d36.pth", "FoundationVision/var")
    for depth, epoch in ((16, 179), (20, 249), (24, 349)):
        config = _var(depth, cfg_scale=2.5) | {"vocab_size": 8912}
        found[f"flexvar-d{depth}"] = Preset("flexvar", config, f"FlexVARd{depth}-epo{epoch}.pth", "jiaosiyu1999/FlexVAR")
    found["infinity-2b"] = Preset(
        "infinity",
        {
            **{"vae_dim": 32, "embed_dim": 2048, "depth": 32, "num_heads": 16, "mlp_ratio": 4.0, "block_chunks": 8, "pn": "1M"},
            **{"h_div_w": 1.0, "text_channels": 2048, "text_maxlen": 512, "cfg": 4.0, "tau": 1.0, "apply_spatial_patchify": 0},
        },
        "infinity_2b_reg.pth",
        "FoundationVision/Infinity",
        encoder=_T5,
    )
    big = {"vae_dim": 14, "embed_dim": 3584, "depth": 40, "num_heads": 28, "apply_spatial_patchify": 1}
    found["infinity-8b"] = Preset(
        "infinity", {**found["infinity-2b"].config, **big}, "infinity_8b_weights/", "FoundationVision/Infinity", encoder=_T5
    )
    return found


PRESETS: dict[str, Preset] = {**_TOKENIZERS, **_scalewise(), **_llamas(), **_masked()}
