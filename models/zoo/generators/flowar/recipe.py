"""FlowAR: scale-wise autoregression meets flow matching (Ren et al. 2024, arXiv:2412.15205).

New: next-scale prediction without a tokenizer of its own: scales that double, averages of any continuous latents, each of them drawn as a
whole by flow matching from noise, given the hidden states that a transformer makes of the scales before it.
Differs: the latents' scale is measured instead of 0.2325; even steps where the released sampler of 25 steps has two pieces; attention and
MLP alone in the head, as in the paper and the released S (the released L and H add attention to the states).
Run: tokenloom run smoke_flowar
Expect: ImageNet 256 FID 3.61 (S, 170 M parameters), 1.90 (L, 589 M), 1.65 (H, 1.9 B) with guidance.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.nets.halves import Halves
from tokenloom.models.parts.rope import Rope
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.generators.flowar.head import ScaleFlow
from tokenloom.models.zoo.generators.flowar.module import FlowAR, ScaleSampler
from tokenloom.models.zoo.generators.xar import half
from tokenloom.models.zoo.published.continuous.flowar import FLOWAR


@register(
    "flowar",
    kind="generator",
    paper="2412.15205",
    tiny={"depth": 1, "width": 32, "heads": 2, "head_depth": 1, "head_width": 32, "head_heads": 2, "side": 4, "draw_steps": 4},
    codec="kl_pyramid",
    sizes=FLOWAR,
)
def flowar(
    depth: int = 6,
    width: int = 768,
    heads: int = 12,
    head_depth: int = 2,
    head_width: int = 1024,
    head_heads: int = 16,
    side: int = 16,
    draw_steps: int = 25,
    guided: float = 0.1,
    guidance: float = 3.3,
    classes: int | None = None,
    dropout: float = 0.0,
    label_dropout: float = 0.1,
) -> FlowAR.Config:
    """FlowAR-S by default: two halves of ``depth`` blocks; rotary positions reach over ``side``, that of the largest grid; guidance grows
    from scale to scale and acts from the time ``guided`` on."""
    each = replace(half(depth, width, heads, dropout=dropout), rope=Rope.Config(reach=side))
    return FlowAR.Config(
        net=Halves.Config(first=each, second=each),
        head=ScaleFlow.Config(width=head_width, depth=head_depth, heads=head_heads),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Linear(value=guidance), head=ScaleSampler(steps=draw_steps, guided=guided)),
    )
