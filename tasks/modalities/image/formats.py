"""Files that are images, by the ends of their names."""

from __future__ import annotations


def _suffixes() -> frozenset[str]:
    usual = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
    try:
        from PIL import features
    except ImportError:  # a machine that trains on tokens alone
        return frozenset(usual)
    return frozenset(usual | ({".avif"} if "avif" in features.get_supported_modules() else set()))


#: Endings of names of files that are images; ``.avif`` where Pillow reads it.
IMAGE_SUFFIXES = _suffixes()
