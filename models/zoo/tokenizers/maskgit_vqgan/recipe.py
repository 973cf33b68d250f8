"""MaskGIT-VQGAN: the convolutional tokenizer of MaskGIT (arXiv:2202.04200), RAR and TiTok.

New: nothing but its geometry, which the released weights need: residual blocks without biases and without attention, average pooling
on the way down, and, where the width changes, a shortcut that takes the block's own output.  Images are in [0, 1] inside.  The
commitment has weight 1 and the codebook's term 0.25.
Differs: the codebook follows moving averages (so the codebook's term is gone) and codes out of use are revived, both over all workers;
2x2 pixels a step at the ends and few channels (released: 128 channels, five levels, 1024 codes of 256 channels, 54 M parameters).
Run: tokenloom run smoke_maskgit_vqgan
Expect: held-out digits (32x32, 400 steps of 64, learning rate 4e-3, about 26 CPU seconds): 16 codes of 512 give a squared error of 0.034 on
[-1, 1], all codes in use, 0.29 M parameters.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import LEVELS, TINY, Levels
from tokenloom.models.zoo.tokenizers.maskgit_vqgan.net import MaskGITConv


@register(
    "maskgit_vqgan",
    kind="tokenizer",
    paper="2202.04200",
    tiny=TINY | {"codes": 16, "dim": 4},
)
def maskgit_vqgan(
    codes: int = 512,
    dim: int = 16,
    beta: float = 1.0,
    levels: Levels = LEVELS,
) -> Autoencoder.Config:
    """The grid is the image size over ``patch * 2 ** (len(multipliers) - 1)``."""
    return Autoencoder.Config(
        net=MaskGITConv(channels=levels.channels, multipliers=levels.multipliers, blocks=levels.blocks, patch=levels.patch, norm_groups=8),
        quantizer=VQ.Config(codebook=Codebook.Config(codes=codes, dim=dim, update=EMA(), revival=Revival(threshold=0.2)), beta=beta),
        latent=dim,
        quant_kernel=0,
        **levels.losses(),
    )
