"""Hi-MAR: hierarchical masked autoregression with low-resolution pivots (Zheng et al. 2025, arXiv:2505.20288).

New: the image is first drawn small, pivot by pivot, and the hidden states from which the pivots were drawn stand before the dense tokens
as what the whole image is about; the dense tokens of a round are denoised together by a small diffusion transformer instead of one by one.
Differs: the latents' scale is measured instead of 0.2325; the share of rows that see pivots grows with the steps instead of the epochs;
dropout falls on branches, not on attention weights; the losses of pivots and of dense tokens weigh 0.4 and 0.6 on any grids; no sizes for
texts, which the paper has too.
Run: tokenloom run smoke_himar
Expect: ImageNet 256 FID 1.93 (B, 244 M parameters), 1.66 (L, 529 M), 1.52 (H, 1090 M) with guidance.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.nets import blocks
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.generators.himar.head import GridDiffusion
from tokenloom.models.zoo.generators.himar.module import HiMAR, PivotSampler
from tokenloom.models.zoo.generators.himar.net import PivotAutoencoder
from tokenloom.models.zoo.generators.himar.norm import TaskNorm
from tokenloom.models.zoo.generators.mar import noise_head
from tokenloom.models.zoo.published.continuous.himar import HIMAR


@register(
    "himar",
    kind="generator",
    paper="2505.20288",
    tiny={
        "depth": 1, "width": 32, "heads": 2, "head_depth": 1, "head_width": 32, "dense_depth": 1, "dense_width": 32, "dense_heads": 2,
        "buffer": 2, "pivot_rounds": 2, "rounds": 2, "draw_steps": 5, "dense_steps": 5,
    },
    codec="kl_pyramid",
    sizes=HIMAR,
)  # fmt: skip
def himar(
    depth: int = 12,
    width: int = 768,
    heads: int = 12,
    head_depth: int = 6,
    head_width: int = 1024,
    dense_depth: int = 6,
    dense_width: int = 512,
    dense_heads: int = 8,
    repeats: int = 4,
    buffer: int = 64,
    pivot_rounds: int = 32,
    rounds: int = 4,
    draw_steps: int = 100,
    dense_steps: int = 250,
    temperature: float = 1.0,
    pivot_guidance: float = 1.7,
    guidance: float = 1.5,
    shown: float = 0.25,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> HiMAR.Config:
    """Hi-MAR-B by default: ``head_…`` is of the pivots' head, ``dense_…`` of that of dense tokens; ``shown``: share of the rows that
    see pivots in training.  ``pivot_rounds`` of ``draw_steps`` each, then ``rounds`` of ``dense_steps``."""
    half = replace(blocks.vit(depth, width, heads, dropout=dropout), norm=TaskNorm.Config())
    return HiMAR.Config(
        net=PivotAutoencoder.Config(encoder=half, decoder=half, buffer=buffer),
        head=noise_head(head_width, head_depth, repeats),
        dense=GridDiffusion.Config(width=dense_width, depth=dense_depth, heads=dense_heads, repeats=repeats),
        shown=shown,
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(
            guidance=Linear(value=guidance, clock="almost"),
            head=PivotSampler(
                steps=draw_steps,
                temperature=temperature,
                pivot_guidance=Linear(value=pivot_guidance, clock="almost"),
                pivot_rounds=pivot_rounds,
                rounds=rounds,
                dense_steps=dense_steps,
            ),
        ),
    )
