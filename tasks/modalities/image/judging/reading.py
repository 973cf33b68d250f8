"""Text preservation: characters drawn into images, passed through a tokenizer, and read back by an OCR program.

The third task of VTBench (a benchmark of tokenizers: reconstruction, detail, text), with characters drawn here instead of scanned
pages: random words of digits and letters, in the font that Pillow carries, at heights that fit the images of the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
PROGRAM = "tesseract"
ALPHABET = "ABDEFHJKLMNPQRTUXY23456789"  # without characters that look alike
COUNT = 64  # images
READABLE = 0.2  # least accuracy on the originals for a comparison to mean something
_HEIGHT = 128  # pixels a side at which the program reads; smaller images are enlarged
_MARGIN = 24


def words(size: int, count: int = COUNT, seed: int = 0) -> list[tuple[str, int]]:
    """Random words with their font size in pixels, half of them large (two thirds of the image), half small (just over one third)."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(count):
        height = round(size * (0.67 if i % 2 == 0 else 0.38))
        letters = 2 if i % 2 == 0 else 3
        made.append(("".join(draw.choice(list(ALPHABET), letters)), height))
    return made


def render(size: int, channels: int, dark: bool, count: int = COUNT, seed: int = 0) -> tuple[Images, list[str]]:
    """Images (N, size, size, channels) uint8 of words, and the words; light on dark where ``dark``, as the data is."""
    from PIL import Image, ImageDraw, ImageFont

    images, texts = [], []
    for text, height in words(size, count, seed):
        font = ImageFont.load_default(height)
        while font.getlength(text) > size - 2 and height > 4:  # a wide word
            height -= 1
            font = ImageFont.load_default(height)
        page = Image.new("L", (size, size), 0 if dark else 255)
        ImageDraw.Draw(page).text((size / 2, size / 2), text, fill=255 if dark else 0, font=font, anchor="mm")
        images.append(np.asarray(page)[..., None].repeat(channels, axis=2))
        texts.append(text)
    return np.stack(images), texts


def protocol(size: int) -> dict[str, Any]:
    """How text is judged, for the record."""
    return {"program": PROGRAM, "images": COUNT, "heights": sorted({height for _, height in words(size)}), "alphabet": ALPHABET}


def available() -> bool:
    """Whether the OCR program is installed."""
    return shutil.which(PROGRAM) is not None


def read(images: Images, dark: bool) -> list[str]:
    """What the program reads in each image (N, H, W, C), letters of ``ALPHABET`` only; one process for all.

    Raises:
        OSError: the program is not there, or fails.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, image in enumerate(images):
            grey = image.mean(axis=2).round().astype(np.uint8)
            page = Image.fromarray(255 - grey if dark else grey)  # dark letters on a light page are what the program knows
            scale = max(1, -(-_HEIGHT // max(page.size)))
            page = page.resize((page.width * scale, page.height * scale), Image.Resampling.BICUBIC)
            sheet = Image.new("L", (page.width + 2 * _MARGIN, page.height + 2 * _MARGIN), int(np.median(np.asarray(page)[[0, -1]])))
            sheet.paste(page, (_MARGIN, _MARGIN))
            paths.append(Path(folder) / f"{i}.png")
            sheet.save(paths[-1], dpi=(300, 300))
        listing = Path(folder) / "pages.txt"
        listing.write_text("".join(f"{path}\n" for path in paths))
        command = [PROGRAM, str(listing), "stdout", "--psm", "7", "-c", f"tessedit_char_whitelist={ALPHABET}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_THREAD_LIMIT": "1"})
    if done.returncode:
        raise OSError(f"{PROGRAM} failed: {done.stderr.strip()[-300:]}")
    pages = done.stdout.split("\f")[: len(images)]
    return ["".join(page.split()) for page in pages] + [""] * (len(images) - len(pages))


def accuracy(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Mean over the words of ``1 - edit distance / length``, at least 0 each."""
    return float(np.mean([max(0.0, 1 - edits(a, b) / len(b)) for a, b in zip(found, wanted, strict=True)]))


def edits(a: str, b: str) -> int:
    """Least number of insertions, deletions and replacements that turn one text into the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def preservation(through: Callable[[Images], Images], size: int, channels: int, dark: bool) -> tuple[dict[str, float], Images, str]:
    """Character accuracy after a tokenizer over that before it.

    Args:
        through: images to their reconstructions.
        size: rows and columns of the images.
        channels: 1 or 3.
        dark: whether the data's images are dark, so that the letters are light.

    Returns:
        ``text`` (at most 1), ``text_accuracy`` and ``text_ceiling`` (on the originals), the originals above their reconstructions
        (2, N, H, W, C), and a note why there is no number, else "".
    """
    image, wanted = render(size, channels, dark)
    decoded = through(image)
    both = np.stack([image, decoded])
    if not available():
        return {}, both, f"text is not measured: the OCR program {PROGRAM} is not installed"
    ceiling = accuracy(read(image, dark), wanted)
    if ceiling < READABLE:
        return {}, both, f"text is not measured: at {size} pixels {PROGRAM} reads only {ceiling:.0%} of the characters of the originals"
    found = accuracy(read(decoded, dark), wanted)
    return {"text": min(1.0, found / ceiling), "text_accuracy": found, "text_ceiling": ceiling}, both, ""
