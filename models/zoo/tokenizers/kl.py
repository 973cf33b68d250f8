"""KL: a convolutional tokenizer with continuous latents (arXiv:2112.10752; the KL-16 that MAR uses, arXiv:2406.11838).

New: no codebook.  The encoder says mean and variance of a Gaussian at each position, training decodes a sample of it, and a light
divergence from a standard normal keeps the latents bounded; tokens are the means, scaled to unit variance.
Differs: by default the scale is measured on training images after the last step where the released one is a constant (0.2325), and
convolutions suit small images; the sizes have the released nets and scale.  The perceptual and the adversarial loss are off unless asked
for.  The divergence counts for an image's value, as strong beside the mean error as published beside its sum.
Run: tokenloom run smoke_kl
Expect: held-out digits (32x32, 300 steps of 64, learning rate 4e-3, about 30 CPU seconds): squared error 0.036 on [-1, 1], 0.51 M
parameters, 16 channels at 4x4, deviation of the tokens 0.98.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.gaussian import Gaussian
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published.tokenizers import KL
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small


@register(
    "kl",
    kind="tokenizer",
    paper="2406.11838",
    tiny=TINY | {"dim": 4},
    sizes=KL,
)
def kl(
    dim: int = 16,
    divergence: float = 1e-6,
    scale: float | None = None,
    small: Small = SMALL,
) -> Autoencoder.Config:
    """The grid is the image size over ``patch * 2 ** (len(multipliers) - 1)``, with self-attention at that resolution; a position has
    ``dim`` channels; ``divergence`` weighs the divergence summed over an image beside the error summed over its
    values; ``scale`` of the tokens is
    measured if not given."""
    return Autoencoder.Config(
        net=replace(small.net(), middle="attention", decoder_blocks=small.decoder_blocks or small.blocks + 1),
        quantizer=Gaussian.Config(dim=dim, kl=divergence, scale=scale, per="value"),
        latent=2 * dim,
        decoder_latent=dim,
        **small.losses(),
    )
