"""RVQ: residual vector quantization (RQ-VAE, Lee et al., arXiv:2203.01941; SoundStream, arXiv:2107.03312).

New: a position has several codes; each stage has its own codebook and codes what the earlier ones left over, so a depth of small
codebooks covers what one large codebook would.  The default spends the ten bits of one codebook of 1024 on two of 32.
Differs: codebooks are separate (RQ-VAE shares one) and follow moving averages from a k-means start, stage after stage, over all workers;
convolutions that suit small images, without attention, with 4x4 pixels a step at the ends.
Run: tokenloom run smoke_rvq
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 positions of two codes of 32): PSNR 19.1 dB,
squared error 0.050 on [-1, 1], all codes in use.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small, averaged
from tokenloom.models.zoo.tokenizers.rvq.quantizer import Residual


@register(
    "rvq",
    kind="tokenizer",
    paper="2203.01941",
    tiny=TINY | {"codes": 8, "dim": 4},
)
def rvq(
    stages: int = 2,
    codes: int = 32,
    dim: int = 8,
    beta: float = 0.25,
    decay: float = 0.97,
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``stages`` codebooks of ``codes`` each."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=Residual.Config(
            stage=averaged(codes, dim, beta, decay),
            stages=stages,
        ),
        latent=small.out,
        **small.losses(),
    )
