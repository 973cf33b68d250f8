"""BSQ: binary spherical quantization (Zhao et al., arXiv:2406.07548).

New: latents are scaled to unit length before their signs are taken, so the error of a code is bounded, whatever the number of bits.
Differs: the entropy of the mean distribution is exact up to 18 bits, not a sum over bits, and of a worker's rows; convolutions that suit
small images, without attention, with 4x4 pixels a step at the ends (published: a vision transformer).
Run: tokenloom run smoke_bsq
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 codes of 1024): PSNR 18.4 dB,
squared error 0.058 on [-1, 1], 99 % of the codes in use, perplexity 730.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.lfq import BSQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small


@register(
    "bsq",
    kind="tokenizer",
    paper="2406.07548",
    tiny=TINY | {"bits": 5},
)
def bsq(
    bits: int = 10,
    factors: tuple[int, ...] = (),
    beta: float = 0.25,
    entropy: float = 0.02,
    diversity: float = 1.0,
    temperature: float = 0.1,
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``factors`` are the bits of each of several codebooks; none: one of ``2 ** bits`` codes."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=BSQ.Config(
            bits=bits,
            factors=factors,
            beta=beta,
            entropy=Entropy(weight=entropy, diversity=diversity, temperature=temperature) if entropy else None,
        ),
        latent=small.out,
        **small.losses(),
    )
