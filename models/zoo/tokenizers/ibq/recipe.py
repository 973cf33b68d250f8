"""IBQ: index backpropagation quantization (Shi et al., arXiv:2412.02692).

New: the choice of a code is an argmax of dot products whose gradient is that of their softmax, so every code learns from every vector
and the whole codebook stays in use; an entropy loss keeps choices sharp and codes equally used.
Differs: the entropy of the mean distribution is that of a worker's rows; by default convolutions suit small images, the sizes have the
published nets, PatchGAN, LeCam and weights of losses, and the perceptual loss where its file is given.
Run: tokenloom run smoke_ibq
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 codes of 1024): PSNR 18.0 dB,
squared error 0.064 on [-1, 1], all codes in use, perplexity 940; it learns more slowly than codebooks of averages.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published.tokenizers import IBQ as IBQ_SIZES
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small
from tokenloom.models.zoo.tokenizers.ibq.quantizer import IBQ


@register(
    "ibq",
    kind="tokenizer",
    paper="2412.02692",
    tiny=TINY | {"codes": 16, "dim": 4},
    sizes=IBQ_SIZES,
)
def ibq(
    codes: int = 1024,
    dim: int = 8,
    beta: float = 0.25,
    entropy: float = 0.05,
    temperature: float = 0.01,
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``entropy`` is the weight of the entropy loss, ``temperature`` divides its logits."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=IBQ.Config(codes=codes, dim=dim, beta=beta, entropy=Entropy(weight=entropy, temperature=temperature)),
        latent=small.out,
        **small.losses(),
    )
