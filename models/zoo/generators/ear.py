"""EAR: continuous tokens by a proper scoring rule (Shao et al. 2025, arXiv:2505.07812).

New: the head maps hidden state and noise to a token in one pass and is trained by the energy score of two samples, so that no
density and no chain of denoising steps is needed.
Differs: the latents' scale is measured instead of 0.2325; the paper's lower training
temperature of the last epochs is the field ``head.spread``, which no schedule moves.
Run: tokenloom run smoke_ear
Expect: ImageNet 256 FID 1.97 (H, 937 M parameters) with guidance and 64 steps.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.masked import MaskToken
from tokenloom.models.parts.heads.energy import EnergySampler, EnergyScore
from tokenloom.models.parts.nets import blocks
from tokenloom.models.parts.orders import Masked, Steps, TruncatedNormal
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.published.continuous.mar import EAR


@register(
    "ear",
    kind="generator",
    paper="2505.07812",
    tiny={"depth": 1, "width": 32, "heads": 2, "head_depth": 1, "head_width": 32, "noise": 8, "buffer": 2, "steps": 4},
    codec="kl",
    sizes=EAR,
)
def ear(
    depth: int = 24,
    width: int = 768,
    heads: int = 12,
    head_depth: int = 6,
    head_width: int = 1024,
    repeats: int = 2,
    noise: int = 64,
    alpha: float = 1.0,
    buffer: int = 64,
    steps: int = 64,
    temperature: float = 0.7,
    guidance: float = 2.0,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """EAR-B by default: ``depth`` blocks over all positions, each its token or [MASK], after ``buffer`` slots of the class."""
    return GroupGenerator.Config(
        order=Masked(curve=TruncatedNormal(), decoding=Steps(count=steps), share="batch", rounded="up"),
        feed=MaskToken.Config(prefix=buffer),
        net=blocks.vit(depth, width, heads, dropout=dropout),
        head=EnergyScore.Config(width=head_width, depth=head_depth, repeats=repeats, noise=noise, alpha=alpha),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout, slots=buffer),
        sampler=Sampler(guidance=Linear(value=guidance, clock="almost"), head=EnergySampler(temperature=temperature)),
    )
