"""GigaTok: a 1-D tokenizer whose decoder is taught by a frozen network, and outweighs the encoder (arXiv:2504.08736).

New: semantic regularisation: a small MLP on the features of an early decoder block is trained to point where a frozen network's features
do, which keeps the latent space simple enough for a generator while the tokenizer grows; of a larger budget the decoder gets more than the
encoder; an entropy loss keeps large codebooks stable.
Differs: the convolutions around the transformers are VQGAN's, without the adaptive norms of the released decoder; the queries read the map
through cross-attention and start as its averages in levels, as published, but stand beside learned ones; the teacher is a toy, the three
convolutions of the data's own classifier, or DINO (released: DINOv2-B) if its file is given; the perceptual and the adversarial loss
only if set, and no auxiliary loss on the convolutions in the first steps; an entropy loss, which the small released models go without.
Released models have 256 tokens of 16384 codes of 8 channels and 136 M to 2.9 B parameters.
Run: tokenloom run smoke_gigatok
Expect: digits (600 steps of 32, learning rate 2e-3, 74 CPU seconds): mean squared error 0.058 on [-1, 1] of ``net: transformers`` with the
straight gradient.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.nets.queries import Queries
from tokenloom.models.parts.nets.vit import Blocks
from tokenloom.models.parts.quantizers.codebook import Codebook, Learned, Revival
from tokenloom.models.parts.quantizers.gradients import Rotation, Straight
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.parts.semantic import aligned
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import LEVELS, TINY, Levels, Small
from tokenloom.models.zoo.tokenizers.gigatok.net import Hybrid


@register(
    "gigatok",
    kind="tokenizer",
    paper="2504.08736",
    tiny=TINY | {"tokens": 6, "codes": 16, "dim": 4, "widths": [16, 32], "depths": [1, 2], "heads": 2},
)
def gigatok(
    tokens: int = 16,
    codes: int = 512,
    dim: int = 8,
    widths: tuple[int, int] = (64, 128),
    depths: tuple[int, int] = (2, 4),
    heads: int = 4,
    beta: float = 0.25,
    entropy: float = 0.05,
    diversity: float = 1.0,
    gradient: Literal["rotation", "straight"] = "rotation",
    net: Literal["hybrid", "transformers"] = "hybrid",
    semantic: float = 0.5,
    semantic_depth: int = 2,
    dino: str = "",
    small: Levels = LEVELS,
) -> Autoencoder.Config:
    """``widths`` and ``depths`` of encoder and decoder; ``semantic`` weighs the regularisation (0 is off) of the decoder's block
    ``semantic_depth``, ``dino`` is a file of DINO or DINOv2 weights of any width (``set`` edits ``semantic.teacher.…``).

    ``net: hybrid`` has convolutions around the transformers, of ``channels``, ``multipliers``, ``patch`` pixels a step at the ends and
    ``blocks``, and a Q-Former as the encoder; ``transformers`` stand alone on patches as large as its places.  ``entropy`` weighs the
    entropy loss, ``diversity`` that of the mean distribution in it.
    """
    sides = [Blocks.Config(width=width, depth=depth, heads=heads) for width, depth in zip(widths, depths)]
    convolutions = Small(**asdict(small)).net()
    shape: dict[str, Any] = {"patch": convolutions.downsampling, "tokens": tokens, "encoder_blocks": sides[0], "decoder_blocks": sides[1]}
    return Autoencoder.Config(
        net=Hybrid(convolutions=convolutions, **shape) if net == "hybrid" else Queries(**shape),
        quantizer=VQ.Config(
            codebook=Codebook.Config(codes=codes, dim=dim, metric="cosine", update=Learned(), revival=Revival(threshold=0.2)),
            beta=beta,
            entropy=entropy,
            diversity=diversity,
            gradient=Rotation() if gradient == "rotation" else Straight(),
        ),
        latent=dim,
        quant_kernel=0,
        semantic=aligned(semantic, min(semantic_depth, depths[1]), dino),
        **small.losses(),
    )
