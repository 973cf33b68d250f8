"""FlexTok: an image as a 1-D sequence of any length, decoded by a flow (arXiv:2502.13967).

New: nested dropout (training keeps the first k tokens of a row) puts what matters most into the first tokens, and a rectified flow as the
decoder makes a plausible image of any prefix, where a regression would blur.
Differs: by default the flow runs on pixels and its net predicts the image, whose error is trained; as published it runs on the latents of
a VAE (``space``), predicts the velocity (``predict``) and is aligned with DINOv2-L (``semantic``, ``dino``).  Registers see the patches and
those before them, as published, but start from mixtures of the patches, and latents are standardised by moving averages before they are
rounded (without these two so short a training ends with one code).  Blocks are plain ViT's, without SwiGLU and query-key norms; guidance
is plain, not adaptive projected; k is a power of two, or with ``keep: uniform`` any number; released: 256 tokens of 64000 codes.
Run: tokenloom run smoke_flextok
Expect: digits (600 steps of 32, learning rate 2e-3, 64 CPU seconds, ``registers: all``), mean squared error on [-1, 1] of the images of 1,
2, 4, 8 and all 16 tokens: 0.185, 0.176, 0.136, 0.120, 0.120; one token gives a sharp digit, not always the right one.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.decoders.denoiser import Denoiser
from tokenloom.models.parts.decoders.flow import Flow
from tokenloom.models.parts.decoders.token_dropout import Nested
from tokenloom.models.parts.nets.seeded import SeededQueries
from tokenloom.models.parts.nets.vit import Blocks
from tokenloom.models.parts.quantizers.fsq import FSQ
from tokenloom.models.parts.semantic import aligned
from tokenloom.models.tokenizers.flow_tokenizer import FlowTokenizer
from tokenloom.models.tokenizers.moving_norm import MovingNorm
from tokenloom.models.tokenizers.on_latents import LatentFlow


@register(
    "flextok",
    kind="tokenizer",
    paper="2502.13967",
    tiny={"tokens": 4, "levels": [5, 3, 3], "patch": 4, "widths": [16, 32], "depths": [1, 1], "heads": 2, "steps": 4},
)
def flextok(
    tokens: int = 16,
    levels: tuple[int, ...] = (8, 5, 5, 5),
    keep: Literal["powers", "uniform"] = "powers",
    patch: int = 8,
    widths: tuple[int, int] = (96, 128),
    depths: tuple[int, int] = (2, 3),
    heads: int = 4,
    steps: int = 16,
    shift: float = 15.0,
    guidance: float = 0.0,
    registers: Literal["causal", "all"] = "causal",
    predict: Literal["image", "velocity"] = "image",
    space: Literal["pixels", "latents"] = "pixels",
    semantic: float = 0.0,
    semantic_depth: int = 1,
    dino: str = "",
) -> FlowTokenizer.Config:
    """``widths`` and ``depths`` of encoder and flow, ``patch`` pixels a slot on both sides; ``steps`` of decoding; a larger ``shift``
    spends more of training and decoding on noisy times; a ``guidance`` above 0 makes training drop all tokens of a tenth of the rows.

    ``space: latents`` codes and decodes the latents of a trained autoencoder, the run's ``tokenizer.base``, of which ``patch`` positions
    are a slot; ``semantic`` weighs the alignment of the flow's block ``semantic_depth`` with the DINO of a file, or else with the toy
    classifier of the data (REPA).  As published: ``predict: velocity, space: latents, patch: 2, tokens: 256, levels: [8, 8, 8, 5, 5, 5]``.
    """
    blocks = Blocks.Config(width=widths[0], depth=depths[0], heads=heads)
    flow = Flow.Config(
        net=Denoiser.Config(width=widths[1], depth=depths[1], heads=heads, patch=patch),
        reveal=Nested(choose=keep, none=0.1 if guidance else 0.0),
        steps=steps,
        shift=shift,
        guidance=guidance,
        predict=predict,
    )
    return FlowTokenizer.Config(
        net=SeededQueries(patch=patch, tokens=tokens, encoder_blocks=blocks, decoder_blocks=blocks, registers=registers),
        quantizer=FSQ.Config(levels=levels),
        latent=widths[0],
        norm=MovingNorm.Config(),
        reads=space,
        decoder=flow if space == "pixels" else LatentFlow.Config(flow=flow),
        semantic=aligned(semantic, semantic_depth, dino),
    )
