"""VQ-DDM: discrete diffusion over the codes of a VQ tokenizer (Hu et al. 2021, arXiv:2112.01799).

New: all tokens are refined together from uniformly random codes to data, each step seeing the whole image; in-painting
needs no training, since known tokens are shown with the noise of the step.  Of a token's value ``cos(pi u / 2)`` is kept at the share u
of the noise.  The codebook is small and evenly used: a large one is rebuilt and fine-tuned first (ReFiT, the tokenizer ``vq_refit``).
Differs: a transformer with adaptive norms that predicts the data, not the noise; the reverse step sums over all data (as D3PM,
arXiv:2107.03006), so that a perfect prediction of the data is a perfect reverse step; the number of steps may be changed when sampling;
class labels.  The likelihood is bounded by the loss, not known.
Run: tokenloom run smoke_vq_ddm
Expect: on CelebA-HQ, LSUN and ImageNet the quality of VQ-GAN's transformer at less cost in the paper.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.discrete_state import DiscreteState
from tokenloom.models.generators.noising import Uniform
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import KeptCosine
from tokenloom.models.sampling.sampler import Constant, Sampler


@register(
    "vq_ddm",
    kind="generator",
    paper="2112.01799",
    tiny={"depth": 2, "width": 32, "heads": 2, "steps": 8, "dropout": 0.0, "label_dropout": 0.0},
    codec="vq",
)
def vq_ddm(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    steps: int = 100,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> DiscreteState.Config:
    """A chain of ``steps``; width is 64 times the depth and heads the depth if not given."""
    return DiscreteState.Config(
        noise=Uniform(cross_entropy=0.001),
        curve=KeptCosine(),
        steps=steps,
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
        sampler=Sampler(guidance=Constant(value=0.0)),
    )
