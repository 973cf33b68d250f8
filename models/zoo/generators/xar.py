"""xAR: beyond next-token, next-X prediction (Ren et al. 2025, arXiv:2502.20388).

New: what is predicted next may be a token, a cell of neighbours, evenly spaced tokens, or a scale; it is drawn by flow matching, and
what it depends on is noisy in training, so that sampling meets no inputs of a new kind.
Differs: the latents' scale is measured instead of 0.2325; rotary tables follow the grid at hand instead of one of 16 x 16.
Run: tokenloom run smoke_xar
Expect: ImageNet 256 FID 1.24 (H, 1.1 B parameters) with 2 x 2 cells of 8 x 8 latents, guidance and 50 steps a cell.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_denoiser import GroupDenoiser
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.flows.matching import FlowSampler, Solver
from tokenloom.models.parts.mlp import SwiGLU
from tokenloom.models.parts.nets.halves import Halves
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Cells, Scales, Subsamples
from tokenloom.models.parts.rope import Rope
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.published.continuous.xar import XAR

Entity = Literal["cell", "subsample", "scale"]


def half(depth: int, width: int, heads: int, ratio: float = 4.0, dropout: float = 0.0) -> Transformer.Config:
    """The blocks of xAR's encoder or decoder: adaptive RMS norms, a gated GELU with biases, rotary positions."""
    return Transformer.Config(
        width=width,
        depth=depth,
        heads=heads,
        norm=AdaLN.Config(kind="plain_rms", final="rms", last="plain", eps=1e-6),
        mlp=SwiGLU.Config(ratio=ratio, multiple_of=1, bias="yes", act="gelu"),
        attention=Attention.Config(bias="qkv"),
        rope=Rope.Config(),
        dropout=dropout,
    )


@register(
    "xar",
    kind="generator",
    paper="2502.20388",
    tiny={"depth": 1, "width": 32, "heads": 2, "draw_steps": 4, "dropout": 0.0, "label_dropout": 0.0},
    codec="kl",
    sizes=XAR,
)
def xar(
    depth: int = 8,
    width: int = 768,
    heads: int = 12,
    entity: Entity = "cell",
    across: int = 2,
    draw_steps: int = 40,
    solver: Solver = "sde",
    guidance: float = 1.7,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupDenoiser.Config:
    """xAR-B by default: ``across`` x ``across`` cells (the grid's side: next-token), each drawn in ``draw_steps``; evenly spaced tokens,
    one of each cell, at once; or the scales of tokens that have several."""
    order = {"cell": Cells(across=across), "subsample": Subsamples(across=across), "scale": Scales()}[entity]
    each = half(depth, width, heads, dropout=dropout)
    return GroupDenoiser.Config(
        order=order,
        net=Halves.Config(first=each, second=each),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Linear(value=guidance), head=FlowSampler(steps=draw_steps, solver=solver)),
    )
