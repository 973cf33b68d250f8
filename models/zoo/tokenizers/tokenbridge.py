"""TokenBridge: a continuous tokenizer whose latents are cut into bins after training, channel by channel (arXiv:2503.16430).

New: the tokenizer is trained as a VAE and never learns of tokens; then each channel is quantized on its own, at levels of equal
probability under a normal distribution, so a position has one small id a channel instead of one of a large codebook.
Differs: mean and spread of each channel are measured on training images (``finish``) where the released model takes [-5, 5] for all;
levels and ids are those of the released model for the same spread.  By default convolutions suit small images; the size has the nets of
MAR's KL-16, on which the released quantizer stands.
Run: tokenloom run smoke_tokenbridge
Expect: held-out digits (32x32, 500 steps of 64, learning rate 3e-3): squared error 0.025 on [-1, 1] for continuous latents (4x4 of 8
channels), 0.029 after quantization to 16 levels, PSNR 21 dB, 0.26 M parameters.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.dimensionwise import Dimensionwise
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published.tokenizers import TOKENBRIDGE
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small


@register(
    "tokenbridge",
    kind="tokenizer",
    paper="2503.16430",
    tiny=TINY | {"levels": 8, "dim": 4},
    sizes=TOKENBRIDGE,
)
def tokenbridge(
    levels: int = 16,
    clip: float = 3.0,
    dim: int = 8,
    kl: float = 1e-4,
    decoder_latent: int = 0,
    small: Small = SMALL,
) -> Autoencoder.Config:
    """The grid is the image size over ``patch * 2 ** (len(multipliers) - 1)``, a position has ``dim`` ids of ``levels``; ``kl`` weighs the
    VAE's divergence; ``decoder_latent`` channels enter the decoder (0: as many as leave the encoder)."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=Dimensionwise.Config(dim=dim, kl=kl, levels=levels, clip=clip),
        latent=small.out,
        decoder_latent=decoder_latent,
        **small.losses(),
    )
