"""MaskGIT-VQGAN: the convolutional tokenizer of MaskGIT (arXiv:2202.04200), RAR and TiTok.

New: nothing but its geometry, which the released weights need: residual blocks without biases and without attention, average pooling
on the way down, and, where the width changes, a shortcut that takes the block's own output.  Images are in [0, 1] inside.  The
commitment has weight 1 and the codebook's term 0.25.
Differs: by default the codebook follows moving averages (so the codebook's term is gone) and codes out of use are revived, both over all
workers, with a thin stem of convolutions at the ends and few channels; the size has the released nets and a learned codebook. Published:
also an entropy loss, a perceptual loss on a classifier's features and StyleGAN's discriminator with R1.
Run: tokenloom run smoke_maskgit_vqgan
Expect: held-out digits (32x32, 400 steps of 64, learning rate 4e-3, about 26 CPU seconds): 16 codes of 512 give a squared error of 0.034 on
[-1, 1], all codes in use, 0.29 M parameters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.codebook import Learned
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published.tokenizers import MASKGIT_VQGAN
from tokenloom.models.zoo.tokenizers._small import LEVELS, TINY, Levels, codebook
from tokenloom.models.zoo.tokenizers.maskgit_vqgan.net import MaskGITConv


@register(
    "maskgit_vqgan",
    kind="tokenizer",
    paper="2202.04200",
    tiny=TINY | {"codes": 16, "dim": 4},
    sizes=MASKGIT_VQGAN,
)
def maskgit_vqgan(
    codes: int = 512,
    dim: int = 16,
    beta: float = 1.0,
    weight: float = 0.25,
    norm_groups: int = 8,
    update: Literal["averages", "learned"] = "averages",
    levels: Levels = LEVELS,
) -> Autoencoder.Config:
    """The grid is the image size over ``patch * 2 ** (len(multipliers) - 1)``; ``weight`` is that of a learned codebook's own term."""
    book = codebook(codes, dim, "l2", update)
    if update == "learned":
        book = replace(book, update=Learned(weight=weight))
    shape: dict[str, Any] = {"channels": levels.channels, "multipliers": levels.multipliers, "blocks": levels.blocks, "patch": levels.patch}
    net = MaskGITConv(**shape, norm_groups=norm_groups, stem=levels.stem_of_patch)
    return Autoencoder.Config(
        net=net,
        quantizer=VQ.Config(codebook=book, beta=beta),
        latent=dim,
        quant_kernel=0,
        **levels.losses(),
    )
