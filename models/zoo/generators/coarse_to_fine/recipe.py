"""CTF: autoregression over coarse labels, then all codes at once (Guo, Zhang and Shieh 2025, arXiv:2503.16194).

New: codes with similar vectors share a label (k-means of the codebook); a transformer predicts the labels one by one, from a vocabulary as
small as that of a small codebook, and an auxiliary net with full attention then predicts all codes in one pass from the labels.
Differs: both nets are trained side by side in one run; a code has mass under its own label only, so the likelihood is that of the codes.
Run: tokenloom run smoke_coarse_to_fine
Expect: ImageNet 256: 59 points more Inception Score on average than LlamaGen at the same size in the paper, and faster sampling.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.zoo.generators.coarse_to_fine.module import CoarseToFine
from tokenloom.models.zoo.generators.raster import raster


@register(
    "coarse_to_fine",
    kind="generator",
    paper="2503.16194",
    tiny={"labels": 4, "depth": 2, "width": 32, "heads": 2, "fine_depth": 2},
    codec="vq",
)
def coarse_to_fine(
    labels: int = 512,
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    fine_depth: int = 12,
    fine_width: int | None = None,
    fine_heads: int | None = None,
    fine_dropout: float | None = None,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> CoarseToFine.Config:
    """The label model is that of ``raster``; the code model has its blocks, in its size unless ``fine_depth``, ``fine_width`` and
    ``fine_heads`` say another, and its own dropout."""
    coarse = raster(depth, width, heads, classes, dropout, label_dropout)
    assert isinstance(coarse, GroupGenerator.Config)
    assert isinstance(coarse.net, Transformer.Config)
    fine = replace(
        coarse.net,
        depth=fine_depth,
        width=fine_width or coarse.net.width,
        heads=fine_heads or (fine_width // (coarse.net.width // coarse.net.heads) if fine_width else coarse.net.heads),
        dropout=dropout if fine_dropout is None else fine_dropout,
    )
    return CoarseToFine.Config(coarse=coarse, fine=fine, labels=labels)
