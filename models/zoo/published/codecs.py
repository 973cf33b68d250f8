"""Tokenizers that generators were published on, as recipes and arguments: their shape, so that a run has the published tokens."""

from __future__ import annotations

from typing import Any

#: VQGAN's levels at a sixteenth of the image, as LlamaGen, VAR, MaskGIT and MAR have them.
_SIXTEENTH: dict[str, Any] = {"multipliers": [1, 1, 2, 2, 4], "patch": 1, "blocks": 2}
LLAMAGEN: tuple[str, dict[str, Any]] = ("vq", {"codes": 16384, "dim": 8, "channels": 128, **_SIXTEENTH})
MASKGIT: tuple[str, dict[str, Any]] = ("maskgit_vqgan", {"codes": 1024, "dim": 256, "channels": 128, **_SIXTEENTH})
OPEN_MAGVIT2: tuple[str, dict[str, Any]] = ("lfq", {"bits": 18, "factors": [6, 12], "channels": 128, **_SIXTEENTH})
KL: tuple[str, dict[str, Any]] = ("kl", {"dim": 16, "channels": 128, **_SIXTEENTH})
TOKENBRIDGE: tuple[str, dict[str, Any]] = ("tokenbridge", {"dim": 16, "levels": 64, "channels": 128, **_SIXTEENTH})


def var(scales: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """VAR's, for grids of these sides."""
    return "var_vq", {"scales": list(scales), "codes": 4096, "dim": 32, "channels": 160, **_SIXTEENTH}


def flexvar(scales: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    """FlexVAR's, for grids of these sides."""
    return "flexvar_vq", {"scales": list(scales), "codes": 8912, "dim": 32, "channels": 128, **_SIXTEENTH}
