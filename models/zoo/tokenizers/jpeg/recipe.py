"""JPEG-LM's tokens: the bytes of a canonical codec (arXiv:2408.08459).

New: an image is a compressed file; the tokens are its bytes, and nothing is learned.
Differs: tables and header are the same for all images, so the tokens are the bytes of the entropy-coded scan alone, then an end
symbol up to a fixed length (``files`` gives whole files).  An image whose scan is longer loses the
highest diagonals of its spectrum until it fits.  Any ids at all decode: ``models/zoo/tokenizers/jpeg/codec.py`` says how they are repaired.
Run: tokenloom run smoke_jpeg
Expect: digits (32x32, quality 50): 166 bytes on average, 243 for 99 of 100, squared error 0.0037 on [-1, 1]; no parameters, no training.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.zoo.tokenizers.jpeg.module import JpegTokenizer


@register("jpeg", kind="tokenizer", paper="2408.08459", tiny={"length": 64})
def jpeg(
    quality: int = 50, length: int = 256, padding: Literal["end", "none"] = "end", chroma: Literal["4:4:4", "4:2:0"] = "4:2:0"
) -> JpegTokenizer.Config:
    """``length`` tokens an image: 256 hold a 32x32 grey image of quality 50; colour needs more.

    The paper's images have 256 pixels a side, quality 25, colour at half the resolution (4:2:0) and some 5,000 bytes: ``length: 16384``
    holds the most detailed of them.
    """
    return JpegTokenizer.Config(quality=quality, length=length, padding=padding, chroma=chroma)
