"""PNG files of 8-bit grey or RGB images with nothing but zlib and numpy.

The same pixels always give the same bytes, and image shards are read where no image library is installed.
The format: https://www.w3.org/TR/png-3/ (chunks in section 5, filters in section 9).
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NONE, _SUB, _UP = 0, 1, 2


class OtherMakingError(ValueError):
    """A whole PNG file, but not one that ``encode`` writes: another bit depth, a palette, interlaced, other filters."""


def encode(image_HWC: np.ndarray) -> bytes:
    """uint8 (H, W, 1 or 3) to a PNG file; one filter for all rows, chosen by the least sum of absolute differences."""
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] not in (1, 3) or 0 in image_HWC.shape:
        raise ValueError(f"image of type {image_HWC.dtype} and shape {image_HWC.shape}: needs uint8 (H, W, 1 or 3)")
    height, width, channels = image_HWC.shape
    left, up = np.zeros_like(image_HWC), np.zeros_like(image_HWC)
    left[:, 1:], up[1:] = image_HWC[:, :-1], image_HWC[:-1]
    filtered = {_NONE: image_HWC, _SUB: image_HWC - left, _UP: image_HWC - up}  # modulo 256
    best = min(filtered, key=lambda f: int(np.abs(filtered[f].view(np.int8).astype(np.int32)).sum()))
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0], rows[:, 1:] = best, filtered[best].reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def decode(data: bytes) -> np.ndarray:
    """A PNG file written by ``encode`` to uint8 (H, W, C).

    Raises:
        OtherMakingError: a PNG of another making.
        ValueError: damaged.
    """
    if data[:8] != SIGNATURE:
        raise ValueError("not a PNG file")
    position, packed, header = 8, b"", None
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        if data[position + 8 + length : position + 12 + length] != struct.pack(">I", zlib.crc32(kind + body)):
            raise ValueError(f"PNG chunk {kind!r} is damaged")
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", body)
        elif kind == b"IDAT":
            packed += body
        elif kind == b"IEND":
            break
        position += 12 + length
    else:
        raise ValueError("PNG file is cut short")
    if header is None or header[2] != 8 or header[3] not in (0, 2) or header[6]:
        raise OtherMakingError(f"PNG of a kind that shards do not hold: header {header}")
    width, height, channels = header[0], header[1], 1 if header[3] == 0 else 3
    try:
        rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"PNG data is damaged: {error}") from error
    pixels = rows[:, 1:].reshape(height, width, channels)
    filters = set(rows[:, 0].tolist())
    if filters == {_NONE}:
        return pixels.copy()
    if filters == {_SUB}:
        return np.cumsum(pixels, axis=1, dtype=np.uint8)
    if filters == {_UP}:
        return np.cumsum(pixels, axis=0, dtype=np.uint8)
    raise OtherMakingError(f"PNG with row filters {sorted(filters)}, which shards do not hold")
