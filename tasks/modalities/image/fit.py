"""One raw image to the pixels of a dataset: decode, check, turn upright, fit.

Modes of fit: ``pad`` puts the image in the middle of black and never resizes; ``crop`` resizes until the image covers
the size and keeps the middle; ``resize`` stretches.  Resizing is antialiased (Lanczos, three lobes).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenloom.configs.schema import DataConfig
from tokenloom.tasks.data.columns import stored
from tokenloom.tasks.data.listing import Item
from tokenloom.tasks.modalities.base import Fitted, Rejected
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.modalities.image.sources import single_digest


class UnusableError(ValueError):
    """Reason for a rejection."""


def fit_item(item: Item, config: DataConfig, classes: Mapping[str, int]) -> Fitted | Rejected:
    """Read, check and fit one item; every failure becomes a reason."""
    digest = ""
    try:
        raw = item.read()
        digest = single_digest(item, raw)
        if item.problem:
            return Rejected(item.problem, digest)
        if item.label is None:
            return Rejected("label missing", digest)
        if item.label not in classes:
            return Rejected(f"unknown class {item.label!r}", digest)
        image_HWC = fit(raw, config)
        found = {name: fit(read(), config) for name, read in item.columns.items()}
        beside = {stored(name): png.encode(found[name]) if name in found else None for name in config.columns or {}}
    except (UnusableError, OSError, ValueError) as error:
        return Rejected(str(error) or type(error).__name__, digest)
    pixels = hashlib.sha256(repr(image_HWC.shape).encode() + image_HWC.tobytes()).digest()[:16]
    return Fitted({"image": png.encode(image_HWC), **beside}, pixels, classes[item.label], digest)


def fit(raw: bytes | np.ndarray, config: DataConfig) -> np.ndarray:
    """Raw file bytes or pixels (H, W) / (H, W, C) uint8 to (*config.shape, channels) uint8.

    Raises:
        ValueError: empty, corrupt, too large, or of a mode without a meaning as grey or RGB.
    """
    from PIL import Image

    if isinstance(raw, np.ndarray):
        if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or 0 in raw.shape:
            raise UnusableError(f"pixels of type {raw.dtype} and shape {raw.shape}: needs uint8 (H, W) or (H, W, 3)")
        image = Image.fromarray(raw.squeeze(-1) if raw.ndim == 3 and raw.shape[2] == 1 else raw)
        return _to_size(_to_mode(image, config.channels), config)
    if not raw:
        raise UnusableError("empty file")
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            _check_pixels(opened.size, config.max_pixels)
            opened.load()
            image = _upright(opened)
    except Image.DecompressionBombError as error:
        raise UnusableError(f"oversized: {error}") from error
    except UnusableError:
        raise
    except Exception as error:  # decoders raise many types on damaged data; all mean the same here
        raise UnusableError(f"corrupt or unreadable: {error}") from error
    return _to_size(_to_mode(image, config.channels), config)


def _check_pixels(size: tuple[int, int], most: int) -> None:
    if size[0] * size[1] > most:
        raise UnusableError(f"oversized: {size[0]}x{size[1]} is more than max_pixels={most}")
    if 0 in size:
        raise UnusableError(f"zero size: {size[0]}x{size[1]}")


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _to_mode(image: Any, channels: int) -> Any:
    """Grey or RGB; transparent parts become white; 16-bit grey keeps its upper byte."""
    from PIL import Image

    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise UnusableError(f"wrong mode {image.mode}: values from {pixels.min()} to {pixels.max()} are no 16-bit grey")
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        raise UnusableError(f"wrong mode {image.mode}: neither grey nor colour of 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _to_size(image: Any, config: DataConfig) -> np.ndarray:
    from PIL import Image

    (rows, columns), (width, height) = config.shape, image.size
    if config.fit == "pad":
        if width > columns or height > rows:
            raise UnusableError(f"{width}x{height} is larger than size={config.size}, and fit: pad never resizes (use crop or resize)")
        canvas = Image.new(image.mode, (columns, rows))
        canvas.paste(image, ((columns - width) // 2, (rows - height) // 2))
        image = canvas
    elif config.fit == "crop":
        scale = max(columns / width, rows / height)  # the image covers the whole size
        wide, high = max(columns, round(width * scale)), max(rows, round(height * scale))
        if (wide, high) != (width, height):
            image = image.resize((wide, high), Image.Resampling.LANCZOS)
        left, top = (wide - columns) // 2, (high - rows) // 2
        image = image.crop((left, top, left + columns, top + rows))
    elif (width, height) != (columns, rows):
        image = image.resize((columns, rows), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, np.uint8)
    return np.ascontiguousarray(pixels.reshape(rows, columns, config.channels))
