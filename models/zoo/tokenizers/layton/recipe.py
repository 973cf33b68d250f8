"""Layton: discrete tokens decoded into the latents of a frozen autoencoder, in one or two steps (arXiv:2503.08377).

New: a transformer encoder and a codebook say in few tokens what a latent-consistency decoder turns into the dense latents of a trained
autoencoder; two steps instead of a diffusion's many make it cheap to put the loss on the pixels themselves.
Differs: the consistency function is trained from scratch (the published one starts from a distilled latent diffusion model), by the
agreement of neighbouring noise levels, the clean latent as a target, and the pixels that the base's decoder makes; the
perceptual and the adversarial loss only if set; released: 256 tokens for 1024 pixels.
Run: tokenloom run smoke_layton
Expect: digits (600 steps of 32, learning rate 2e-3, base trained for 300 steps to 0.040): mean squared error 0.080 on [-1, 1].
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.decoders.denoiser import Denoiser
from tokenloom.models.parts.nets.seeded import SeededQueries
from tokenloom.models.parts.nets.vit import Blocks
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.flow_tokenizer import FlowTokenizer
from tokenloom.models.zoo.tokenizers._small import LOSSES, Losses
from tokenloom.models.zoo.tokenizers.layton.decoder import Consistency


@register(
    "layton",
    kind="tokenizer",
    paper="2503.08377",
    tiny={"tokens": 4, "codes": 16, "dim": 4, "patch": 4, "widths": [16, 32], "depths": [1, 1], "heads": 2},
    codec="kl",
)
def layton(
    tokens: int = 16,
    codes: int = 512,
    dim: int = 8,
    patch: int = 8,
    latent_patch: int = 1,
    widths: tuple[int, int] = (96, 128),
    depths: tuple[int, int] = (2, 3),
    heads: int = 4,
    steps: int = 2,
    beta: float = 0.25,
    losses: Losses = LOSSES,
) -> FlowTokenizer.Config:
    """``widths`` and ``depths`` of encoder and decoder; ``patch`` pixels a slot of the encoder, ``latent_patch`` positions of the base's
    latents a slot of the decoder; 1 or 2 ``steps`` of decoding; ``pixels`` weighs the squared error of the image, beside which the
    published model has a perceptual and an adversarial loss."""
    seen = losses.losses()
    blocks = Blocks.Config(width=widths[0], depth=depths[0], heads=heads)
    return FlowTokenizer.Config(
        net=SeededQueries(patch=patch, tokens=tokens, encoder_blocks=blocks, decoder_blocks=blocks),
        quantizer=VQ.Config(
            codebook=Codebook.Config(codes=codes, dim=dim, metric="cosine", update=EMA(), revival=Revival(threshold=0.2)), beta=beta
        ),
        latent=widths[0],
        decoder=Consistency.Config(
            net=Denoiser.Config(width=widths[1], depth=depths[1], heads=heads, patch=latent_patch),
            pixels=seen["pixels"],
            perceptual=seen["perceptual"],
            adversarial=seen["adversarial"],
            steps=steps,
        ),
    )
