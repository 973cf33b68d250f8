"""Published sizes of tokenizers whose nets are transformers: numbers of parameters by the official classes, without discriminators."""

from __future__ import annotations

from typing import Any

from tokenloom.models.core.published import Size
from tokenloom.models.zoo.published import tokenizer_trainings as trainings

#: Losses of both, without LPIPS (weight 0.1) unless the run names its weights.
_STYLEGAN = {
    **{"pixels": 1.0, "adversarial": 0.1, "balance": "constant", "judge": "stylegan", "verdict": "vanilla", "deceit": "non_saturating"},
    **{"r1": 10.0, "perceptual_weight": 0.1},
}


def _bsq(name: str, bits: int, parameters: int, headline: str, image: int = 256) -> Size:
    args: dict[str, Any] = {
        **{"net": "vit", "bits": bits, "factors": [18] * (bits // 18) if bits > 18 else [], "beta": 0.0, "entropy": 0.1},
        **{"patch": 8, "width": 768, "depth": 12, "heads": 12, "reconstruction": "l1", "judge_side": image},
    }
    more: dict[str, Any] = {"without": ("adversarial.",), "excludes": "the discriminator", "headline": headline, "training": trainings.BSQ}
    return Size(name=name, parameters=parameters, mark="measured", args=args | _STYLEGAN, tokens=(image // 8) ** 2, image=image, **more)


#: BSQ-ViT (arXiv:2406.07548).
BSQ = (
    _bsq("BSQ-ViT 256 b18", 18, 174_816_210, "rFID 1.34"),
    _bsq("BSQ-ViT 256 b36", 36, 174_843_876, ""),
    _bsq("BSQ-ViT 128 b18", 18, 173_636_562, "", 128),
)


def _vit_vq(name: str, parameters: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int], head_width: int = 0) -> Size:
    args: dict[str, Any] = {
        **{"form": "released", "update": "learned", "codes": 8192, "dim": 32, "patch": 8, "head_width": head_width},
        **{"width": encoder[0], "depth": encoder[1], "heads": encoder[2], "decoder": list(decoder)},
    }
    excludes = "the discriminator; the fixed positions count"
    fixed = ("encoder.trunk.position", "decoder.trunk.position")
    return Size(
        name=name,
        published=f"{name} (enhancing-transformers, unofficial)",
        parameters=parameters,
        mark="measured",
        args=args | _STYLEGAN,
        tokens=1024,
        without=("adversarial.",),
        fixed=fixed,
        excludes=excludes,
    )


#: Another group's ViT-VQGAN (arXiv:2110.04627), as no official one was released.
VIT_VQ = (
    _vit_vq("ViT-VQGAN small", 51_956_771, (512, 8, 8), (512, 8, 8)),
    _vit_vq("ViT-VQGAN base", 172_237_347, (768, 12, 12), (768, 12, 12)),
    _vit_vq("ViT-VQGAN large", 615_322_915, (512, 8, 8), (1280, 32, 16), 64),
)
