"""TokenBridge's generator: ids a channel, predicted channel by channel (Wang et al. 2025, arXiv:2503.16430).

New: a token is sixteen small ids, one a channel of a continuous latent; a masked autoencoder takes their values and a small causal
transformer at each position predicts one channel after the other, so the vocabulary is never enumerated.
Differs: channels in their own order unless ``channel_order`` lists another (the sizes have the released one); a channel's first input is
the same in training and in sampling; no dropout in the head.
Run: tokenloom run smoke_tokenbridge_ar
Expect: ImageNet 256 FID 1.76 (L), 1.55 (H) with official weights and 256 steps.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.known_values import KnownValues
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets import blocks
from tokenloom.models.parts.nets.masked_autoencoder import MaskedAutoencoder
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Masked, Steps, TruncatedNormal
from tokenloom.models.parts.similarity import Normed
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.generators.tokenbridge_ar.head import Channelwise
from tokenloom.models.zoo.published.tokenbridge import SIZES


@register(
    "tokenbridge_ar",
    kind="generator",
    paper="2503.16430",
    tiny={"depth": 1, "width": 32, "heads": 2, "inner": 1, "inner_width": 32, "inner_heads": 2, "buffer": 2, "steps": 4},
    codec="tokenbridge",
    sizes=SIZES,
)
def tokenbridge_ar(
    depth: int = 16,
    width: int = 1024,
    heads: int = 16,
    inner: int = 4,
    inner_width: int = 256,
    inner_heads: int = 8,
    buffer: int = 64,
    steps: int = 64,
    channel_order: tuple[int, ...] = (),
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """The L model by default: ``depth`` blocks each in encoder and decoder, ``inner`` in the head."""
    half = blocks.vit(depth, width, heads, dropout=dropout)
    channel = Transformer.Config(
        width=inner_width,
        depth=inner,
        heads=inner_heads,
        norm=AdaLN.Config(eps=1e-6, kind="layer"),
        mlp=GELU.Config(form="none"),
        attention=Attention.Config(similarity=Normed(), bias="qkv"),
    )
    return GroupGenerator.Config(
        order=Masked(curve=TruncatedNormal(), decoding=Steps(count=steps), share="batch", rounded="up"),
        feed=KnownValues.Config(buffer=buffer),
        net=MaskedAutoencoder.Config(encoder=half, decoder=half, buffer=buffer),
        head=Channelwise.Config(net=channel, order=channel_order),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Linear(value=2.1, clock="almost")),
    )
