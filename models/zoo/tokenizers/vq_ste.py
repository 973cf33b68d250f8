"""Plain VQ: one learned codebook, trained by its own loss (VQ-VAE, arXiv:1711.00937; VQGAN, arXiv:2012.09841).

New: nothing; the baseline that collapses.  A code learns only from the vectors that choose it, so codes that start badly are never
chosen and never move: no averages, no revival, no start from data.
Differs: convolutions that suit small images, without attention, with 4x4 pixels a step at the ends; VQGAN's perceptual and adversarial
loss only if set.
Run: tokenloom run smoke_vq_ste
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 codes of 1024): PSNR 17.5 dB,
squared error 0.072 on [-1, 1], 6 % of the codes in use, perplexity 18; ``vq_ema`` has 19.1 dB and uses all.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.codebook import Codebook, Learned
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small


@register(
    "vq_ste",
    kind="tokenizer",
    paper="1711.00937",
    tiny=TINY | {"codes": 16, "dim": 4},
)
def vq_ste(
    codes: int = 1024,
    dim: int = 8,
    beta: float = 0.25,
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``codes`` of ``dim`` channels at each position."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=VQ.Config(codebook=Codebook.Config(codes=codes, dim=dim, update=Learned()), beta=beta),
        latent=small.out,
        **small.losses(),
    )
