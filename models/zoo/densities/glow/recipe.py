"""Glow: generative flow with invertible 1x1 convolutions (Kingma and Dhariwal 2018, arXiv:1807.03039).

New: each step of flow is an activation norm, an invertible 1x1 convolution that mixes channels, and a coupling; half of the channels
leave at each scale under a prior that the rest conditions.
Differs: couplings have no activation norms inside; activation norms start by the first batch of the rank; scales are a sigmoid.
Run: tokenloom run smoke_glow
Expect: CIFAR-10 3.35, ImageNet 32 4.09 and ImageNet 64 3.81 bits a dimension (affine couplings, width 512).
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.zoo.densities.glow.module import Glow


@register("glow", kind="density", paper="1807.03039", tiny={"scales": 2, "steps": 1, "width": 16, "bits": 3})
def glow(
    scales: int = 3,
    steps: int = 32,
    width: int = 512,
    coupling: Literal["affine", "additive"] = "affine",
    mixing: Literal["factors", "full"] = "factors",
    bits: int = 8,
    temperature: float = 0.7,
) -> Glow.Config:
    """The paper's CIFAR-10 model by default: 3 scales of 32 steps."""
    return Glow.Config(scales=scales, steps=steps, width=width, coupling=coupling, mixing=mixing, bits=bits, temperature=temperature)
