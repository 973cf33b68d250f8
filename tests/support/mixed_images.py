"""Real files of every kind that ingest takes, and some that it cannot: what a folder of the world looks like."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from image_files import encoded
from PIL import Image, ImageDraw, features


def painting(number: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture in colour: a ground that shades, and a shape on it; ``size`` is (width, height)."""
    draw = np.random.default_rng(number)
    across, down = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    first, second = draw.integers(0, 256, (2, 3))
    ground = first + (second - first) * ((across + down) / 2)[..., None]
    image = Image.fromarray(ground.astype(np.uint8))
    box = sorted(draw.integers(4, size[0] - 4, 2).tolist()), sorted(draw.integers(4, size[1] - 4, 2).tolist())
    place = (box[0][0], box[1][0], box[0][1] + 1, box[1][1] + 1)
    colour = tuple(draw.integers(0, 256, 3).tolist())
    pen = ImageDraw.Draw(image)
    pen.ellipse(place, fill=colour) if number % 2 else pen.rectangle(place, fill=colour)
    return image


def whole(number: int) -> Iterator[tuple[str, bytes]]:
    """One file of each kind that is taken: its end and content."""
    rgb = painting(number)
    grey = rgb.convert("L")
    yield ".jpg", encoded(rgb, "JPEG", quality=90)
    yield ".cmyk.jpg", encoded(rgb.convert("CMYK"), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield ".turned.jpeg", encoded(rgb, "JPEG", exif=exif)
    yield ".grey.jfif", encoded(grey, "JPEG")
    yield ".png", encoded(rgb)
    yield ".deep.png", encoded(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257))
    palette = rgb.quantize(32)
    palette.info["transparency"] = 3
    yield ".palette.png", encoded(palette, transparency=3)
    yield ".alpha.png", encoded(Image.merge("LA", (grey, grey)))
    yield ".bits.png", encoded(rgb.convert("1"))
    yield ".moving.gif", encoded(rgb.quantize(16), "GIF", save_all=True, append_images=[painting(number + 1).quantize(16)])
    yield ".moving.png", encoded(rgb, save_all=True, append_images=[painting(number + 1)])
    yield ".moving.webp", encoded(rgb, "WEBP", save_all=True, append_images=[painting(number + 1)])
    yield ".webp", encoded(rgb, "WEBP")
    sink = io.BytesIO()
    rgb.save(sink, "MPO", save_all=True, append_images=[painting(number + 1)])
    yield ".mpo.jpg", sink.getvalue()
    yield ".tif", encoded(rgb, "TIFF")
    yield ".bmp", encoded(rgb, "BMP")
    yield ".ppm", encoded(rgb, "PPM")
    yield ".right.jpg", encoded(painting(number, (64, 64)), "JPEG")
    yield ".wide.png", encoded(painting(number, (400, 70)))
    if "avif" in features.get_supported_modules():
        yield ".avif", encoded(rgb, "AVIF")


def broken(number: int) -> Iterator[tuple[str, bytes]]:
    """Files that cannot be used, each for another reason."""
    jpeg = encoded(painting(number), "JPEG")
    yield ".cut.jpg", jpeg[: len(jpeg) // 2]
    yield ".empty.png", b""
    yield ".text.jpg", b"this is no picture"
    yield ".twelve.png", encoded(Image.fromarray(np.asarray(painting(number).convert("L")).astype(np.uint16) * 16))
    yield ".pdf", b"%PDF-1.4"
