"""KL pyramid: the continuous latents of one image in several resolutions (FlowAR, arXiv:2412.15205; Hi-MAR, arXiv:2505.20288).

New: nothing is trained for the scales: the KL tokenizer's own latents, of the image resized or averaged over areas, small to large, so that
any continuous tokenizer serves next-scale generation.
Differs: as ``kl``.
Run: tokenloom run smoke_himar
Expect: the images of ``kl`` with the same training: the last grid alone is decoded.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.tokenizers.pyramid import Pyramid
from tokenloom.models.zoo.published.tokenizers import KL
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small
from tokenloom.models.zoo.tokenizers.kl import kl


@register(
    "kl_pyramid",
    kind="tokenizer",
    paper="2412.15205",
    tiny=TINY | {"dim": 4, "scales": [2, 4]},
    sizes=tuple(replace(size, args={**size.args, "scales": [8, 16]}) for size in KL[:1]),
)
def kl_pyramid(
    scales: tuple[int, ...] = (2, 4),
    of: Literal["images", "latents"] = "images",
    dim: int = 16,
    divergence: float = 1e-6,
    scale: float | None = None,
    small: Small = SMALL,
) -> Pyramid.Config:
    """``scales[-1]`` must be the latent grid of ``kl``, whose arguments the others are; the smaller ones are latents ``of`` the image
    resized, or of the latents averaged."""
    made = kl(dim=dim, divergence=divergence, scale=scale, small=small)
    return Pyramid.Config(scales=scales, of=of, **{f.name: getattr(made, f.name) for f in fields(made)})
