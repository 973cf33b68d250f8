"""RAR: randomized autoregressive modelling (Yu et al. 2024, arXiv:2411.00776).

New: rows are permuted with a probability that falls from one to zero during training, and positions are embedded twice: where a token
stands and which comes next.  It learns from both sides of a token and ends as plain raster prediction, sampled like it.
Differs: the probability falls with the share of training that is done (from 0.5 to 0.75 as published: steps 125k to 187.5k of 250k).
Run: tokenloom run smoke_rar
Expect: ImageNet 256 FID 1.95 (B), 1.70 (L), 1.50 (XL), 1.48 (XXL) with official weights; on equal steps a lower loss in raster
order than plain raster once the probability is zero.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.aimed import TargetAware
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Annealed
from tokenloom.models.parts.similarity import Normed
from tokenloom.models.sampling.sampler import PowerCosine, Sampler
from tokenloom.models.zoo.published.rar import SIZES


@register(
    "rar",
    kind="generator",
    paper="2411.00776",
    tiny={"depth": 2, "width": 32, "heads": 2, "anneal": [0.0, 0.5]},
    codec="vq",
    sizes=SIZES,
)
def rar(
    depth: int = 24,
    width: int = 768,
    heads: int = 16,
    mlp_ratio: float = 4.0,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    anneal: tuple[float, float] = (0.5, 0.75),
    spare: tuple[int, int, int] = (0, 0, 0),
) -> GroupGenerator.Config:
    """RAR-B by default; ``spare`` are the rows that the official tables of tokens, places and steps have and nothing reads."""
    return GroupGenerator.Config(
        order=Annealed(start=anneal[0], end=anneal[1]),
        feed=TargetAware.Config(dropout=dropout, spare_tokens=spare[0], spare_places=spare[1], spare_steps=spare[2]),
        net=Transformer.Config(
            width=width,
            depth=depth,
            heads=heads,
            norm=AdaLN.Config(eps=1e-6, kind="layer"),
            mlp=GELU.Config(ratio=mlp_ratio, form="none"),
            attention=Attention.Config(similarity=Normed(), bias="qkv"),
            dropout=dropout,
        ),
        head=Categorical.Config(bias="yes", init_std=0.02),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=PowerCosine(value=15.0, power=2.75, clock="begun")),
    )
