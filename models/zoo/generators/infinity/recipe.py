"""Infinity: bitwise next-scale prediction (Han et al. 2024, arXiv:2412.04431).

New: tokens are bits, each with a classifier of its own, so the vocabulary of 2^d costs d outputs; rotary places are spread alike over
all scales; blocks look at the text, whose pooled vector modulates the norms; in training some bits are flipped, and later scales learn to
mend them (bitwise self-correction).
Differs: conditioned on classes as texts of four learned features, which ``text`` features of an encoder replace; flips are mended
towards the latents of the stored bits, not of the encoder; the loss is the sum over bits, a likelihood, weighed by scale.
Run: tokenloom run smoke_infinity
Expect: GenEval 0.69 (2B, text to image at 1024 pixels) with official weights.
"""

from __future__ import annotations

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import Conditioner
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.blocks import var
from tokenloom.models.parts.nets.transformer import Init
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import WeighedScales
from tokenloom.models.parts.quantizers.self_correction import SelfCorrection
from tokenloom.models.parts.rope import Rope
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.infinity.feed import Corrected
from tokenloom.models.zoo.generators.infinity.head import Bitwise
from tokenloom.models.zoo.generators.infinity.net import CrossTransformer
from tokenloom.models.zoo.generators.infinity.text import ClassText, PooledText
from tokenloom.models.zoo.published.infinity import SIZES


@register(
    "infinity",
    kind="generator",
    paper="2412.04431",
    tiny={"depth": 2, "width": 32, "heads": 2, "reach": 4, "flips": 0.02},
    codec="infinity_bsq",
    sizes=SIZES,
)
def infinity(
    depth: int = 12,
    width: int = 768,
    heads: int = 8,
    reach: int = 64,
    text: int = 0,
    length: int | None = None,
    encoder: str = "",
    classes: int | None = None,
    drop_path: float | None = None,
    condition_dropout: float = 0.1,
    flips: float = 0.3,
    scale_rows: int = 0,
    multiple_of: int = 1,
) -> GroupGenerator.Config:
    """The 125M model by default; ``text`` is the width of the encoder's features and ``length`` their greatest length (512); ``encoder``
    is the folder or hub name of the text model that makes them.

    ``flips``: greatest share of bits that training flips (0: no self-correction).  Official models have 15 ``scale_rows`` in the table of
    scales, and MLPs whose hidden width is rounded to a multiple of 256.
    """
    if (length is not None or encoder) and not text:
        raise ConfigError(f"length={length}, encoder={encoder!r}: are those of the text's features, give text (their width) too")
    condition: Conditioner.Config = ClassText.Config(classes=classes, heads=heads, dropout=condition_dropout)
    if text:
        condition = PooledText.Config(
            features=text, heads=max(1, text // 128), length=length or 512, dropout=condition_dropout, encoder=encoder
        )
    mlp = GELU.Config(ratio=round(4 * width / multiple_of) * multiple_of / width)
    own = {"mlp": mlp, "norm": AdaLN.Config(sharing="shared"), "rope": Rope.Config(reach=reach), "init": Init(std=0.0, scale_residual=True)}
    return GroupGenerator.Config(
        order=WeighedScales(),
        feed=Corrected.Config(scales=scale_rows, correction=SelfCorrection(strength=flips)),
        net=var(depth, width, heads, drop_path, CrossTransformer.Config, **own),
        head=Bitwise.Config(),
        condition=condition,
        sampler=Sampler(guidance=Constant(value=2.0), temperature=Constant(value=0.5)),
    )
