"""ViR: retention for images, parallel in training and recurrent in decoding (Hatamizadeh et al. 2023, arXiv:2310.19731).

New: attention without softmax, whose weights decay with distance (retention, arXiv:2307.08621), has three equal forms: parallel,
recurrent with a state of fixed size, and chunk by chunk in linear time.
Differs: the paper's backbone recognises images, here it predicts codes row by row; retention as in arXiv:2307.08621, with
rotations, norms by head and a gate, decaying along the sequence (the paper also has a form that decays along rows and columns).
Run: tokenloom run smoke_vir
Expect: no published number for generation; the quality of raster at equal depth is what to compare with.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.zoo.generators._recurrent import one_by_one
from tokenloom.models.zoo.generators.vir.net import Retention


@register(
    "vir",
    kind="generator",
    paper="2310.19731",
    tiny={"depth": 2, "width": 32, "heads": 2, "chunk": 6},
    codec="vq",
)
def vir(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    chunk: int = 256,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """A retention net of this depth; width is 64 times the depth and heads the depth if not given."""
    return one_by_one(Retention.Config(heads=heads or depth, chunk=chunk), depth, width, classes, dropout, label_dropout)
