"""Published sizes of tokenizers: numbers of parameters by the official classes, without discriminators and networks that only train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenloom.models.core.published import Size, Training
from tokenloom.models.zoo.published import tokenizer_trainings as trainings

_F16, _F8 = [1, 1, 2, 2, 4], [1, 2, 2, 4]


def _net(multipliers: list[int], channels: int = 128, **more: Any) -> dict[str, Any]:
    """VQGAN's convolutions (arXiv:2012.09841): two blocks a level, three in the decoder, attention in the middle."""
    common = {"patch": 1, "blocks": 2, "decoder_blocks": 3, "middle": "attention", "norm_groups": 32}
    return {"channels": channels, "multipliers": multipliers} | common | more


def _size(name: str, parameters: int, args: Mapping[str, Any], *, down: int = 16, tokens: int | None = None, **more: Any) -> Size:
    image = more.get("image", 256)
    count = tokens if tokens is not None else (image // down) ** 2
    return Size(name=name, parameters=parameters, mark="measured", args=args, tokens=count, **more)


#: What a size with a discriminator is counted without.
_JUDGED: dict[str, Any] = {"without": ("adversarial.",), "excludes": "the discriminator"}


def _vq(
    name: str,
    parameters: int,
    net: dict[str, Any],
    codes: int,
    dim: int,
    down: int,
    file: str,
    headline: str,
    judge: tuple[float, int] | None = None,
    training: Training | None = None,
) -> Size:
    """Codes that are learned and compared by distance, as in VQGAN and the autoencoders of latent diffusion (arXiv:2112.10752).

    ``judge``: weight and first step of PatchGAN's loss, where it is the published one of three layers."""
    args = {"codes": codes, "dim": dim, "metric": "l2", "update": "learned"} | net
    more: dict[str, Any] = {}
    if judge is not None:
        args |= trainings.compvis_losses(*judge)
        more = {"training": training} | _JUDGED
    return _size(name, parameters, args, down=down, checkpoints=(file,), headline=headline, **more)


def _llamagen(name: str, parameters: int, multipliers: list[int], down: int, file: str, headline: str) -> Size:
    net = _net(multipliers, attention=[len(multipliers) - 1], latent=256)
    args = {"codes": 16384, "dim": 8, "update": "learned"} | net | trainings.LLAMAGEN_LOSSES
    more: dict[str, Any] = {"training": trainings.LLAMAGEN, "without": ("adversarial.",), "excludes": "the discriminator"}
    return _size(name, parameters, args, down=down, checkpoints=(file,), headline=headline, **more)


_OPEN = "trained on OpenImages"
#: LlamaGen's (arXiv:2406.06525), VQGAN's and those of latent diffusion.
VQ = (
    _llamagen("VQ-16", 71_883_403, _F16, 16, "vq_ds16_c2i.pt", "rFID 2.19"),
    _llamagen("VQ-8", 70_109_835, _F8, 8, "vq_ds8_c2i.pt", "rFID 0.59"),
    _vq(
        "VQGAN ImageNet f16 1024",
        72_141_699,
        _net(_F16, attention=[4], latent=256),
        1024,
        256,
        16,
        "last.ckpt",
        "rFID 7.94",
        (0.8, 250_001),
        trainings.compvis(None),
    ),
    _vq("VQGAN ImageNet f16 16384", 76_073_859, _net(_F16, attention=[4], latent=256), 16384, 256, 16, "last.ckpt", "rFID 4.98"),
    _vq(
        "vq-f4",
        55_322_782,
        _net([1, 2, 4], latent=3),
        8192,
        3,
        4,
        "vq-f4.zip",
        "rFID 0.58 (OpenImages)",
        (0.75, 0),
        trainings.compvis(533_066, _OPEN),
    ),
    _vq(
        "vq-f4-noattn",
        53_219_486,
        _net([1, 2, 4], latent=3, middle="blocks"),
        8192,
        3,
        4,
        "vq-f4-noattn.zip",
        "rFID 1.06 (OpenImages)",
        (0.75, 11),
        trainings.compvis(658_131, _OPEN),
    ),
    _vq("vq-f8", 67_717_295, _net(_F8, attention=[3], latent=4), 16384, 4, 8, "vq-f8.zip", "rFID 1.14 (OpenImages)"),
    _vq(
        "vq-f8-n256",
        67_652_783,
        _net(_F8, attention=[3], latent=4),
        256,
        4,
        8,
        "vq-f8-n256.zip",
        "rFID 1.49 (OpenImages)",
        (0.75, 250_001),
        trainings.compvis(1_608_649, _OPEN),
    ),
    _vq("vq-f16", 69_593_371, _net(_F16, attention=[4], latent=8), 16384, 8, 16, "vq-f16.zip", "rFID 5.15 (OpenImages)"),
)

VAR_VQ = (
    _size(
        "VAR VQVAE ch160 v4096 z32",
        108_948_355,
        {"scales": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "codes": 4096, "dim": 32, "update": "learned"} | _net(_F16, 160, attention=[4]),
        tokens=680,
        checkpoints=("vae_ch160v4096z32.pth",),
        headline="rFID 0.9",
    ),
)

FLEXVAR_VQ = (
    _size(
        "FlexVAR VQVAE",
        72_049_827,
        {"scales": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "codes": 8912, "dim": 32, "update": "learned"}
        | _net(_F16, attention=[4], latent=256),
        tokens=680,
        checkpoints=("FlexVAE.pth",),
    ),
)

MASKGIT_VQGAN = (
    _size(
        "MaskGIT-VQGAN f16 1024x256 (PyTorch form in 1d-tokenizer)",
        54_515_587,
        {"codes": 1024, "dim": 256, "update": "learned", "channels": 128, "multipliers": _F16, "patch": 1, "blocks": 2, "norm_groups": 32}
        | trainings.MASKGIT_LOSSES,
        checkpoints=("maskgit-vqgan-imagenet-f16-256.bin",),
        headline="rFID 2.28",
        training=trainings.MASKGIT,
        **_JUDGED,
    ),
)


def _kl(name: str, parameters: int, dim: int, net: dict[str, Any], down: int, file: str, headline: str, scale: float | None = None) -> Size:
    args = {"dim": dim} | net | ({"scale": scale} if scale else {})
    training = trainings.MAR_KL if name.startswith("MAR") else trainings.KL.get(name.removeprefix("kl-"))
    more: dict[str, Any] = {}
    if training is not None:
        args |= trainings.compvis_losses(0.5, 50_001)
        more = {"training": training} | _JUDGED
    return _size(name, parameters, args, down=down, checkpoints=(file,) if file else (), headline=headline, **more)


#: MAR's (arXiv:2406.11838), those of latent diffusion, and the aligned one of arXiv:2501.01423.
KL = (
    _kl("MAR KL-16", 66_456_019, 16, _net(_F16, attention=[4], decoder_attention=[]), 16, "kl16.ckpt", "rFID 0.53", 0.2325),
    _kl("kl-f4", 55_312_063, 3, _net([1, 2, 4]), 4, "kl-f4.zip", "rFID 0.27 (OpenImages)"),
    _kl("kl-f8", 83_653_863, 4, _net([1, 2, 4, 4]), 8, "kl-f8.zip", "rFID 0.9 (OpenImages)"),
    _kl("kl-f16", 69_610_963, 16, _net(_F16, attention=[4]), 16, "kl-f16.zip", "rFID 0.87 (OpenImages)"),
    _kl("kl-f32", 103_880_131, 64, _net([1, 1, 2, 2, 4, 4], attention=[4, 5]), 32, "kl-f32.zip", "rFID 2.04 (OpenImages)"),
    _kl("Stable Diffusion 1.x VAE (= kl-f8)", 83_653_863, 4, _net([1, 2, 4, 4]), 8, "", "", 0.18215),
    _kl("SDXL VAE", 83_653_863, 4, _net([1, 2, 4, 4]), 8, "", "", 0.13025),
    _kl("f8 AutoencoderKL z8", 83_709_419, 8, _net([1, 2, 4, 4]), 8, "", ""),
    _kl("f8 AutoencoderKL z16", 83_821_011, 16, _net([1, 2, 4, 4]), 8, "", ""),
    _kl("VA-VAE f16d32 DINOv2", 69_836_067, 32, _net(_F16, attention=[4]), 16, "", ""),
)

TOKENBRIDGE = (
    _size(
        "TokenBridge post-quantizer on MAR KL-16",
        66_456_019,
        {"levels": 64, "dim": 16} | _net(_F16, attention=[4], decoder_attention=[], latent=32) | {"decoder_latent": 16},
        headline="rFID 0.53",
        excludes="the numbers are those of MAR's KL-16; the quantizer has none",
    ),
)


_IBQ = trainings.seed_voken(330, 250, 300)


def _ibq(codes: int, parameters: int, rfid: float, name: str = "IBQ", file: str = "imagenet256") -> Size:
    training = _IBQ if name == "IBQ" else None  # that of the other is not published in full
    net = _net(_F16, attention=[4], latent=256) | {"blocks": 4, "decoder_blocks": 5}
    args = {"codes": codes, "dim": 256} | net | trainings.SEED_VOKEN_LOSSES
    more: dict[str, Any] = {"without": ("adversarial.",), "excludes": "the discriminator", "training": training}
    return _size(f"{name} {codes}", parameters, args, checkpoints=(f"{file}_{codes}.ckpt",), headline=f"rFID {rfid}", **more)


IBQ = (
    _ibq(1024, 107_049_859, 2.24),
    _ibq(8192, 108_884_867, 1.87),
    _ibq(16384, 110_982_019, 1.37),
    _ibq(262144, 173_896_579, 1.0),
    _ibq(16384, 110_982_019, 2.06, "IBQ pretrain", "IBQ_pretrain"),
    _ibq(262144, 173_896_579, 1.53, "IBQ pretrain", "IBQ_pretrain"),
)


def _bsq(bits: int, parameters: int, name: str = "", file: str = "", headline: str = "") -> Size:
    args = {"scales": [1, 2, 4, 6, 8, 12, 16], "bits": bits, "quant_kernel": 0, "latent": bits} | _net([1, 2, 4, 4, 4], middle="blocks")
    return _size(name or f"Infinity VAE d{bits}", parameters, args, tokens=521, checkpoints=(file,) if file else (), headline=headline)


INFINITY_BSQ = (
    _bsq(8, 109_896_843),
    _bsq(16, 109_970_579, "", "infinity_vae_d16.pth", "rFID 1.22"),
    _bsq(18, 109_989_013),
    _bsq(20, 110_007_447),
    _bsq(24, 110_044_315, "", "infinity_vae_d24.pth", "rFID 0.75"),
    _bsq(32, 110_118_051, "", "infinity_vae_d32.pth", "rFID 0.61"),
    _bsq(32, 110_118_051, "Infinity VAE d32reg", "infinity_vae_d32reg.pth", "rFID 0.75"),
    _bsq(64, 110_412_995, "", "infinity_vae_d64.pth", "rFID 0.33"),
    _bsq(128, 111_002_883),
)

#: Width, depth and heads of TiTok's transformers (arXiv:2406.07550).
_VIT = {"S": (512, 8, 8), "B": (768, 12, 12), "L": (1024, 24, 16)}


def _titok(sides: str, tokens: int, parameters: int, name: str, codes: dict[str, Any], **more: Any) -> Size:
    (width, depth, heads), decoder = _VIT[sides[0]], _VIT[sides[-1]]
    net = {"patch": 16, "width": width, "depth": depth, "heads": heads} | ({"decoder": list(decoder)} if len(sides) > 1 else {})
    return _size(name, parameters, {"tokens": tokens} | codes | net, tokens=tokens, checkpoints=("model.safetensors",), **more)


def _onestage(sides: str, tokens: int, parameters: int) -> Size:
    codes = {"codes": 8192, "dim": 64, "metric": "l2", "update": "learned"}
    return _titok(sides, tokens, parameters, f"TiTok-{sides}-{tokens} VQ", codes)


TITOK_ONESTAGE = (_onestage("BL", 64, 390_016_148), _onestage("BL", 128, 390_179_988), _onestage("SL", 256, 330_260_884))


def _staged(side: str, tokens: int, parameters: int, headline: str) -> Size:
    """The second stage, as released: the base's code vectors and decoder are part of the model, its encoder is not."""
    codes = {"codes": 4096, "dim": 12, "reading": "scrambled", "update": "learned"} | trainings.TITOK_LOSSES
    base = ("maskgit_vqgan", {"size": MASKGIT_VQGAN[0].name})
    more: dict[str, Any] = {"training": trainings.TITOK, "without": ("adversarial.",)}
    more["excludes"] = "the discriminator; the second stage: the base's encoder is left out"
    return _titok(side, tokens, parameters, f"TiTok-{side}-{tokens}", codes, codec=base, headline=headline, **more)


TITOK = (
    _staged("L", 32, 641_054_735, "rFID 2.21"),
    _staged("B", 64, 204_814_095, "rFID 1.7"),
    _staged("S", 128, 83_674_639, "rFID 1.71"),
)


def _magvit(name: str, parameters: int, args: dict[str, Any], multipliers: list[int], blocks: int, image: int, headline: str = "") -> Size:
    net = {"net": "magvit", "channels": 128, "multipliers": multipliers, "blocks": blocks, "norm_groups": 32}
    more: dict[str, Any] = {"image": image, "headline": headline}
    if name.startswith("SimVQ"):
        args = args | trainings.SIMVQ_LOSSES
        more |= _JUDGED | {
            "fixed": ("quantizer.table",),
            "excludes": "the discriminator; the fixed codes count",
            "training": trainings.SIMVQ,
        }
    elif name.startswith("ImageNet"):
        args = args | trainings.SEED_VOKEN_LOSSES | {"entropy": 0.1}
        more |= _JUDGED | {"training": trainings.seed_voken(270, 200, 250) if image == 256 else trainings.seed_voken(350, 250, 300)}
    return _size(name, parameters, args | net, down=2 ** (len(multipliers) - 1), **more)


#: Open-MAGVIT2's (arXiv:2409.04410).
LFQ = (
    _magvit("ImageNet 256 L (2^18)", 115_127_829, {"bits": 18}, _F16, 4, 256, "rFID 1.17"),
    _magvit("ImageNet 128 L (2^18)", 112_021_653, {"bits": 18}, _F8, 4, 128, "rFID 1.18"),
    _magvit("Pretrain 256 16384 (2^14)", 115_094_033, {"bits": 14}, _F16, 4, 256, "rFID 2.55"),
    _magvit("Pretrain 256 262144 (2^18)", 115_127_829, {"bits": 18}, _F16, 4, 256, "rFID 1.67"),
)

#: SimVQ's (arXiv:2411.02038).
SIMVQ = (
    _magvit("SimVQ 1k 128 px", 64_281_987, {"codes": 1024, "dim": 128}, _F8, 2, 128, "rFID 3.67"),
    _magvit("SimVQ 8k 128 px", 65_199_491, {"codes": 8192, "dim": 128}, _F8, 2, 128, "rFID 2.98"),
    _magvit("SimVQ 65k 128 px", 72_539_523, {"codes": 65536, "dim": 128}, _F8, 2, 128, "rFID 2.24"),
    _magvit("SimVQ 262k 128 px", 97_705_347, {"codes": 262144, "dim": 128}, _F8, 2, 128, "rFID 1.99"),
)
