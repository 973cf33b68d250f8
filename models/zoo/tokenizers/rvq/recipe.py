"""RVQ: residual vector quantization (RQ-VAE, Lee et al., arXiv:2203.01941; SoundStream, arXiv:2107.03312).

New: a position has several codes; each stage codes what the earlier ones left over, so a depth of small codes covers what one large
codebook would: of one codebook for all stages (RQ-VAE) or of one each (SoundStream, ``books: separate``).  The default spends the ten
bits of one codebook of 1024 on two stages of 32.
Differs: a codebook follows moving averages from a k-means start over all workers; quantizer dropout only if ``kept`` is set; no
perceptual and no adversarial loss unless set; convolutions that suit small images, without attention, with 4x4 pixels a step at the ends.
Run: tokenloom run smoke_rvq
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 positions of two codes of 32, ``books: separate``): PSNR
19.1 dB, squared error 0.050 on [-1, 1], all codes in use.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.registry import register
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small, averaged
from tokenloom.models.zoo.tokenizers.rvq.quantizer import Dropout, Residual


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
    books: Literal["shared", "separate"] = "shared",
    kept: int = 0,
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``stages`` of ``codes`` each, all of one codebook as in RQ-VAE, or each of its own as in SoundStream.

    ``kept`` above 0: in training the first stages code alone, any number of them from ``kept`` on (SoundStream's quantizer dropout), so
    that any number decodes.
    """
    if kept > stages:
        raise ConfigError(f"kept={kept}: there are {stages} stages")
    return Autoencoder.Config(
        net=small.net(),
        quantizer=Residual.Config(
            stage=averaged(codes, dim, beta, decay),
            stages=stages,
            books=books,
            dropout=Dropout(first=kept - 1) if kept else None,
        ),
        latent=small.out,
        **small.losses(),
    )
