"""Tokenizers that generators were published on, as recipes and arguments, so that a run has the published tokens."""

from __future__ import annotations

from typing import Any

Codec = tuple[str, dict[str, Any]]

LLAMAGEN: Codec = ("vq", {"size": "VQ-16"})
MASKGIT: Codec = ("maskgit_vqgan", {"size": "MaskGIT-VQGAN f16 1024x256 (PyTorch form in 1d-tokenizer)"})
KL: Codec = ("kl", {"size": "MAR KL-16"})
#: Latents of the image at half its size, then of the image (Hi-MAR).
KL_PIVOTS: Codec = ("kl_pyramid", {"size": "MAR KL-16", "scales": [8, 16], "of": "images"})
#: Latents averaged over areas, scale by scale (FlowAR).
KL_SCALES: Codec = ("kl_pyramid", {"size": "MAR KL-16", "scales": [1, 2, 4, 8, 16], "of": "latents"})
KL_F8_Z16: Codec = ("kl", {"size": "f8 AutoencoderKL z16"})
TOKENBRIDGE: Codec = ("tokenbridge", {"size": "TokenBridge post-quantizer on MAR KL-16"})
#: No published size of this tokenizer is offered yet: VQGAN's levels, and its bits cut as the generator has them.
OPEN_MAGVIT2: Codec = ("lfq", {"bits": 18, "factors": [6, 12], "channels": 128, "multipliers": [1, 1, 2, 2, 4], "patch": 1, "blocks": 2})


def var(scales: tuple[int, ...]) -> Codec:
    """VAR's, for grids of these sides."""
    return "var_vq", {"size": "VAR VQVAE ch160 v4096 z32", "scales": list(scales)}


def flexvar(scales: tuple[int, ...]) -> Codec:
    """FlexVAR's, for grids of these sides."""
    return "flexvar_vq", {"size": "FlexVAR VQVAE", "scales": list(scales)}
