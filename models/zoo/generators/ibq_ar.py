"""IBQ's generator: raster prediction over one large codebook under adaptive norms (Shi et al. 2024, arXiv:2412.02692).

New: the transformer of raster (LlamaGen) with norms that the class modulates, block by block and before the output map, on the codes of
the tokenizer ibq, whose codebook is large and wide.
Differs: the order of the modulation's six vectors is that of VAR (no source at hand tells it, and it changes no model that is trained
here); dropout masks come from the step's draws.
Run: tokenloom run smoke_ibq_ar
Expect: ImageNet 256 FID 2.88 (B), 2.45 (L), 2.14 (XL), 2.05 (XXL) in the paper.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.raster import raster
from tokenloom.models.zoo.published.ibq import SIZES


@register(
    "ibq_ar",
    kind="generator",
    paper="2412.02692",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="ibq",
    sizes=SIZES,
)
def ibq_ar(
    depth: int = 16,
    width: int | None = None,
    heads: int | None = None,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    gamma: float = 1e-2,
    multiple_of: int = 32,
    guidance: float = 1.25,
    temperature: float = 1.1,
) -> GroupGenerator.Config:
    """LlamaGen's transformer of this depth with adaptive norms, whose initial gammas are ``gamma`` large; width is 64 times the depth."""
    base = raster(depth, width, heads, classes, dropout, label_dropout, multiple_of)
    assert isinstance(base.net, Transformer.Config)
    return replace(
        base,
        net=replace(base.net, norm=AdaLN.Config(kind="rms", final="rms", eps=1e-5, gamma=gamma)),
        sampler=Sampler(guidance=Constant(value=guidance), temperature=Constant(value=temperature)),
    )
