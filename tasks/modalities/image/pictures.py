"""Pictures of images for people: grids, rows with names, pairs. PNG bytes out; nothing here touches files or the store."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
_GAP = 2  # pixels between images, after enlarging
_LEAST = 48  # small images are enlarged (nearest) to about this many pixels a side


def png(image_HWC: Image) -> bytes:
    """One image (H, W, 1 or 3) uint8 as PNG."""
    from PIL import Image as Pillow

    image = image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC
    out = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(image)).save(out, "PNG")
    return out.getvalue()


def grid(image_NHWC: Image, columns: int, enlarge: bool = True) -> Image:
    """Images row by row on a white sheet: (rows of the sheet, columns of the sheet, 3) uint8."""
    n, h, w, c = image_NHWC.shape
    if not n:
        raise ValueError("a grid of no images")
    image = np.repeat(image_NHWC, 3, axis=3) if c == 1 else image_NHWC
    times = max(1, round(_LEAST / max(h, w))) if enlarge else 1
    image = image.repeat(times, axis=1).repeat(times, axis=2)
    h, w, rows = h * times + _GAP, w * times + _GAP, -(-n // columns)
    sheet = np.full((rows * h + _GAP, min(n, columns) * w + _GAP, 3), 255, np.uint8)
    for i, one in enumerate(image):
        y, x = _GAP + i // columns * h, _GAP + i % columns * w
        sheet[y : y + h - _GAP, x : x + w - _GAP] = one
    return sheet


def class_grid(image_NHWC: Image, label_N: NDArray, names: Sequence[str], per_class: int = 12, most: int = 20) -> bytes:
    """One row a class with its name: PNG. At most ``most`` classes (evenly spread) are shown."""
    present = np.unique(label_N)
    if len(present) > most:
        present = present[np.linspace(0, len(present) - 1, most).round().astype(int)]
    rows = [(str(names[k]) if k < len(names) else str(k), image_NHWC[label_N == k][:per_class]) for k in present]
    return labelled_rows(rows)


def labelled_rows(rows: Sequence[tuple[str, Image]], title: str = "") -> bytes:
    """Rows of images, each with a short text at its left: PNG."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(13)
    sheets = [(name[:48], grid(images, len(images))) for name, images in rows if len(images)]
    if not sheets:
        raise ValueError("a picture of no images")
    margin = 10 + round(max(font.getlength(name) for name, _ in sheets))
    top = 24 if title else 0
    width, height = margin + max(s.shape[1] for _, s in sheets), top + sum(s.shape[0] for _, s in sheets)
    width = max(width, 16 + round(font.getlength(title)))
    page = Pillow.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(page), top
    draw.text((6, 4), title, fill="black", font=font)
    for name, sheet in sheets:
        draw.text((5, y + sheet.shape[0] // 2 - 8), name, fill="black", font=font)
        page.paste(Pillow.fromarray(sheet), (margin, y))
        y += sheet.shape[0]
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()


def pairs(left_NHWC: Image, right_NHWC: Image, names: tuple[str, str], columns: int = 10) -> bytes:
    """Two sets image by image: a row of the first above a row of the second, as many such rows as needed: PNG."""
    return beside({names[0]: left_NHWC, names[1]: right_NHWC}, columns)


def beside(sets: Mapping[str, Image], columns: int = 10) -> bytes:
    """Sets of as many images, by name, image by image: a row of each above a row of the next, as many such rows as needed: PNG."""
    total = len(next(iter(sets.values())))
    return labelled_rows([(name, images[i : i + columns]) for i in range(0, total, columns) for name, images in sets.items()])
