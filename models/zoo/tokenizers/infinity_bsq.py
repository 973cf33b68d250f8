"""Multi-scale BSQ: the bitwise tokenizer of Infinity (Han et al., arXiv:2412.04431).

New: an image is coded at growing grid sizes, each scale a bit a channel of what the smaller ones left over: tokens of ``bits``
codebooks of two codes, for generators that predict bits and, by self-correction, mend flipped ones.
Differs: the released code has no loss of the quantizer; here the sums so far are held to the latents and an entropy loss spreads the bits.
By default convolutions suit small images, without attention, with 4x4 pixels a step at the ends; the sizes have the released nets.  The
perceptual and the adversarial loss only if set; the released one's training is not told.
Run: tokenloom run smoke_infinity_bsq
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 30 tokens of 10 bits): PSNR 18.7 dB,
squared error 0.054 on [-1, 1], bits are 1 half of the time.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published.tokenizers import INFINITY_BSQ
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small


@register(
    "infinity_bsq",
    kind="tokenizer",
    paper="2412.04431",
    tiny=TINY | {"scales": [1, 2, 4], "bits": 6},
    sizes=INFINITY_BSQ,
)
def infinity_bsq(
    scales: tuple[int, ...] = (1, 2, 3, 4),
    bits: int = 10,
    beta: float = 0.25,
    entropy: float = 0.02,
    diversity: float = 1.0,
    temperature: float = 0.1,
    quant_kernel: int = 1,
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``scales[-1]`` is the latent grid; ``quant_kernel`` of the convolutions around the quantizer (0: none, ``latent`` is ``bits``)."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=MultiScaleBSQ.Config(
            bits=bits,
            scales=scales,
            beta=beta,
            entropy=Entropy(weight=entropy, diversity=diversity, temperature=temperature) if entropy else None,
        ),
        latent=small.out,
        quant_kernel=quant_kernel,
        **small.losses(),
    )
