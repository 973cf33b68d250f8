"""ViT-VQ: a tokenizer of transformers on both sides (ViT-VQGAN, arXiv:2110.04627).

New: patches instead of convolutions; each side ends in two layers with a tanh between.  Codes are factorised: a vector of the encoder is
looked up in a few channels (32 or 8 instead of 768), by its direction alone, and mapped back before the decoder.
Differs: squared error alone unless set; the paper's are ``adversarial: 0.1, balance: constant, judge: stylegan, verdict: vanilla, laplace:
0.1, perceptual_weight: 0.1`` with ``perceptual: FILE``.  The codebook follows moving averages and codes out of use are revived, both over
all workers, unless ``update: learned``; few and narrow blocks.  The paper's code was never released: the published sizes are those of
enhancing-transformers, another group's, whose nets differ from the paper's.
Run: tokenloom run smoke_vit_vq
Expect: held-out digits (32x32, 600 steps of 32, learning rate 2e-3, about 56 CPU seconds): 16 codes of 512 give a squared error of 0.056 on
[-1, 1], all codes in use, 0.83 M parameters; 4e-3 is too fast (0.116 on the training batch after 350 steps of 64).
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.mlp import Tanh
from tokenloom.models.parts.nets.bare_vit import BareViT
from tokenloom.models.parts.nets.base import Net
from tokenloom.models.parts.nets.vit import Blocks, ViT
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published import transformers as published
from tokenloom.models.zoo.tokenizers._small import LOSSES, Losses, codebook


@register(
    "vit_vq",
    kind="tokenizer",
    paper="2110.04627",
    tiny={"codes": 16, "dim": 4, "patch": 4, "width": 32, "depth": 1, "heads": 2},
    sizes=published.VIT_VQ,
)
def vit_vq(
    codes: int = 512,
    dim: int = 8,
    patch: int = 8,
    width: int = 96,
    depth: int = 3,
    heads: int = 4,
    beta: float = 0.25,
    form: Literal["paper", "released"] = "paper",
    decoder: tuple[int, int, int] = (0, 0, 0),
    head_width: int = 0,
    update: Literal["averages", "learned"] = "averages",
    losses: Losses = LOSSES,
) -> Autoencoder.Config:
    """The grid is the image size over ``patch``; ``decoder`` is the decoder's own width, depth and heads (zeros: the encoder's).

    ``form``: the paper's two layers at the ends, or as in the released code (enhancing-transformers), whose MLPs have the tanh inside of
    the blocks, heads of ``head_width`` channels (0: the width over their number) and fixed sines for positions.
    """
    sides = [(width, depth, heads), decoder if any(decoder) else (width, depth, heads)]
    if form == "paper":
        blocks = [Blocks.Config(width=w, depth=d, heads=h) for w, d, h in sides]
        net: Net = ViT(patch=patch, encoder_blocks=blocks[0], decoder_blocks=blocks[1])
    else:
        branches = {"attention": Attention.Config(bias="out", head_width=head_width), "mlp": Tanh.Config()}
        blocks = [Blocks.Config(width=w, depth=d, heads=h, **branches) for w, d, h in sides]  # type: ignore[arg-type]
        net = BareViT(patch=patch, encoder_blocks=blocks[0], decoder_blocks=blocks[1], norms="after", positions="sines", ends="transposed")
    return Autoencoder.Config(
        net=net,
        quantizer=VQ.Config(codebook=codebook(codes, dim, "cosine", update), beta=beta),
        latent=width,
        decoder_latent=0 if sides[0][0] == sides[1][0] else sides[1][0],
        **losses.losses(),
    )
