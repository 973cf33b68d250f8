"""FAR: frequency-progressive autoregression (Yu et al. 2025, arXiv:2503.05305).

New: the sequence is of frequencies, not of places: each step predicts all latents from a low-pass of those of the step before, and the
diffusion head is told how much passes.
Differs: the latents' scale is measured instead of 0.2325; on grids other than 16 x 16 the stages of sampling are scaled; the bound of
masks falls on whole positions.
Run: tokenloom run smoke_far_frequency
Expect: ImageNet 256 FID 4.83 (B, 208 M parameters), 3.92 (L), 3.71 (H) in ten steps with guidance.
"""

from __future__ import annotations

import math

from tokenloom.models.core.registry import register
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.known_values import KnownValues
from tokenloom.models.parts.nets import blocks
from tokenloom.models.parts.nets.masked_autoencoder import MaskedAutoencoder
from tokenloom.models.sampling.sampler import Linear, Sampler, Schedule, Table
from tokenloom.models.zoo.generators.far_frequency.head import StagedDiffusion, StagedSampler
from tokenloom.models.zoo.generators.far_frequency.module import STAGES, FrequencyGenerator, Masks
from tokenloom.models.zoo.published.continuous.far_frequency import FAR_FREQUENCY


def warmth(masks: Masks, temperature: float) -> Schedule:
    """The released temperatures: growing evenly from 0.85, or without masks along a cosine from 0.8 to 1, whatever is asked for."""
    if masks == "some":
        return Linear(start=0.85, value=temperature, clock="begun")
    steps = len(STAGES["none"])
    return Table(value=1.0, factors=tuple(0.8 + 0.2 * (1 - math.cos(math.pi / 2 * (i + 1) / steps)) for i in range(steps)))


@register(
    "far_frequency",
    kind="generator",
    paper="2503.05305",
    tiny={"depth": 1, "width": 32, "heads": 2, "head_depth": 1, "head_width": 32, "buffer": 2, "stages": (0, 1, 2), "draw_steps": 5},
    codec="kl",
    sizes=FAR_FREQUENCY,
)
def far_frequency(
    depth: int = 12,
    width: int = 768,
    heads: int = 12,
    head_depth: int = 6,
    head_width: int = 1024,
    repeats: int = 4,
    buffer: int = 64,
    masks: Masks = "some",
    stages: tuple[int, ...] = (),
    draw_steps: int = 100,
    temperature: float = 1.0,
    guidance: float = 2.0,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> FrequencyGenerator.Config:
    """FAR-B by default: MAR's blocks; ``stages`` are sides of the low-pass (none: the released ones), each drawn in ``draw_steps``."""
    half = blocks.vit(depth, width, heads, dropout=dropout)
    diffusion = {"predicts": "eps", "variance": "learned", "frequencies": 256, "norm": "affine"}  # MAR's
    return FrequencyGenerator.Config(
        feed=KnownValues.Config(buffer=buffer),
        net=MaskedAutoencoder.Config(encoder=half, decoder=half, buffer=buffer),
        head=StagedDiffusion.Config(width=head_width, depth=head_depth, repeats=repeats, **diffusion),  # type: ignore[arg-type]
        masks=masks,
        stages=stages,
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(
            guidance=Linear(value=guidance, clock="begun"),
            head=StagedSampler(steps=draw_steps, warmth=warmth(masks, temperature)),
        ),
    )
