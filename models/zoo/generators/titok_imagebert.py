"""TiTok's generator: MaskGIT over a short sequence of 1-D tokens (Yu et al. 2024, arXiv:2406.07550).

New: an image is 32 to 128 tokens without a grid, so masked generation takes eight steps of a short sequence.
Differs: no label smoothing, so that the loss is a likelihood; B-64 was published with guidance 3.0, which a run gives.
Run: tokenloom run smoke_titok_imagebert
Expect: ImageNet 256 FID 2.77 (L-32), with official weights and 8 steps.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.orders import Arccos, LogitConfidence, Masked, Steps
from tokenloom.models.sampling.sampler import Fading, Linear, Sampler
from tokenloom.models.zoo.generators.maskgit.feed import BertTokens
from tokenloom.models.zoo.generators.maskgit.recipe import maskgit
from tokenloom.models.zoo.published.titok import BERT


@register(
    "titok_imagebert",
    kind="generator",
    paper="2406.07550",
    tiny={"depth": 2, "width": 32, "heads": 2, "steps": 3},
    codec="titok",
    sizes=BERT,
)
def titok_imagebert(
    depth: int = 24,
    width: int = 768,
    heads: int = 16,
    steps: int = 8,
    noise: float = 9.5,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    segments: int = 0,
) -> GroupGenerator.Config:
    """The released transformer by default; positions that are known weigh a tenth in the loss.

    Logits are divided by 0.5 + 0.8 (1 - p) when a share p of the steps is done, and Gumbel noise of size ``noise`` (1 - p) is added to
    them and to the confidence of what was drawn; adding such noise to logits is drawing at that temperature.

    ``segments`` rows of BERT's table of segments, of which one is used.
    """
    return replace(
        maskgit(depth, width, heads, steps, noise, classes, dropout, label_dropout),
        feed=BertTokens.Config(dropout=dropout, segments=segments),
        head=Categorical.Config(bias="yes", init_std=0.02),
        order=Masked(
            curve=Arccos(),
            seen_weight=0.1,
            decoding=Steps(count=steps, curve=Arccos()),
            choice=LogitConfidence(noise=noise, last=0.5, span=0.8),
        ),
        sampler=Sampler(guidance=Linear(value=4.5, clock="begun"), temperature=annealed(noise)),
    )


def annealed(noise: float) -> Fading:
    """The temperature of the released samplers."""
    return Fading(value=noise, last=0.5, span=0.8)
