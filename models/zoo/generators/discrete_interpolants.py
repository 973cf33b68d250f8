"""Discrete Interpolants: [MASK] is all you need (Hu and Ommer 2024, arXiv:2412.06787).

New: masked generation and discrete diffusion are points of one space: tokens are masked along a curve, and a net is trained once.  It
may have the time as input or not, and its samples may be drawn as a discrete flow, every token being shown by itself at the curve's rate,
or as masked generation, the surest first.
Differs: class-conditional images only (the paper casts segmentation as unmasking too).  The likelihood is bounded, not known.
Run: tokenloom run smoke_discrete_interpolants
Expect: ImageNet 256 results close to MaskGIT's and VQ-Diffusion's in the paper, with 20 and more steps.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.registry import register
from tokenloom.models.generators.discrete_state import DiscreteState
from tokenloom.models.generators.noising import Absorbing
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Arccos, Confidence, CosineCurve, Straight
from tokenloom.models.sampling.sampler import Constant, Sampler

CURVES = {"linear": Straight(), "cosine": CosineCurve(), "arccos": Arccos()}


@register(
    "discrete_interpolants",
    kind="generator",
    paper="2412.06787",
    tiny={"depth": 2, "width": 32, "heads": 2, "steps": 8, "dropout": 0.0, "label_dropout": 0.0},
    codec="vq",
)
def discrete_interpolants(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    steps: int = 50,
    curve: Literal["linear", "cosine", "arccos"] = "linear",
    clock: Literal["explicit", "implicit"] = "explicit",
    weight: Literal["bound", "even"] = "even",
    sampling: Literal["flow", "masked"] = "flow",
    noise: float | None = None,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> DiscreteState.Config:
    """``noise`` is that of the confidence in masked sampling (4.5); width is 64 times the depth and heads the depth if not given."""
    if noise is not None and sampling == "flow":
        raise ConfigError(f"noise={noise}: is that of sampling='masked', leave it out")
    return DiscreteState.Config(
        noise=Absorbing(weight=weight),
        curve=CURVES[curve],
        steps=steps,
        clock=clock,
        choice=Confidence(noise=4.5 if noise is None else noise) if sampling == "masked" else None,
        net=Transformer.Config(
            width=width or 64 * depth,
            depth=depth,
            heads=heads or depth,
            norm=AdaLN.Config(),
            mlp=GELU.Config(),
            attention=Attention.Config(bias="qkv"),
            dropout=dropout,
        ),
        dropout=dropout,
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=1.0)),
    )
