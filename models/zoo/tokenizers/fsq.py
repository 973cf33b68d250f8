"""FSQ: finite scalar quantization (Mentzer et al., arXiv:2309.15505).

New: no codebook and no loss: each of a few channels is bounded and rounded to a few levels; the codes are all their combinations.
Differs: convolutions that suit small images, without attention, with 4x4 pixels a step at the ends; the perceptual and the adversarial
loss only if set (the paper's are those of MaskGIT's tokenizer).
Run: tokenloom run smoke_fsq
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 codes of 1000): PSNR 18.9 dB,
squared error 0.051 on [-1, 1], 90 % of the codes in use, perplexity 520.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.fsq import FSQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small


@register(
    "fsq",
    kind="tokenizer",
    paper="2309.15505",
    tiny=TINY | {"levels": [5, 3, 3]},
)
def fsq(
    levels: tuple[int, ...] = (8, 5, 5, 5),
    small: Small = SMALL,
) -> Autoencoder.Config:
    """The vocabulary is the product of ``levels``."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=FSQ.Config(levels=levels),
        latent=small.out,
        **small.losses(),
    )
