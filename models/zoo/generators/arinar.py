"""ARINAR: bi-level autoregression, feature by feature within a token (Zhao et al. 2025, arXiv:2503.02883).

New: an inner autoregressive model draws a token's features one by one, each from a mixture of a few Gaussians, so that the density of
a token is exact; guidance re-draws among candidates by their likelihoods.
Differs: the latents' scale is measured instead of 0.2325; the loss has the constant that makes it a likelihood.
Run: tokenloom run smoke_arinar
Expect: ImageNet 256 FID 2.75 (B, 213 M parameters) with guidance and 64 steps.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.heads.inner import InnerMixture
from tokenloom.models.parts.heads.mixture import MixtureSampler, Within
from tokenloom.models.zoo.generators.mar import mar
from tokenloom.models.zoo.published.continuous.arinar import ARINAR


@register(
    "arinar",
    kind="generator",
    paper="2503.02883",
    tiny={"depth": 1, "width": 32, "heads": 2, "inner_width": 16, "inner_heads": 2, "components": 2, "candidates": 8}
    | {"buffer": 2, "steps": 4},
    codec="kl",
    sizes=ARINAR,
)
def arinar(
    depth: int = 14,
    width: int = 768,
    heads: int = 12,
    inner_width: int = 768,
    inner_depth: int = 1,
    inner_heads: int = 16,
    components: int = 4,
    together: int = 1,
    buffer: int = 64,
    steps: int = 64,
    temperature: float = 1.0,
    candidates: int = 1000,
    within: Within = "constant",
    guidance: float = 3.5,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """ARINAR-B by default: MAR's ``depth`` blocks each in encoder and decoder, an inner transformer of ``inner_depth`` over the features,
    ``together`` of which have one mixture."""
    sizes = {"depth": depth, "width": width, "heads": heads, "buffer": buffer, "steps": steps, "guidance": guidance}
    made = mar(**sizes, classes=classes, dropout=dropout, label_dropout=label_dropout)  # type: ignore[arg-type]
    inner = {"width": inner_width, "depth": inner_depth, "heads": inner_heads}
    own = MixtureSampler(temperature=temperature, candidates=candidates, within=within)
    return replace(
        made,
        head=InnerMixture.Config(**inner, components=components, together=together),
        sampler=replace(made.sampler, head=own),
    )
