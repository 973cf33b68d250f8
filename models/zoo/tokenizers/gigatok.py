"""GigaTok: a 1-D tokenizer whose decoder is taught by a frozen network, and outweighs the encoder (arXiv:2504.08736).

New: semantic regularisation: a small MLP on the features of an early decoder block is trained to point where a frozen network's features
do, which keeps the latent space simple enough for a generator while the tokenizer grows; of a larger budget the decoder gets more than the
encoder; an entropy loss keeps large codebooks stable.
Differs: transformers on both sides instead of convolutions around them, learned queries instead of ones pooled in levels; the teacher is
a toy, the three convolutions of the data's own classifier, or DINO (released: DINOv2-B) if its file is given; the perceptual and the
adversarial loss only if set; released models have 256 tokens of 16384 codes of 8 channels and 136 M to 2.9 B parameters.
Run: tokenloom run smoke_gigatok
Expect: digits (600 steps of 32, learning rate 2e-3, 74 CPU seconds): mean squared error 0.058 on [-1, 1].
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.nets.queries import Queries
from tokenloom.models.parts.nets.vit import Blocks
from tokenloom.models.parts.quantizers.codebook import Codebook, Learned, Revival
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.parts.semantic import aligned
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import LOSSES, Losses


@register(
    "gigatok",
    kind="tokenizer",
    paper="2504.08736",
    tiny={"tokens": 6, "codes": 16, "dim": 4, "patch": 4, "widths": [16, 32], "depths": [1, 2], "heads": 2},
)
def gigatok(
    tokens: int = 16,
    codes: int = 512,
    dim: int = 8,
    patch: int = 8,
    widths: tuple[int, int] = (64, 128),
    depths: tuple[int, int] = (2, 4),
    heads: int = 4,
    beta: float = 0.25,
    entropy: float = 0.05,
    semantic: float = 0.5,
    semantic_depth: int = 2,
    dino: str = "",
    losses: Losses = LOSSES,
) -> Autoencoder.Config:
    """``widths`` and ``depths`` of encoder and decoder; ``semantic`` weighs the regularisation (0 is off) of the decoder's block
    ``semantic_depth``, ``dino`` is a file of DINO or DINOv2 weights of any width (``set`` edits ``semantic.teacher.…``)."""
    sides = [Blocks.Config(width=width, depth=depth, heads=heads) for width, depth in zip(widths, depths)]
    return Autoencoder.Config(
        net=Queries(patch=patch, tokens=tokens, encoder_blocks=sides[0], decoder_blocks=sides[1]),
        quantizer=VQ.Config(
            codebook=Codebook.Config(codes=codes, dim=dim, metric="cosine", update=Learned(), revival=Revival(threshold=0.2)),
            beta=beta,
            entropy=entropy,
        ),
        latent=dim,
        quant_kernel=0,
        semantic=aligned(semantic, min(semantic_depth, depths[1]), dino),
        **losses.losses(),
    )
