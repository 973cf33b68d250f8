"""MAR: autoregression without vector quantisation (Li et al. 2024, arXiv:2406.11838).

New: tokens are continuous; a small diffusion model draws each from its hidden state, so that a codebook is not needed.  A masked
autoencoder predicts any masked tokens from any known ones, many in a step.
Differs: the latents' scale is measured instead of 0.2325.
Run: tokenloom run smoke_mar
Expect: ImageNet 256 FID 2.31 (B, 208 M), 1.78 (L, 479 M), 1.55 (H, 943 M) with guidance, 256 steps and 100 of diffusion.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.known_values import KnownValues
from tokenloom.models.parts.heads.diffusion import Diffusion, DiffusionSampler
from tokenloom.models.parts.nets import blocks
from tokenloom.models.parts.nets.masked_autoencoder import MaskedAutoencoder
from tokenloom.models.parts.orders import Masked, Steps, TruncatedNormal
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.published.continuous.mar import MAR


def noise_head(width: int, depth: int, repeats: int) -> Diffusion.Config:
    """The head of the released models: predicted noise and a learned range of variances (arXiv:2102.09672)."""
    return Diffusion.Config(width=width, depth=depth, repeats=repeats, predicts="eps", variance="learned", frequencies=256, norm="affine")


@register(
    "mar",
    kind="generator",
    paper="2406.11838",
    tiny={"depth": 1, "width": 32, "heads": 2, "head_depth": 1, "head_width": 32, "buffer": 2, "steps": 4, "draw_steps": 5},
    codec="kl",
    sizes=MAR,
)
def mar(
    depth: int = 12,
    width: int = 768,
    heads: int = 12,
    head_depth: int = 6,
    head_width: int = 1024,
    repeats: int = 4,
    buffer: int = 64,
    steps: int = 64,
    draw_steps: int = 100,
    temperature: float = 1.0,
    guidance: float = 1.9,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """MAR-B by default: ``depth`` blocks each in encoder and decoder; ``draw_steps`` of the head for each of ``steps``."""
    half = blocks.vit(depth, width, heads, dropout=dropout)
    return GroupGenerator.Config(
        order=Masked(curve=TruncatedNormal(), decoding=Steps(count=steps), share="batch", rounded="up"),
        feed=KnownValues.Config(buffer=buffer),
        net=MaskedAutoencoder.Config(encoder=half, decoder=half, buffer=buffer),
        head=noise_head(head_width, head_depth, repeats),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Linear(value=guidance, clock="almost"), head=DiffusionSampler(steps=draw_steps, temperature=temperature)),
    )
