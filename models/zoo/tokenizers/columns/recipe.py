"""Columns: one token a vertical strip, equivariant to shifts along the width (arXiv:2503.18948).

New: an image is a row of columns; nets run along the width without positions, so every token means the same wherever it stands, and
images wider than those of training are coded as they are (``Autoencoder.on``).
Differs: discrete tokens (one code a strip) where the released model has 256 continuous channels, Gaussian noise on them in training and
a penalty on their size; no second decoder that is taught by DINOv2-B; the perceptual and the adversarial loss only if set (released:
LPIPS, and a discriminator on DINO's features); strips of a few pixels and convolutions along the width that suit small images (released:
16 strips, 282 M parameters).
Run: tokenloom run smoke_columns
Expect: held-out digits (32x32, 700 steps of 32, learning rate 3e-3, about 25 CPU seconds): 16 codes of 512, squared error 0.037 on
[-1, 1], PSNR 20 dB, all codes in use, 0.45 M parameters.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import LOSSES, Losses
from tokenloom.models.zoo.tokenizers.columns.net import Columns


@register(
    "columns",
    kind="tokenizer",
    paper="2503.18948",
    tiny={"strip": 2, "codes": 16, "dim": 4, "width": 32, "blocks": 1},
)
def columns(
    strip: int = 2,
    codes: int = 512,
    dim: int = 8,
    width: int = 128,
    blocks: int = 2,
    kernel: int = 3,
    beta: float = 0.25,
    losses: Losses = LOSSES,
) -> Autoencoder.Config:
    """The image size over ``strip`` is the number of tokens."""
    return Autoencoder.Config(
        net=Columns(strip=strip, width=width, blocks=blocks, kernel=kernel),
        quantizer=VQ.Config(
            codebook=Codebook.Config(codes=codes, dim=dim, metric="cosine", update=EMA(), revival=Revival(threshold=0.2)), beta=beta
        ),
        latent=width,
        **losses.losses(),
    )
