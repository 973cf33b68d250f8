"""D-AR: tokens that are the steps of a diffusion, so that generating them in order is to denoise (arXiv:2505.23660).

New: the tokens stand in groups, and the k-th group conditions the k-th interval of the decoder's time: a step takes the groups whose
interval has begun or, as published, that of its interval alone, once a causal transformer has read the tokens (``reader``).  So the
sequence runs from coarse to fine, a plain next-token model denoises, and any number of groups gives a preview: the diffusion up to there,
then the image that its velocity points to.
Differs: by default queries see each other both ways, no transformer reads the tokens, and time is shifted far towards noise, so that all
groups are in sight before the noisy image says more than they do; the published form is the values beside it (at this shift and so short a
training a reader with one group a step is far behind: 0.238).  The net predicts the image, whose error is trained, instead of the velocity
(``predict``), and is aligned with DINOv2 features only if ``semantic`` and ``dino`` are set; no perceptual loss; Euler steps instead of
Adams'; queries start from mixtures of the patches; blocks are plain ViT's, not Llama's; the codebook follows moving averages and codes out
of use are revived, both over all workers; released: 256 tokens of 16384 codes, 300 M parameters.
Run: tokenloom run smoke_d_ar
Expect: digits (600 steps of 32, learning rate 2e-3, 72 CPU seconds), mean squared error on [-1, 1] of 4, 8, 12 and all 16
tokens: 0.107, 0.087, 0.084, 0.083.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.decoders.denoiser import Denoiser
from tokenloom.models.parts.decoders.flow import Flow
from tokenloom.models.parts.decoders.reader import TokenReader
from tokenloom.models.parts.decoders.token_dropout import Staged
from tokenloom.models.parts.nets.seeded import SeededQueries
from tokenloom.models.parts.nets.vit import Blocks
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.parts.semantic import aligned
from tokenloom.models.tokenizers.flow_tokenizer import FlowTokenizer
from tokenloom.models.tokenizers.moving_norm import MovingNorm
from tokenloom.models.zoo.tokenizers._small import codebook


@register(
    "d_ar",
    kind="tokenizer",
    paper="2505.23660",
    tiny={"tokens": 4, "codes": 16, "dim": 4, "groups": 2, "steps": 4, "patch": 4, "widths": [16, 32], "depths": [1, 1], "heads": 2},
)
def d_ar(
    tokens: int = 16,
    codes: int = 512,
    dim: int = 8,
    groups: int = 4,
    patch: int = 8,
    widths: tuple[int, int] = (96, 128),
    depths: tuple[int, int] = (2, 3),
    heads: int = 4,
    steps: int = 16,
    shift: float = 20.0,
    beta: float = 0.25,
    reader: int = 0,
    registers: Literal["causal", "all"] = "all",
    predict: Literal["image", "velocity"] = "image",
    semantic: float = 0.0,
    semantic_depth: int = 1,
    dino: str = "",
) -> FlowTokenizer.Config:
    """``groups`` must divide ``tokens`` and the ``steps`` of decoding; a larger ``shift`` spends more of both on noisy times;
    ``widths`` and ``depths`` of encoder and flow.

    ``reader``: blocks of the causal token decoder; with it a step sees the group of its interval alone, without it (0) all groups that
    have appeared.  As published: ``reader: 8, registers: causal, shift: 2, predict: velocity``.  ``semantic`` weighs the alignment of
    the flow's block ``semantic_depth`` with the DINO of a file, or else with the toy classifier of the data (REPA).
    """
    read = TokenReader.Config(blocks=Blocks.Config(width=widths[1], depth=reader, heads=heads)) if reader else None
    blocks = Blocks.Config(width=widths[0], depth=depths[0], heads=heads)
    return FlowTokenizer.Config(
        net=SeededQueries(patch=patch, tokens=tokens, encoder_blocks=blocks, decoder_blocks=blocks, registers=registers),
        quantizer=VQ.Config(codebook=codebook(codes, dim, "cosine", "averages"), beta=beta),
        latent=widths[0],
        norm=MovingNorm.Config(),
        decoder=Flow.Config(
            net=Denoiser.Config(width=widths[1], depth=depths[1], heads=heads, patch=patch),
            reveal=Staged(groups=groups, sight="own" if reader else "appeared"),
            steps=steps,
            shift=shift,
            predict=predict,
        ),
        reader=read,
        semantic=aligned(semantic, semantic_depth, dino),
    )
