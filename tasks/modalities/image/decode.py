"""The stored bytes of one image to pixels: PNG files of our own making with nothing but numpy, all others with Pillow."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from tokenloom.tasks.modalities.image import png


def decode(data: bytes) -> NDArray[np.uint8]:
    """Grey or RGB pixels uint8 (H, W, C).

    Raises:
        ValueError: damaged, of a mode that shards do not hold, or not a PNG of ours and Pillow is not installed.
    """
    if data[:8] == png.SIGNATURE:
        try:
            return png.decode(data)
        except png.OtherMakingError:
            pass
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("images that are no PNG files of ours are read with Pillow, which is not installed: pip install pillow") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("L", "RGB"):
                raise ValueError(f"an image of mode {image.mode}, and shards hold grey or RGB")
            pixels = np.asarray(image, np.uint8)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"damaged image: {error}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels
