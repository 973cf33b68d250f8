"""MaskGIT: masked generative image transformer (Chang et al. 2022, arXiv:2202.04200).

New: a bidirectional transformer predicts masked tokens from known ones; training masks a share of each image, decoding draws all
masked tokens at once and keeps those that it is surest of, few at first and more later along a cosine.
Differs: guidance, which the paper does not have (nor the published size, which trains no null class); without the bias of a token's
logit by its confidence noise beyond the last step.
Run: tokenloom run smoke_maskgit
Expect: ImageNet 256 FID 6.06 with the released weights; the number of steps and which tokens are given (in-painting) change freely.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Init, Transformer
from tokenloom.models.parts.norms import PostNorm
from tokenloom.models.parts.orders import Confidence, Masked, Steps
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.generators.maskgit.feed import BertTokens
from tokenloom.models.zoo.generators.maskgit.head import MaskedLM
from tokenloom.models.zoo.published.maskgit import SIZES


@register(
    "maskgit",
    kind="generator",
    paper="2202.04200",
    tiny={"depth": 2, "width": 32, "heads": 2, "steps": 4},
    codec="vq",
    sizes=SIZES,
)
def maskgit(
    depth: int = 24,
    width: int = 768,
    heads: int = 16,
    steps: int = 8,
    noise: float = 4.5,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    smoothing: float = 0.1,
    null: Literal["row", "zero"] = "row",
    spare: int = 0,
) -> GroupGenerator.Config:
    """The paper's transformer by default; ``noise`` is the temperature of the choice, ``smoothing`` that of the labels.

    ``null`` and ``spare``: see ``ClassCondition`` and ``MaskedLM``.
    """
    return GroupGenerator.Config(
        order=Masked(decoding=Steps(count=steps), choice=Confidence(noise=noise)),
        feed=BertTokens.Config(dropout=dropout, mixed="yes"),
        net=Transformer.Config(
            width=width,
            depth=depth,
            heads=heads,
            norm=PostNorm.Config(),
            mlp=GELU.Config(form="none"),
            attention=Attention.Config(bias="qkv"),
            dropout=dropout,
            init=Init(std=0.02),
        ),
        head=MaskedLM.Config(smoothing=smoothing, spare=spare),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout, null=null),
        sampler=Sampler(guidance=Linear(value=3.0 if label_dropout else 0.0, clock="begun")),
    )
