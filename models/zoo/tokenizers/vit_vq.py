"""ViT-VQ: a tokenizer of transformers on both sides (ViT-VQGAN, arXiv:2110.04627).

New: patches instead of convolutions; each side ends in two layers with a tanh between.  Codes are factorised: a vector of the encoder is
looked up in a few channels (32 or 8 instead of 768), by its direction alone, and mapped back before the decoder.
Differs: squared error, with the perceptual and the adversarial loss only if set (published: also a logit-Laplace loss, and
StyleGAN's discriminator); the codebook follows moving averages and codes out of use are revived, both over all workers; few and
narrow blocks.
Run: tokenloom run smoke_vit_vq
Expect: held-out digits (32x32, 600 steps of 32, learning rate 2e-3, about 56 CPU seconds): 16 codes of 512 give a squared error of 0.056 on
[-1, 1], all codes in use, 0.83 M parameters; 4e-3 is too fast (0.116 on the training batch after 350 steps of 64).
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.nets.vit import Blocks, ViT
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import LOSSES, Losses


@register(
    "vit_vq",
    kind="tokenizer",
    paper="2110.04627",
    tiny={"codes": 16, "dim": 4, "patch": 4, "width": 32, "depth": 1, "heads": 2},
)
def vit_vq(
    codes: int = 512,
    dim: int = 8,
    patch: int = 8,
    width: int = 96,
    depth: int = 3,
    heads: int = 4,
    beta: float = 0.25,
    losses: Losses = LOSSES,
) -> Autoencoder.Config:
    """The grid is the image size over ``patch``."""
    blocks = Blocks.Config(width=width, depth=depth, heads=heads)
    return Autoencoder.Config(
        net=ViT(patch=patch, encoder_blocks=blocks, decoder_blocks=blocks),
        quantizer=VQ.Config(
            codebook=Codebook.Config(codes=codes, dim=dim, metric="cosine", update=EMA(), revival=Revival(threshold=0.2)), beta=beta
        ),
        latent=width,
        **losses.losses(),
    )
