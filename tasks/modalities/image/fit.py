"""One raw image to the pixels of a dataset: decode, check, turn upright, fit.  Memory is bounded, whatever the image's shape.

Modes of fit: ``pad`` puts the image in the middle of black and never resizes; ``crop`` resizes until the image covers
the size and keeps the middle; ``resize`` stretches.  Resizing is antialiased (Lanczos, three lobes).  With a ``store_scale`` above 1 a
crop is left to training: the image is made to cover so many times the size at most, and keeps its aspect ratio up to 2.

A JPEG, PNG or WebP file in which nothing has to change keeps its bytes (``kept``); another image is encoded anew.
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tokenloom.configs.schema import DataConfig
from tokenloom.tasks.data.columns import stored
from tokenloom.tasks.data.listing import Item
from tokenloom.tasks.data.reading import ReadError, attempted
from tokenloom.tasks.modalities.base import Fitted, Rejected
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.modalities.image.folders import single_digest

#: Pixels that all threads together may hold decoded; one larger image waits until it is alone.
_IN_FLIGHT = 1 << 26
_ORIENTATION = 0x0112  # of EXIF
_ASPECT = 2  # of the sides of an image that is stored for crops; what is longer loses its ends
_MOST = 4  # times the pixels of the image or of the result that an image may have after resizing


class UnusableError(ValueError):
    """Reason for a rejection."""


class _Budget:
    """Pixels that several threads share."""

    def __init__(self, most: int) -> None:
        self._most, self._held, self._free = most, 0, threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self._most)
        with self._free:
            self._free.wait_for(lambda: self._held + pixels <= self._most)
            self._held += pixels
        try:
            yield
        finally:
            with self._free:
                self._held -= pixels
                self._free.notify_all()


_budget = _Budget(_IN_FLIGHT)


def fit_item(item: Item, config: DataConfig, classes: Mapping[str, int]) -> Fitted | Rejected:
    """Read, check and fit one item; every failure becomes a reason."""
    digest = ""
    raw: bytes | np.ndarray = b""
    try:
        raw = b"" if item.retry else attempted(item.read)
        digest = "" if item.retry else attempted(lambda: single_digest(item, raw))
        if item.problem:
            return Rejected(item.problem, digest, item.retry)
        if item.label is None:
            return Rejected("label missing", digest)
        if item.label not in classes:
            return Rejected(f"unknown class {item.label!r}", digest)
        image_HWC, keep = fitted(raw, config)
        found = {name: fit(attempted(read), config) for name, read in item.columns.items()}
        beside = {stored(name): png.encode(found[name]) if name in found else None for name in config.columns or {}}
    except ReadError as error:
        return Rejected(str(error), "", retry=True)
    except (UnusableError, OSError, ValueError) as error:
        return Rejected(str(error) or type(error).__name__, digest, read=len(raw))
    pixels = hashlib.sha256(repr(image_HWC.shape).encode() + image_HWC.tobytes()).digest()[:16]
    image = keep if keep is not None else encoded(image_HWC, config)
    read = raw.nbytes if isinstance(raw, np.ndarray) else len(raw)
    return Fitted({"image": image, **beside}, pixels, classes[item.label], digest, read)


def fit(raw: bytes | np.ndarray, config: DataConfig) -> np.ndarray:
    """Raw file bytes or pixels (H, W) / (H, W, C) uint8 to (*config.shape, channels) uint8; larger with a ``store_scale``.

    Raises:
        ValueError: empty, corrupt, too large, or of a mode without a meaning as grey or RGB.
    """
    return fitted(raw, config)[0]


def fitted(raw: bytes | np.ndarray, config: DataConfig) -> tuple[np.ndarray, bytes | None]:
    """The same, and the file's own bytes where nothing in it has to change (a PNG's without its texts)."""
    from PIL import Image

    if isinstance(raw, np.ndarray):
        if raw.dtype != np.uint8 or raw.ndim not in (2, 3) or 0 in raw.shape:
            raise UnusableError(f"pixels of type {raw.dtype} and shape {raw.shape}: needs uint8 (H, W) or (H, W, 3)")
        image = Image.fromarray(raw.squeeze(-1) if raw.ndim == 3 and raw.shape[2] == 1 else raw)
        return _to_size(_to_mode(image, config), config), None
    if not raw:
        raise UnusableError("empty file")
    try:
        plain = without_texts(raw)
        with Image.open(io.BytesIO(plain)) as opened:
            _check_pixels(opened.size, config.max_pixels)
            with _budget.of(opened.size[0] * opened.size[1]):
                opened.load()
                image_HWC = _to_size(_to_mode(_upright(opened), config, _bits(opened, raw)), config)
                return image_HWC, plain if _unchanged(opened, image_HWC, config) else None
    except Image.DecompressionBombError as error:
        raise UnusableError(f"oversized: {error}") from error
    except UnusableError:
        raise
    except Exception as error:  # decoders raise many types on damaged data; all mean the same here
        raise UnusableError(f"corrupt or unreadable: {error}") from error


def _unchanged(opened: Any, image_HWC: np.ndarray, config: DataConfig) -> bool:
    """Whether a decoded file already is what a shard would hold."""
    size, mode = (image_HWC.shape[1], image_HWC.shape[0]), "L" if config.channels == 1 else "RGB"
    as_it_is = opened.size == size and opened.mode == mode and "transparency" not in opened.info
    upright = opened.getexif().get(_ORIENTATION, 1) == 1
    return opened.format in ("JPEG", "PNG", "WEBP") and as_it_is and upright and getattr(opened, "n_frames", 1) == 1


def encoded(image_HWC: np.ndarray, config: DataConfig) -> bytes:
    """The file of an image that had to be changed (``data.encode``)."""
    if config.encode == "png":
        return png.encode(image_HWC)
    from PIL import Image

    sink = io.BytesIO()
    image = Image.fromarray(image_HWC.squeeze(-1) if image_HWC.shape[2] == 1 else image_HWC)
    if config.encode == "webp":
        image.convert("RGB").save(sink, "WEBP", quality=config.quality)
    else:
        image.save(sink, "JPEG", quality=config.quality, subsampling=0)
    return sink.getvalue()


def without_texts(raw: bytes) -> bytes:
    """A PNG without its chunks of text, which a reader may refuse for their length; any other file as it is."""
    if not raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return raw
    kept, at = [raw[:8]], 8
    while at + 12 <= len(raw):
        (size,) = struct.unpack_from(">I", raw, at)
        if raw[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(raw[at : at + 12 + size])
        at += 12 + size
    return b"".join([*kept, raw[at:]]) if len(kept) > 1 else raw


def _bits(image: Any, raw: bytes) -> int | None:
    """Significant bits of an image of 16 bits, where its file says so (PNG's chunk ``sBIT``, TIFF's ``MaxSampleValue``)."""
    at = raw.find(b"sBIT", 0, 4096)
    if image.format == "PNG" and 0 < at < len(raw) - 4:
        return max(9, raw[at + 4])
    if image.format == "TIFF" and (most := image.tag_v2.get(281)):
        return max(9, int(most[0] if isinstance(most, tuple) else most).bit_length())
    return None


def _check_pixels(size: tuple[int, int], most: int) -> None:
    if size[0] * size[1] > most:
        raise UnusableError(f"oversized: {size[0]}x{size[1]} is more than max_pixels={most}")
    if 0 in size:
        raise UnusableError(f"zero size: {size[0]}x{size[1]}")


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _to_mode(image: Any, config: DataConfig, bits: int | None = None) -> Any:
    """Grey or RGB; transparent parts become white; grey of ``bits`` (16 if neither the file nor ``data.bits`` says) keeps the upper 8."""
    from PIL import Image

    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        least, most, deep = int(pixels.min()), int(pixels.max()), config.bits or bits
        if least < 0 or most > 0xFFFF:
            raise UnusableError(f"wrong mode {image.mode}: values from {least} to {most} are no 16-bit grey")
        if deep is None and 0 < most < 0x1000:
            raise UnusableError(f"16 bits of which 12 or fewer are used (up to {most}): it would come out black; set data.bits, e.g. 12")
        if deep is not None and most >= 1 << deep:
            raise UnusableError(f"values up to {most} are more than data.bits={deep} hold")
        image = Image.fromarray((pixels >> ((deep or 16) - 8)).astype(np.uint8))
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        raise UnusableError(f"wrong mode {image.mode}: neither grey nor colour of 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if config.channels == 1 else "RGB")


def _to_size(image: Any, config: DataConfig) -> np.ndarray:
    from PIL import Image

    (rows, columns), (width, height) = config.shape, image.size
    if config.fit == "pad":
        if width > columns or height > rows:
            raise UnusableError(f"{width}x{height} is larger than size={config.size}, and fit: pad never resizes (use crop or resize)")
        canvas = Image.new(image.mode, (columns, rows))
        canvas.paste(image, ((columns - width) // 2, (rows - height) // 2))
        image = canvas
    elif config.fit == "crop" and config.store_scale > 1:
        return _for_crops(image, config)
    elif config.fit == "crop":
        scale = max(columns / width, rows / height)  # the image covers the whole size
        wide, high = max(columns, round(width * scale)), max(rows, round(height * scale))
        left, top = (wide - columns) // 2, (high - rows) // 2
        if wide * high > _MOST * max(width * height, rows * columns):
            # A very long image: only the middle is made, by the same filter at the same places.
            across, down = width / wide, height / high
            box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
            image = image.resize((columns, rows), Image.Resampling.LANCZOS, box=box)
        else:
            if (wide, high) != (width, height):
                image = image.resize((wide, high), Image.Resampling.LANCZOS)
            image = image.crop((left, top, left + columns, top + rows))
    elif (width, height) != (columns, rows):
        image = image.resize((columns, rows), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, np.uint8)
    return np.ascontiguousarray(pixels.reshape(rows, columns, config.channels))


def _for_crops(image: Any, config: DataConfig) -> np.ndarray:
    """An image that covers the size at most ``store_scale`` times, with its own aspect ratio up to ``_ASPECT``."""
    from PIL import Image

    (rows, columns), (width, height) = config.shape, image.size
    cover = max(columns / width, rows / height)  # what would make it just cover the size
    scale = min(max(1.0, cover), cover * config.store_scale)  # never larger than it is, unless it is too small
    wide, high = max(columns, round(width * scale)), max(rows, round(height * scale))
    kept_wide, kept_high = (min(side, _ASPECT * round(cut * config.store_scale)) for side, cut in ((wide, columns), (high, rows)))
    if (kept_wide, kept_high) != (wide, high):
        across, down = width / wide, height / high
        left, top = (wide - kept_wide) / 2, (high - kept_high) / 2
        box = (left * across, top * down, (left + kept_wide) * across, (top + kept_high) * down)
        image = image.resize((kept_wide, kept_high), Image.Resampling.LANCZOS, box=box)
    elif (wide, high) != (width, height):
        image = image.resize((wide, high), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(image, np.uint8).reshape(image.size[1], image.size[0], config.channels))
