"""LFQ: lookup-free quantization (MAGVIT-v2, Yu et al., arXiv:2310.05737; sub-tokens as in Open-MAGVIT2, arXiv:2409.04410).

New: a code is the signs of the channels, so the vocabulary grows without a codebook; an entropy loss keeps bits sharp and codes
equally used.  ``factors`` splits the bits into the sub-tokens that a generator predicts one after the other.
Differs: the entropy is exact for any number of bits up to 18 (two halves and one matrix product, no table of codes); that of the mean
distribution is of a worker's rows; convolutions that suit small images, without attention, with 4x4 pixels a step at the ends, unless
``net: magvit`` or a published ``size`` gives Open-MAGVIT2's.
Run: tokenloom run smoke_lfq
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 codes of 1024): PSNR 18.2 dB,
squared error 0.060 on [-1, 1], 92 % of the codes in use, perplexity 480; without the entropy loss most codes fall out of use.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.lfq import LFQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published import tokenizers as published
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small


@register(
    "lfq",
    kind="tokenizer",
    paper="2310.05737",
    tiny=TINY | {"bits": 6, "factors": [3, 3]},
    sizes=published.LFQ,
)
def lfq(
    bits: int = 10,
    factors: tuple[int, ...] = (),
    beta: float = 0.25,
    entropy: float = 0.02,
    diversity: float = 1.0,
    temperature: float = 0.01,
    net: Literal["convolutions", "magvit"] = "convolutions",
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``factors`` are the bits of each of several codebooks; none: one of ``2 ** bits`` codes.  ``net: magvit`` is Open-MAGVIT2's, of
    ``channels``, ``multipliers``, ``blocks`` and ``norm_groups``."""
    return Autoencoder.Config(
        net=small.magvit() if net == "magvit" else small.net(),
        quantizer=LFQ.Config(
            bits=bits,
            factors=factors,
            beta=beta,
            entropy=Entropy(weight=entropy, diversity=diversity, temperature=temperature) if entropy else None,
        ),
        latent=bits if net == "magvit" else small.out,
        quant_kernel=0 if net == "magvit" else 1,
        **small.losses(),
    )
