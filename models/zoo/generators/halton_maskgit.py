"""Halton-MaskGIT: masked generation along a Halton sequence (Besnier et al. 2025, arXiv:2503.17076).

New: MaskGIT's next positions are not those that the model is surest of, which lie close together and depend on each other, but the
next ones of a Halton sequence, which cover the grid evenly.  Any number of steps works without training again.
Differs: [MASK] itself is never drawn; dropout falls on the input and the branches, not on attention weights; the sampler is that of the
published evaluation, with temperature 1, where the released demonstration raises a factor of the logits from 1 to 1.2 and rolls the start
(``start: rolled``).
Run: tokenloom run smoke_halton_maskgit
Expect: a lower FID than the confidence sampler gives with the same weights, without noise on the choice, in the paper.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.masked import MaskToken
from tokenloom.models.parts.heads.categorical import Tied
from tokenloom.models.parts.mlp import SwiGLU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Arccos, Halton, Masked, RolledHalton, Steps
from tokenloom.models.parts.similarity import RootMean
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.published.halton_maskgit import SIZES


@register(
    "halton_maskgit",
    kind="generator",
    paper="2503.17076",
    tiny={"depth": 2, "width": 32, "heads": 2, "steps": 4},
    codec="vq",
    sizes=SIZES,
)
def halton_maskgit(
    depth: int = 24,
    width: int = 768,
    heads: int = 12,
    steps: int = 32,
    registers: int = 1,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    multiple_of: int = 32,
    extra: int = 0,
    head_width: int = 0,
    start: Literal["first", "rolled"] = "first",
    guidance: float = 2.0,
) -> GroupGenerator.Config:
    """The base model by default; ``extra`` rows of the tied table stand for [MASK] and what is no code; each sample enters the sequence
    at its ``first`` entry, or at a random one (``rolled``)."""
    visit = RolledHalton() if start == "rolled" else Halton()
    return GroupGenerator.Config(
        order=Masked(curve=Arccos(), decoding=Steps(count=steps, curve=Arccos(), rounding="down"), visit=visit),
        feed=MaskToken.Config(registers=registers, dropout=dropout),
        net=Transformer.Config(
            width=width,
            depth=depth,
            heads=heads,
            norm=AdaLN.Config(eps=1e-5, kind="rms", final="rms_bias"),
            mlp=SwiGLU.Config(multiple_of=multiple_of),
            attention=Attention.Config(similarity=RootMean(eps=1e-5), head_width=head_width),
            dropout=dropout,
        ),
        head=Tied.Config(extra=extra),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=guidance)),
    )
