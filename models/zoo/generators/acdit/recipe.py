"""ACDiT: autoregression over blocks with conditional diffusion inside (Hu et al. 2024, arXiv:2412.07720).

New: blocks of continuous tokens are drawn one after another, each by a diffusion that sees the clean blocks before it; training shows
clean and noisy blocks side by side under one mask.  One block is a diffusion transformer, blocks of one token autoregression.
Differs: maps that scale and shift start small, not at zero; tokens are those of a KL tokenizer as it scales them.
Run: tokenloom run smoke_acdit
Expect: ImageNet 256 FID 2.37 (H, 951 M) with guidance 0.5 (as a weight), 4 blocks, 25 steps of DPM-Solver++.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.similarity import Normed
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.acdit.module import ACDiT, SolverSampler
from tokenloom.models.zoo.published.acdit import ACDIT


@register(
    "acdit",
    kind="generator",
    paper="2412.07720",
    tiny={"depth": 1, "width": 32, "heads": 2, "blocks": 4, "steps": 3},
    codec="kl",
    sizes=ACDIT,
)
def acdit(
    depth: int = 12,
    width: int = 768,
    heads: int = 12,
    blocks: int = 4,
    shape: Literal["squares", "runs"] = "squares",
    steps: int = 25,
    guidance: float = 0.5,
    classes: int | None = None,
    label_dropout: float = 0.1,
) -> ACDiT.Config:
    """ACDiT-B by default: ``blocks`` of the tokens, ``steps`` of the solver for each."""
    return ACDiT.Config(
        net=Transformer.Config(
            width=width,
            depth=depth,
            heads=heads,
            norm=AdaLN.Config(kind="rms", final="rms", eps=1e-6, gamma=0.0),
            mlp=GELU.Config(form="tanh"),
            attention=Attention.Config(similarity=Normed(kind="rms"), bias="qkv"),
        ),
        blocks=blocks,
        shape=shape,
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=guidance), head=SolverSampler(steps=steps)),
    )
