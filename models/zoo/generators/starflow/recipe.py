"""STARFlow: scaling latent normalizing flows for high-resolution image synthesis (Gu et al. 2025, arXiv:2506.06276).

New: an autoregressive flow of latents, most of its blocks in one deep flow that sees the condition as a prefix of the same causal stream
and a few shallow ones around it; exact likelihoods, guidance of Gaussians, and one step of the model's own score against noise.
Differs: a class is a prefix of one slot where the released model has a text; no learned denoiser (released: of video).
Run: tokenloom run smoke_starflow
Expect: ImageNet 256 FID 2.40 (1.4 B) in the paper; the released 3 B model is of text.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition, Conditioner
from tokenloom.models.parts.flows.causal import CausalFlow
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Init, Transformer
from tokenloom.models.parts.norms import PreNorm
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.starflow.condition import PlainFeatures
from tokenloom.models.zoo.generators.starflow.module import InverseSampler, STARFlow
from tokenloom.models.zoo.published.starflow import STARFLOW


@register(
    "starflow",
    kind="generator",
    paper="2506.06276",
    tiny={"width": 32, "depth": 2, "shallow": [1, 1], "head_width": 32, "features": 16},
    codec="kl",
    sizes=STARFLOW,
)
def starflow(
    width: int = 2048,
    depth: int = 18,
    shallow: tuple[int, ...] = (2, 2, 2, 2, 2),
    head_width: int = 64,
    features: int = 2048,
    length: int = 0,
    patch: int = 1,
    noise: float = 0.3,
    norm: float = 1e-4,
    guidance: float = 2.5,
    classes: int | None = None,
    dropout: float = 0.1,
) -> STARFlow.Config:
    """The paper's 1.4 B by default: ``shallow`` flows of so many layers below one of ``depth``; with ``length``, text features of that
    length (else a class) are what it is conditioned on, of ``features`` channels."""
    condition: Conditioner.Config = ClassCondition.Config(classes=classes, dropout=dropout)
    if length:
        condition = PlainFeatures.Config(length=length, dropout=dropout)
    return STARFlow.Config(
        flows=(*(flow(width, n, head_width, 0) for n in shallow), flow(width, depth, head_width, features)),
        features=features,
        patch=patch,
        noise=noise,
        norm=norm,
        condition=condition,
        sampler=Sampler(guidance=Constant(value=guidance), head=InverseSampler()),
    )


def flow(width: int, depth: int, head_width: int, features: int) -> CausalFlow.Config:
    """A flow with a learned start, softplus scales and clipped outputs."""
    net = Transformer.Config(
        width=width,
        depth=depth,
        heads=width // head_width,
        norm=PreNorm.Config(kind="layer", eps=1e-5, last="raw"),
        mlp=GELU.Config(form="none"),
        attention=Attention.Config(bias="qkv", head_width=head_width),
        init=Init(std=0.02),
    )
    return CausalFlow.Config(net=net, clip=4.0, features=features)
